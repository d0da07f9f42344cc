//! 1x1 convolution, bias and activation: `y = act(x · w + bias)`.
//!
//! x: `[.., A]`, w: `[A, B]`, bias: `[B]` (optional), y: `[.., B]`. PyTorch: `conv2d` with a 1x1 kernel, or `linear`.
//! Channels last makes it one matrix product over all positions.
//!
//! `dz = dy · act'(z)`, `dx = dz · wᵀ`, `dw = xᵀ · dz`, `dbias = Σ dz`. With an activation, z is computed again: such
//! layers are the frozen backbone, which is never differentiated, and the small coordinate networks.

use std::ops::Deref;

use serde::{Deserialize, Serialize};

use super::activation::{Kind, activation_backward, bias_and_activation};
use crate::buffer::Buffer;
use crate::device::cpu::{self, Matrix};
use crate::device::cuda::{
    DeviceVec, Gpu, GpuArg, GpuOut, Grid, Real as Stored, Slabs, Slice, SliceMut, Tiling, Two, Values, launch,
    sum_in_slabs, wgmma,
};
use crate::error::Result;
use crate::op::{Arg, Case, List, Op, expect_inputs, expect_shape, list, refuse};
use crate::real::Real;
use crate::shape::Shape;
use crate::storage::Storage;
use crate::tensor::Tensor;

/// See the head of this file.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PointwiseConv {
    /// Last step.
    pub act: Kind,
}

impl PointwiseConv {
    /// `x · w + bias`.
    fn linear<T: Real>(x: &[Arg<T>], y: &mut [T]) {
        let (a, b) = (x[1].shape[0], x[1].shape[1]);
        for (x_row, y) in x[0].data.chunks_exact(a).zip(y.chunks_exact_mut(b)) {
            for (k, y) in y.iter_mut().enumerate() {
                let bias = x.get(2).map_or(T::zero(), |bias| bias.data[k]);
                *y = x_row.iter().enumerate().map(|(i, &v)| v * x[1].data[i * b + k]).sum::<T>() + bias;
            }
        }
    }
}

impl PointwiseConv {
    /// `y = act(x · w + bias)`, or with dy: `y = dy · act'(x · w + bias)`.
    fn apply(&self, gpu: &Gpu, x: &[GpuArg], dy: Option<Slice<Stored>>, y: &mut SliceMut<Stored>) -> Result<()> {
        let (a, b) = (x[1].shape[0], x[1].shape[1]);
        let (m, bias) = (y.len() / b, x.get(2).map(|bias| bias.data.floats()));
        let (x, w) = (x[0].data.reals(), x[1].data.floats());
        if b <= NARROW {
            let grid = Grid::blocks(m.div_ceil(32));
            return launch::pointwise_conv_narrow_forward(gpu, grid, x, w, bias, dy, y, m, a, b, self.act as usize);
        }
        if let Some(product) = wgmma::Product::of_lines(gpu, [m, b, a], &[x, dy.unwrap_or(x), y.as_slice()]) {
            let w = LaidOut::transposed(gpu, w, [1, a, b])?;
            return product.forward(gpu, x, w.values.slice(), w.pitch, bias, None, dy, y, self.act as usize);
        }
        product(gpu, x, &LaidOut::new(gpu, w, [a, b])?, bias, None, dy, y, [m, b, a], self.act)
    }

    /// Weights w that will not change, laid out for [`Self::frozen`]; nothing where the kernels read them as they are.
    pub(crate) fn lay_out(w: &Tensor) -> Result<Option<FrozenWeights>> {
        let (a, b) = (w.shape()[0], w.shape()[1]);
        let Some(gpu) = w.gpu().filter(|_| b > NARROW) else { return Ok(None) };
        FrozenWeights::new(gpu, w.values().floats(), [1, a, b], wgmma::LINES_FORWARD).map(Some)
    }

