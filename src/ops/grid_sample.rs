//! Bilinear read of a learned grid at continuous coordinates; outside the grid there is zero.
//!
//! grid: `[R_v, R_h, D..]`, coord: `[M.., 2]` (horizontal first), y: `[M.., D..]`.
//! PyTorch: `grid_sample(align_corners=False, padding_mode="zeros")` with the grid shared by all images.
//!
//! A coordinate `a` lies at `i = ((a + 1) R − 1) / 2` between the nodes `⌊i⌋` and `⌊i⌋ + 1`, so node k sits at
//! `(2k + 1)/R − 1` and the value fades to zero beyond the outermost nodes.
//! The local grid `[8, 8, C]` is read once per position of an image; the global grid `[4, 4, H, W, C]` once per image,
//! each read returning a whole map. Few points with long cells are split over the values of a cell, many points over
//! the points.
//!
//! `dgrid[cell] = Σ_m weight(m, cell) · dy[m]`, summed in the order of the points: bit-equal for any number of threads.
//! `dcoord` is the slope of the bilinear patch, its floor held fixed.

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::readers::Readers;
use crate::buffer::Buffer;
use crate::device::cpu::{simd, simd_fn};
use crate::device::cuda::{Gpu, GpuArg, GpuOut, Grid, SliceMut, Values, launch};
use crate::error::Result;
use crate::op::{Arg, Case, List, Op, expect_inputs, list, refuse};
use crate::real::Real;
use crate::shape::Shape;

/// See the head of this file.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct GridSample {}

/// One of the four cells that a point reads.
#[derive(Clone, Copy)]
struct Tap<T> {
    /// Index of the cell, row-major; `None` outside the grid.
    cell: Option<usize>,
    weight: T,
    /// Derivative of the weight with respect to the horizontal and the vertical coordinate.
    slope: [T; 2],
}

/// The cells around `coord`, for a grid of `rows` by `cols`.
fn taps<T: Real>(coord: &[T], rows: usize, cols: usize) -> [Tap<T>; 4] {
    let axis = |v: T, r: usize| {
        let i = ((v + T::one()) * T::of(r as f64) - T::one()) / T::of(2.0);
        let low = i.floor();
        (low.f64(), i - low, T::of(r as f64 / 2.0))
    };
    let (x0, tx, kx) = axis(coord[0], cols);
    let (y0, ty, ky) = axis(coord[1], rows);
    // In floating point, so that a coordinate far outside, or NaN, cannot wrap round to a cell.
    let at = |v: f64, r: usize| (v >= 0.0 && v < r as f64).then_some(v as usize);
    std::array::from_fn(|i| {
        let (right, below) = (i % 2 == 1, i / 2 == 1);
        let (wx, sx) = if right { (tx, kx) } else { (T::one() - tx, -kx) };
        let (wy, sy) = if below { (ty, ky) } else { (T::one() - ty, -ky) };
        let cell = at(y0 + f64::from(below), rows).zip(at(x0 + f64::from(right), cols)).map(|(y, x)| y * cols + x);
        Tap { cell, weight: wx * wy, slope: [sx * wy, sy * wx] }
    })
}

/// Points, values per cell and grid sides of a call.
struct Sizes {
    points: usize,
    values: usize,
    rows: usize,
    cols: usize,
}

impl Sizes {
    fn of<T>(x: &[Arg<T>]) -> Self {
        Self::from_shapes(x[0].shape, x[1].shape)
    }

    fn from_shapes(grid: Shape, coord: Shape) -> Self {
        Sizes { points: coord.rows(), values: grid[2..].iter().product(), rows: grid[0], cols: grid[1] }
    }

    /// Whether a call has few points with long cells.
    fn is_global(&self) -> bool {
        self.values > 64 * self.points.max(64)
    }
}

/// Values of a cell that one task of a global read handles: a few pages.
const SPAN: usize = 8192;

