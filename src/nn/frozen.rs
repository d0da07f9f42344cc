//! Layers whose weights do not change: those of a backbone, and of a trained head with its BatchNorm folded in.
//!
//! ```text
//! convolution   y = act(x ∗ w + b [+ r])                        1x1, dense or depthwise
//! gate          y = act(x ⊙ g),  g = b(a(mean(x) · w1 + b1) · w2 + b2)     mean over the positions of an image
//! ```
//! In host memory they are the ops of the same formulas. On a device the weights of matrix products are rounded and laid
//! out once, which the ops, whose weights may be other ones next time, do at every call; and what a gate holds of an image
//! stays f32.

use crate::device::Device;
use crate::device::cuda::{DeviceVec, Gpu, Grid, Real, Slice, launch};
use crate::error::Result;
use crate::ops::{Activation, Add, ChannelScale, Conv2d, DepthwiseConv2d, GlobalAvgPool, Kind, LaidOut, PointwiseConv};
use crate::storage::Storage;
use crate::tape::Tape;
use crate::tensor::Tensor;

/// A convolution ready to run.
pub(crate) struct Frozen {
    /// `[KH, KW, I, O]`, `[I, O]` or `[KH, KW, C]`; f32 in every precision.
    pub weight: Tensor,
    /// `[O]`.
    pub bias: Tensor,
    laid_out: Option<LaidOut>,
}

impl Frozen {
    /// In host memory.
    pub fn new(weight: Tensor, bias: Tensor) -> Self {
        Frozen { weight, bias, laid_out: None }
    }

    /// A copy on another device.
    ///
    /// # Errors
    /// What a device refuses.
    pub fn to(&self, device: &Device) -> Result<Self> {
        let copy = |t: &Tensor| {
            let host = t.to_host()?;
            device.gpu().map_or(Ok(host.clone()), |gpu| host.to_gpu(gpu, true))
        };
        let (weight, bias) = (copy(&self.weight)?, copy(&self.bias)?);
        let laid_out = match weight.shape().len() {
            2 => PointwiseConv::lay_out(&weight)?,
            4 => Conv2d::lay_out(&weight)?,
            _ => None,
        };
        Ok(Frozen { weight, bias, laid_out })
    }

    /// As a 1x1 convolution of x `[.., I]`, or as a linear layer; `residual` is of the shape of the result.
    ///
    /// # Errors
    /// As the op.
    pub fn pointwise(&self, x: &Tensor, act: Kind, residual: Option<&Tensor>) -> Result<Tensor> {
        let inputs = [x, &self.weight, &self.bias];
        if let (Some(gpu), Some(laid_out)) = (x.gpu(), &self.laid_out) {
            return PointwiseConv { act }.frozen(gpu, inputs, laid_out, residual);
        }
        match residual {
            None => Tape::off().apply(PointwiseConv { act }, &inputs),
            Some(r) => finish(Tape::off().apply(PointwiseConv { act: Kind::Identity }, &inputs)?, r, act),
        }
    }

    /// As a dense convolution of x `[N, H, W, I]`; `residual` is of the shape of the result.
    ///
    /// # Errors
    /// As the op.
    pub fn conv2d(&self, x: &Tensor, op: Conv2d, residual: Option<&Tensor>) -> Result<Tensor> {
        let (inputs, act) = ([x, &self.weight, &self.bias], op.act);
        if let (Some(gpu), Some(laid_out)) = (x.gpu(), &self.laid_out) {
            return op.frozen(gpu, inputs, laid_out, residual);
        }
        match residual {
            None => Tape::off().apply(op, &inputs),
            Some(r) => finish(Tape::off().apply(Conv2d { act: Kind::Identity, ..op }, &inputs)?, r, act),
        }
    }

    /// As a depthwise convolution of x `[N, H, W, C]`.
    ///
    /// # Errors
    /// As the op.
    pub fn depthwise(&self, x: &Tensor, op: DepthwiseConv2d) -> Result<Tensor> {
        Tape::off().apply(op, &[x, &self.weight, &self.bias])
    }
}

/// `act(y + residual)` by the ops.
fn finish(y: Tensor, residual: &Tensor, act: Kind) -> Result<Tensor> {
    let tape = Tape::off();
    let sum = tape.apply(Add {}, &[&y, residual])?;
    if act == Kind::Identity { Ok(sum) } else { tape.apply(Activation { kind: act }, &[&sum]) }
}

/// A squeeze-excite gate and the activation after it.
pub(crate) struct FrozenGate {
    /// `[C, S]` and `[S, C]`, each with its bias and its activation.
    pub layers: [(Frozen, Kind); 2],
    /// After the product with the gate.
    pub act: Kind,
}

impl FrozenGate {
    /// A copy on another device.
    ///
    /// # Errors
    /// What a device refuses.
    pub fn to(&self, device: &Device) -> Result<Self> {
        let [(w1, a), (w2, b)] = &self.layers;
        Ok(FrozenGate { layers: [(w1.to(device)?, *a), (w2.to(device)?, *b)], act: self.act })
    }

    /// x `[N, H, W, C]` to the same shape.
    ///
    /// # Errors
    /// As the ops.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let [(w1, a), (w2, b)] = &self.layers;
        if let Some(gpu) = x.gpu() {
            return self.on_device(gpu, x);
        }
        let tape = Tape::off();
        let mean = tape.apply(GlobalAvgPool {}, &[x])?;
        let gate = w2.pointwise(&w1.pointwise(&mean, *a, None)?, *b, None)?;
        let y = tape.apply(ChannelScale {}, &[x, &gate])?;
        if self.act == Kind::Identity { Ok(y) } else { tape.apply(Activation { kind: self.act }, &[&y]) }
    }

    fn on_device(&self, gpu: &Gpu, x: &Tensor) -> Result<Tensor> {
        let (shape, values) = (x.shape(), x.values().reals());
        let (n, c) = (shape[0], shape.channels());
        let positions = shape.rows() / n.max(1);
        let mut means = gpu.scratch(n * c)?;
        launch::frozen_gate_mean(gpu, Grid::blocks(n * c.div_ceil(16)), values, &mut means.slice_mut(), positions, c)?;
        let mut row = means;
        for (layer, act) in &self.layers {
            row = Self::product(gpu, n, row.slice(), layer, *act)?;
        }
        let mut y: DeviceVec<Real> = gpu.scratch(shape.numel())?;
        let grid = Grid::threads(if c.is_multiple_of(4) { shape.numel() / 4 } else { shape.numel() });
        let (act, total) = (self.act as usize, shape.numel());
        launch::frozen_gate_apply(gpu, grid, values, row.slice(), &mut y.slice_mut(), act, positions, c, total)?;
        Ok(Tensor::stored(shape, Storage::Reals(y)))
    }

    /// `act(x · w + b)` for the rows x of `n` images.
    fn product(gpu: &Gpu, n: usize, x: Slice<f32>, layer: &Frozen, act: Kind) -> Result<DeviceVec<f32>> {
        let (inner, columns) = (layer.weight.shape()[0], layer.weight.shape()[1]);
        let (w, bias) = (layer.weight.values().floats(), layer.bias.values().floats());
        let mut y = gpu.scratch(n * columns)?;
        let grid = Grid::blocks2(columns.div_ceil(32), n.div_ceil(4));
        launch::frozen_gate_product(gpu, grid, x, w, bias, &mut y.slice_mut(), act as usize, n, inner, columns)?;
        Ok(y)
    }
}
