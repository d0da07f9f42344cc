//! Dense 2-D convolution, channels last: `y[n, oh, ow, co] = Σ x[n, oh·s + i - top, ow·s + j - left, ci] · w[i, j, ci, co]`,
//! zero outside the picture (torch.nn.functional.conv2d without bias).
//!
//! All three are matrix products over patches that are gathered while a panel is packed and never stored:
//!
//! | | rows | summed over | columns |
//! |---|---|---|---|
//! | forward | output pixels | `(i, j, ci)` | `co` |
//! | gradient of x | input pixels | `(i, j, co)` | `ci` |
//! | gradient of w | `(i, j, ci)` | output pixels | `co` |
//!
//! Where Winograd's algorithm is faster, [`mod@winograd`] computes them.

use super::gemm::{Matrix, gemm_at, no_epilogue};
use super::pack::{MAX_DEPTH, PackA, PackB, ZEROS, interleave};
use super::products::{Products, products};
use super::winograd::{self, ConvChoice};
use std::ops::Range;

/// Sizes of a convolution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConvGeometry {
    /// Images.
    pub n: usize,
    /// Height of the input.
    pub h: usize,
    /// Width of the input.
    pub w: usize,
    /// Channels of the input.
    pub ci: usize,
    /// Channels of the output.
    pub co: usize,
    /// Height of the kernel.
    pub kh: usize,
    /// Width of the kernel.
    pub kw: usize,
    /// Step between patches, in both directions; at least 1.
    pub stride: usize,
    /// Zeros added at the top, bottom, left, right.
    pub pad: [usize; 4],
}

impl ConvGeometry {
    /// Height of the output, 0 if the kernel does not fit.
    pub fn out_h(&self) -> usize {
        out_size(self.h + self.pad[0] + self.pad[1], self.kh, self.stride)
    }

    /// Width of the output, 0 if the kernel does not fit.
    pub fn out_w(&self) -> usize {
        out_size(self.w + self.pad[2] + self.pad[3], self.kw, self.stride)
    }

    /// Output pixels of all images: the rows that the epilogue of [`conv2d_forward`] sees.
    pub fn out_rows(&self) -> usize {
        self.n * self.out_h() * self.out_w()
    }

    fn in_rows(&self) -> usize {
        self.n * self.h * self.w
    }

    fn taps(&self) -> usize {
        self.kh * self.kw
    }

    fn check(&self, x: usize, w: usize, y: usize) {
        assert_eq!(x, self.in_rows() * self.ci, "conv2d: x does not fit {self:?}");
        assert_eq!(w, self.taps() * self.ci * self.co, "conv2d: w does not fit {self:?}");
        assert_eq!(y, self.out_rows() * self.co, "conv2d: y does not fit {self:?}");
    }
}

/// Places that a kernel of `kernel` finds in `padded` at steps of `stride`.
pub(super) fn out_size(padded: usize, kernel: usize, stride: usize) -> usize {
    if padded < kernel { 0 } else { (padded - kernel) / stride + 1 }
}

/// `y: [n, out_h, out_w, co]` from `x: [n, h, w, ci]` and `w: [kh, kw, ci, co]`. The epilogue is that of
/// [`gemm`](super::gemm::gemm), over rows of `co`, in blocks of output pixels that follow each other.
///
/// # Panics
/// If a slice does not fit the geometry.
pub fn conv2d_forward(
    g: &ConvGeometry,
    x: &[f32],
    w: &[f32],
    y: &mut [f32],
    epilogue: impl Fn(usize, &mut [f32]) + Sync,
) {
    if by_winograd(products(), g) {
        g.check(x.len(), w.len(), y.len());
        return winograd::forward_at(products().simd(), g, x, w, y, epilogue);
    }
    forward_at(products(), g, x, w, y, epilogue);
}

