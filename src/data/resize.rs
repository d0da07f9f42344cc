//! Pillow's 8-bit resampling to the bit: `BILINEAR` for pictures, `NEAREST` for masks. (Specification 3.1, 3.2.)
//!
//! ```text
//! s = in/out   r = max(s, 1)   c = (i + 1/2)·s   lo = max(0, ⌊c − r + 1/2⌋)   hi = min(in, ⌊c + r + 1/2⌋)
//! w[j] = max(0, 1 − |j − c + 1/2| / r), j in lo..hi, divided by its sum, then rounded to k[j] = ⌊w·2²² + 1/2⌋
//! out[i] = clamp((2²¹ + Σ k[j]·in[j]) >> 22)       horizontal first, bytes between the passes
//! ```
//! This is Pillow up to 12, which the published results used; Pillow 13 takes some tall pictures vertically first.
//!
//! Bytes between the passes and 22-bit weights leave no freedom in the arithmetic, only in its order. The vertical pass
//! is a weighted sum of whole rows and vectorises as it is written. The horizontal one does not, its window is too short,
//! so it takes `LANES` rows at a time, turns them on their side, and becomes a weighted sum of columns.

/// Bits after the point of a weight. 255·2²² leaves one bit of an `i32` for the sign and one for the rounding of weights.
const PRECISION: u32 = 22;
/// One half in that fixed point: what turns the truncating shift into rounding.
const HALF: i32 = 1 << (PRECISION - 1);
/// Rows the horizontal pass works on at once: the lanes of two AVX2 registers, the bytes of one SSE2 register.
const LANES: usize = 16;

/// A resampling of pictures of one size to another: weights and bounds, worked out once, for any number of pictures.
#[derive(Debug, Clone)]
pub struct Bilinear {
    horizontal: Axis,
    vertical: Axis,
}

/// The filter along one axis.
#[derive(Debug, Clone)]
struct Axis {
    input: usize,
    /// Of every output pixel: its first source pixel, and where its weights lie in `weights`.
    windows: Vec<(usize, std::ops::Range<usize>)>,
    weights: Vec<i32>,
}

impl Axis {
    fn new(input: usize, output: usize) -> Self {
        let scale = input as f64 / output as f64;
        let radius = scale.max(1.0);
        let mut weights = Vec::new();
        let mut real = Vec::new();
        let windows = (0..output)
            .map(|i| {
                let centre = (i as f64 + 0.5) * scale;
                // `as` truncates towards zero and stops a negative number at 0, as Pillow does in two steps.
                let lo = (centre - radius + 0.5) as usize;
                let hi = ((centre + radius + 0.5) as usize).min(input);
                real.clear();
                // Pillow multiplies by the reciprocal; a division would differ in the last bit.
                real.extend((lo..hi).map(|j| (1.0 - ((j as f64 - centre + 0.5) * (1.0 / radius)).abs()).max(0.0)));
                let sum: f64 = real.iter().sum();
                let first = weights.len();
                weights.extend(real.iter().map(|w| (w / sum * f64::from(1u32 << PRECISION) + 0.5) as i32));
                (lo, first..weights.len())
            })
            .collect();
        Axis { input, windows, weights }
    }

    fn output(&self) -> usize {
        self.windows.len()
    }

    /// Pillow skips a pass that would change no size.
    fn is_identity(&self) -> bool {
        self.input == self.output()
    }

    /// First source pixel and weights of every output pixel.
    fn windows(&self) -> impl Iterator<Item = (usize, &[i32])> {
        self.windows.iter().map(|(first, range)| (*first, &self.weights[range.clone()]))
    }
}

impl Bilinear {
    /// Plans the resampling of `from` to `to`, both (width, height) in pixels.
    pub fn new(from: (usize, usize), to: (usize, usize)) -> Self {
        Bilinear { horizontal: Axis::new(from.0, to.0), vertical: Axis::new(from.1, to.1) }
    }

    /// Resamples bytes `[H, W, channels]` of the planned size; returns `[H', W', channels]`.
    ///
    /// # Panics
    /// When `source` does not hold a picture of the planned size: a bug of the caller.
    pub fn apply(&self, source: &[u8], channels: usize) -> Vec<u8> {
        let (h, w) = (self.vertical.input, self.horizontal.input);
        assert_eq!(source.len(), h * w * channels, "resize: not a picture of {w}x{h} with {channels} channels");
        if source.is_empty() || self.vertical.output() * self.horizontal.output() == 0 {
            return vec![0; self.vertical.output() * self.horizontal.output() * channels];
        }
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") {
            // SAFETY: the processor has what the function was compiled for.
            return unsafe { self.passes_avx2(source, channels) };
        }
        self.passes(source, channels)
    }

    /// [`Self::passes`] compiled for AVX2, a third of the time. AVX-512 was measured no faster.
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2")]
    fn passes_avx2(&self, source: &[u8], channels: usize) -> Vec<u8> {
        self.passes(source, channels)
    }

    // Inlined, with all it calls, so that `passes_avx2` is compiled for its own instructions.
    #[inline(always)]
    fn passes(&self, source: &[u8], channels: usize) -> Vec<u8> {
        let row = self.horizontal.output() * channels;
        match (self.horizontal.is_identity(), self.vertical.is_identity()) {
            (true, true) => source.to_vec(),
            (true, false) => vertical(&self.vertical, source, row),
            (false, true) => horizontal(&self.horizontal, source, channels),
            (false, false) => vertical(&self.vertical, &horizontal(&self.horizontal, source, channels), row),
        }
    }
}

