//! `batch_norm` and `batch_norm_squeeze_excite` on a device: the order of the launches, and what each is given.
//!
//! ```text
//! forward:  moments (slabs) -> statistics [-> pool -> hidden -> logit] -> apply
//! backward: [pooled -> hidden -> logit ->] gradient sums (slabs) [-> dlogit -> dhidden -> dpooled, dv1, dv2]
//!           -> gradient statistics -> dx
//! ```
//! In brackets what the gate adds. The kernels are in `kernels/batch_norm*.cu`; only moments, apply, gradient sums and dx
//! touch a whole tensor.

use super::Kind;
use crate::device::cuda::{DeviceVec, Gpu, GpuOut, Grid, Real, Slice, SliceMut, launch};
use crate::error::Result;
use crate::shape::Shape;

/// Most positions of a slab: few enough for f32 sums within a thread, and for blocks to fill a device.
const SLAB: usize = 128;
/// Threads of a warp, as in `kernels/common.cuh`.
const WARP: usize = 32;
/// Rows, and columns of a transposed product, that a block of the gate's products makes.
const PRODUCT_ROWS: usize = 4;
const TRANSPOSED_COLUMNS: usize = 8;

/// A tensor `[N, P, C]` and its ghost groups.
#[derive(Clone, Copy)]
pub(super) struct Cut {
    images: usize,
    positions: usize,
    channels: usize,
    groups: usize,
    /// Pieces of an image that have sums of their own, at most; see `Pieces` in `kernels/parts.cuh`.
    pub slabs: usize,
    unit: usize,
    run: usize,
}

impl Cut {
    /// Nearly equal slabs of every image.
    pub fn new(x: Shape, groups: usize) -> Self {
        let (images, h, w, channels) = x.nhwc().expect("checked by infer");
        Cut { images, positions: h * w, channels, groups, slabs: (h * w).div_ceil(SLAB), unit: 1, run: 0 }
    }

    /// Slabs of up to so many whole rows of a picture.
    pub fn rows(x: Shape, groups: usize, rows: usize) -> Self {
        let (_, h, w, _) = x.nhwc().expect("checked by infer");
        Cut { slabs: h.div_ceil(rows), unit: w, ..Cut::new(x, groups) }
    }

    /// The images on end, cut every `run` positions, as the rows of a product are by its tiles.
    pub fn runs(x: Shape, groups: usize, run: usize) -> Self {
        let cut = Cut::new(x, groups);
        Cut { slabs: (cut.positions + run - 2) / run + 1, run, ..cut }
    }

    /// A block per tile of channels, slab and image.
    fn slabs_grid(&self) -> Grid {
        let width = if self.channels.is_multiple_of(4) { 4 } else { 1 };
        Grid::blocks3(self.channels.div_ceil(width * WARP), self.slabs, self.images)
    }

    /// Room for two sums per slab and channel.
    pub fn partial(&self, gpu: &Gpu) -> Result<DeviceVec<f64>> {
        gpu.scratch(self.images * self.slabs * 2 * self.channels)
    }

    /// Mean and squared deviations of every slab.
    pub fn moments(&self, gpu: &Gpu, x: Slice<Real>) -> Result<DeviceVec<f64>> {
        let mut partial = self.partial(gpu)?;
        launch::batch_norm_moments(gpu, self.slabs_grid(), x, &mut partial.slice_mut(), self.positions, self.channels)?;
        Ok(partial)
    }

    /// Mean and biased variance `[G, C]` from [`Self::moments`].
    pub fn statistics(&self, gpu: &Gpu, moments: &DeviceVec<f64>, mean: &mut GpuOut, var: &mut GpuOut) -> Result<()> {
        launch::batch_norm_statistics(
            gpu,
            Grid::blocks2(self.channels.div_ceil(WARP), self.groups),
            moments.slice(),
            &mut mean.floats(),
            &mut var.floats(),
            self.images,
            self.slabs,
            self.positions,
            self.unit,
            self.run,
            self.channels,
        )
    }
}

