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
#[cfg(target_arch = "x86_64")]
use super::simd::Level;
use super::simd::{Simd, simd_fn};

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

    /// [`pairs`], from the bits of the numbers.
    fn pairs_by_bits<FMA, const TERM: usize>(panel: &[f32], width: usize, words: &mut [u32]) {
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

/// Words of a panel: `panel: [k][width]`, `words: [k / 2][width]`, `width` a multiple of 8 and at most 256. `TERM` 0 takes
/// the first term of each value, 1 the second.
pub fn pairs<const TERM: usize>(level: Simd, panel: &[f32], width: usize, words: &mut [u32]) {
    #[cfg(target_arch = "x86_64")]
    if TERM == 0 && level.level() == Level::Avx512 && is_x86_feature_detected!("avx512bf16") {
        let done = if width.is_multiple_of(16) { panel.len() } else { panel.len() / 32 * 32 * usize::from(width == 8) };
        // SAFETY: the instructions were found.
        unsafe { pairs_avx512bf16(&panel[..done], width, words) };
        if done < panel.len() {
            pairs_by_bits::<TERM>(level, &panel[done..], width, &mut words[done / 2..]);
        }
        return;
    }
    pairs_by_bits::<TERM>(level, panel, width, words);
}

/// First terms by the instruction that rounds to bf16, which treats every number as [`upper`] does: whole rows of 16, or
/// rows of 8, four at a time.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn pairs_avx512bf16(panel: &[f32], width: usize, words: &mut [u32]) {
    use std::arch::x86_64::*;
    // Where among 32 rounded numbers those of each word are: rows of `W`, the even one of a word `W` before the odd one.
    const fn order<const W: usize>() -> [u16; 32] {
        let (mut order, mut i) = ([0; 32], 0);
        while i < 32 {
            let (word, odd) = (i / 2, i % 2);
            order[i] = (word / W * 2 * W + word % W + odd * W) as u16;
            i += 1;
        }
        order
    }
    let sixteen = |order: &[u16; 32], first: &[f32; 16], second: &[f32; 16], words: &mut [u32; 16]| {
        // SAFETY: all are 64 bytes of any content.
        unsafe {
            let [first, second] = [first, second].map(|numbers| _mm512_loadu_ps(numbers.as_ptr()));
            let rounded = std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(second, first));
            let sorted = _mm512_permutexvar_epi16(_mm512_loadu_si512(order.as_ptr().cast()), rounded);
            _mm512_storeu_si512(words.as_mut_ptr().cast(), sorted);
        }
    };
    if width == 8 {
        let halves = panel.as_chunks::<16>().0.as_chunks::<2>().0;
        for ([first, second], words) in halves.iter().zip(words.as_chunks_mut().0) {
            sixteen(const { &order::<8>() }, first, second, words);
        }
        return;
    }
    for (rows, words) in panel.chunks(2 * width).zip(words.chunks_exact_mut(width)) {
        let (even, odd) = rows.split_at(width);
        let odd = if odd.is_empty() { &ZEROS[..width] } else { odd };
        let halves = even.as_chunks().0.iter().zip(odd.as_chunks().0);
        for (words, (even, odd)) in words.as_chunks_mut().0.iter_mut().zip(halves) {
            sixteen(const { &order::<16>() }, even, odd, words);
        }
    }
}

#[cfg(test)]
mod tests {
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
        for (depth, width) in [(2, 8), (7, 8), (5, 48), (1, 16), (64, 32), (3, 24)] {
            let odd = [f32::NAN, f32::from_bits(0xff80_0001), f32::INFINITY, -1e-39, -0.0, f32::MAX];
            let panel: Vec<f32> = random(depth * width, 3)
                .into_iter()
                .zip(0..)
                .map(|(v, i)| if i % 5 == 0 { odd[i / 5 % 6] } else { v })
                .collect();
            for level in Simd::available() {
                let mut all = panel.clone();
                round_all(level, &mut all);
                assert!(all.iter().zip(&panel).all(|(a, v)| a.to_bits() == upper(*v)));
                let [mut hi, mut lo] = [(); 2].map(|()| vec![0; depth.div_ceil(2) * width]);
                pairs::<0>(level, &panel, width, &mut hi);
                pairs::<1>(level, &panel, width, &mut lo);
                let value = |words: &[u32], k: usize, lane: usize| {
                    let word = words[k / 2 * width + lane];
                    if k.is_multiple_of(2) { word << 16 } else { word & 0xffff_0000 }
                };
                for (k, lane) in (0..2 * depth.div_ceil(2)).flat_map(|k| (0..width).map(move |lane| (k, lane))) {
                    let v = if k < depth { panel[k * width + lane] } else { 0.0 };
                    assert_eq!([value(&hi, k, lane), value(&lo, k, lane)], [upper(v), upper(rest(v))]);
                }
            }
        }
    }
}
