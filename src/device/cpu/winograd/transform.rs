//! The transforms of F(4, 3) and F(3, 4) between pixels, taps and products: 16 channels of a tile at a time.
//!
//! In one dimension, at the points 0, ±A, ±B and ∞, with `m(x) = x (x² - A²) (x² - B²)`:
//!
//! | | matrix | row of a point p | row of ∞ |
//! |---|---|---|---|
//! | [`data`] | 6 x 6 | coefficients of `m(x) / (x - p)` | coefficients of `m(x)` |
//! | [`taps`] | 6 x 3, 6 x 4 | `p^k / m'(p)` | the last tap |
//! | [`sums`] | 4 x 6, 3 x 6 | (column) `p^j` | (column) the last sum |
//!
//! In two dimensions each is applied to the columns of a tile, then to its rows. Points of opposite sign share their even
//! and odd parts, and A and B are short binary fractions, so that no entry of [`data`] or [`sums`] is rounded.

use super::super::fetch::prefetch;
use super::super::simd::{mul_add, simd_fn};

/// Products of a tile.
pub const PRODUCTS: usize = 36;
/// Channels that are transformed together.
pub const LANES: usize = 16;
/// The points beside 0 and ∞ are ±A and ±B. Of all pairs in steps of 1/16 these have the smallest
/// [`growth`](super::growth); 1 and 2, which are mostly used, have four times as much.
const A: f32 = 11.0 / 16.0;
/// See [`A`].
const B: f32 = 23.0 / 16.0;

/// How far ahead cache lines are asked for: a tile is 36 streams, more than processors follow by themselves.
const AHEAD: usize = 2 * LANES;

type Lane = [f32; LANES];

/// Six neighbours in a row or column of the input.
#[inline(always)]
pub fn data<const FMA: bool>(d: [f32; 6]) -> [f32; 6] {
    let end = |k: usize| mul_add::<FMA>(A * A * (B * B), d[k], mul_add::<FMA>(-(A * A + B * B), d[k + 2], d[k + 4]));
    let pair = |p: f32, q: f32| {
        let even = mul_add::<FMA>(-q * q, d[2], d[4]);
        let odd = mul_add::<FMA>(-q * q, d[1], d[3]);
        [mul_add::<FMA>(p, odd, even), mul_add::<FMA>(-p, odd, even)]
    };
    let ([a, minus_a], [b, minus_b]) = (pair(A, B), pair(B, A));
    [end(0), a, minus_a, b, minus_b, end(1)]
}

/// A row or column of 3 or 4 taps.
#[inline(always)]
pub fn taps<const FMA: bool, const N: usize>(g: [f32; N]) -> [f32; 6] {
    let pair = |p: f32, q: f32| {
        let slope = 1.0 / (2.0 * p * p * (p * p - q * q));
        let even = mul_add::<FMA>(p * p, g[2], g[0]);
        let odd = if N == 4 { mul_add::<FMA>(p * p, g[N - 1], g[1]) } else { g[1] };
        [slope * mul_add::<FMA>(p, odd, even), slope * mul_add::<FMA>(-p, odd, even)]
    };
    let ([a, minus_a], [b, minus_b]) = (pair(A, B), pair(B, A));
    [g[0] / (A * A * (B * B)), a, minus_a, b, minus_b, g[N - 1]]
}

/// The 4 or 3 sums that six products stand for.
#[inline(always)]
pub fn sums<const FMA: bool, const N: usize>(m: [f32; 6]) -> [f32; N] {
    let (even, odd) = ([m[1] + m[2], m[3] + m[4]], [m[1] - m[2], m[3] - m[4]]);
    let mut y = [0.0; N];
    y[0] = m[0] + even[0] + even[1];
    y[1] = mul_add::<FMA>(A, odd[0], B * odd[1]);
    y[2] = mul_add::<FMA>(A * A, even[0], B * B * even[1]);
    if N == 4 {
        y[N - 1] = mul_add::<FMA>(A * A * A, odd[0], B * B * B * odd[1]);
    }
    y[N - 1] += m[5];
    y
}

/// `f` on the columns of a tile, then on the rows.
#[inline(always)]
fn both<const N: usize, const M: usize>(f: impl Fn([f32; N]) -> [f32; M], tile: &[[Lane; N]; N]) -> [[Lane; M]; M] {
    let mut half = [[[0.0; LANES]; N]; M];
    for l in 0..N * LANES {
        let column = f(std::array::from_fn(|i| tile[i].as_flattened()[l]));
        for (half, value) in half.iter_mut().zip(column) {
            half.as_flattened_mut()[l] = value;
        }
    }
    let mut whole = [[[0.0; LANES]; M]; M];
    for (whole, half) in whole.iter_mut().zip(&half) {
        for l in 0..LANES {
            let row = f(std::array::from_fn(|j| half[j][l]));
            for (whole, value) in whole.iter_mut().zip(row) {
                whole[l] = value;
            }
        }
    }
    whole
}

/// The first 16 values, or all and zeros.
#[inline(always)]
fn load(from: &[f32]) -> Lane {
    from.first_chunk().copied().unwrap_or_else(|| {
        let mut lane = [0.0; LANES];
        lane[..from.len()].copy_from_slice(from);
        lane
    })
}

/// As many of the 16 values as there is room for.
#[inline(always)]
fn store(lane: &Lane, to: &mut [f32]) {
    match to.first_chunk_mut() {
        Some(whole) => *whole = *lane,
        None => to.copy_from_slice(&lane[..to.len()]),
    }
}