/// What every pass over x is given.
#[derive(Clone, Copy)]
pub(super) struct Norm<'a> {
    pub cut: Cut,
    pub eps: f64,
    pub act: Kind,
    pub gamma: Slice<'a, f32>,
    pub beta: Slice<'a, f32>,
    pub mean: Slice<'a, f32>,
    pub var: Slice<'a, f32>,
    /// Where there is a gate, what its hard sigmoid is taken of, `[N, C]`.
    pub logit: Option<Slice<'a, f32>>,
    /// Where it is added and read.
    pub residual: Option<Slice<'a, Real>>,
}

/// What the gate adds to the statistics of the gradients, each `[N, C]`.
#[derive(Clone, Copy)]
pub(super) struct GateGradient<'a> {
    pub dpooled: Slice<'a, f32>,
    pub deviation: Slice<'a, f32>,
}

impl<'a> Norm<'a> {
    /// The same passes with this gate.
    pub fn with_gate(self, gate: &'a CudaGate) -> Self {
        Norm { logit: Some(gate.logit.slice()), ..self }
    }

    /// Rows of the tables below: one per image where there is a gate, else one per ghost group.
    fn tables(&self) -> usize {
        if self.logit.is_some() { self.cut.images } else { self.cut.groups }
    }

    /// a and b of `z = a x + b` `[T, 2, C]`, for kernels that normalise what they read.
    pub fn coefficients(&self, gpu: &Gpu) -> Result<DeviceVec<f32>> {
        let (cut, values) = (&self.cut, self.tables() * self.cut.channels);
        let mut table = gpu.scratch(2 * values)?;
        launch::batch_norm_coefficients(
            gpu,
            Grid::threads(values),
            self.gamma,
            self.beta,
            self.mean,
            self.var,
            self.logit,
            &mut table.slice_mut(),
            self.eps,
            cut.images,
            cut.groups,
            cut.channels,
        )?;
        Ok(table)
    }

    /// a, e and f of `dx = a dz + e x + f` `[T, 3, C]`, from what [`Self::gradient_statistics`] returned.
    pub fn gradient_coefficients(
        &self,
        gpu: &Gpu,
        gate: Option<GateGradient>,
        through: &DeviceVec<f32>,
    ) -> Result<DeviceVec<f32>> {
        let (cut, values) = (&self.cut, self.tables() * self.cut.channels);
        let mut table = gpu.scratch(3 * values)?;
        launch::batch_norm_gradient_coefficients(
            gpu,
            Grid::threads(values),
            self.gamma,
            self.mean,
            self.var,
            self.logit,
            gate.map(|g| g.dpooled),
            through.slice(),
            &mut table.slice_mut(),
            self.eps,
            cut.images,
            cut.groups,
            cut.positions,
            cut.channels,
        )?;
        Ok(table)
    }

    /// y, in one pass.
    pub fn apply(&self, gpu: &Gpu, x: Slice<Real>, y: &mut GpuOut) -> Result<()> {
        let cut = &self.cut;
        launch::batch_norm_apply(
            gpu,
            cut.slabs_grid(),
            x,
            self.gamma,
            self.beta,
            self.mean,
            self.var,
            self.logit,
            self.residual,
            &mut y.reals(),
            self.eps,
            self.act as usize,
            cut.groups,
            cut.positions,
            cut.channels,
        )
    }

    /// Sums of dz and of dz (x - mean) over every slab.
    pub fn gradient_sums(&self, gpu: &Gpu, x: Slice<Real>, dy: Slice<Real>) -> Result<DeviceVec<f64>> {
        let cut = &self.cut;
        let mut partial = cut.partial(gpu)?;
        launch::batch_norm_gradient_sums(
            gpu,
            cut.slabs_grid(),
            x,
            dy,
            self.gamma,
            self.beta,
            self.mean,
            self.var,
            self.logit,
            self.residual,
            &mut partial.slice_mut(),
            self.eps,
            self.act as usize,
            cut.groups,
            cut.positions,
            cut.channels,
        )?;
        Ok(partial)
    }