/// How the kernels share the work out; the same numbers as in `kernels/grid_sample.cu`.
mod kernel {
    /// Threads that work on the same values.
    pub(super) const WARP: usize = 32;
    /// Values that they have at a time.
    pub(super) const SPAN: usize = 128;
    /// Points that they read one after the other.
    pub(super) const RUN: usize = 4;
    /// Values of a point that they add up for dcoord.
    pub(super) const PART: usize = 512;
    /// Points that a block places at a time for dgrid, and the cells it fills.
    pub(super) const STAGE: usize = 256;
    pub(super) const CELLS: usize = 16;
    /// Blocks that keep a device busy; the points are split to make as many.
    pub(super) const BLOCKS: usize = 512;
}

impl Op for GridSample {
    const NAME: &'static str = "grid_sample";

    fn infer(&self, x: &[Shape]) -> Result<List<Shape>> {
        expect_inputs::<Self>(x, &[2])?;
        let (grid, coord) = (x[0], x[1]);
        if grid.len() < 3 || grid.numel() == 0 {
            return refuse::<Self, _>(format!("grid must be [R, R, values..] and not empty, got {grid}"));
        }
        if coord.channels() != 2 || coord.len() < 2 {
            return refuse::<Self, _>(format!("coord must be [.., 2], got {coord}"));
        }
        let Some(read) = Shape::joined(&coord[..coord.len() - 1], &grid[2..]) else {
            return refuse::<Self, _>(format!("reading {grid} at {coord} has too many dimensions"));
        };
        Ok(list([read]))
    }

    fn differentiable(&self, _: usize) -> bool {
        true
    }

    fn reads_input(&self, _: usize) -> bool {
        true
    }

    fn reads_output(&self, _: usize) -> bool {
        false
    }

    fn reference_forward<T: Real>(&self, x: &[Arg<T>], y: &mut [&mut [T]]) {
        let s = Sizes::of(x);
        y[0].fill(T::zero());
        for (coord, y) in x[1].data.chunks_exact(2).zip(y[0].chunks_exact_mut(s.values)) {
            for tap in taps(coord, s.rows, s.cols) {
                let Some(cell) = tap.cell else { continue };
                for (y, &v) in y.iter_mut().zip(&x[0].data[cell * s.values..]) {
                    *y += tap.weight * v;
                }
            }
        }
    }

    fn reference_backward<T: Real>(&self, x: &[Arg<T>], _: &[&[T]], dy: &[T], dx: &mut [Option<&mut [T]>]) {
        let s = Sizes::of(x);
        let [dgrid, dcoord] = dx else { unreachable!("infer accepts two inputs") };
        dgrid.iter_mut().chain(&mut *dcoord).for_each(|d| d.fill(T::zero()));
        for (m, (coord, dy)) in x[1].data.chunks_exact(2).zip(dy.chunks_exact(s.values)).enumerate() {
            for tap in taps(coord, s.rows, s.cols) {
                let Some(cell) = tap.cell else { continue };
                let at = cell * s.values..(cell + 1) * s.values;
                if let Some(dgrid) = dgrid {
                    dgrid[at.clone()].iter_mut().zip(dy).for_each(|(d, &dy)| *d += tap.weight * dy);
                }
                if let Some(dcoord) = dcoord {
                    let dot = x[0].data[at].iter().zip(dy).map(|(&v, &dy)| v * dy).sum::<T>();
                    dcoord[2 * m] += dot * tap.slope[0];
                    dcoord[2 * m + 1] += dot * tap.slope[1];
                }
            }
        }
    }

    fn cpu_forward(&self, x: &[Arg<f32>], y: &mut [&mut [f32]]) {
        let (s, grid) = (Sizes::of(x), x[0].data);
        let read = |coord: &[f32], from: usize, y: &mut [f32]| {
            y.fill(0.0);
            for tap in taps(coord, s.rows, s.cols) {
                if let Some(cell) = tap.cell {
                    add_scaled(simd(), &grid[cell * s.values + from..][..y.len()], tap.weight, y);
                }
            }
        };
        let points = y[0].par_chunks_mut(s.values).zip(x[1].data.par_chunks(2));
        if s.is_global() {
            points.for_each(|(y, coord)| {
                y.par_chunks_mut(SPAN).enumerate().for_each(|(i, y)| read(coord, i * SPAN, y));
            });
        } else {
            points.with_min_len(64).for_each(|(y, coord)| read(coord, 0, y));
        }
    }