/// `dx: [n, h, w, ci]` from `dy: [n, out_h, out_w, co]` and `w: [kh, kw, ci, co]`.
///
/// # Panics
/// If a slice does not fit the geometry.
pub fn conv2d_backward_input(g: &ConvGeometry, dy: &[f32], w: &[f32], dx: &mut [f32]) {
    if by_winograd(products(), g) {
        g.check(dx.len(), w.len(), dy.len());
        return winograd::backward_input_at(products().simd(), g, dy, w, dx);
    }
    backward_input_at(products(), g, dy, w, dx);
}

/// `dw: [kh, kw, ci, co]` from `x: [n, h, w, ci]` and `dy: [n, out_h, out_w, co]`.
///
/// # Panics
/// If a slice does not fit the geometry.
pub fn conv2d_backward_weight(g: &ConvGeometry, x: &[f32], dy: &[f32], dw: &mut [f32]) {
    if by_winograd(products(), g) {
        g.check(x.len(), dw.len(), dy.len());
        return winograd::backward_weight_at(products().simd(), g, x, dy, dw);
    }
    backward_weight_at(products(), g, x, dy, dw);
}

/// Whether Winograd's algorithm computes this. Its transforms would magnify the rounding of coarser factors, so its own are
/// f32 in every precision: finer than asked for, and still faster than `vdpbf16ps`, whose products take half as long where
/// this takes a quarter as many. AMX is faster than either.
fn by_winograd(products: Products, g: &ConvGeometry) -> bool {
    !products.by_amx() && ConvChoice::of_process().takes_winograd(g)
}

fn forward_at(
    products: impl Into<Products>,
    g: &ConvGeometry,
    x: &[f32],
    w: &[f32],
    y: &mut [f32],
    epilogue: impl Fn(usize, &mut [f32]) + Sync,
) {
    g.check(x.len(), w.len(), y.len());
    let k = g.taps() * g.ci;
    let patches = Patches::of_output(g, x);
    gemm_at(products, [g.out_rows(), g.co, k], &patches, &Matrix::new(w, k, g.co), y, epilogue);
}

fn backward_input_at(products: impl Into<Products>, g: &ConvGeometry, dy: &[f32], w: &[f32], dx: &mut [f32]) {
    g.check(dx.len(), w.len(), dy.len());
    let patches = Patches::of_input(g, dy);
    let weights = TransposedTaps { w, ci: g.ci, co: g.co };
    gemm_at(products, [g.in_rows(), g.ci, g.taps() * g.co], &patches, &weights, dx, no_epilogue);
}

fn backward_weight_at(products: impl Into<Products>, g: &ConvGeometry, x: &[f32], dy: &[f32], dw: &mut [f32]) {
    g.check(x.len(), dw.len(), dy.len());
    let pixels = g.out_rows();
    let patches = TransposedPatches { g, x };
    gemm_at(products, [g.taps() * g.ci, g.co, pixels], &patches, &Matrix::new(dy, pixels, g.co), dw, no_epilogue);
}

/// How a position along one axis and a tap of the kernel lead to a position of the other side.
#[derive(Debug, Clone, Copy)]
pub(super) struct Axis {
    pub stride: usize,
    /// Zeros before the input.
    pub pad: usize,
    /// Positions of the side that is read.
    pub limit: usize,
    /// From output to input, or from input to output.
    pub forward: bool,
}

impl Axis {
    /// The position read by `tap` at `position`, if there is one.
    #[inline(always)]
    pub fn source(&self, position: usize, tap: usize) -> Option<usize> {
        let source = if self.forward {
            (position * self.stride + tap).checked_sub(self.pad)?
        } else {
            let steps = (position + self.pad).checked_sub(tap)?;
            if self.stride > 1 && !steps.is_multiple_of(self.stride) {
                return None;
            }
            steps / self.stride
        };
        (source < self.limit).then_some(source)
    }

    /// How far the next position reads from this one, where that is the same for all taps.
    #[inline(always)]
    pub fn next(&self) -> Option<usize> {
        if self.forward { Some(self.stride) } else { (self.stride == 1).then_some(1) }
    }
}