    /// dgamma and dbeta from [`Self::gradient_sums`]; returns what flows back through mean and variance, `[G, 2, C]`.
    pub fn gradient_statistics(
        &self,
        gpu: &Gpu,
        sums: &DeviceVec<f64>,
        gate: Option<GateGradient>,
        dgamma: Option<&mut GpuOut>,
        dbeta: Option<&mut GpuOut>,
    ) -> Result<DeviceVec<f32>> {
        let cut = &self.cut;
        let mut through = gpu.scratch(cut.groups * 2 * cut.channels)?;
        launch::batch_norm_gradient_statistics(
            gpu,
            Grid::blocks(cut.channels.div_ceil(WARP)),
            sums.slice(),
            self.gamma,
            self.var,
            self.logit,
            gate.map(|g| g.dpooled),
            gate.map(|g| g.deviation),
            dgamma.map(|d| d.floats()).as_mut(),
            dbeta.map(|d| d.floats()).as_mut(),
            &mut through.slice_mut(),
            self.eps,
            cut.images,
            cut.groups,
            cut.slabs,
            cut.positions,
            cut.run,
            cut.channels,
        )?;
        Ok(through)
    }

    /// dx and the gradient of the residual; `through` is absent where mean and variance are constants.
    #[expect(clippy::too_many_arguments)]
    pub fn gradient_x(
        &self,
        gpu: &Gpu,
        x: Slice<Real>,
        dy: Slice<Real>,
        gate: Option<GateGradient>,
        through: Option<&DeviceVec<f32>>,
        mut dx: Option<SliceMut<Real>>,
        mut dresidual: Option<SliceMut<Real>>,
    ) -> Result<()> {
        let cut = &self.cut;
        launch::batch_norm_gradient_x(
            gpu,
            cut.slabs_grid(),
            x,
            dy,
            self.gamma,
            self.beta,
            self.mean,
            self.var,
            self.logit,
            gate.map(|g| g.dpooled),
            self.residual,
            through.map(DeviceVec::slice),
            dx.as_mut(),
            dresidual.as_mut(),
            self.eps,
            self.act as usize,
            cut.groups,
            cut.positions,
            cut.channels,
        )
    }
}

/// The squeeze-excite gate of a batch: `hidden = relu(pooled v1)`, `logit = hidden v2`.
pub(super) struct CudaGate<'a> {
    v1: Slice<'a, f32>,
    v2: Slice<'a, f32>,
    pooled: DeviceVec<f32>,
    hidden: DeviceVec<f32>,
    logit: DeviceVec<f32>,
}

impl<'a> CudaGate<'a> {
    /// The mean of t over each image from [`Cut::moments`], and `deviation`, from which backward makes it again.
    pub fn pool(norm: &Norm, gpu: &Gpu, moments: &DeviceVec<f64>, deviation: &mut GpuOut) -> Result<DeviceVec<f32>> {
        let (cut, n) = (&norm.cut, deviation.len());
        let mut pooled = gpu.scratch(n)?;
        launch::squeeze_excite_pool(
            gpu,
            Grid::threads(n),
            moments.slice(),
            norm.gamma,
            norm.beta,
            norm.mean,
            norm.var,
            &mut deviation.floats(),
            &mut pooled.slice_mut(),
            norm.eps,
            cut.images,
            cut.groups,
            cut.slabs,
            cut.positions,
            cut.unit,
            cut.run,
            cut.channels,
        )?;
        Ok(pooled)
    }

    /// The same mean in the backward pass.
    pub fn pooled(norm: &Norm, gpu: &Gpu, deviation: Slice<f32>) -> Result<DeviceVec<f32>> {
        let cut = &norm.cut;
        let mut pooled = gpu.scratch(deviation.len())?;
        launch::squeeze_excite_pooled(
            gpu,
            Grid::threads(deviation.len()),
            deviation,
            norm.gamma,
            norm.beta,
            norm.var,
            &mut pooled.slice_mut(),
            norm.eps,
            cut.images,
            cut.groups,
            cut.channels,
        )?;
        Ok(pooled)
    }

