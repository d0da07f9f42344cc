//! The depthwise convolution of `mobile_bottleneck` on the CPU, with what lies on both sides of it: one walk over an image.
//!
//! ```text
//! forward    y1 -> h1 = hswish(a1 y1 + b1) -> y2 = depthwise3x3(h1), moments of y2
//! backward   du, y2 -> dt2 = a du + e y2 + f -> dh1 = depthwise3x3'(dt2), dt1 = dh1 hswish'(a1 y1 + b1) over du,
//!            Σ dt1, Σ dt1 (y1 − mean1), ddepthwise = Σ h1 dt2
//! ```
//! A few channels at a time, down the picture: the three lines that a line of the result reads are made once, in a ring
//! that stays in the nearest cache, and h1 and dt2 are never written to memory.

use super::activation::Kind;
use super::normalise::from_pivot;
use super::on_load::{activated, changed, lanes};
use crate::buffer::Buffer;
use crate::device::cpu::{fetch_share, mul_add, simd, simd_fn};

/// Channels worked on at a time: three lines of 30 pixels are 17 KiB.
const CHANNELS: usize = 48;

/// Sizes of an image.
#[derive(Clone, Copy)]
pub(super) struct Picture {
    pub h: usize,
    pub w: usize,
    pub e: usize,
}

impl Picture {
    /// Where the channels from `first` on of line `y` lie.
    fn line(self, y: usize, first: usize) -> std::ops::Range<usize> {
        y * self.w * self.e + first..(y + 1) * self.w * self.e
    }

    /// Asks for the channels `first..first + c` of line `y`, if there is one, of each of these arrays, ahead of its use.
    fn fetch<const N: usize>(self, arrays: [&[f32]; N], y: usize, first: usize, c: usize) {
        for values in arrays.into_iter().filter(|_| y < self.h) {
            fetch_share(values, self.e, y * self.w..(y + 1) * self.w, first..first + c, 0, 1);
        }
    }

    /// The first channel and the number of channels of each walk.
    fn walks(self) -> impl Iterator<Item = (usize, usize)> {
        (0..self.e).step_by(CHANNELS).map(move |first| (first, CHANNELS.min(self.e - first)))
    }
}

/// Three lines `[w + 2, channels]` of a padded picture: line y in place y % 3, with zeros left and right of it.
struct Ring {
    values: Buffer,
    line: usize,
    channels: usize,
}

impl Ring {
    /// Zeros.
    fn new(p: Picture, channels: usize) -> Self {
        let line = (p.w + 2) * channels;
        Ring { values: Buffer::filled(3 * line, 0.0), line, channels }
    }

    /// The pixels of line y, between their borders.
    fn pixels(&mut self, y: usize) -> &mut [f32] {
        &mut self.values[y % 3 * self.line..][self.channels..self.line - self.channels]
    }

    /// The lines above, at and below y.
    fn around(&self, y: usize) -> [&[f32]; 3] {
        [2, 0, 1].map(|step| &self.values[(y + step) % 3 * self.line..][..self.line])
    }
}

/// y2 and its moments, from y1 and the table of its BatchNorm `[e]`; the taps are `[3, 3, e]`.
pub(super) fn forward(
    p: Picture,
    y1: &[f32],
    [a, b]: [&[f32]; 2],
    taps: &[f32],
    y2: &mut [f32],
    [mean, squares]: [&mut [f64]; 2],
) {
    mean.fill(0.0);
    squares.fill(0.0);
    for (first, c) in p.walks() {
        let of = first..first + c;
        let mut ring = Ring::new(p, c);
        let make = |ring: &mut Ring, y: usize| match y < p.h {
            true => {
                let (a, b) = (&a[of.clone()], &b[of.clone()]);
                activated(simd(), &y1[p.line(y, first)], p.e, a, b, c, ring.pixels(y));
            }
            false => ring.pixels(y).fill(0.0),
        };
        make(&mut ring, 0);
        let (taps, mut pivot) = (own_taps(taps, p.e, first, c, false), [0.0; CHANNELS]);
        for y in 0..p.h {
            p.fetch([y1], y + 2, first, c);
            p.fetch([y2], y + 1, first, c);
            make(&mut ring, y + 1);
            let line = &mut y2[p.line(y, first)];
            convolve(simd(), ring.around(y), &taps, line, p.e);
            if y == 0 {
                pivot[..c].copy_from_slice(&line[..c]);
            }
            let mut sums = [[0.0; CHANNELS]; 2];
            let [s, q] = &mut sums;
            deviations(simd(), line, p.e, &pivot[..c], s, q);
            add(&mut mean[of.clone()], &sums[0]);
            add(&mut squares[of.clone()], &sums[1]);
        }
        from_pivot(&pivot[..c], p.h * p.w, [&mut mean[of.clone()], &mut squares[of]]);
    }
}

