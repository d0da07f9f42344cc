//! Depthwise 2-D convolution, channels last: `y[n, oh, ow, c] = Σ x[n, oh·s + i - top, ow·s + j - left, c] · w[i, j, c]`,
//! zero outside the picture (torch.nn.functional.conv2d with groups = channels, without bias).
//!
//! Few operations for each float moved, so the aim is to touch memory once: vectors run over channels, sums stay in
//! registers over the taps, and threads take rows of pictures.

use super::conv::{Axis, out_size};
use super::rows::{chunks, rows_per_task, with_scratch};
use super::simd::{Simd, mul_add, simd, simd_fn};

/// Sizes of a depthwise convolution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DepthwiseGeometry {
    /// Images.
    pub n: usize,
    /// Height of the input.
    pub h: usize,
    /// Width of the input.
    pub w: usize,
    /// Channels of input and output.
    pub c: usize,
    /// Height of the kernel.
    pub kh: usize,
    /// Width of the kernel.
    pub kw: usize,
    /// Step between patches, in both directions; at least 1.
    pub stride: usize,
    /// Zeros added at the top, bottom, left, right.
    pub pad: [usize; 4],
}

impl DepthwiseGeometry {
    /// Height of the output, 0 if the kernel does not fit.
    pub fn out_h(&self) -> usize {
        out_size(self.h + self.pad[0] + self.pad[1], self.kh, self.stride)
    }

    /// Width of the output, 0 if the kernel does not fit.
    pub fn out_w(&self) -> usize {
        out_size(self.w + self.pad[2] + self.pad[3], self.kw, self.stride)
    }

    /// How many consecutive blocks the epilogue of [`depthwise_forward`] sees of each image.
    pub fn blocks_per_image(&self) -> usize {
        self.out_h().div_ceil(self.rows_per_block().max(1))
    }

    /// Rows of pixels in one block, the last of an image excepted.
    fn rows_per_block(&self) -> usize {
        rows_per_task(self.out_w() * self.c).min(self.out_h())
    }

    fn check(&self, x: usize, w: usize, y: usize) {
        assert_eq!(x, self.n * self.h * self.w * self.c, "depthwise: x does not fit {self:?}");
        assert_eq!(w, self.kh * self.kw * self.c, "depthwise: w does not fit {self:?}");
        assert_eq!(y, self.n * self.out_h() * self.out_w() * self.c, "depthwise: y does not fit {self:?}");
    }
}

/// `y: [n, out_h, out_w, c]` from `x: [n, h, w, c]` and `w: [kh, kw, c]`.
///
/// `epilogue(block, rows)` is called once for every block of finished pixel rows, in any order and from any thread,
/// while they are in cache. Blocks do not straddle images: block `b` belongs to image `b / g.blocks_per_image()`, and
/// its rows follow those of block `b - 1`.
///
/// # Panics
/// If a slice does not fit the geometry.
pub fn depthwise_forward(
    g: &DepthwiseGeometry,
    x: &[f32],
    w: &[f32],
    y: &mut [f32],
    epilogue: impl Fn(usize, &mut [f32]) + Sync,
) {
    forward_at(simd(), g, x, w, y, epilogue);
}

/// `dx: [n, h, w, c]` from `dy: [n, out_h, out_w, c]` and `w: [kh, kw, c]`.
///
/// # Panics
/// If a slice does not fit the geometry.
pub fn depthwise_backward_input(g: &DepthwiseGeometry, dy: &[f32], w: &[f32], dx: &mut [f32]) {
    backward_input_at(simd(), g, dy, w, dx);
}

/// `dw: [kh, kw, c]` from `x: [n, h, w, c]` and `dy: [n, out_h, out_w, c]`.
///
/// # Panics
/// If a slice does not fit the geometry.
pub fn depthwise_backward_weight(g: &DepthwiseGeometry, x: &[f32], dy: &[f32], dw: &mut [f32]) {
    backward_weight_at(simd(), g, x, dy, dw);
}

