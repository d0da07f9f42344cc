//! The block of CRAD, a MobileNetV3 bottleneck of constant width C and expansion E (Howard et al. 2019):
//!
//! ```text
//! t = hswish(BN(conv1x1(x)))            C → E
//! t = BN(depthwise3x3(t))
//! t = hswish(t ⊙ squeeze_excite(t))     the non-linearity comes after the gate
//! y = x + BN(conv1x1(t))                E → C, nothing after the sum
//! ```
//! x, y: `[N, H, W, C]`; no convolution has a bias; the gate squeezes to a quarter of E.
//!
//! It is trained as one op, which moves little more than half of the bytes and keeps fewer of them for backward.

use super::norm::EPS;
use super::{Builder, Context, Id, Init, Mode, Norm, Pointwise, Role, WEIGHT_STD};
use crate::error::Result;
use crate::ops::{self, DepthwiseConv2d, Kind};
use crate::shape::Shape;
use crate::tensor::Tensor;

/// See the head of this file.
#[derive(Clone, Copy, Debug)]
pub struct MobileBottleneck {
    expand: Pointwise,
    depthwise: Id,
    se_reduce: Id,
    se_expand: Id,
    project: Pointwise,
    norm: [Norm; 3],
}

impl MobileBottleneck {
    /// `NAME.expand`, `.depthwise`, `.se_reduce`, `.se_expand`, `.project` and `.bn1` to `.bn3`.
    pub fn new(b: &mut Builder, name: &str, channels: usize, expansion: usize) -> Self {
        let squeeze = (expansion / 4).max(1);
        let mut weight = |key: &str, shape: &[usize]| {
            b.declare(format!("{name}.{key}.weight"), Shape::new(shape), Role::Network, Init::Normal(WEIGHT_STD))
        };
        let depthwise = weight("depthwise", &[3, 3, expansion]);
        let se_reduce = weight("se_reduce", &[expansion, squeeze]);
        let se_expand = weight("se_expand", &[squeeze, expansion]);
        let expand = Pointwise::new(b, &format!("{name}.expand"), channels, expansion);
        let project = Pointwise::new(b, &format!("{name}.project"), expansion, channels);
        let norm = [("bn1", expansion), ("bn2", expansion), ("bn3", channels)];
        let norm = norm.map(|(key, c)| Norm::new(b, &format!("{name}.{key}"), c));
        MobileBottleneck { expand, depthwise, se_reduce, se_expand, project, norm }
    }

    /// `[N, H, W, C]` to the same shape.
    ///
    /// # Errors
    /// When the shapes do not fit.
    pub fn forward(&self, cx: &Context, x: &Tensor) -> Result<Tensor> {
        if let Mode::Train { groups } = cx.mode {
            return self.train_in_one(cx, x, groups);
        }
        let t = self.expand.forward(cx, x)?;
        let t = self.norm[0].forward(cx, &t, Kind::HardSwish, None)?;
        let depthwise = DepthwiseConv2d { stride: 1, pad: [1; 4], act: Kind::Identity };
        let t = cx.tape.apply(depthwise, &[&t, cx.param(self.depthwise)])?;
        let t = self.norm[1].squeeze_excite(cx, &t, self.se_reduce, self.se_expand)?;
        let t = self.project.forward(cx, &t)?;
        self.norm[2].forward(cx, &t, Kind::Identity, Some(x))
    }

    fn train_in_one(&self, cx: &Context, x: &Tensor, groups: usize) -> Result<Tensor> {
        let [[gamma1, beta1], [gamma2, beta2], [gamma3, beta3]] = self.norm.map(|norm| norm.scale_and_shift(cx));
        let [depthwise, v1, v2] = [self.depthwise, self.se_reduce, self.se_expand].map(|id| cx.param(id));
        let [w1, w3] = [&self.expand, &self.project].map(|layer| layer.weight(cx));
        let inputs = [x, w1, gamma1, beta1, depthwise, gamma2, beta2, v1, v2, w3, gamma3, beta3];
        let mut y = cx.tape.apply_all(ops::MobileBottleneck { eps: EPS, groups }, &inputs)?;
        for (norm, statistics) in self.norm.iter().zip(y[4..10].chunks_exact(2)) {
            norm.keep(cx, x, [&statistics[0], &statistics[1]]);
        }
        Ok(y.swap_remove(0))
    }
}