/// Below this many channels, as in the first layer of a network, patches are gathered row by row.
const FEW_CHANNELS: usize = 16;

/// The left operand `[pixels, (i, j, channel)]` of forward and input gradient: one row for each pixel of one side,
/// the channels of the pixels that its taps reach on the other.
struct Patches<'a> {
    src: &'a [f32],
    channels: usize,
    kw: usize,
    /// Height and width of the side that rows stand for.
    size: [usize; 2],
    y: Axis,
    x: Axis,
}

impl<'a> Patches<'a> {
    fn of_output(g: &ConvGeometry, x: &'a [f32]) -> Self {
        Self::new(g, x, true, g.ci, [g.out_h(), g.out_w()], [g.h, g.w])
    }

    fn of_input(g: &ConvGeometry, dy: &'a [f32]) -> Self {
        Self::new(g, dy, false, g.co, [g.h, g.w], [g.out_h(), g.out_w()])
    }

    fn new(
        g: &ConvGeometry,
        src: &'a [f32],
        forward: bool,
        channels: usize,
        size: [usize; 2],
        limit: [usize; 2],
    ) -> Self {
        let axis = |pad, limit| Axis { stride: g.stride, pad, limit, forward };
        Self { src, channels, kw: g.kw, size, y: axis(g.pad[0], limit[0]), x: axis(g.pad[2], limit[1]) }
    }
}

impl Patches<'_> {
    /// `len` channels of what one tap of one pixel `(image, y, x)` reads, if that lies inside.
    #[inline(always)]
    fn run(&self, (image, y, x): (usize, usize, usize), tap: usize, channel: usize, len: usize) -> Option<&[f32]> {
        let y = self.y.source(y, tap / self.kw)?;
        let x = self.x.source(x, tap % self.kw)?;
        let pixel = (image * self.y.limit + y) * self.x.limit + x;
        Some(&self.src[pixel * self.channels + channel..][..len])
    }
}

impl PackA for Patches<'_> {
    fn pack_a(&self, rows: Range<usize>, ks: Range<usize>, width: usize, dst: &mut [f32]) {
        let [h, w] = self.size;
        let mut pixels = [(0, 0, 0); 8];
        for (pixel, row) in pixels.iter_mut().zip(rows.clone()) {
            *pixel = (row / (h * w), row / w % h, row % w);
        }
        if self.channels < FEW_CHANNELS {
            // Runs too short to interleave tap by tap: first collect each row of the operand.
            let mut lanes = [[0.0; MAX_DEPTH]; 8];
            for (lane, &pixel) in lanes.iter_mut().zip(&pixels[..rows.len()]) {
                let (mut k, mut tap, mut channel) = (0, ks.start / self.channels, ks.start % self.channels);
                while k < ks.len() {
                    let len = (self.channels - channel).min(ks.len() - k);
                    if let Some(run) = self.run(pixel, tap, channel, len) {
                        lane[k..k + len].iter_mut().zip(run).for_each(|(to, from)| *to = *from);
                    }
                    (k, tap, channel) = (k + len, tap + 1, 0);
                }
            }
            return interleave(rows.len(), ks.len(), |i| &lanes[i], width, dst);
        }
        let mut k = ks.start;
        while k < ks.end {
            let (tap, channel) = (k / self.channels, k % self.channels);
            let len = (self.channels - channel).min(ks.end - k);
            let lane = |i: usize| self.run(pixels[i], tap, channel, len).unwrap_or(&ZEROS[..len]);
            interleave(rows.len(), len, lane, width, &mut dst[(k - ks.start) * width..(k - ks.start + len) * width]);
            k += len;
        }
    }
}

/// The right operand `[(i, j, co), ci]` of the input gradient: each tap of `w: [kh, kw, ci, co]` transposed.
pub(super) struct TransposedTaps<'a> {
    pub w: &'a [f32],
    pub ci: usize,
    pub co: usize,
}