    /// The op on a device, with inputs x and bias and with w, of this shape, laid out before; a residual is added before the
    /// activation.
    pub(crate) fn frozen(
        &self,
        gpu: &Gpu,
        [x, bias]: [&Tensor; 2],
        w: Shape,
        laid_out: &FrozenWeights,
        residual: Option<&Tensor>,
    ) -> Result<Tensor> {
        let shape = self.infer(&[x.shape(), w, bias.shape()])?[0];
        let (a, b) = (w[0], w[1]);
        let (m, mut y) = (shape.numel() / b, gpu.scratch(shape.numel())?);
        let (x, bias) = (x.values().reals(), Some(bias.values().floats()));
        let (residual, mut to) = (residual_of::<Self>(residual, shape)?, y.slice_mut());
        let arrays = [x, residual.unwrap_or(x), to.as_slice()];
        if let Some(w) = &laid_out.transposed
            && let Some(product) = wgmma::Product::of_lines(gpu, [m, b, a], &arrays)
        {
            product.forward(gpu, x, w.values.slice(), w.pitch, bias, residual, None, &mut to, self.act as usize)?;
        } else {
            product(gpu, x, &laid_out.lines, bias, residual, None, &mut to, [m, b, a], self.act)?;
        }
        Ok(Tensor::stored(shape, Storage::Reals(y)))
    }
}

impl Op for PointwiseConv {
    const NAME: &'static str = "pointwise_conv";

    fn infer(&self, x: &[Shape]) -> Result<List<Shape>> {
        expect_inputs::<Self>(x, &[2, 3])?;
        if x[0].len() < 2 || x[0].channels() == 0 || x[1].numel() == 0 {
            return refuse::<Self, _>(format!(
                "x must be [.., A] and w [A, B], neither empty, got {} and {}",
                x[0], x[1]
            ));
        }
        let b = x[1].channels();
        expect_shape::<Self>("w", x[1], [x[0].channels(), b])?;
        if let Some(bias) = x.get(2) {
            expect_shape::<Self>("bias", *bias, [b])?;
        }
        Ok(list([x[0].with_channels(b)]))
    }

    fn differentiable(&self, _: usize) -> bool {
        true
    }

    fn reads_input(&self, i: usize) -> bool {
        i < 2 || self.act != Kind::Identity
    }

    fn reads_output(&self, _: usize) -> bool {
        false
    }

    fn reference_forward<T: Real>(&self, x: &[Arg<T>], y: &mut [&mut [T]]) {
        Self::linear(x, y[0]);
        y[0].iter_mut().for_each(|y| *y = self.act.value(*y));
    }

    fn reference_backward<T: Real>(&self, x: &[Arg<T>], _: &[&[T]], dy: &[T], dx: &mut [Option<&mut [T]>]) {
        let (a, b) = (x[1].shape[0], x[1].shape[1]);
        let dz = defined_through_activation(self.act, dy, |z| Self::linear(x, z));
        let rows = x[0].data.chunks_exact(a).zip(dz.chunks_exact(b));
        if let Some(dx) = &mut dx[0] {
            for (dx, dz) in dx.chunks_exact_mut(a).zip(dz.chunks_exact(b)) {
                for (dx, w) in dx.iter_mut().zip(x[1].data.chunks_exact(b)) {
                    *dx = w.iter().zip(dz).map(|(&w, &d)| w * d).sum();
                }
            }
        }
        if let Some(dw) = &mut dx[1] {
            dw.fill(T::zero());
            for (x, dz) in rows {
                for (i, dw) in dw.iter_mut().enumerate() {
                    *dw += x[i / b] * dz[i % b];
                }
            }
        }
        if let Some(Some(dbias)) = dx.get_mut(2) {
            dbias.fill(T::zero());
            dz.iter().enumerate().for_each(|(i, &d)| dbias[i % b] += d);
        }
    }

    fn cpu_forward(&self, x: &[Arg<f32>], y: &mut [&mut [f32]]) {
        let (a, b) = (x[1].shape[0], x[1].shape[1]);
        let m = x[0].data.len() / a;
        let bias = x.get(2).map(|b| b.data);
        cpu::gemm(m, b, a, &Matrix::new(x[0].data, m, a), &Matrix::new(x[1].data, a, b), y[0], |_, rows| {
            bias_and_activation(bias, self.act, rows);
        });
    }

