//! A pointwise convolution, or a linear layer: `act(x · weight [+ bias])`. x: `[.., from]`, y: `[.., to]`.

use super::{Builder, Context, Id, Init, Role, WEIGHT_STD};
use crate::error::Result;
use crate::op::list;
use crate::ops::{Kind, PointwiseConv};
use crate::tensor::Tensor;

/// See the head of this file.
#[derive(Clone, Copy, Debug)]
pub struct Pointwise {
    weight: Id,
    bias: Option<Id>,
    act: Kind,
}

impl Pointwise {
    /// `NAME.weight [from, to]`, no bias, no activation.
    pub fn new(b: &mut Builder, name: &str, from: usize, to: usize) -> Self {
        let weight = b.declare(format!("{name}.weight"), [from, to], Role::Network, Init::Normal(WEIGHT_STD));
        Pointwise { weight, bias: None, act: Kind::Identity }
    }

    /// `NAME.weight [from, to]` and `NAME.bias [to]`, then `act`.
    pub fn with_bias(b: &mut Builder, name: &str, from: usize, to: usize, act: Kind) -> Self {
        let layer = Self::new(b, name, from, to);
        let bias = b.declare(format!("{name}.bias"), [to], Role::Network, Init::Constant(0.0));
        Pointwise { bias: Some(bias), act, ..layer }
    }

    /// `[from, to]`.
    pub(super) fn weight<'c>(&self, cx: &'c Context) -> &'c Tensor {
        cx.param(self.weight)
    }

    /// x: `[.., from]` to `[.., to]`.
    ///
    /// # Errors
    /// When x does not end in `from` channels.
    pub fn forward(&self, cx: &Context, x: &Tensor) -> Result<Tensor> {
        let mut inputs = list([x, cx.param(self.weight)]);
        inputs.extend(self.bias.map(|b| cx.param(b)));
        cx.tape.apply(PointwiseConv { act: self.act }, &inputs)
    }
}