fn forward_at(
    level: Simd,
    g: &DepthwiseGeometry,
    x: &[f32],
    w: &[f32],
    y: &mut [f32],
    epilogue: impl Fn(usize, &mut [f32]) + Sync,
) {
    g.check(x.len(), w.len(), y.len());
    let side = Side { channels: g.c, kernel: [g.kh, g.kw], size: [g.out_h(), g.out_w()], axes: axes(g, true) };
    side.for_each_block(level, x, w, y, g.rows_per_block(), epilogue);
}

fn backward_input_at(level: Simd, g: &DepthwiseGeometry, dy: &[f32], w: &[f32], dx: &mut [f32]) {
    g.check(dx.len(), w.len(), dy.len());
    let side = Side { channels: g.c, kernel: [g.kh, g.kw], size: [g.h, g.w], axes: axes(g, false) };
    side.for_each_block(level, dy, w, dx, rows_per_task(g.w * g.c).min(g.h), |_, _| {});
}

fn axes(g: &DepthwiseGeometry, forward: bool) -> [Axis; 2] {
    let limit = if forward { [g.h, g.w] } else { [g.out_h(), g.out_w()] };
    [0, 1].map(|i| Axis { stride: g.stride, pad: g.pad[2 * i], limit: limit[i], forward })
}

/// Neighbouring pixels that are summed together.
const PIXELS: usize = 4;

/// One side of the convolution, each pixel of which is a sum over pixels of the other: the output for the forward
/// pass, the input for its gradient.
struct Side {
    channels: usize,
    kernel: [usize; 2],
    size: [usize; 2],
    axes: [Axis; 2],
}

impl Side {
    fn for_each_block(
        &self,
        level: Simd,
        src: &[f32],
        w: &[f32],
        dst: &mut [f32],
        rows: usize,
        epilogue: impl Fn(usize, &mut [f32]) + Sync,
    ) {
        if dst.is_empty() {
            return;
        }
        let [h, width] = self.size;
        let row_len = width * self.channels;
        let per_image = h.div_ceil(rows);
        let block = |index: usize, block: &mut [f32]| {
            let (image, first) = (index / per_image, index % per_image * rows);
            for (i, row) in block.chunks_exact_mut(row_len).enumerate() {
                gather_row(level, self, image, first + i, src, w, row);
            }
            epilogue(index, block);
        };
        if dst.len() <= rows * row_len {
            return block(0, dst);
        }
        use rayon::prelude::*;
        dst.par_chunks_mut(h * row_len).enumerate().for_each(|(image, dst)| {
            dst.par_chunks_mut(rows * row_len).enumerate().for_each(|(i, rows)| block(image * per_image + i, rows));
        });
    }
}