    fn cpu_backward(&self, x: &[Arg<f32>], _: &[&[f32]], dy: &[f32], dx: &mut [Option<&mut [f32]>]) {
        let (a, b) = (x[1].shape[0], x[1].shape[1]);
        let m = x[0].data.len() / a;
        let dz = through_activation(self.act, dy, |z| PointwiseConv { act: Kind::Identity }.cpu_forward(x, &mut [z]));
        let (x_matrix, w, dz_matrix) =
            (Matrix::new(x[0].data, m, a), Matrix::new(x[1].data, a, b), Matrix::new(&dz, m, b));
        if let Some(dx) = &mut dx[0] {
            cpu::gemm(m, a, b, &dz_matrix, &w.t(), dx, cpu::no_epilogue);
        }
        if let Some(dw) = &mut dx[1] {
            cpu::gemm(a, b, m, &x_matrix.t(), &dz_matrix, dw, cpu::no_epilogue);
        }
        if let Some(Some(dbias)) = dx.get_mut(2) {
            bias_gradient(&dz, dbias);
        }
    }

    fn input_in_f32(&self, i: usize) -> bool {
        i > 0
    }

    fn output_in_f32(&self, _: usize) -> bool {
        false
    }

    fn cuda_forward(&self, gpu: &Gpu, x: &[GpuArg], y: &mut [GpuOut]) -> Result<()> {
        self.apply(gpu, x, None, &mut y[0].reals())
    }

    fn cuda_backward(
        &self,
        gpu: &Gpu,
        x: &[GpuArg],
        _: &[Values],
        dy: Values,
        dx: &mut [Option<GpuOut>],
    ) -> Result<()> {
        let (a, b) = (x[1].shape[0], x[1].shape[1]);
        let m = dy.len() / b;
        let buffer = dz_on(gpu, self.act, dy.reals(), |dy, dz| self.apply(gpu, x, Some(dy), dz))?;
        let dz = buffer.as_ref().map_or(dy.reals(), DeviceVec::slice);
        if let Some(dx) = &mut dx[0] {
            let (w, dx) = (x[1].data.floats(), &mut dx.reals());
            if b <= NARROW {
                let grid = Grid::threads(if a % 4 == 0 { m * a / 4 } else { m * a });
                launch::pointwise_conv_narrow_input_gradient(gpu, grid, dz, w, dx, m, a, b)?;
            } else if let Some(product) = wgmma::Product::of_lines(gpu, [m, a, b], &[dz, dx.as_slice()]) {
                let w = LaidOut::new(gpu, w, [a, b])?;
                product.forward(gpu, dz, w.values.slice(), w.pitch, None, None, None, dx, Kind::Identity as usize)?;
            } else {
                let w = LaidOut::transposed(gpu, w, [1, a, b])?;
                product(gpu, dz, &w, None, None, None, dx, [m, a, b], Kind::Identity)?;
            }
        }
        if let Some(dw) = &mut dx[1] {
            let x = x[0].data.reals();
            if b <= NARROW {
                let slabs = Slabs::new(gpu, m, a.div_ceil(256), 32);
                slabs.sum(gpu, a * b, &mut dw.floats(), |partial, slab| {
                    let grid = Grid::blocks2(a.div_ceil(256), slabs.count);
                    launch::pointwise_conv_narrow_weight_gradient(gpu, grid, x, dz, partial, m, a, b, slab)
                })?;
            } else {
                weight_gradient(gpu, x, dz, &mut dw.floats(), [m, a, b])?;
            }
        }
        if let Some(Some(dbias)) = dx.get_mut(2) {
            bias_gradient_on(gpu, dz, &mut dbias.floats())?;
        }
        Ok(())
    }

    fn flops(&self, x: &[Shape]) -> u64 {
        2 * (x[0].numel() * x[1].channels()) as u64
    }

    fn cases() -> Vec<Case<Self>> {
        let case = |act, shapes: &[&[usize]]| {
            Case::new(PointwiseConv { act }, &shapes.iter().map(|s| Shape::new(s)).collect::<Vec<_>>())
        };
        vec![
            case(Kind::Identity, &[&[2, 3, 2, 7], &[7, 5]]),
            case(Kind::Tanh, &[&[2, 3, 2, 4], &[4, 6], &[6]]),
            case(Kind::Swish, &[&[3, 5], &[5, 2], &[2]]),
            case(Kind::Identity, &[&[1, 1], &[1, 1], &[1]]),
            case(Kind::HardSwish, &[&[1, 5, 5, 3], &[3, 33]]),
            case(Kind::Swish, &[&[1, 9, 10, 16], &[16, 24], &[24]]),
            case(Kind::Identity, &[&[1, 5, 77, 8], &[8, 57]]),
        ]
    }