impl PackB for TransposedTaps<'_> {
    fn pack_b(&self, ks: Range<usize>, cols: Range<usize>, width: usize, dst: &mut [f32]) {
        let mut k = ks.start;
        while k < ks.end {
            let (tap, channel) = (k / self.co, k % self.co);
            let len = (self.co - channel).min(ks.end - k);
            let lane = |i: usize| &self.w[(tap * self.ci + cols.start + i) * self.co + channel..][..len];
            interleave(cols.len(), len, lane, width, &mut dst[(k - ks.start) * width..(k - ks.start + len) * width]);
            k += len;
        }
    }
}

/// The left operand `[(i, j, ci), output pixels]` of the weight gradient.
struct TransposedPatches<'a> {
    g: &'a ConvGeometry,
    x: &'a [f32],
}

impl PackA for TransposedPatches<'_> {
    fn pack_a(&self, rows: Range<usize>, ks: Range<usize>, width: usize, dst: &mut [f32]) {
        let g = self.g;
        let patches = Patches::of_output(g, self.x);
        let [out_h, out_w] = patches.size;
        dst.fill(0.0);
        // Lanes that share a tap are neighbours in x; output pixels in one row of the picture are a stride apart.
        let mut row = rows.start;
        while row < rows.end {
            let (tap, channel) = (row / g.ci, row % g.ci);
            let len = (g.ci - channel).min(rows.end - row);
            let mut k = ks.start;
            while k < ks.end {
                let (image, oh, first) = (k / (out_h * out_w), k / out_w % out_h, k % out_w);
                let run = (out_w - first).min(ks.end - k);
                if let Some(y) = patches.y.source(oh, tap / g.kw) {
                    for i in 0..run {
                        if let Some(x) = patches.x.source(first + i, tap % g.kw) {
                            let from = ((image * g.h + y) * g.w + x) * g.ci + channel;
                            let to = (k + i - ks.start) * width + (row - rows.start);
                            dst[to..to + len].copy_from_slice(&self.x[from..from + len]);
                        }
                    }
                }
                k += run;
            }
            row += len;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_close, channels, product, random, same_bits_for_1_and_2_threads, shapes};
    use super::*;
    use proptest::prelude::*;

    /// Calls `f(x index, w index, y index)` for every product of the definition.
    fn each_product(g: &ConvGeometry, mut f: impl FnMut(usize, usize, usize)) {
        let (oh, ow) = (g.out_h(), g.out_w());
        for n in 0..g.n {
            for (p, i, j) in (0..oh * ow).flat_map(|p| (0..g.taps()).map(move |t| (p, t / g.kw, t % g.kw))) {
                let (y, x) =
                    ((p / ow * g.stride + i).wrapping_sub(g.pad[0]), (p % ow * g.stride + j).wrapping_sub(g.pad[2]));
                if y >= g.h || x >= g.w {
                    continue;
                }
                for ci in 0..g.ci {
                    for co in 0..g.co {
                        let source = ((n * g.h + y) * g.w + x) * g.ci + ci;
                        f(source, ((i * g.kw + j) * g.ci + ci) * g.co + co, (n * oh * ow + p) * g.co + co);
                    }
                }
            }
        }
    }

    const SHAPES: [ConvGeometry; 7] = [
        ConvGeometry { n: 2, h: 5, w: 6, ci: 7, co: 9, kh: 3, kw: 3, stride: 1, pad: [1, 1, 1, 1] },
        ConvGeometry { n: 1, h: 1, w: 1, ci: 33, co: 49, kh: 3, kw: 3, stride: 1, pad: [1, 1, 1, 1] },
        ConvGeometry { n: 3, h: 9, w: 8, ci: 3, co: 32, kh: 3, kw: 3, stride: 2, pad: [0, 1, 0, 1] },
        ConvGeometry { n: 1, h: 4, w: 5, ci: 70, co: 17, kh: 5, kw: 3, stride: 2, pad: [2, 1, 0, 3] },
        ConvGeometry { n: 2, h: 7, w: 7, ci: 13, co: 5, kh: 1, kw: 1, stride: 1, pad: [0; 4] },
        ConvGeometry { n: 1, h: 6, w: 6, ci: 4, co: 433, kh: 2, kw: 4, stride: 3, pad: [0, 2, 1, 0] },
        ConvGeometry { n: 2, h: 12, w: 11, ci: 40, co: 50, kh: 3, kw: 3, stride: 1, pad: [1, 1, 1, 1] },
    ];

    /// Forward and both gradients, directly, in every way to multiply.
    fn judge(g: ConvGeometry) {
        let x = random(g.in_rows() * g.ci, 1);
        let w = random(g.taps() * g.ci * g.co, 2);
        let dy = random(g.out_rows() * g.co, 3);
        assert!(!dy.is_empty());
        let check = |name: &str,
                     a: &[f32],
                     b: &[f32],
                     pick: fn(usize, usize, usize) -> [usize; 3],
                     len: usize,
                     run: &(dyn Fn(Products, &mut [f32]) + Sync)| {
            for way in Products::all() {
                let (mut low, mut high, mut scale) = (vec![0.0f32; len], vec![0.0f64; len], vec![0.0f64; len]);
                each_product(&g, |x, w, y| {
                    let [a_at, b_at, out] = pick(x, w, y);
                    let product = product(way, a[a_at], b[b_at]);
                    low[out] += product as f32;
                    high[out] += product;
                    scale[out] += product.abs();
                });
                let got = same_bits_for_1_and_2_threads(|| {
                    let mut out = vec![f32::NAN; len];
                    run(way, &mut out);
                    out
                });
                assert_close(&got, &low, &high, &scale, &format!("{name} {g:?} {way:?}"));
            }
        };
        check("forward", &x, &w, |x, w, y| [x, w, y], dy.len(), &|l, y| forward_at(l, &g, &x, &w, y, no_epilogue));
        check("input", &dy, &w, |x, w, y| [y, w, x], x.len(), &|l, dx| backward_input_at(l, &g, &dy, &w, dx));
        check("weight", &x, &dy, |x, w, y| [x, y, w], w.len(), &|l, dw| backward_weight_at(l, &g, &x, &dy, dw));
    }

    #[test]
    fn forward_and_gradients_match_plain_loops_in_every_way() {
        SHAPES.into_iter().for_each(judge);
    }

    proptest! {
        #![proptest_config(shapes(24))]
        #[test]
        fn any_shape_matches_plain_loops(
            (n, h, w) in (1..4_usize, 1..10_usize, 1..10_usize),
            (ci, co) in (channels(), channels()),
            (kh, kw, stride) in (1..6_usize, 1..6_usize, 1..4_usize),
            pad in [0..4_usize, 0..4_usize, 0..4_usize, 0..4_usize],
        ) {
            let g = ConvGeometry { n, h, w, ci, co, kh, kw, stride, pad };
            let products = g.out_rows() * g.taps() * ci * co;
            prop_assume!(0 < products && products <= 300_000);
            judge(g);
        }
    }

    #[test]
    fn a_kernel_that_does_not_fit_gives_nothing_and_no_gradient() {
        let g = ConvGeometry { n: 2, h: 2, w: 2, ci: 3, co: 4, kh: 3, kw: 3, stride: 1, pad: [0; 4] };
        assert_eq!((g.out_h(), g.out_w()), (0, 0));
        let (x, w) = (random(24, 1), random(108, 2));
        conv2d_forward(&g, &x, &w, &mut [], no_epilogue);
        let (mut dx, mut dw) = (vec![f32::NAN; 24], vec![f32::NAN; 108]);
        conv2d_backward_input(&g, &[], &w, &mut dx);
        conv2d_backward_weight(&g, &x, &[], &mut dw);
        assert!(dx.iter().chain(&dw).all(|&v| v == 0.0));
    }
}
