//! Layers whose weights do not change: those of a backbone, and of a trained head with its BatchNorm folded in.
//!
//! ```text
//! convolution   y = act(x ∗ w + b [+ r])                        1x1, dense or depthwise
//! gate          y = act(x ⊙ g),  g = b(a(mean(x) · w1 + b1) · w2 + b2)     mean over the positions of an image
//! ```
//! In host memory they are the ops of the same formulas. On a device the weights of matrix products are rounded and laid
//! out once, which the ops, whose weights may be other ones next time, do at every call, and lie there in no other form; and
//! what a gate holds of an image stays f32.

use std::sync::Arc;

use crate::device::Device;
use crate::device::cuda::{DeviceVec, Gpu, Grid, Real, Slice, launch};
use crate::error::{Error, Result};
use crate::ops::{
    Activation, Add, ChannelScale, Conv2d, DepthwiseConv2d, FrozenWeights, GlobalAvgPool, Kind, PointwiseConv,
};
use crate::shape::Shape;
use crate::storage::Storage;
use crate::tape::Tape;
use crate::tensor::Tensor;

/// A convolution ready to run.
pub(crate) struct Frozen {
    weight: Weight,
    /// `[O]`.
    bias: Tensor,
}

/// `[KH, KW, I, O]`, `[I, O]` or `[KH, KW, C]`.
enum Weight {
    /// f32 in every precision.
    AsIs(Tensor),
    /// Of this shape, as matrix products on a device read them.
    LaidOut(Shape, Arc<FrozenWeights>),
}

impl Frozen {
    /// In host memory.
    pub fn new(weight: Tensor, bias: Tensor) -> Self {
        Frozen { weight: Weight::AsIs(weight), bias }
    }

    /// A copy on another device, for convolutions.
    ///
    /// # Errors
    /// [`Error::Config`] when the weights are laid out for a device already; what a device refuses.
    pub fn to(&self, device: &Device) -> Result<Self> {
        let copy = self.as_is_on(device)?;
        let Weight::AsIs(weight) = &copy.weight else { return Ok(copy) };
        let laid_out = match weight.shape().len() {
            2 => PointwiseConv::lay_out(weight)?,
            4 => Conv2d::lay_out(weight)?,
            _ => None,
        };
        let Some(laid_out) = laid_out else { return Ok(copy) };
        Ok(Frozen { weight: Weight::LaidOut(weight.shape(), Arc::new(laid_out)), bias: copy.bias })
    }

    /// The same with weights as they are.
    fn as_is_on(&self, device: &Device) -> Result<Self> {
        let copy = |t: &Tensor| {
            let host = t.to_host()?;
            device.gpu().map_or(Ok(host.clone()), |gpu| host.to_gpu(gpu, true))
        };
        let weight = match &self.weight {
            Weight::AsIs(weight) => Weight::AsIs(copy(weight)?),
            Weight::LaidOut(shape, laid_out) if device.gpu().is_some_and(|gpu| gpu.is(laid_out.lines.values.gpu())) => {
                Weight::LaidOut(*shape, laid_out.clone())
            }
            Weight::LaidOut(..) => {
                let what = "a network whose weights are laid out for a device cannot be moved to another";
                return Err(Error::config(what, "take it to each device from host memory"));
            }
        };
        Ok(Frozen { weight, bias: copy(&self.bias)? })
    }

    /// The device it lies on.
    pub fn gpu(&self) -> Option<&Gpu> {
        self.bias.gpu()
    }

    /// Weights and bias.
    ///
    /// # Panics
    /// If they lie on a device.
    pub fn parts(&self) -> [&[f32]; 2] {
        [self.as_is().data(), self.bias.data()]
    }

    /// The weights as an op reads them.
    fn as_is(&self) -> &Tensor {
        match &self.weight {
            Weight::AsIs(weight) => weight,
            Weight::LaidOut(shape, _) => panic!("weights {shape} are laid out for matrix products"),
        }
    }

    /// As a 1x1 convolution of x `[.., I]`, or as a linear layer; `residual` is of the shape of the result.
    ///
    /// # Errors
    /// As the op.
    pub fn pointwise(&self, x: &Tensor, act: Kind, residual: Option<&Tensor>) -> Result<Tensor> {
        if let (Some(gpu), Weight::LaidOut(shape, laid_out)) = (x.gpu(), &self.weight) {
            return PointwiseConv { act }.frozen(gpu, [x, &self.bias], *shape, laid_out, residual);
        }
        let inputs = [x, self.as_is(), &self.bias];
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
        if let (Some(gpu), Weight::LaidOut(shape, laid_out)) = (x.gpu(), &self.weight) {
            return op.frozen(gpu, [x, &self.bias], *shape, laid_out, residual);
        }
        let (inputs, act) = ([x, self.as_is(), &self.bias], op.act);
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
        Tape::off().apply(op, &[x, self.as_is(), &self.bias])
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
        // Its kernels read the weights as they are.
        Ok(FrozenGate { layers: [(w1.as_is_on(device)?, *a), (w2.as_is_on(device)?, *b)], act: self.act })
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
        let (weight, bias) = (layer.as_is(), layer.bias.values().floats());
        let (w, inner, columns) = (weight.values().floats(), weight.shape()[0], weight.shape()[1]);
        let mut y = gpu.scratch(n * columns)?;
        let grid = Grid::blocks2(columns.div_ceil(32), n.div_ceil(4));
        launch::frozen_gate_product(gpu, grid, x, w, bias, &mut y.slice_mut(), act as usize, n, inner, columns)?;
        Ok(y)
    }
}