    fn bench_cases() -> Vec<Case<Self>> {
        let case =
            |a, b| Case::new(PointwiseConv { act: Kind::Identity }, &[&[16, 28, 28, a][..], &[a, b]].map(Shape::new));
        vec![case(432, 864), case(864, 432), case(432, 216), case(216, 432)]
    }

    fn refused() -> Vec<(Self, Vec<Shape>, &'static str)> {
        let op = PointwiseConv { act: Kind::Identity };
        let x = Shape::from([2, 3, 3, 4]);
        vec![
            (op.clone(), vec![x], "2, 3"),
            (op.clone(), vec![x, [3, 5].into()], "w must be [4, 5]"),
            (op.clone(), vec![x, [4, 5].into(), [4].into()], "bias must be [5]"),
            (op.clone(), vec![[4].into(), [4, 5].into()], "x must be"),
            (op, vec![x, [4, 0].into()], "empty"),
        ]
    }
}

/// What is added to an output of this shape.
pub(super) fn residual_of<O: Op>(residual: Option<&Tensor>, shape: Shape) -> Result<Option<Slice<'_, Stored>>> {
    let Some(residual) = residual else { return Ok(None) };
    expect_shape::<O>("residual", residual.shape(), shape)?;
    Ok(Some(residual.values().reals()))
}

/// `dz = dy · act'(z)` by definition; `forward` computes z.
pub(super) fn defined_through_activation<T: Real>(act: Kind, dy: &[T], forward: impl FnOnce(&mut [T])) -> Vec<T> {
    if act == Kind::Identity {
        return dy.to_vec();
    }
    let mut z = vec![T::nan(); dy.len()];
    forward(&mut z);
    dy.iter().zip(z).map(|(&d, z)| d * act.slope(z)).collect()
}

/// `dz = dy · act'(z)`, fast; without an activation dy itself. `forward` computes z.
pub(super) fn through_activation(act: Kind, dy: &[f32], forward: impl FnOnce(&mut [f32])) -> Gradient<'_> {
    if act == Kind::Identity {
        return Gradient::Given(dy);
    }
    let [mut z, mut dz] = [(); 2].map(|()| Buffer::scratch(dy.len()));
    forward(&mut z);
    activation_backward(act, &z, dy, &mut dz);
    Gradient::Made(dz)
}

/// What [`through_activation`] found.
pub(super) enum Gradient<'a> {
    Given(&'a [f32]),
    Made(Buffer),
}

impl Deref for Gradient<'_> {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        match self {
            Gradient::Given(dy) => dy,
            Gradient::Made(dz) => dz,
        }
    }
}

/// Sum over all positions of each channel of dz.
pub(super) fn bias_gradient(dz: &[f32], dbias: &mut [f32]) {
    let sums = cpu::column_sums(dz, dbias.len());
    dbias.iter_mut().zip(&sums[..]).for_each(|(d, &s)| *d = s as f32);
}

/// Up to so many outputs have kernels of their own, see `kernels/pointwise_conv.cu`.
const NARROW: usize = 8;

/// `y [m, n] = act(x [m, k] · w [k, n] + bias + residual)` by tiles, or with dy as in [`PointwiseConv::apply`].
#[allow(clippy::too_many_arguments)]
pub(super) fn product(
    gpu: &Gpu,
    x: Slice<Stored>,
    w: &LaidOut,
    bias: Option<Slice<f32>>,
    residual: Option<Slice<Stored>>,
    dy: Option<Slice<Stored>>,
    y: &mut SliceMut<Stored>,
    [m, n, k]: [usize; 3],
    act: Kind,
) -> Result<()> {
    let tiling = Tiling::new(gpu, &[k], [m, n], Two::Neither);
    let (grid, w, pitch) = (tiling.grid([m, n], 1, Two::Neither), w.values.slice(), w.pitch);
    let (act, tiling) = (act as usize, tiling as usize);
    launch::pointwise_conv_forward(gpu, grid, x, w, bias, residual, dy, y, m, n, k, pitch, act, tiling)
}

