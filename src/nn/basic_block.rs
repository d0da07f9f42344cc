//! The block of GRAD, a ResNet basic block of constant width (He et al. 2016):
//! `y = relu(BN(conv3x3(relu(BN(conv3x3(x))))) + x)`. x, y: `[N, H, W, C]`; the convolutions have no bias.
//!
//! A device trains it as one op, unless its convolutions by warpgroups (`kernels/hopper/`) were measured to be faster there:
//! it is bound by its products, not by bytes. The CPU runs the ops one by one, as in `mobile_bottleneck.rs`.

use super::norm::EPS;
use super::{Builder, Context, Id, Init, Mode, Norm, Role, WEIGHT_STD};
use crate::error::Result;
use crate::ops::{self, Conv2d, Kind};
use crate::tensor::Tensor;

/// See the head of this file.
#[derive(Clone, Copy, Debug)]
pub struct BasicBlock {
    conv: [Id; 2],
    norm: [Norm; 2],
}

impl BasicBlock {
    /// `NAME.conv1`, `NAME.bn1`, `NAME.conv2`, `NAME.bn2`.
    pub fn new(b: &mut Builder, name: &str, channels: usize) -> Self {
        let shape = [3, 3, channels, channels];
        let mut weight =
            |key| b.declare(format!("{name}.{key}.weight"), shape, Role::Network, Init::Normal(WEIGHT_STD));
        let conv = ["conv1", "conv2"].map(&mut weight);
        BasicBlock { conv, norm: ["bn1", "bn2"].map(|key| Norm::new(b, &format!("{name}.{key}"), channels)) }
    }

    /// `[N, H, W, C]` to the same shape, never negative.
    ///
    /// # Errors
    /// When the shapes do not fit.
    pub fn forward(&self, cx: &Context, x: &Tensor) -> Result<Tensor> {
        if let (Mode::Train { groups }, Some(gpu)) = (cx.mode, x.gpu())
            && !gpu.takes("conv2d_wgmma_forward", [x.shape().rows(), x.shape().channels(), x.shape().channels(), 9])
        {
            return self.train_in_one(cx, x, groups);
        }
        let conv = Conv2d { stride: 1, pad: [1; 4], act: Kind::Identity };
        let t = cx.tape.apply(conv.clone(), &[x, cx.param(self.conv[0])])?;
        let t = self.norm[0].forward(cx, &t, Kind::Relu, None)?;
        let t = cx.tape.apply(conv, &[&t, cx.param(self.conv[1])])?;
        self.norm[1].forward(cx, &t, Kind::Relu, Some(x))
    }

    fn train_in_one(&self, cx: &Context, x: &Tensor, groups: usize) -> Result<Tensor> {
        let [[gamma1, beta1], [gamma2, beta2]] = self.norm.map(|norm| norm.scale_and_shift(cx));
        let [w1, w2] = self.conv.map(|id| cx.param(id));
        let inputs = [x, w1, gamma1, beta1, w2, gamma2, beta2];
        let mut y = cx.tape.apply_all(ops::BasicBlock { eps: EPS, groups }, &inputs)?;
        for (norm, statistics) in self.norm.iter().zip(y[3..].chunks_exact(2)) {
            norm.keep(cx, x, [&statistics[0], &statistics[1]]);
        }
        Ok(y.swap_remove(0))
    }
}