simd_fn! {
    /// One row of pixels.
    fn gather_row<FMA>(side: &Side, image: usize, y: usize, src: &[f32], w: &[f32], dst: &mut [f32]) {
        let (c, [kh, kw], [y_axis, x_axis]) = (side.channels, side.kernel, &side.axes);
        // Where the taps of one pixel read: (offset in src, offset in w).
        let mut taps = Vec::with_capacity(kh * kw);
        let (width, mut x) = (dst.len() / c, 0);
        while x < width {
            taps.clear();
            for i in 0..kh {
                let Some(row) = y_axis.source(y, i) else { continue };
                for j in 0..kw {
                    if let Some(col) = x_axis.source(x, j) {
                        taps.push((((image * y_axis.limit + row) * x_axis.limit + col) * c, (i * kw + j) * c));
                    }
                }
            }
            // Neighbours whose taps all lie inside read the same ones, further on: weights are loaded once for them.
            let whole = |x: usize| [0, kw - 1].iter().all(|&j| x_axis.source(x, j).is_some());
            let together = if x + PIXELS <= width && whole(x) && whole(x + PIXELS - 1) { x_axis.next() } else { None };
            if let Some(step) = together {
                let pixels = &mut dst[x * c..(x + PIXELS) * c];
                let done = gather_pixels::<FMA, PIXELS, 32>(&taps, src, step * c, w, 0, pixels);
                let done = gather_pixels::<FMA, PIXELS, 8>(&taps, src, step * c, w, done, pixels);
                gather_pixels::<FMA, PIXELS, 1>(&taps, src, step * c, w, done, pixels);
                x += PIXELS;
            } else {
                let pixel = &mut dst[x * c..(x + 1) * c];
                let done = gather_pixels::<FMA, 1, 32>(&taps, src, 0, w, 0, pixel);
                let done = gather_pixels::<FMA, 1, 8>(&taps, src, 0, w, done, pixel);
                gather_pixels::<FMA, 1, 1>(&taps, src, 0, w, done, pixel);
                x += 1;
            }
        }
    }
    /// Adds the products of one row of `dy: [width, c]` with the rows of `x` it reads to `dw: [kh, kw, c]`.
    fn weight_row<FMA>(side: &Side, image: usize, y: usize, x: &[f32], dy: &[f32], dw: &mut [f32]) {
        let (c, [kh, kw], [y_axis, x_axis]) = (side.channels, side.kernel, &side.axes);
        for i in 0..kh {
            let Some(row) = y_axis.source(y, i) else { continue };
            let x = &x[(image * y_axis.limit + row) * x_axis.limit * c..][..x_axis.limit * c];
            let dw = &mut dw[i * kw * c..(i + 1) * kw * c];
            match kw {
                3 => weight_taps::<FMA, 3>(x_axis, c, 0, x, dy, dw),
                5 => weight_taps::<FMA, 5>(x_axis, c, 0, x, dy, dw),
                _ => (0..kw).for_each(|j| weight_taps::<FMA, 1>(x_axis, c, j, x, dy, &mut dw[j * c..(j + 1) * c])),
            }
        }
    }
}

/// Channels `from..` of `P` neighbouring pixels, `L` at a time; returns the first channel that is left. What a tap reads for
/// one pixel lies `step` further on for the next.
#[inline(always)]
fn gather_pixels<const FMA: bool, const P: usize, const L: usize>(
    taps: &[(usize, usize)],
    src: &[f32],
    step: usize,
    w: &[f32],
    from: usize,
    pixels: &mut [f32],
) -> usize {
    let c = pixels.len() / P;
    let mut channel = from;
    while channel + L <= c {
        let mut sums = [[0.0; L]; P];
        for &(s, t) in taps {
            let w: [f32; L] = *w[t + channel..].first_chunk().expect("within the kernel");
            let src = &src[s + channel..s + channel + (P - 1) * step + L];
            for (p, sum) in sums.iter_mut().enumerate() {
                let s = &src[p * step..p * step + L];
                for l in 0..L {
                    sum[l] = mul_add::<FMA>(s[l], w[l], sum[l]);
                }
            }
        }
        for (p, sum) in sums.iter().enumerate() {
            pixels[p * c + channel..p * c + channel + L].copy_from_slice(sum);
        }
        channel += L;
    }
    channel
}

/// `KW` neighbouring taps, of which `first` is the leftmost: `dw: [KW, c]`.
#[inline(always)]
fn weight_taps<const FMA: bool, const KW: usize>(
    axis: &Axis,
    c: usize,
    first: usize,
    x: &[f32],
    dy: &[f32],
    dw: &mut [f32],
) {
    let done = weight_channels::<FMA, KW, 32>(axis, c, first, 0, x, dy, dw);
    let done = weight_channels::<FMA, KW, 8>(axis, c, first, done, x, dy, dw);
    weight_channels::<FMA, KW, 1>(axis, c, first, done, x, dy, dw);
}

