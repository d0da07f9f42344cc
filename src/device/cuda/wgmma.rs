//! Launching the kernels of `kernels/hopper/`: which products they can do, how they are cut, and which boxes they are fed.
//!
//! ```text
//! y [m, n]          tiles of 192 x 216; two neighbours in n are a cluster and share their rows, where n has whole pairs; also
//!                   with sums of each run of 192 rows, and of rows that BatchNorm changes on their way
//! dw [taps k, n]    tiles of 192 (128 for 1x1) x 216, rows in groups of 64 of one tap; the blocks of a cluster share m
//! ```
//! Everything here is arithmetic that is tested without a device; `tests.rs` walks the boxes as the hardware does.

use super::tensor_map::{Pattern, ROW, TensorMap, Walk};
use super::{Gpu, Grid, Real, Slice, SliceMut, launch};
use crate::device::cpu::ConvGeometry;
use crate::error::Result;

#[cfg(test)]
mod tests;

/// Rows and columns of a tile of y.
pub(crate) const TILE: [usize; 2] = [192, 216];
/// Bytes of shared memory: slots of a ring of four, room to align them, barriers. `Ring::SHARED` of `kernels/hopper/ring.cuh`.
const fn shared(slot: usize) -> usize {
    1024 + 4 * slot + 64
}
const FORWARD_SHARED: usize = shared((TILE[0] + TILE[1]) * 128);
/// The same for weight gradients of tiles of `groups` times 64 rows.
const fn gradient_shared(groups: usize) -> usize {
    shared((groups + TILE[1].div_ceil(64)) * ROW * 128)
}
/// Groups of 64 rows in a tile of a weight gradient: of a convolution, and of a 1x1 one.
const GROUPS: [usize; 2] = [3, 2];
/// Blocks that every device can run in a cluster.
const LARGEST_CLUSTER: usize = 8;
/// A tap is named by two numbers of eight bits.
const LARGEST_KERNEL: usize = 128;

/// Where a product reads its rows from.
#[derive(Clone, Debug)]
enum Rows {
    Lines,
    Patches {
        kernel: [usize; 2],
        written: [usize; 2],
        lower: [i32; 2],
        upper: [i32; 2],
        read: [usize; 3],
        direction: i32,
    },
}

/// The kernels of y, as `chosen.json` has them.
pub(crate) const PATCHES_FORWARD: &str = "conv2d_wgmma_forward";
pub(crate) const LINES_FORWARD: &str = "pointwise_conv_wgmma_forward";

/// Products of a mobile bottleneck, by `kernels/hopper/mobile_bottleneck_wgmma.cu`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Summed {
    Expand,
    Project,
    ProjectGradient,
}

impl Summed {
    /// As `chosen.json` has it.
    fn kernel(self) -> &'static str {
        match self {
            Summed::Expand => "mobile_bottleneck_wgmma_expand",
            Summed::Project => "mobile_bottleneck_wgmma_project",
            Summed::ProjectGradient => "mobile_bottleneck_wgmma_project_gradient",
        }
    }
}

/// Pieces of images that sums are taken of, `[N, slabs, 2, n]`: runs of [`TILE`] rows.
pub(crate) struct Sums<'a> {
    pub partial: SliceMut<'a, f64>,
    pub positions: usize,
    pub slabs: usize,
}

/// What BatchNorm and its gate make of raw values, `[tables, 2, channels]`.
#[derive(Clone, Copy)]
pub(crate) struct Table<'a> {
    pub values: Slice<'a, f32>,
    pub tables: usize,
}

/// A product that these kernels can do, and are to do here.
#[derive(Clone, Debug)]
pub(crate) struct Product {
    rows: Rows,
    /// Positions, outputs, inputs of a tap, taps.
    shape: [usize; 4],
}

