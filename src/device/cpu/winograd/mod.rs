//! 3x3 convolution with a stride of 1 by Winograd's algorithm F(4x4, 3x3): 36 products for a tile of 4 x 4 output pixels
//! where the direct sum has 144 (Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", 2016).
//!
//! ```text
//! y  = Σᵗ [ Σ_ci   (T w Tᵗ) ⊙ (D x Dᵗ) ] Σ        tiles of x: 6 x 6 pixels, 4 apart     w: 3 x 3
//! dw = Σᵗ [ Σ_tile (T dy Tᵗ) ⊙ (D x Dᵗ) ] Σ       tiles of dy: 4 x 4 pixels
//! ```
//! D, T and Σ are the transforms `data`, `taps` and `sums` of `transform.rs`. The gradient of x is a convolution of dy with
//! the weights transposed and turned by half a circle. For each of the 36 places the sum is a matrix product:
//!
//! | | rows | summed over | columns |
//! |---|---|---|---|
//! | forward, gradient of x | tiles | channels read | channels written |
//! | gradient of w | `ci` | tiles | `co` |
//!
//! Rows of tiles are taken in stretches whose transforms fit the last-level cache, so that none of them is written to memory
//! and back; the transformed weights are four times as large as the weights, and are read once for each stretch.
//!
//! **Error.** Where all sums are exact but the products are rounded, a direct sum of 9 products in one dimension less, 3, is
//! off by `ε √3` of a product, in the root mean square. Here an output is `Σ_p s_p u_p v_p`, with `u_p` a row of T times the
//! taps and `v_p` a row of D times the data; for data and taps of equal and independent size the error is
//! `ε (Σ_p s_p² |T_p|² |D_p|²)^½`. The ratio of the two, squared for two dimensions, is the [`growth`] of roundings by the
//! algorithm. At these points it is 7.2 for the worst of the outputs and 4.9 in their mean.

mod choice;
mod transform;
mod weight_gradient;

#[cfg(test)]
mod tests;

pub use choice::ConvChoice;
pub(super) use weight_gradient::backward_weight_at;

use rayon::prelude::*;
use std::ops::Range;

use super::conv::{ConvGeometry, TransposedTaps};
use super::gemm::no_epilogue;
use super::microkernel::Tile;
use super::pack::{MAX_DEPTH, Matrix, PackA, PackB};
use super::rows::{first_chunks, par_parts, with_scratch};
use super::simd::Simd;
use transform::{LANES, PRODUCTS, Side, data, data_tiles, output_tiles, sums, taps, weight_taps};

/// Tiles of one stretch: their transforms take 14 MiB at 432 channels. The gradient of w sums them in one panel.
const STRETCH: usize = MAX_DEPTH;

/// A multiple of the rows of every register tile of f32.
const WHOLE: usize = 8;

/// Tiles of one matrix product: few enough that their panels stay in L2.
const PRODUCT_ROWS: usize = 56;

/// How many times more than in a direct sum a rounding of a product weighs in a result: see the head of `winograd/mod.rs`.
/// For the output, and therefore the gradient of x, that weighs it most; the gradient of w is better.
pub fn growth() -> f64 {
    let unit = |i: usize, j: usize| if i == j { 1.0f32 } else { 0.0 };
    let square = |v: f32| f64::from(v) * f64::from(v);
    let mut weights = [0.0; 6];
    for (p, weight) in weights.iter_mut().enumerate() {
        let data: f64 = (0..6).map(|k| square(data::<false>(std::array::from_fn(|i| unit(i, k)))[p])).sum();
        let taps: f64 = (0..3).map(|k| square(taps::<false, 3>(std::array::from_fn(|i| unit(i, k)))[p])).sum();
        *weight = data * taps / 3.0;
    }
    let of_output = |j: usize| -> f64 {
        let of_point = |p: usize| square(sums::<false, 4>(std::array::from_fn(|i| unit(i, p)))[j]);
        (0..6).map(|p| of_point(p) * weights[p]).sum()
    };
    (0..4).map(of_output).fold(0.0, f64::max)
}

/// Whether this algorithm computes such a convolution at all.
pub(super) fn fits(g: &ConvGeometry) -> bool {
    let sizes = [g.n, g.h, g.w, g.ci, g.co, g.out_h(), g.out_w()];
    let across = g.w.max(g.out_w()).div_ceil(4);
    [g.kh, g.kw, g.stride] == [3, 3, 1] && !sizes.contains(&0) && across <= STRETCH
}