/// `dw [a, b] = xᵀ · dz`, for x `[m, a]` and dz `[m, b]`.
pub(super) fn weight_gradient(
    gpu: &Gpu,
    x: Slice<Stored>,
    dz: Slice<Stored>,
    dw: &mut SliceMut<f32>,
    [m, a, b]: [usize; 3],
) -> Result<()> {
    if let Some(product) = wgmma::Product::gradient_of_lines(gpu, [m, b, a], &[x, dz]) {
        return product.weight_gradient(gpu, x, dz, dw);
    }
    sum_in_slabs(gpu, &[a, b], [a, b], m, Two::Neither, dw, |grid, partial, slab, tiling| {
        launch::pointwise_conv_weight_gradient(gpu, grid, x, dz, partial, m, a, b, slab, tiling)
    })
}

/// Weights as `kernels/gemm.cuh` reads them: rounded to the storage type, lines padded to 16 bytes.
pub(crate) struct LaidOut {
    pub values: DeviceVec<Stored>,
    /// From line to line.
    pub pitch: usize,
}

impl LaidOut {
    /// `w [rows, columns]` as it is.
    pub fn new(gpu: &Gpu, w: Slice<f32>, [rows, columns]: [usize; 2]) -> Result<Self> {
        let pitch = columns.next_multiple_of(8);
        let mut values = gpu.scratch(rows * pitch)?;
        let grid = Grid::threads(rows * pitch);
        launch::pointwise_conv_lay_out_weights(gpu, grid, w, &mut values.slice_mut(), rows, columns, pitch)?;
        Ok(LaidOut { values, pitch })
    }

    /// Each of the matrices `w [matrices, rows, columns]` transposed.
    pub fn transposed(gpu: &Gpu, w: Slice<f32>, [matrices, rows, columns]: [usize; 3]) -> Result<Self> {
        let pitch = rows.next_multiple_of(8);
        let mut values = gpu.scratch(matrices * columns * pitch)?;
        let grid = Grid::blocks2(pitch.div_ceil(32) * columns.div_ceil(32), matrices);
        launch::pointwise_conv_transpose_weights(gpu, grid, w, &mut values.slice_mut(), rows, columns, pitch)?;
        Ok(LaidOut { values, pitch })
    }
}

/// Weights that will not change, laid out once.
pub(crate) struct FrozenWeights {
    /// `[taps a, b]`.
    pub lines: LaidOut,
    /// `[taps, b, a]`, where the kernels of `kernels/hopper/` may be taken.
    pub transposed: Option<LaidOut>,
}

impl FrozenWeights {
    /// Of `w [taps, a, b]`, which `kernel` may read.
    pub fn new(gpu: &Gpu, w: Slice<f32>, [taps, a, b]: [usize; 3], kernel: &str) -> Result<Self> {
        let transposed =
            gpu.takes_some(kernel, [b, a, taps]).then(|| LaidOut::transposed(gpu, w, [taps, a, b])).transpose()?;
        Ok(FrozenWeights { lines: LaidOut::new(gpu, w, [taps * a, b])?, transposed })
    }
}

/// [`through_activation`] on a device; nothing where dz is dy. `gradient(dy, dz)` computes it.
pub(super) fn dz_on(
    gpu: &Gpu,
    act: Kind,
    dy: Slice<Stored>,
    gradient: impl FnOnce(Slice<Stored>, &mut SliceMut<Stored>) -> Result<()>,
) -> Result<Option<DeviceVec<Stored>>> {
    if act == Kind::Identity {
        return Ok(None);
    }
    let mut dz = gpu.scratch(dy.len())?;
    gradient(dy, &mut dz.slice_mut())?;
    Ok(Some(dz))
}

/// [`bias_gradient`] on a device.
pub(super) fn bias_gradient_on(gpu: &Gpu, dz: Slice<Stored>, dbias: &mut SliceMut<f32>) -> Result<()> {
    let b = dbias.len();
    let (m, blocks) = (dz.len() / b, b.div_ceil(16));
    let slabs = Slabs::new(gpu, m, blocks, 256);
    slabs.sum(gpu, b, dbias, |partial, slab| {
        launch::pointwise_conv_bias_gradient(gpu, Grid::blocks2(blocks, slabs.count), dz, partial, m, b, slab)
    })
}