/// Where base pixels lie, `[x, y]`: the first corner counted from the first pixel that is read, the second from the last. From
/// x to y (`forward`) tap (ky, kx) is that far from a base pixel; back from dy to dx it is the opposite tap that is.
fn corners(g: &ConvGeometry, forward: bool) -> ([i32; 2], [i32; 2]) {
    let axis = |kernel: usize, pad: usize, x: usize, y: usize| {
        let (pad, (read, written)) = (pad as i32, if forward { (x, y) } else { (y, x) });
        let lower = if forward { -pad } else { pad - (kernel as i32 - 1) };
        [lower, written as i32 + lower - read as i32]
    };
    let (x, y) = (axis(g.kw, g.pad[2], g.w, g.out_w()), axis(g.kh, g.pad[0], g.h, g.out_h()));
    ([x[0], y[0]], [x[1], y[1]])
}

/// Sizes that these kernels can do: whole 16 bytes of channels, and numbers that fit.
fn suits([m, n, k, taps]: [usize; 4]) -> bool {
    let sizes = [m.checked_mul(n), m.checked_mul(k), k.checked_mul(n).and_then(|v| v.checked_mul(taps))];
    n % 8 == 0 && k % 8 == 0 && sizes.iter().all(|s| s.is_some_and(|s| s > 0 && s < 1 << 31))
}

impl Product {
    /// Patches of x times weights, `forward` from x to y, or back from dy to dx; `arrays` are all that is read and written.
    /// None: another kernel is to do it.
    pub fn of_patches(gpu: &Gpu, g: &ConvGeometry, forward: bool, arrays: &[Slice<Real>]) -> Option<Self> {
        Self::patches(g, forward)?.taken(gpu, PATCHES_FORWARD, arrays)
    }

    /// The gradient of the weights, from x and dz.
    pub fn gradient_of_patches(gpu: &Gpu, g: &ConvGeometry, arrays: &[Slice<Real>]) -> Option<Self> {
        Self::patches(g, true)?.taken(gpu, "conv2d_wgmma_weight_gradient", arrays)
    }

    /// `x [m, k]` times weights `[k, n]`.
    pub fn of_lines(gpu: &Gpu, [m, n, k]: [usize; 3], arrays: &[Slice<Real>]) -> Option<Self> {
        Self::lines([m, n, k])?.taken(gpu, LINES_FORWARD, arrays)
    }

    /// The products of a mobile bottleneck that take sums, `[m, n, k]` as in [`Self::of_lines`].
    pub fn of_bottleneck(gpu: &Gpu, which: Summed, shape: [usize; 3], arrays: &[Slice<Real>]) -> Option<Self> {
        // What is changed on its way is changed 16 columns at a time.
        let whole = which != Summed::Project || shape[2].is_multiple_of(16);
        Self::lines(shape).filter(|_| whole)?.taken(gpu, which.kernel(), arrays)
    }

    /// The gradient of the weights, from x and dz.
    pub fn gradient_of_lines(gpu: &Gpu, [m, n, k]: [usize; 3], arrays: &[Slice<Real>]) -> Option<Self> {
        Self::lines([m, n, k])?.taken(gpu, "pointwise_conv_wgmma_weight_gradient", arrays)
    }

    fn taken(self, gpu: &Gpu, kernel: &str, arrays: &[Slice<Real>]) -> Option<Self> {
        let aligned = arrays.iter().all(|a| a.address().is_multiple_of(16));
        (aligned && gpu.takes(kernel, self.shape)).then_some(self)
    }

    fn patches(g: &ConvGeometry, forward: bool) -> Option<Self> {
        if g.stride != 1 || g.kh.max(g.kw) > LARGEST_KERNEL || g.out_h() * g.out_w() == 0 {
            return None;
        }
        let (inner, outer) = ([g.h, g.w, g.ci], [g.out_h(), g.out_w(), g.co]);
        let (read, [height, width, n]) = if forward { (inner, outer) } else { (outer, inner) };
        let (lower, upper) = corners(g, forward);
        let direction = if forward { 1 } else { -1 };
        let rows = Rows::Patches { kernel: [g.kh, g.kw], written: [height, width], lower, upper, read, direction };
        let made = Product { rows, shape: [g.n * height * width, n, read[2], g.kh * g.kw] };
        let fits = suits(made.shape) && made.read_walk(ROW).fault(0).is_none();
        fits.then_some(made)
    }