/// `[H, in, channels]` to `[H, out, channels]`.
#[inline(always)]
fn horizontal(axis: &Axis, source: &[u8], channels: usize) -> Vec<u8> {
    let (input, output) = (axis.input * channels, axis.output() * channels);
    let height = source.len() / input;
    let mut result = vec![0; height * output];
    // Bytes until they are multiplied: 16 rows of 1024 pixels are then 48 KiB and stay in the cache.
    let mut columns = vec![[0u8; LANES]; input];
    let mut sums = vec![[0u8; LANES]; output.next_multiple_of(LANES)];
    let mut tiles = vec![[[0u8; LANES]; LANES]; sums.len() / LANES];
    for first in (0..height).step_by(LANES) {
        // Lanes past the last row repeat it and are thrown away.
        let rows: [&[u8]; LANES] = std::array::from_fn(|lane| {
            let y = (first + lane).min(height - 1);
            &source[y * input..(y + 1) * input]
        });
        let (whole, rest) = columns.as_chunks_mut::<LANES>();
        for (i, columns) in whole.iter_mut().enumerate() {
            let mut tile = [[0; LANES]; LANES];
            for lane in 0..LANES {
                tile[lane].copy_from_slice(&rows[lane][i * LANES..(i + 1) * LANES]);
            }
            *columns = transpose(tile);
        }
        for (column, x) in rest.iter_mut().zip(input / LANES * LANES..) {
            for lane in 0..LANES {
                column[lane] = rows[lane][x];
            }
        }
        for ((start, weights), sums) in axis.windows().zip(sums.chunks_exact_mut(channels)) {
            let pixels = &columns[start * channels..(start + weights.len()) * channels];
            for (c, sum) in sums.iter_mut().enumerate() {
                let mut acc = [HALF; LANES];
                for (weight, pixel) in weights.iter().zip(pixels.chunks_exact(channels)) {
                    for lane in 0..LANES {
                        acc[lane] += weight * i32::from(pixel[c][lane]);
                    }
                }
                for lane in 0..LANES {
                    sum[lane] = to_byte(acc[lane]);
                }
            }
        }
        let lines = result[first * output..].chunks_exact_mut(output).take(LANES);
        for (i, sums) in sums.as_chunks::<LANES>().0.iter().enumerate() {
            tiles[i] = transpose(*sums);
        }
        for (lane, line) in lines.enumerate() {
            for (bytes, tile) in line.chunks_mut(LANES).zip(&tiles) {
                bytes.copy_from_slice(&tile[lane][..bytes.len()]);
            }
        }
    }
    result
}

/// Bytes of [`LANES`] rows and as many columns.
type Tile = [[u8; LANES]; LANES];

/// Turns a tile on its side: four perfect shuffles of its rows, 64 byte interleaves. The double loop below means the
/// same, but the compiler does not see it, and then it takes longer than all the rest.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn transpose(tile: Tile) -> Tile {
    use std::arch::x86_64::{__m128i, _mm_unpackhi_epi8, _mm_unpacklo_epi8};
    let mut rows: [__m128i; LANES] = bytemuck::cast(tile);
    for _ in 0..LANES.ilog2() {
        let before = rows;
        for i in 0..LANES / 2 {
            let (a, b) = (before[i], before[i + LANES / 2]);
            // SAFETY: SSE2, which every x86-64 has.
            (rows[2 * i], rows[2 * i + 1]) = unsafe { (_mm_unpacklo_epi8(a, b), _mm_unpackhi_epi8(a, b)) };
        }
    }
    bytemuck::cast(rows)
}

#[cfg(not(target_arch = "x86_64"))]
fn transpose(tile: Tile) -> Tile {
    std::array::from_fn(|x| std::array::from_fn(|y| tile[y][x]))
}

/// `[in, row]` to `[out, row]`, `row` in bytes.
#[inline(always)]
fn vertical(axis: &Axis, source: &[u8], row: usize) -> Vec<u8> {
    let mut result = vec![0; axis.output() * row];
    let mut sums = vec![0i32; row];
    for ((start, weights), line) in axis.windows().zip(result.chunks_exact_mut(row)) {
        sums.fill(HALF);
        for (weight, bytes) in weights.iter().zip(source[start * row..].chunks_exact(row)) {
            for (sum, &byte) in sums.iter_mut().zip(bytes) {
                *sum += weight * i32::from(byte);
            }
        }
        for (byte, &sum) in line.iter_mut().zip(&sums) {
            *byte = to_byte(sum);
        }
    }
    result
}