/// [`conv2d_forward`](super::conv2d_forward). The epilogue is given whole rows of pixels, up to four.
pub(super) fn forward_at(
    level: Simd,
    g: &ConvGeometry,
    x: &[f32],
    w: &[f32],
    y: &mut [f32],
    epilogue: impl Fn(usize, &mut [f32]) + Sync,
) {
    let cut = Cut::new(g.n, [g.out_h(), g.out_w()]);
    let side = cut.side(x, [g.h, g.w], g.ci, [0, 2].map(|i| -(g.pad[i] as isize)));
    let weights = Weights::new(level, Matrix::new(w, 9 * g.ci, g.co), |tap| tap, g.ci, g.co);
    weights.apply(&cut, &side, y, epilogue);
}

/// [`conv2d_backward_input`](super::conv2d_backward_input).
pub(super) fn backward_input_at(level: Simd, g: &ConvGeometry, dy: &[f32], w: &[f32], dx: &mut [f32]) {
    let cut = Cut::new(g.n, [g.h, g.w]);
    let side = cut.side(dy, [g.out_h(), g.out_w()], g.co, [0, 2].map(|i| g.pad[i] as isize - 2));
    let weights = Weights::new(level, TransposedTaps { w, ci: g.ci, co: g.co }, |tap| 8 - tap, g.co, g.ci);
    weights.apply(&cut, &side, dx, no_epilogue);
}

/// How the pictures `[n, h, w]` of one side are cut into tiles of 4 x 4 pixels.
struct Cut {
    n: usize,
    size: [usize; 2],
    /// Tiles of a picture, down and across.
    tiles: [usize; 2],
}

impl Cut {
    fn new(n: usize, size: [usize; 2]) -> Self {
        Cut { n, size, tiles: size.map(|s| s.div_ceil(4)) }
    }

    /// The side that is read: what lies under these tiles begins at `origin`.
    fn side<'a>(&self, values: &'a [f32], size: [usize; 2], channels: usize, origin: [isize; 2]) -> Side<'a> {
        Side { values, size, channels, origin, tiles: self.tiles }
    }

    /// Rows of tiles, in stretches of as equal a size as can be.
    fn stretches(&self) -> impl Iterator<Item = Range<usize>> {
        let rows = self.n * self.tiles[0];
        let most = (STRETCH / self.tiles[1]).max(1);
        let step = rows.div_ceil(rows.div_ceil(most));
        (0..rows).step_by(step).map(move |first| first..rows.min(first + step))
    }

    /// Rows of pixels that a row of tiles covers.
    fn pixel_rows(&self, row: usize) -> Range<usize> {
        let ([h, _], [down, _]) = (self.size, self.tiles);
        let (image, first) = (row / down, 4 * (row % down));
        image * h + first..image * h + h.min(first + 4)
    }
}

/// The products of a stretch: for each of the 36 places `[tiles, pitch]`, with some room behind.
struct Places {
    rows: usize,
    /// Tiles in a row.
    across: usize,
    /// Floats from one tile to the next.
    pitch: usize,
}

impl Places {
    fn new(cut: &Cut, rows: usize, channels: usize) -> Self {
        Places { rows, across: cut.tiles[1], pitch: channels.next_multiple_of(LANES) }
    }

    fn tiles(&self) -> usize {
        self.rows * self.across
    }

    /// Floats from one place to the next: whole register tiles, and never a power of two, which would put all 36 into the
    /// same lines of a cache.
    fn stride(&self) -> usize {
        self.tiles().next_multiple_of(WHOLE) * self.pitch + LANES
    }

    /// The transforms of a stretch: `f(row of tiles, its part of each place)`.
    fn fill(&self, rows: Range<usize>, data: &mut [f32], f: impl Fn(usize, &mut [&mut [f32]]) + Sync) {
        let row = self.across * self.pitch;
        let places: [_; PRODUCTS] = first_chunks(data, self.stride()).map(|place| &mut place[..self.rows * row]);
        par_parts(rows, places, &|i| i * row, &|i, mut parts| f(i, &mut parts));
    }

    /// The part that row number `i` of a stretch has of each place.
    fn row<'a>(&self, data: &'a [f32], i: usize) -> [&'a [f32]; PRODUCTS] {
        let row = self.across * self.pitch;
        std::array::from_fn(|place| &data[place * self.stride() + i * row..][..row])
    }
}

/// Weights on the way into the products: `[k block][column panel][36][k][NR]`, as the register tile reads them.
struct Weights<W, T> {
    tile: Tile,
    level: Simd,
    w: W,
    tap: T,
    ci: usize,
    co: usize,
}

impl<W: PackB, T: Fn(usize) -> usize + Sync> Weights<W, T> {
    /// `w: [9 * ci, co]`, of which place `i` of the kernel has the rows of tap `tap(i)`.
    fn new(level: Simd, w: W, tap: T, ci: usize, co: usize) -> Self {
        Weights { tile: Tile::of(level.into()), level, w, tap, ci, co }
    }

    /// Columns in the panels of a place.
    fn columns(&self) -> usize {
        self.co.next_multiple_of(self.tile.lanes)
    }