    fn lines([m, n, k]: [usize; 3]) -> Option<Self> {
        let made = Product { rows: Rows::Lines, shape: [m, n, k, 1] };
        suits(made.shape).then_some(made)
    }

    /// How the rows of the product are copied, `lines` at a time.
    fn read_walk(&self, lines: usize) -> Walk {
        let [m, _, k, _] = self.shape;
        match &self.rows {
            Rows::Lines => matrix(m, k, k, lines),
            Rows::Patches { lower, upper, read: [h, w, c], written: [height, width], .. } => Walk {
                sizes: vec![*c, *w, *h, m / (height * width)],
                strides: vec![*c, w * c, h * w * c],
                pattern: Pattern::Patches { lower: *lower, upper: *upper, pixels: lines },
            },
        }
    }

    /// Blocks of a cluster and of the grid that compute y.
    fn forward_grid(&self) -> [usize; 2] {
        let [m, n, ..] = self.shape;
        let cluster = if n % (2 * TILE[1]) == 0 { 2 } else { 1 };
        [cluster, m.div_ceil(TILE[0]) * n.div_ceil(TILE[1])]
    }

    /// The same for dw, on a device of so many multiprocessors: clusters as large as still run all at once.
    fn gradient_grid(&self, multiprocessors: usize) -> [usize; 2] {
        let [m, n, k, taps] = self.shape;
        let tiles = (taps * k.div_ceil(64)).div_ceil(self.groups()) * n.div_ceil(TILE[1]);
        let cluster = (multiprocessors / tiles).clamp(1, LARGEST_CLUSTER).min(m.div_ceil(64));
        [cluster, cluster * tiles]
    }

    /// Groups of 64 rows in a tile of dw.
    fn groups(&self) -> usize {
        GROUPS[usize::from(matches!(self.rows, Rows::Lines))]
    }