#[inline(always)]
fn to_byte(sum: i32) -> u8 {
    (sum >> PRECISION).clamp(0, 255) as u8
}

/// Resizes bytes `[H, W]` to `[H', W']` by picking pixels. Sizes are (width, height) in pixels.
///
/// # Panics
/// When `source` does not hold a picture of size `from`: a bug of the caller.
pub fn nearest(source: &[u8], from: (usize, usize), to: (usize, usize)) -> Vec<u8> {
    assert_eq!(source.len(), from.0 * from.1, "resize: not a grey picture of {}x{}", from.0, from.1);
    let columns = nearest_indices(from.0, to.0);
    let rows = nearest_indices(from.1, to.1);
    rows.iter().flat_map(|y| columns.iter().map(move |x| source[y * from.0 + x])).collect()
}

/// Source index of every output pixel along one axis. The position is accumulated, because Pillow's is: where it should
/// fall exactly between two pixels the rounding of the sum decides, and `⌊(i + 1/2)·s⌋` disagrees (25 of 224 from 1024).
fn nearest_indices(input: usize, output: usize) -> Vec<usize> {
    let scale = input as f64 / output as f64;
    std::iter::successors(Some(scale * 0.5), |position| Some(position + scale))
        .take(output)
        .map(|position| (position as usize).min(input.saturating_sub(1)))
        .collect()
}

#[cfg(test)]
mod tests {
    use safetensors::SafeTensors;

    use super::*;

    const FIXTURES: &[u8] = include_bytes!("../../fixtures/resize.safetensors");

    /// The bytes of `noise` in fixtures/export_resize.py.
    fn noise(length: usize) -> Vec<u8> {
        let mix = |i: u32| {
            let i = i.wrapping_mul(0x9E37_79B1);
            let i = (i ^ (i >> 15)).wrapping_mul(0x85EB_CA77);
            ((i ^ (i >> 13)) >> 24) as u8
        };
        (0..length as u32).map(mix).collect()
    }

    fn numbers(text: &str) -> Vec<usize> {
        text.split(['x', '/']).map(|n| n.parse().unwrap()).collect()
    }

    #[test]
    fn bilinear_is_pillow_to_the_bit() {
        let fixtures = SafeTensors::deserialize(FIXTURES).unwrap();
        let mut cases = 0;
        for (name, want) in fixtures.iter() {
            let Some(sizes) = name.strip_prefix("bilinear/") else { continue };
            let [w, h, c, to_w, to_h] = numbers(sizes)[..] else { panic!("{name}") };
            let plan = Bilinear::new((w, h), (to_w, to_h));
            let source = noise(w * h * c);
            assert!(plan.apply(&source, c) == want.data(), "{name}");
            // What a processor without AVX runs.
            assert!(plan.passes(&source, c) == want.data(), "{name}, portable");
            cases += 1;
        }
        assert!(cases >= 12, "{cases} cases");
    }

    #[test]
    fn nearest_is_pillow_to_the_bit() {
        let fixtures = SafeTensors::deserialize(FIXTURES).unwrap();
        let mut cases = 0;
        for (name, want) in fixtures.iter() {
            let Some(sizes) = name.strip_prefix("nearest/") else { continue };
            let [input, output] = numbers(sizes)[..] else { panic!("{name}") };
            let got: Vec<u8> = nearest_indices(input, output).iter().flat_map(|&i| (i as i32).to_le_bytes()).collect();
            assert!(got == want.data(), "{name}");
            cases += 1;
        }
        assert!(cases >= 10, "{cases} cases");
    }

    #[test]
    fn the_vector_of_the_specification() {
        let source = [0, 10, 20, 30, 40, 50, 60, 70, 80, 255];
        assert_eq!(Bilinear::new((10, 1), (4, 1)).apply(&source, 1), [10, 32, 58, 132]);
        assert_eq!(Bilinear::new((1, 10), (1, 4)).apply(&source, 1), [10, 32, 58, 132]);
    }

    #[test]
    fn nearest_picks_rows_and_columns() {
        let source: Vec<u8> = (0..12).collect(); // 4 wide, 3 high
        assert_eq!(nearest(&source, (4, 3), (2, 3)), [1, 3, 5, 7, 9, 11]);
        assert_eq!(nearest(&source, (4, 3), (4, 1)), [4, 5, 6, 7]);
        assert_eq!(nearest(&[5], (1, 1), (3, 2)), [5; 6]);
    }

    #[test]
    fn no_pixels_are_no_pixels() {
        assert!(Bilinear::new((3, 2), (0, 4)).apply(&noise(18), 3).is_empty());
        assert!(nearest(&noise(6), (3, 2), (4, 0)).is_empty());
    }
}