    fn cpu_backward(&self, x: &[Arg<f32>], _: &[&[f32]], dy: &[f32], dx: &mut [Option<&mut [f32]>]) {
        let s = Sizes::of(x);
        let [dgrid, dcoord] = dx else { unreachable!("infer accepts two inputs") };
        if let Some(dcoord) = dcoord {
            dcoord.par_chunks_mut(2).zip(x[1].data.par_chunks(2)).zip(dy.par_chunks(s.values)).for_each(
                |((d, c), dy)| {
                    let mut sum = [0.0f64; 2];
                    for tap in taps(c, s.rows, s.cols) {
                        let Some(cell) = tap.cell else { continue };
                        let cell = &x[0].data[cell * s.values..(cell + 1) * s.values];
                        let dot = cell.chunks(SPAN).zip(dy.chunks(SPAN)).map(|(v, dy)| dot(v, dy)).sum::<f64>();
                        sum[0] += dot * f64::from(tap.slope[0]);
                        sum[1] += dot * f64::from(tap.slope[1]);
                    }
                    (d[0], d[1]) = (sum[0] as f32, sum[1] as f32);
                },
            );
        }
        let Some(dgrid) = dgrid else { return };
        let read = || x[1].data.chunks_exact(2).flat_map(|coord| taps(coord, s.rows, s.cols));
        let mut weights = Buffer::scratch(4 * s.points);
        weights.iter_mut().zip(read()).for_each(|(weight, tap)| *weight = tap.weight);
        let readers = Readers::new(s.rows * s.cols, weights.len(), read().map(|tap| tap.cell));
        let gather = |cell: usize, from: usize, d: &mut [f32]| {
            d.fill(0.0);
            for tap in readers.of(cell) {
                add_scaled(simd(), &dy[tap / 4 * s.values + from..][..d.len()], weights[tap], d);
            }
        };
        dgrid.par_chunks_mut(s.values).enumerate().for_each(|(cell, d)| {
            if s.is_global() {
                d.par_chunks_mut(SPAN).enumerate().for_each(|(i, d)| gather(cell, i * SPAN, d));
            } else {
                gather(cell, 0, d);
            }
        });
    }

    fn input_in_f32(&self, i: usize) -> bool {
        i == 0
    }

    fn output_in_f32(&self, _: usize) -> bool {
        false
    }

    fn cuda_forward(&self, gpu: &Gpu, x: &[GpuArg], y: &mut [GpuOut]) -> Result<()> {
        let Sizes { points, values, rows, cols } = Sizes::from_shapes(x[0].shape, x[1].shape);
        let warps = points.div_ceil(kernel::RUN) * values.div_ceil(kernel::SPAN);
        let (grid, coord) = (x[0].data.floats(), x[1].data.reals());
        let threads = Grid::threads(warps * kernel::WARP);
        launch::grid_sample_forward(gpu, threads, grid, coord, &mut y[0].reals(), points, values, rows, cols)
    }