/// Channels `from..`, `L` at a time, sums in registers along the row; returns the first channel that is left.
#[inline(always)]
fn weight_channels<const FMA: bool, const KW: usize, const L: usize>(
    axis: &Axis,
    c: usize,
    first: usize,
    from: usize,
    x: &[f32],
    dy: &[f32],
    dw: &mut [f32],
) -> usize {
    let mut channel = from;
    while channel + L <= c {
        let mut sums = [[0.0; L]; KW];
        for (j, sum) in sums.iter_mut().enumerate() {
            sum.copy_from_slice(&dw[j * c + channel..j * c + channel + L]);
        }
        for (position, dy) in dy.chunks_exact(c).enumerate() {
            let dy = &dy[channel..channel + L];
            for (j, sum) in sums.iter_mut().enumerate() {
                if let Some(source) = axis.source(position, first + j) {
                    let x = &x[source * c + channel..source * c + channel + L];
                    for l in 0..L {
                        sum[l] = mul_add::<FMA>(x[l], dy[l], sum[l]);
                    }
                }
            }
        }
        for (j, sum) in sums.iter().enumerate() {
            dw[j * c + channel..j * c + channel + L].copy_from_slice(sum);
        }
        channel += L;
    }
    channel
}

/// Partial sums of the weight gradient: enough to share out, few enough to add up.
const PARTIALS: usize = 16;