    /// The maps of rows and weights, and the grid.
    fn maps<'a>(
        &self,
        gpu: &Gpu,
        x: Slice<'a, Real>,
        w: Slice<'a, Real>,
        pitch: usize,
    ) -> Result<(TensorMap<'a>, TensorMap<'a>, Grid)> {
        let ([_, n, k, taps], [cluster, blocks]) = (self.shape, self.forward_grid());
        let w_walk = Walk {
            sizes: vec![k, n, taps],
            strides: vec![pitch, n * pitch],
            pattern: Pattern::Boxes { lines: TILE[1] },
        };
        let x = gpu.tensor_map(x, &self.read_walk(TILE[0] / cluster))?;
        Ok((x, gpu.tensor_map(w, &w_walk)?, Grid::blocks(blocks).clusters(cluster).shared(FORWARD_SHARED)))
    }

    /// `y = h · w` and its moments, where h is x, or `hswish(a x + b)` with a table; weights as in [`Self::forward`].
    ///
    /// # Errors
    /// [`crate::Error::Device`] when the device refuses.
    #[allow(clippy::too_many_arguments)]
    pub fn with_moments(
        &self,
        gpu: &Gpu,
        x: Slice<Real>,
        table: Option<Table>,
        w: Slice<Real>,
        pitch: usize,
        y: &mut SliceMut<Real>,
        mut to: Sums,
    ) -> Result<()> {
        let ([m, n, k, _], (x, w, over)) = (self.shape, self.maps(gpu, x, w, pitch)?);
        let (sums, positions, slabs) = (&mut to.partial, to.positions, to.slabs);
        match table {
            None => launch::mobile_bottleneck_wgmma_expand(gpu, over, &x, &w, y, sums, m, n, k, positions, slabs),
            Some(Table { values, tables }) => launch::mobile_bottleneck_wgmma_project(
                gpu, over, &x, &w, values, y, sums, m, n, k, positions, tables, slabs,
            ),
        }
    }

    /// `du = dz · w · hswish'(A x + B)` and its sums, from x `[m, n]` with a table and means of `groups` ghost groups; weights
    /// as in [`Self::forward`].
    ///
    /// # Errors
    /// [`crate::Error::Device`] when the device refuses.
    #[allow(clippy::too_many_arguments)]
    pub fn through_slope(
        &self,
        gpu: &Gpu,
        dz: Slice<Real>,
        w: Slice<Real>,
        pitch: usize,
        x: Slice<Real>,
        table: Slice<f32>,
        (mean, groups): (Slice<f32>, usize),
        du: &mut SliceMut<Real>,
        mut to: Sums,
    ) -> Result<()> {
        let ([m, n, k, _], (dz, w, over)) = (self.shape, self.maps(gpu, dz, w, pitch)?);
        let (sums, positions, slabs) = (&mut to.partial, to.positions, to.slabs);
        launch::mobile_bottleneck_wgmma_project_gradient(
            gpu, over, &dz, &w, x, table, mean, du, sums, m, n, k, positions, groups, slabs,
        )
    }

    /// `y = act(rows · w + bias + residual)`, or with dy `y = dy · act'(..)`, with weights `[taps, n, k]` whose lines lie `pitch`
    /// values apart.
    ///
    /// # Errors
    /// [`crate::Error::Device`] when the device refuses.
    #[allow(clippy::too_many_arguments)]
    pub fn forward(
        &self,
        gpu: &Gpu,
        x: Slice<Real>,
        w: Slice<Real>,
        pitch: usize,
        bias: Option<Slice<f32>>,
        residual: Option<Slice<Real>>,
        dy: Option<Slice<Real>>,
        y: &mut SliceMut<Real>,
        act: usize,
    ) -> Result<()> {
        let ([m, n, k, _], (x, w, over)) = (self.shape, self.maps(gpu, x, w, pitch)?);
        match &self.rows {
            Rows::Lines => launch::pointwise_conv_wgmma_forward(gpu, over, &x, &w, bias, residual, dy, y, m, n, k, act),
            Rows::Patches { kernel: [down, across], written: [height, width], lower, direction, .. } => {
                let ([left, top], direction) = (*lower, *direction);
                launch::conv2d_wgmma_forward(
                    gpu, over, &x, &w, bias, residual, dy, y, m, n, k, *height, *width, *down, *across, direction, top,
                    left, act,
                )
            }
        }
    }

    /// `dw = rowsᵀ · dz`, summed over all positions in an order that the sizes alone decide.
    ///
    /// # Errors
    /// [`crate::Error::Device`] when the device refuses.
    pub fn weight_gradient(&self, gpu: &Gpu, x: Slice<Real>, dz: Slice<Real>, dw: &mut SliceMut<f32>) -> Result<()> {
        let ([m, n, k, taps], [cluster, blocks]) = (self.shape, self.gradient_grid(gpu.multiprocessors()));
        let (x, dz): (TensorMap, TensorMap) =
            (gpu.tensor_map(x, &self.read_walk(ROW))?, gpu.tensor_map(dz, &matrix(m, n, n, ROW))?);
        let over = Grid::blocks(blocks).clusters(cluster).shared(gradient_shared(self.groups()));
        match &self.rows {
            Rows::Lines => launch::pointwise_conv_wgmma_weight_gradient(gpu, over, &x, &dz, dw, m, n, k),
            Rows::Patches { kernel: [_, across], written: [height, width], lower: [left, top], .. } => {
                launch::conv2d_wgmma_weight_gradient(
                    gpu, over, &x, &dz, dw, m, n, k, *height, *width, taps, *across, *top, *left,
                )
            }
        }
    }
}

/// A row-major matrix whose lines lie `pitch` values apart.
fn matrix(rows: usize, columns: usize, pitch: usize, lines: usize) -> Walk {
    Walk { sizes: vec![columns, rows], strides: vec![pitch], pattern: Pattern::Boxes { lines } }
}
