//! f32 values as bf16 factors: rounding, and panels of pairs.
//!
//! bf16 is the upper half of an f32. Rounding is to the nearest, ties to even; a NaN stays one; what is too small for a
//! normal number counts as zero, because the instructions that multiply bf16 read it so. A factor in two terms is
//! `hi = bf16(v)` and `lo = bf16(v - hi)`: together they are v up to 2⁻¹⁷ of it.
//!
//! Instructions sum over pairs of neighbours in `k`. A *word* holds such a pair, the even k in its lower half:
//!
//! ```text
//! f32 panel [k][lane]  ->  words [k / 2][lane]      odd k: the last pair ends with zero
//! ```

use super::pack::ZEROS;
use super::simd::simd_fn;

/// `v` rounded, as an f32.
#[inline(always)]
pub fn rounded(v: f32) -> f32 {
    f32::from_bits(upper(v))
}

/// `v` in two terms, as one f32.
pub fn in_two_terms(v: f32) -> f32 {
    rounded(v) + rounded(rest(v))
}

/// What rounding leaves of a number; zero where that is none.
#[inline(always)]
fn rest(v: f32) -> f32 {
    let rest = v - rounded(v);
    if rest.is_finite() { rest } else { 0.0 }
}

/// The bits of [`rounded`]: the lower half is zero.
#[inline(always)]
fn upper(v: f32) -> u32 {
    let bits = v.to_bits();
    let magnitude = bits & 0x7fff_ffff;
    let nearest = bits.wrapping_add(0x7fff + (bits >> 16 & 1));
    let number = if magnitude < 0x0080_0000 { bits & 0x8000_0000 } else { nearest };
    (if magnitude > 0x7f80_0000 { bits | 0x0040_0000 } else { number }) & 0xffff_0000
}

simd_fn! {
    /// Rounds every value.
    pub fn round_all<FMA>(values: &mut [f32]) {
        values.iter_mut().for_each(|v| *v = rounded(*v));
    }

    /// Words of a panel: `panel: [k][width]`, `words: [k / 2][width]`, `width` a multiple of 8 and at most 256. `TERM` 0
    /// takes the first term of each value, 1 the second.
    pub fn pairs<FMA, const TERM: usize>(panel: &[f32], width: usize, words: &mut [u32]) {
        for (rows, words) in panel.chunks(2 * width).zip(words.chunks_exact_mut(width)) {
            let (even, odd) = rows.split_at(width);
            let odd = if odd.is_empty() { &ZEROS[..width] } else { odd };
            let lanes = even.as_chunks::<8>().0.iter().zip(odd.as_chunks::<8>().0);
            for (words, (even, odd)) in words.as_chunks_mut::<8>().0.iter_mut().zip(lanes) {
                for i in 0..8 {
                    let [even, odd] = if TERM == 0 { [even[i], odd[i]] } else { [rest(even[i]), rest(odd[i])] };
                    words[i] = upper(even) >> 16 | upper(odd);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::simd::Simd;
    use super::super::testing::random;
    use super::*;
    use half::bf16;

    /// Numbers of every size, and what is none.
    fn values() -> Vec<f32> {
        let mut values = random(1000, 1);
        values.extend(random(1000, 2).iter().map(|v| v * 1e30));
        values.extend([0.0, -0.0, 1.0, f32::MAX, f32::MIN, f32::INFINITY, f32::NEG_INFINITY]);
        // Ties, to either side.
        values.extend([1.0 + 0.00390625, 1.0 + 3.0 * 0.00390625, 1.0 + 0.00390625 + f32::EPSILON]);
        values
    }

    #[test]
    fn rounding_is_that_of_half_where_numbers_are_normal() {
        for v in values() {
            assert_eq!(rounded(v).to_bits(), bf16::from_f32(v).to_f32().to_bits(), "{v}");
        }
        assert!([f32::NAN, f32::from_bits(0xff80_0001)].iter().all(|&v| rounded(v).is_nan() && rest(v) == 0.0));
        assert_eq!(rounded(-1e-39).to_bits(), (-0.0f32).to_bits());
        assert_eq!(rounded(f32::MIN_POSITIVE), f32::MIN_POSITIVE);
    }

    #[test]
    fn two_terms_leave_two_to_the_minus_seventeen() {
        for v in values().into_iter().filter(|v| v.is_finite() && rounded(*v).is_finite()) {
            assert!((f64::from(in_two_terms(v)) - f64::from(v)).abs() <= f64::from(v).abs() / 131072.0, "{v}");
        }
    }

    #[test]
    fn every_level_makes_the_same_panels() {
        for (depth, width) in [(2, 8), (7, 8), (5, 48), (1, 16), (64, 32)] {
            let panel = random(depth * width, 3);
            for level in Simd::available() {
                let mut all = panel.clone();
                round_all(level, &mut all);
                assert!(all.iter().zip(&panel).all(|(a, v)| *a == rounded(*v)));
                let [mut hi, mut lo] = [(); 2].map(|()| vec![0; depth.div_ceil(2) * width]);
                pairs::<0>(level, &panel, width, &mut hi);
                pairs::<1>(level, &panel, width, &mut lo);
                let value = |words: &[u32], k: usize, lane: usize| {
                    let word = words[k / 2 * width + lane];
                    f32::from_bits(if k.is_multiple_of(2) { word << 16 } else { word & 0xffff_0000 })
                };
                for (k, lane) in (0..2 * depth.div_ceil(2)).flat_map(|k| (0..width).map(move |lane| (k, lane))) {
                    let v = if k < depth { panel[k * width + lane] } else { 0.0 };
                    assert_eq!([value(&hi, k, lane), value(&lo, k, lane)], [rounded(v), rounded(rest(v))]);
                }
            }
        }
    }
}