fn backward_weight_at(level: Simd, g: &DepthwiseGeometry, x: &[f32], dy: &[f32], dw: &mut [f32]) {
    g.check(x.len(), dw.len(), dy.len());
    dw.fill(0.0);
    if dw.is_empty() || dy.is_empty() {
        return;
    }
    let (out_h, row_len) = (g.out_h(), g.out_w() * g.c);
    let side = Side { channels: g.c, kernel: [g.kh, g.kw], size: [out_h, g.out_w()], axes: axes(g, true) };
    let rows = (g.n * out_h).div_ceil(PARTIALS).max(rows_per_task(row_len));
    let partials = (g.n * out_h).div_ceil(rows);
    with_scratch(partials * dw.len(), |sums| {
        chunks(partials > 1, sums, dw.len(), |i, sums| {
            sums.fill(0.0);
            let dy = &dy[i * rows * row_len..dy.len().min((i + 1) * rows * row_len)];
            for (row, dy) in (i * rows..).zip(dy.chunks_exact(row_len)) {
                weight_row(level, &side, row / out_h, row % out_h, x, dy, sums);
            }
        });
        for sums in sums.chunks_exact(dw.len()) {
            dw.iter_mut().zip(sums).for_each(|(dw, sum)| *dw += sum);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_close, channels, random, same_bits_for_1_and_2_threads, shapes};
    use super::*;
    use proptest::prelude::*;
    use std::sync::Mutex;

    /// Calls `f(x index, w index, y index)` for every product of the definition.
    fn products(g: &DepthwiseGeometry, mut f: impl FnMut(usize, usize, usize)) {
        let (oh, ow) = (g.out_h(), g.out_w());
        for row in 0..g.n * oh * ow * g.kh * g.kw {
            let (p, t) = (row / (g.kh * g.kw), row % (g.kh * g.kw));
            let (n, y, x) = (p / (oh * ow), p / ow % oh * g.stride + t / g.kw, p % ow * g.stride + t % g.kw);
            let (y, x) = (y.wrapping_sub(g.pad[0]), x.wrapping_sub(g.pad[2]));
            if y < g.h && x < g.w {
                (0..g.c).for_each(|c| f(((n * g.h + y) * g.w + x) * g.c + c, t * g.c + c, p * g.c + c));
            }
        }
    }

    const SHAPES: [DepthwiseGeometry; 8] = [
        DepthwiseGeometry { n: 2, h: 9, w: 8, c: 433, kh: 3, kw: 3, stride: 1, pad: [1, 1, 1, 1] },
        DepthwiseGeometry { n: 1, h: 1, w: 1, c: 7, kh: 5, kw: 5, stride: 1, pad: [2, 2, 2, 2] },
        DepthwiseGeometry { n: 3, h: 10, w: 13, c: 24, kh: 3, kw: 3, stride: 2, pad: [0, 1, 0, 1] },
        DepthwiseGeometry { n: 2, h: 11, w: 6, c: 50, kh: 5, kw: 5, stride: 2, pad: [1, 2, 2, 1] },
        DepthwiseGeometry { n: 5, h: 4, w: 4, c: 1, kh: 3, kw: 3, stride: 1, pad: [1, 0, 0, 2] },
        DepthwiseGeometry { n: 1, h: 40, w: 30, c: 100, kh: 5, kw: 5, stride: 1, pad: [2, 2, 2, 2] },
        DepthwiseGeometry { n: 2, h: 6, w: 9, c: 19, kh: 2, kw: 4, stride: 3, pad: [0, 1, 3, 0] },
        DepthwiseGeometry { n: 9, h: 28, w: 28, c: 40, kh: 3, kw: 3, stride: 1, pad: [1, 1, 1, 1] },
    ];

    /// Forward and both gradients at every level.
    fn judge(g: DepthwiseGeometry) {
        let x = random(g.n * g.h * g.w * g.c, 1);
        let w = random(g.kh * g.kw * g.c, 2);
        let dy = random(g.n * g.out_h() * g.out_w() * g.c, 3);
        assert!(!dy.is_empty());
        let check = |name: &str,
                     a: &[f32],
                     b: &[f32],
                     pick: fn(usize, usize, usize) -> [usize; 3],
                     len: usize,
                     run: &(dyn Fn(Simd, &mut [f32]) + Sync)| {
            let (mut low, mut high, mut scale) = (vec![0.0f32; len], vec![0.0f64; len], vec![0.0f64; len]);
            products(&g, |x, w, y| {
                let [a_at, b_at, out] = pick(x, w, y);
                let product = f64::from(a[a_at]) * f64::from(b[b_at]);
                low[out] += a[a_at] * b[b_at];
                high[out] += product;
                scale[out] += product.abs();
            });
            for level in Simd::available() {
                let got = same_bits_for_1_and_2_threads(|| {
                    let mut out = vec![f32::NAN; len];
                    run(level, &mut out);
                    out
                });
                assert_close(&got, &low, &high, &scale, &format!("{name} {g:?} {level:?}"));
            }
        };
        check("forward", &x, &w, |x, w, y| [x, w, y], dy.len(), &|l, y| forward_at(l, &g, &x, &w, y, |_, _| {}));
        check("input", &dy, &w, |x, w, y| [y, w, x], x.len(), &|l, dx| backward_input_at(l, &g, &dy, &w, dx));
        check("weight", &x, &dy, |x, w, y| [x, y, w], w.len(), &|l, dw| backward_weight_at(l, &g, &x, &dy, dw));
    }

    #[test]
    fn forward_and_gradients_match_plain_loops_at_every_level() {
        SHAPES.into_iter().for_each(judge);
    }

    proptest! {
        #![proptest_config(shapes(64))]
        #[test]
        fn any_shape_matches_plain_loops(
            (n, h, w, c) in (1..6_usize, 1..14_usize, 1..14_usize, channels()),
            (kh, kw, stride) in (1..7_usize, 1..7_usize, 1..4_usize),
            pad in [0..4_usize, 0..4_usize, 0..4_usize, 0..4_usize],
        ) {
            let g = DepthwiseGeometry { n, h, w, c, kh, kw, stride, pad };
            prop_assume!(g.out_h() * g.out_w() > 0);
            judge(g);
        }
    }

    #[test]
    fn the_epilogue_sees_every_block_of_every_image_once() {
        for g in SHAPES {
            let (x, w) = (random(g.n * g.h * g.w * g.c, 1), random(g.kh * g.kw * g.c, 2));
            let image = g.out_h() * g.out_w() * g.c;
            let mut y = vec![f32::NAN; g.n * image];
            let sums = Mutex::new(vec![f64::NAN; g.n * g.blocks_per_image()]);
            depthwise_forward(&g, &x, &w, &mut y, |block, rows| {
                let sum = rows.iter().map(|&v| f64::from(v)).sum();
                let before = std::mem::replace(&mut sums.lock().unwrap()[block], sum);
                assert!(before.is_nan(), "block {block} twice");
            });
            let sums = sums.into_inner().unwrap();
            for (y, sums) in y.chunks_exact(image).zip(sums.chunks_exact(g.blocks_per_image())) {
                let want: f64 = y.iter().map(|&v| f64::from(v)).sum();
                assert!((sums.iter().sum::<f64>() - want).abs() <= 1e-9 * image as f64);
            }
        }
    }
}