    /// From the pooled means.
    pub fn new(norm: &Norm, gpu: &Gpu, pooled: DeviceVec<f32>, v1: Slice<'a, f32>, v2: Slice<'a, f32>) -> Result<Self> {
        let hidden = product(gpu, norm.cut.images, &pooled, v1, true)?;
        let logit = product(gpu, norm.cut.images, &hidden, v2, false)?;
        Ok(CudaGate { v1, v2, pooled, hidden, logit })
    }

    /// dv1 and dv2 from the sums of du and du (x - mean) over every slab; returns the gradient of the pooled means.
    pub fn backward(
        &self,
        norm: &Norm,
        gpu: &Gpu,
        sums: &DeviceVec<f64>,
        dv1: Option<&mut GpuOut>,
        dv2: Option<&mut GpuOut>,
    ) -> Result<DeviceVec<f32>> {
        let cut = &norm.cut;
        let mut dlogit = gpu.scratch(self.logit.len())?;
        launch::squeeze_excite_gradient_logit(
            gpu,
            Grid::threads(self.logit.len()),
            sums.slice(),
            norm.gamma,
            norm.beta,
            norm.var,
            self.logit.slice(),
            &mut dlogit.slice_mut(),
            norm.eps,
            cut.images,
            cut.groups,
            cut.slabs,
            cut.positions,
            cut.run,
            cut.channels,
        )?;
        let dhidden = product_transposed(gpu, cut.images, &dlogit, self.v2, Some(&self.hidden))?;
        let dpooled = product_transposed(gpu, cut.images, &dhidden, self.v1, None)?;
        if let Some(dv1) = dv1 {
            outer(gpu, cut.images, &self.pooled, &dhidden, &mut dv1.floats())?;
        }
        if let Some(dv2) = dv2 {
            outer(gpu, cut.images, &self.hidden, &dlogit, &mut dv2.floats())?;
        }
        Ok(dpooled)
    }
}

/// `x w`, with `rectify` followed by a relu; x `[rows, inner]`.
fn product(gpu: &Gpu, rows: usize, x: &DeviceVec<f32>, w: Slice<f32>, rectify: bool) -> Result<DeviceVec<f32>> {
    let inner = x.len() / rows;
    let columns = w.len() / inner;
    let mut y = gpu.scratch(rows * columns)?;
    let grid = Grid::blocks2(columns.div_ceil(WARP), rows.div_ceil(PRODUCT_ROWS));
    let rectify = usize::from(rectify);
    launch::squeeze_excite_product(gpu, grid, x.slice(), w, &mut y.slice_mut(), rectify, rows, inner, columns)?;
    Ok(y)
}

/// `x w'`, zero where `hidden` is; x `[rows, inner]`.
fn product_transposed(
    gpu: &Gpu,
    rows: usize,
    x: &DeviceVec<f32>,
    w: Slice<f32>,
    hidden: Option<&DeviceVec<f32>>,
) -> Result<DeviceVec<f32>> {
    let inner = x.len() / rows;
    let columns = w.len() / inner;
    let mut y = gpu.scratch(rows * columns)?;
    let grid = Grid::blocks2(columns.div_ceil(TRANSPOSED_COLUMNS), rows.div_ceil(PRODUCT_ROWS));
    let hidden = hidden.map(DeviceVec::slice);
    launch::squeeze_excite_product_transposed(
        gpu,
        grid,
        x.slice(),
        w,
        hidden,
        &mut y.slice_mut(),
        rows,
        inner,
        columns,
    )?;
    Ok(y)
}

/// `a' b`, summed over the images.
fn outer(gpu: &Gpu, images: usize, a: &DeviceVec<f32>, b: &DeviceVec<f32>, y: &mut SliceMut<f32>) -> Result<()> {
    let (rows, columns) = (a.len() / images, b.len() / images);
    launch::squeeze_excite_outer(gpu, Grid::threads(rows * columns), a.slice(), b.slice(), y, images, rows, columns)
}