    /// Channels of one block of k.
    fn depth(&self) -> usize {
        self.ci.div_ceil(self.ci.div_ceil(MAX_DEPTH))
    }

    fn transform(&self, u: &mut [f32]) {
        const STEP: usize = 16;
        let nr = self.tile.nr;
        u.par_chunks_mut(PRODUCTS * self.depth() * self.columns()).enumerate().for_each(|(i, block)| {
            let (k0, depth) = (i * self.depth(), block.len() / (PRODUCTS * self.columns()));
            block.par_chunks_mut(PRODUCTS * depth * nr).enumerate().for_each(|(j, panel)| {
                let (cols, width) = (j * nr..self.co.min((j + 1) * nr), panel.len() / (PRODUCTS * depth));
                with_scratch(9 * STEP * width, |scratch| {
                    for k in (0..depth).step_by(STEP) {
                        let run = STEP.min(depth - k);
                        let taps = &mut scratch[..9 * run * width];
                        for (i, part) in taps.chunks_exact_mut(run * width).enumerate() {
                            let first = (self.tap)(i) * self.ci + k0 + k;
                            self.w.pack_b(first..first + run, cols.clone(), width, part);
                        }
                        weight_taps(self.level, taps, run * width, depth * width, &mut panel[k * width..]);
                    }
                });
            });
        });
    }

    fn apply(&self, cut: &Cut, side: &Side, y: &mut [f32], epilogue: impl Fn(usize, &mut [f32]) + Sync) {
        let (row, most) = (cut.size[1] * self.co, cut.stretches().map(|rows| rows.len()).max().unwrap_or(0));
        let room = PRODUCTS * Places::new(cut, most, self.ci.max(self.co)).stride();
        with_scratch(PRODUCTS * self.ci * self.columns(), |u| {
            self.transform(u);
            with_scratch(room, |scratch| {
                for rows in cut.stretches() {
                    let places = Places::new(cut, rows.len(), self.ci.max(self.co));
                    let data = &mut scratch[..PRODUCTS * places.stride()];
                    places.fill(rows.clone(), data, |row, out| data_tiles(self.level, side, row, places.pitch, out));
                    data.par_chunks_exact_mut(places.stride()).enumerate().for_each(|(product, place)| {
                        let whole = place.len() - LANES;
                        let blocks = place[..whole].par_chunks_mut(PRODUCT_ROWS * places.pitch).enumerate();
                        blocks.for_each(|(i, block)| {
                            let tiles = places.tiles().saturating_sub(i * PRODUCT_ROWS).min(PRODUCT_ROWS);
                            self.multiply(u, product, tiles, places.pitch, block);
                        });
                    });
                    let pixels = cut.pixel_rows(rows.start).start..cut.pixel_rows(rows.end - 1).end;
                    let (data, y) = (&*data, &mut y[pixels.start * row..pixels.end * row]);
                    par_parts(rows.clone(), [y], &|i| cut.pixel_rows(i).start * row, &|i, [y]| {
                        let products = places.row(data, i - rows.start);
                        output_tiles(self.level, &products, places.pitch, cut.size[1], self.co, y);
                        epilogue(cut.pixel_rows(i).start * cut.size[1], y);
                    });
                }
            });
        });
    }

    /// The product of one place, for some tiles: `[tiles, ci]` is overwritten by `[tiles, co]`.
    fn multiply(&self, u: &[f32], product: usize, tiles: usize, pitch: usize, data: &mut [f32]) {
        let Tile { mr, nr, .. } = self.tile;
        let height = tiles.next_multiple_of(mr);
        with_scratch(height * self.ci, |packed| {
            let a = Matrix::strided(data, tiles, self.ci, pitch, 1);
            let block = height * self.depth();
            for (i, packed) in packed.chunks_mut(block).enumerate() {
                let (k0, depth) = (i * self.depth(), packed.len() / height);
                for (j, panel) in packed.chunks_exact_mut(depth * mr).enumerate() {
                    a.pack_a(j * mr..tiles.min((j + 1) * mr), k0..k0 + depth, mr, panel);
                }
            }
            for (i, (packed, u)) in
                packed.chunks(block).zip(u.chunks(PRODUCTS * self.depth() * self.columns())).enumerate()
            {
                let depth = packed.len() / height;
                for (j, panel) in u.chunks(PRODUCTS * depth * nr).enumerate() {
                    let b = &panel[product * (panel.len() / PRODUCTS)..][..panel.len() / PRODUCTS];
                    for (a, c) in packed.chunks_exact(depth * mr).zip(data.chunks_mut(mr * pitch)) {
                        // SAFETY: products of f32 need no registers made ready.
                        unsafe { self.tile.run(b.len() / depth, a, b, &mut c[j * nr..], pitch, i > 0) };
                    }
                }
            }
        });
    }
}