    fn cuda_backward(
        &self,
        gpu: &Gpu,
        x: &[GpuArg],
        _: &[Values],
        dy: Values,
        dx: &mut [Option<GpuOut>],
    ) -> Result<()> {
        let Sizes { points, values, rows, cols } = Sizes::from_shapes(x[0].shape, x[1].shape);
        let (grid, coord, dy) = (x[0].data.floats(), x[1].data.reals(), dy.reals());
        let [dgrid, dcoord] = dx else { unreachable!("infer accepts two inputs") };
        if let Some(dcoord) = dcoord {
            let mut dcoord = dcoord.reals();
            let parts = values.div_ceil(kernel::PART);
            let each_point = Grid::threads(points * kernel::WARP);
            if parts == 1 {
                launch::grid_sample_backward_coord(
                    gpu,
                    each_point,
                    grid,
                    coord,
                    dy,
                    &mut dcoord,
                    points,
                    values,
                    rows,
                    cols,
                )?;
            } else {
                let mut sums = gpu.scratch::<f64>(parts * points * 2)?;
                let each_part = Grid::threads(parts * points * kernel::WARP);
                launch::grid_sample_backward_coord_parts(
                    gpu,
                    each_part,
                    grid,
                    coord,
                    dy,
                    &mut sums.slice_mut(),
                    points,
                    values,
                    rows,
                    cols,
                )?;
                launch::grid_sample_backward_coord_sum(gpu, each_point, sums.slice(), &mut dcoord, parts, points)?;
            }
        }
        let Some(dgrid) = dgrid else { return Ok(()) };
        let mut dgrid = dgrid.floats();
        let blocks = values.div_ceil(kernel::SPAN) * (rows * cols).div_ceil(kernel::CELLS);
        let segment = points.div_ceil(kernel::BLOCKS.div_ceil(blocks)).next_multiple_of(kernel::STAGE);
        let segments = points.div_ceil(segment.max(1)).max(1);
        let gather = |sums: &mut SliceMut<f32>| {
            let grid = Grid::blocks(blocks * segments);
            launch::grid_sample_backward_grid(gpu, grid, coord, dy, sums, points, values, rows, cols, segment)
        };
        if segments == 1 {
            return gather(&mut dgrid);
        }
        let n = rows * cols * values;
        let mut sums = gpu.scratch::<f32>(segments * n)?;
        gather(&mut sums.slice_mut())?;
        let grid = Grid::blocks(n.div_ceil(kernel::WARP));
        launch::grid_sample_backward_grid_sum(gpu, grid, sums.slice(), &mut dgrid, segments, n)
    }

    fn flops(&self, _: &[Shape]) -> u64 {
        0
    }

    fn cases() -> Vec<Case<Self>> {
        let case = |grid: &[usize], coord: &[usize], reach: f64| {
            Case::new(GridSample {}, &[Shape::new(grid), Shape::new(coord)]).range(1, -reach, reach)
        };
        vec![
            case(&[8, 8, 5], &[2, 3, 4, 2], 1.0),
            case(&[4, 4, 2, 3, 3], &[5, 2], 1.0),
            case(&[3, 5, 2], &[17, 2], 1.9),
            case(&[1, 1, 3], &[6, 2], 1.2),
            // Long cells, read by parts.
            case(&[2, 1, 9000], &[2, 2], 0.9),
            // More points than are added up in one go.
            case(&[1, 2, 132], &[300, 2], 1.3),
            case(&[3, 2, 1], &[700, 2], 1.3),
        ]
    }

    fn bench_cases() -> Vec<Case<Self>> {
        let case = |grid: &[usize], coord: &[usize]| Case::new(GridSample {}, &[Shape::new(grid), Shape::new(coord)]);
        vec![case(&[8, 8, 216], &[16, 28, 28, 2]), case(&[4, 4, 28, 28, 216], &[16, 2])]
    }

    fn refused() -> Vec<(Self, Vec<Shape>, &'static str)> {
        let grid = Shape::from([8, 8, 5]);
        vec![
            (GridSample {}, vec![grid], "2"),
            (GridSample {}, vec![[8, 8].into(), [4, 2].into()], "grid must be"),
            (GridSample {}, vec![[8, 0, 5].into(), [4, 2].into()], "not empty"),
            (GridSample {}, vec![grid, [4, 3].into()], "coord must be"),
            (GridSample {}, vec![[2, 2, 3, 4, 5].into(), [2, 3, 4, 2].into()], "dimensions"),
        ]
    }
}

simd_fn! {
    /// `y += w x`.
    fn add_scaled<FMA>(x: &[f32], w: f32, y: &mut [f32]) {
        for (y, &x) in y.iter_mut().zip(x) {
            *y += w * x;
        }
    }
}

/// Dot product in sixteen interleaved sums, added in a fixed order.
fn dot(a: &[f32], b: &[f32]) -> f64 {
    let mut sums = [0.0f32; 16];
    let (ha, hb) = (a.chunks_exact(16), b.chunks_exact(16));
    let tail: f64 = ha.remainder().iter().zip(hb.remainder()).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum();
    for (a, b) in ha.zip(hb) {
        for i in 0..16 {
            sums[i] += a[i] * b[i];
        }
    }
    sums.iter().map(|&s| f64::from(s)).sum::<f64>() + tail
}
