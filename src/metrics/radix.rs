//! Order-preserving `u32` keys of finite `f32` scores, and a stable least-significant-digit radix sort of them.
//!
//! key(x) = bits ^ (sign ? 0xFFFF_FFFF : 0x8000_0000): a < b as numbers <=> key(a) < key(b), equal <=> equal.
//! A positive pixel also carries its region's area: key << 32 | area, sorted as one `u64`, so that equal scores have one
//! order whatever the order of pushing.

use bytemuck::Pod;
use rayon::prelude::*;
use std::slice::IterMut;

const DIGIT_BITS: u32 = 8;
const DIGITS: usize = 1 << DIGIT_BITS;
/// Keys one task counts and scatters: fixed, so that nothing depends on the number of threads.
const BLOCK: usize = 1 << 18;
/// Below this the passes are not worth their set-up.
const SMALL: usize = 1 << 11;

/// What can be sorted: a number, digit by digit.
pub(super) trait Digits: Pod + Ord + Send + Sync {
    /// The digit that begins at bit `shift`.
    fn digit(self, shift: u32) -> usize;
}

impl Digits for u32 {
    #[inline]
    fn digit(self, shift: u32) -> usize {
        (self >> shift) as usize & (DIGITS - 1)
    }
}

impl Digits for u64 {
    #[inline]
    fn digit(self, shift: u32) -> usize {
        (self >> shift) as usize & (DIGITS - 1)
    }
}

/// The key of a finite score. `-0.0` and `0.0` share one.
#[inline]
pub(super) fn key(score: f32) -> u32 {
    let bits = (score + 0.0).to_bits(); // -0.0 + 0.0 = 0.0
    bits ^ (((bits as i32 >> 31) as u32) | 0x8000_0000)
}

/// The score a key stands for.
#[inline]
pub(super) fn score(key: u32) -> f32 {
    f32::from_bits(if key >> 31 == 1 { key ^ 0x8000_0000 } else { !key })
}

/// Sorts ascending.
pub(super) fn sort<T: Digits>(mut keys: Vec<T>) -> Vec<T> {
    if keys.len() < SMALL {
        keys.sort_unstable();
        return keys;
    }
    let mut other = vec![T::zeroed(); keys.len()];
    for shift in (0..8 * size_of::<T>() as u32).step_by(DIGIT_BITS as usize) {
        if pass(&keys, &mut other, shift) {
            std::mem::swap(&mut keys, &mut other);
        }
    }
    keys
}

/// One stable pass by the digit at `shift`. False, and `to` untouched, if all keys share that digit.
fn pass<T: Digits>(from: &[T], to: &mut [T], shift: u32) -> bool {
    let counts: Vec<[usize; DIGITS]> = from
        .par_chunks(BLOCK)
        .map(|block| {
            let mut counts = [0; DIGITS];
            block.iter().for_each(|key| counts[key.digit(shift)] += 1);
            counts
        })
        .collect();
    if counts.iter().map(|block| block[from[0].digit(shift)]).sum::<usize>() == from.len() {
        return false;
    }
    // Digit by digit, and within it block by block, every block gets its own slice of the output: stable, and the
    // blocks can be scattered at the same time.
    let mut slots: Vec<Vec<IterMut<T>>> = counts.iter().map(|_| Vec::with_capacity(DIGITS)).collect();
    let mut rest = to;
    for digit in 0..DIGITS {
        for (slots, counts) in slots.iter_mut().zip(&counts) {
            let (mine, others) = rest.split_at_mut(counts[digit]);
            slots.push(mine.iter_mut());
            rest = others;
        }
    }
    from.par_chunks(BLOCK).zip(slots).for_each(|(block, mut slots)| {
        for &key in block {
            if let Some(slot) = slots[key.digit(shift)].next() {
                *slot = key;
            }
        }
    });
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn keys_keep_the_order_and_come_back() {
        let ascending = [f32::MIN, -1.5, -1e-40, -0.0, 1e-45, 1e-40, f32::MIN_POSITIVE, 0.1, 1.0, f32::MAX];
        for pair in ascending.windows(2) {
            assert!(key(pair[0]) < key(pair[1]), "{pair:?}");
        }
        for x in ascending {
            assert_eq!(score(key(x)), x);
        }
        assert_eq!(key(-0.0), key(0.0));
    }

    /// A 64-bit linear congruential generator (Knuth's MMIX constants), upper half.
    fn random(n: usize, mask: u32) -> Vec<u32> {
        let mut state = 7_u64;
        let mut next = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 32) as u32 & mask
        };
        (0..n).map(|_| next()).collect()
    }

    #[test]
    fn sorts_what_the_library_sorts() {
        for n in [0, 1, SMALL - 1, SMALL, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 77] {
            for mask in [u32::MAX, 0x0000_ff00, 0x8000_0001, 0] {
                let keys = random(n, mask);
                let mut expected = keys.clone();
                expected.sort_unstable();
                let wide: Vec<u64> = keys.iter().map(|&key| u64::from(key) << 21 | u64::from(key % 5)).collect();
                let mut wide_expected = wide.clone();
                wide_expected.sort_unstable();
                assert!(sort(keys) == expected, "{n} keys, mask {mask:x}");
                assert!(sort(wide) == wide_expected, "{n} wide keys, mask {mask:x}");
            }
        }
    }

    proptest! {
        #[test]
        fn keys_compare_as_numbers(a in -1e3_f32..1e3, b in proptest::num::f32::NORMAL | proptest::num::f32::ZERO) {
            prop_assert_eq!(key(a).cmp(&key(b)), a.partial_cmp(&b).unwrap());
        }
    }
}