/// What the backward walk reads.
pub(super) struct Backward<'a> {
    /// `[h, w, e]`.
    pub y1: &'a [f32],
    /// `[h, w, e]`.
    pub y2: &'a [f32],
    /// a and b of BatchNorm 1, and its mean, `[e]`.
    pub first: [&'a [f32]; 3],
    /// a, e and f of the gradient of y2, `[e]`.
    pub second: [&'a [f32]; 3],
    /// `[3, 3, e]`.
    pub taps: &'a [f32],
}

impl Backward<'_> {
    /// Turns `d` from du into dt1; overwrites Σ dt1, Σ dt1 (y1 − mean1) and the gradient of the taps.
    pub fn run(&self, p: Picture, d: &mut [f32], [s, t]: [&mut [f64]; 2], dtaps: &mut [f32]) {
        s.fill(0.0);
        t.fill(0.0);
        dtaps.fill(0.0);
        for (first, c) in p.walks() {
            let of = first..first + c;
            let [a1, b1, mean] = self.first.map(|table| &table[of.clone()]);
            let [a2, e2, f2] = self.second.map(|table| &table[of.clone()]);
            let (mut ring, mut h) = (Ring::new(p, c), Buffer::scratch(p.w * c));
            let make = |ring: &mut Ring, d: &[f32], y: usize| match y < p.h {
                true => {
                    let at = p.line(y, first);
                    changed(simd(), &d[at.clone()], &self.y2[at], p.e, a2, e2, f2, c, ring.pixels(y));
                }
                false => ring.pixels(y).fill(0.0),
            };
            make(&mut ring, d, 0);
            let taps = own_taps(self.taps, p.e, first, c, true);
            for y in 0..p.h {
                p.fetch([&*d, self.y2], y + 2, first, c);
                p.fetch([self.y1], y + 1, first, c);
                // Line y + 1 of d is read here, and line y written below.
                make(&mut ring, d, y + 1);
                let (at, lines) = (p.line(y, first), ring.around(y));
                let (y1, d) = (&self.y1[at.clone()], &mut d[at]);
                convolve(simd(), lines, &taps, d, p.e);
                through_activation(simd(), y1, a1, b1, d, p.e, &mut h);
                let mut sums = [[0.0; CHANNELS]; 2];
                let [of_d, of_products] = &mut sums;
                line_sums(simd(), d, y1, p.e, mean, of_d, of_products);
                add(&mut s[of.clone()], &sums[0]);
                add(&mut t[of.clone()], &sums[1]);
                taps_line(simd(), lines, &h, c, &mut dtaps[first..], p.e);
            }
        }
    }
}