/// Pictures `[n, h, w, channels]`, cut into tiles that begin 4 pixels apart.
pub struct Side<'a> {
    /// The values.
    pub values: &'a [f32],
    /// Height and width of a picture.
    pub size: [usize; 2],
    /// Channels.
    pub channels: usize,
    /// Where the first tile of a picture begins.
    pub origin: [isize; 2],
    /// Tiles of a picture, down and across.
    pub tiles: [usize; 2],
}

impl Side<'_> {
    fn pixel(&self, image: usize, y: isize, x: isize) -> Option<&[f32]> {
        let [h, w] = self.size;
        let inside = (0..h as isize).contains(&y) && (0..w as isize).contains(&x);
        inside.then(|| &self.values[((image * h + y as usize) * w + x as usize) * self.channels..][..self.channels])
    }

    /// `f` on the `N` x `N` pixels of every tile in a row of tiles: `out[product][tile * pitch + channel]`, with zeros
    /// up to the next multiple of 16 channels.
    #[inline(always)]
    fn transform<const N: usize>(
        &self,
        row: usize,
        pitch: usize,
        out: &mut [&mut [f32]],
        f: impl Fn([f32; N]) -> [f32; 6],
    ) {
        let [down, across] = self.tiles;
        let (image, y) = (row / down, (4 * (row % down)) as isize + self.origin[0]);
        for tile in 0..across {
            let x = (4 * tile) as isize + self.origin[1];
            let pixels: [[_; N]; N] =
                std::array::from_fn(|i| std::array::from_fn(|j| self.pixel(image, y + i as isize, x + j as isize)));
            for c in (0..self.channels).step_by(LANES) {
                let mut source = [[[0.0; LANES]; N]; N];
                for (source, pixel) in source.as_flattened_mut().iter_mut().zip(pixels.as_flattened()) {
                    if let Some(pixel) = pixel {
                        *source = load(&pixel[c..]);
                        prefetch(pixel.get(c + AHEAD..c + AHEAD + LANES).unwrap_or(&[]));
                    }
                }
                let at = tile * pitch + c;
                for out in &*out {
                    prefetch(out.get(at + AHEAD..at + AHEAD + LANES).unwrap_or(&[]));
                }
                for (out, lane) in out.iter_mut().zip(both(&f, &source).as_flattened()) {
                    out[at..][..LANES].copy_from_slice(lane);
                }
            }
        }
    }
}

simd_fn! {
    /// [`data`] of a row of tiles of the input, 6 x 6 pixels each; see [`Side::transform`].
    pub fn data_tiles<FMA>(side: &Side, row: usize, pitch: usize, out: &mut [&mut [f32]]) {
        side.transform(row, pitch, out, data::<FMA>);
    }

    /// [`taps`] of a row of tiles of the gradient of the output, 4 x 4 pixels each.
    pub fn gradient_tiles<FMA>(side: &Side, row: usize, pitch: usize, out: &mut [&mut [f32]]) {
        side.transform(row, pitch, out, taps::<FMA, 4>);
    }

    /// [`taps`] of weights: `out[product * pitch + i]` from `w: [3 * 3, len]`.
    pub fn weight_taps<FMA>(w: &[f32], len: usize, pitch: usize, out: &mut [f32]) {
        for at in (0..len).step_by(LANES) {
            let mut source = [[[0.0; LANES]; 3]; 3];
            for (source, w) in source.as_flattened_mut().iter_mut().zip(w.chunks_exact(len)) {
                *source = load(&w[at..]);
            }
            for (product, lane) in both(taps::<FMA, 3>, &source).as_flattened().iter().enumerate() {
                store(lane, &mut out[product * pitch + at..][..LANES.min(len - at)]);
            }
        }
    }

    /// [`sums`] of a row of tiles: at most 4 rows of pixels `y: [rows, width, channels]` from
    /// `products[product][tile * pitch + channel]`.
    pub fn output_tiles<FMA>(products: &[&[f32]], pitch: usize, width: usize, channels: usize, y: &mut [f32]) {
        for (tile, x) in (0..width).step_by(4).enumerate() {
            for c in (0..channels).step_by(LANES) {
                let mut source = [[[0.0; LANES]; 6]; 6];
                for (source, products) in source.as_flattened_mut().iter_mut().zip(products) {
                    let at = tile * pitch + c;
                    *source = load(&products[at..][..LANES]);
                    prefetch(products.get(at + AHEAD..at + AHEAD + LANES).unwrap_or(&[]));
                }
                let pixels = both(sums::<FMA, 4>, &source);
                for (y, row) in y.chunks_exact_mut(width * channels).zip(&pixels) {
                    for (pixel, lane) in y[x * channels..].chunks_exact_mut(channels).zip(row) {
                        store(lane, &mut pixel[c..channels.min(c + LANES)]);
                    }
                }
            }
        }
    }

    /// [`sums`] of one row of the gradient of the weights: `dw[tap][channel]` from `products[product][channel]`.
    pub fn weight_sums<FMA>(products: &[&[f32]], dw: &mut [&mut [f32]]) {
        let channels = dw[0].len();
        for c in (0..channels).step_by(LANES) {
            let mut source = [[[0.0; LANES]; 6]; 6];
            for (source, products) in source.as_flattened_mut().iter_mut().zip(products) {
                *source = load(&products[c..]);
                prefetch(products.get(c + AHEAD..c + AHEAD + LANES).unwrap_or(&[]));
            }
            for (dw, lane) in dw.iter_mut().zip(both(sums::<FMA, 3>, &source).as_flattened()) {
                store(lane, &mut dw[c..channels.min(c + LANES)]);
            }
        }
    }
}