simd_fn! {
    /// A line `[w, c]` of the convolution, pixels `pitch` apart, from the three lines around it; the taps are `[9, c]`.
    fn convolve<FMA>(lines: [&[f32]; 3], taps: &[f32], y: &mut [f32], pitch: usize) {
        let c = taps.len() / 9;
        for (x, y) in y.chunks_mut(pitch).enumerate() {
            let (lines, y) = (lines.map(|line| &line[x * c..(x + 3) * c]), &mut y[..c]);
            let done = convolve_lanes::<FMA, 16>(0, lines, taps, y);
            let done = convolve_lanes::<FMA, 8>(done, lines, taps, y);
            convolve_lanes::<FMA, 1>(done, lines, taps, y);
        }
    }

    /// Adds the deviations of a line's pixels from the pivot, and their squares.
    fn deviations<FMA>(y: &[f32], pitch: usize, pivot: &[f32], s: &mut [f32], q: &mut [f32]) {
        let c = pivot.len();
        let (s, q) = (&mut s[..c], &mut q[..c]);
        for y in y.chunks(pitch) {
            let y = &y[..c];
            for k in 0..c {
                let d = y[k] - pivot[k];
                s[k] += d;
                q[k] += d * d;
            }
        }
    }

    /// h1, and dt1 over dh1, of a line.
    fn through_activation<FMA>(y1: &[f32], a: &[f32], b: &[f32], d: &mut [f32], pitch: usize, h: &mut [f32]) {
        let c = a.len();
        let b = &b[..c];
        for ((y1, d), h) in y1.chunks(pitch).zip(d.chunks_mut(pitch)).zip(h.chunks_exact_mut(c)) {
            let (y1, d) = (&y1[..c], &mut d[..c]);
            for k in 0..c {
                let z = mul_add::<FMA>(y1[k], a[k], b[k]);
                h[k] = Kind::HardSwish.fast_value(z);
                d[k] *= Kind::HardSwish.fast_slope(z);
            }
        }
    }

    /// `s += d`, `t += d (y1 − mean)` along a line.
    fn line_sums<FMA>(d: &[f32], y1: &[f32], pitch: usize, mean: &[f32], s: &mut [f32], t: &mut [f32]) {
        let c = mean.len();
        let (s, t) = (&mut s[..c], &mut t[..c]);
        for (y1, d) in y1.chunks(pitch).zip(d.chunks(pitch)) {
            let (y1, d) = (&y1[..c], &d[..c]);
            for k in 0..c {
                s[k] += d[k];
                t[k] += d[k] * (y1[k] - mean[k]);
            }
        }
    }

    /// Adds what a line of h1 and the three lines of dt2 around it give to the gradient of the taps.
    fn taps_line<FMA>(lines: [&[f32]; 3], h: &[f32], c: usize, dtaps: &mut [f32], e: usize) {
        let done = taps_lanes::<FMA, 16>(0, lines, h, c, dtaps, e);
        let done = taps_lanes::<FMA, 8>(done, lines, h, c, dtaps, e);
        taps_lanes::<FMA, 1>(done, lines, h, c, dtaps, e);
    }
}

/// Channels `from..` of a pixel, `L` at a time, from three pixels of each line; returns the first that is left.
#[inline(always)]
fn convolve_lanes<const FMA: bool, const L: usize>(
    from: usize,
    lines: [&[f32]; 3],
    taps: &[f32],
    y: &mut [f32],
) -> usize {
    let c = y.len();
    let (blocks, _) = y[from..].as_chunks_mut::<L>();
    let mut at = from;
    for y in blocks {
        let mut sum = [0.0; L];
        for tap in 0..9 {
            let (v, w) = (lanes::<L>(lines[tap / 3], tap % 3 * c + at), lanes::<L>(taps, tap * c + at));
            for l in 0..L {
                sum[l] = mul_add::<FMA>(v[l], w[l], sum[l]);
            }
        }
        *y = sum;
        at += L;
    }
    at
}

/// As [`convolve_lanes`].
#[inline(always)]
fn taps_lanes<const FMA: bool, const L: usize>(
    from: usize,
    lines: [&[f32]; 3],
    h: &[f32],
    c: usize,
    dtaps: &mut [f32],
    e: usize,
) -> usize {
    let mut at = from;
    while at + L <= c {
        let mut sums: [[f32; L]; 9] = std::array::from_fn(|tap| *lanes(dtaps, tap * e + at));
        for (x, h) in h.chunks_exact(c).enumerate() {
            let h: [f32; L] = *lanes(h, at);
            for tap in 0..9 {
                let v = lanes::<L>(lines[2 - tap / 3], (x + 2 - tap % 3) * c + at);
                for l in 0..L {
                    sums[tap][l] = mul_add::<FMA>(h[l], v[l], sums[tap][l]);
                }
            }
        }
        for (tap, sum) in sums.iter().enumerate() {
            dtaps[tap * e + at..][..L].copy_from_slice(sum);
        }
        at += L;
    }
    at
}

/// The taps of channels `first..first + c` as `[9, c]`, `flipped` for the way back.
fn own_taps(taps: &[f32], e: usize, first: usize, c: usize, flipped: bool) -> Buffer {
    let mut own = Buffer::scratch(9 * c);
    for (i, own) in own.chunks_exact_mut(c).enumerate() {
        let tap = if flipped { 8 - i } else { i };
        own.copy_from_slice(&taps[tap * e + first..][..c]);
    }
    own
}

/// `sums += values`.
fn add(sums: &mut [f64], values: &[f32]) {
    sums.iter_mut().zip(values).for_each(|(s, &v)| *s += f64::from(v));
}
