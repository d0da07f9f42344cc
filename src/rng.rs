//! The only source of randomness: Philox4x32-10, a counter-based generator.
//! `block(seed, stream, i) = rounds^10((i, stream), seed)`: four 32-bit words from a 128-bit counter and a 64-bit key.
//! Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
//!
//! A counter needs no history. Every picture, parameter and epoch gets a stream of its own, so what it draws depends
//! neither on the number of threads nor on what was drawn before it, and a resumed run can jump to where it stopped.

use std::f64::consts::TAU;

const MULTIPLIER: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
/// Added to the key after each round: the golden ratio and sqrt(3) - 1.
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
const ROUNDS: usize = 10;

/// Ten rounds over one 128-bit counter.
fn philox4x32(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..ROUNDS {
        let a = u64::from(MULTIPLIER[0]) * u64::from(counter[0]);
        let b = u64::from(MULTIPLIER[1]) * u64::from(counter[2]);
        counter = [(b >> 32) as u32 ^ counter[1] ^ key[0], b as u32, (a >> 32) as u32 ^ counter[3] ^ key[1], a as u32];
        key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
    }
    counter
}

/// A generator: seed and stream name a sequence of 2^66 words, `position` is the place in it.
///
/// ```
/// use grad::rng::Rng;
/// let (mut a, mut b) = (Rng::new(7, 0), Rng::new(7, 0));
/// b.seek(2);
/// assert_eq!([a.next_u32(), a.next_u32(), a.next_u32()][2], b.next_u32());
/// ```
#[derive(Debug, Clone)]
pub struct Rng {
    seed: u64,
    stream: u64,
    position: u64,
    /// The four words of the block that holds `position`, unless `position` is the first of them.
    block: [u32; 4],
    /// Second half of a Box-Muller pair whose first half has been handed out.
    spare: Option<f32>,
}

impl Rng {
    /// The sequence `stream` of `seed`, from its start. Different streams of a seed are independent.
    pub fn new(seed: u64, stream: u64) -> Self {
        Rng { seed, stream, position: 0, block: [0; 4], spare: None }
    }

    /// Words drawn so far.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Jumps to the word `position`, forwards or backwards, at no cost.
    pub fn seek(&mut self, position: u64) {
        self.position = position;
        self.spare = None;
        if !position.is_multiple_of(4) {
            self.refill();
        }
    }

    fn refill(&mut self) {
        let split = |v: u64| [v as u32, (v >> 32) as u32];
        let ([c0, c1], [c2, c3]) = (split(self.position / 4), split(self.stream));
        self.block = philox4x32([c0, c1, c2, c3], split(self.seed));
    }

    /// The next 32 bits.
    pub fn next_u32(&mut self) -> u32 {
        if self.position.is_multiple_of(4) {
            self.refill();
        }
        let word = self.block[(self.position % 4) as usize];
        self.position += 1;
        word
    }

    fn next_u64(&mut self) -> u64 {
        u64::from(self.next_u32()) | u64::from(self.next_u32()) << 32
    }

    /// Uniform in [0, 1): a multiple of 2^-24, so every value is exact and 1 never comes.
    pub fn uniform(&mut self) -> f32 {
        (self.next_u32() >> 8) as f32 * (1.0 / (1 << 24) as f32)
    }

    /// Uniform between `low` (included) and `high` (reached only by rounding).
    pub fn uniform_in(&mut self, low: f32, high: f32) -> f32 {
        low + (high - low) * self.uniform()
    }

    /// Standard normal, by Box and Muller in f64; the second value of a pair is kept for the next call.
    pub fn normal(&mut self) -> f32 {
        if let Some(value) = self.spare.take() {
            return value;
        }
        // Half a step off the grid: the logarithm never sees 0.
        let unit = |word: u32| (f64::from(word) + 0.5) / 4_294_967_296.0;
        let radius = (-2.0 * unit(self.next_u32()).ln()).sqrt();
        let (sin, cos) = (TAU * unit(self.next_u32())).sin_cos();
        self.spare = Some((radius * sin) as f32);
        (radius * cos) as f32
    }

    /// Uniform in `0..n`, without bias (Lemire 2019: a product, and a second draw where the remainder would favour some).
    ///
    /// # Panics
    /// If `n` is 0: there is nothing to choose from.
    pub fn below(&mut self, n: usize) -> usize {
        assert!(n > 0, "below(0): nothing to choose from");
        let n = n as u64;
        let favoured = n.wrapping_neg() % n; // 2^64 mod n
        loop {
            let product = u128::from(self.next_u64()) * u128::from(n);
            if product as u64 >= favoured {
                return (product >> 64) as usize;
            }
        }
    }

    /// A random permutation in place (Fisher and Yates), every order equally likely.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last + 1));
        }
    }

    /// Fills `out` with normal values of mean 0 and standard deviation `std`.
    pub fn fill_normal(&mut self, out: &mut [f32], std: f32) {
        out.iter_mut().for_each(|value| *value = std * self.normal());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Known answers of the authors' reference implementation (Random123, kat_vectors).
    #[test]
    fn known_answers() {
        let ones = u32::MAX;
        for (counter, key, want) in [
            ([0; 4], [0; 2], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]),
            ([ones; 4], [ones; 2], [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]),
            (
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                [0xa409_3822, 0x299f_31d0],
                [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
            ),
        ] {
            assert_eq!(philox4x32(counter, key), want);
        }
    }

    #[test]
    fn seed_is_the_key_and_stream_the_high_counter() {
        let mut rng = Rng::new(0x299f_31d0_a409_3822, 0x0370_7344_1319_8a2e);
        rng.seek(4 * 0x05a3_08d3_243f_6a88);
        let want = philox4x32([0x243f_6a88, 0x05a3_08d3, 0x1319_8a2e, 0x0370_7344], [0xa409_3822, 0x299f_31d0]);
        assert_eq!([(); 4].map(|()| rng.next_u32()), want);
    }

    #[test]
    fn any_position_is_reached_at_once() {
        let mut rng = Rng::new(3, 9);
        let words: Vec<u32> = (0..23).map(|_| rng.next_u32()).collect();
        assert_eq!(rng.position(), 23);
        for start in [22, 0, 5, 16, 7] {
            rng.normal(); // a spare value must not survive a jump
            rng.seek(start);
            let rest: Vec<u32> = (start..23).map(|_| rng.next_u32()).collect();
            assert_eq!(rest, words[start as usize..]);
        }
    }

    #[test]
    fn streams_and_seeds_differ() {
        let first = |seed, stream| Rng::new(seed, stream).next_u32();
        let mut seen: Vec<u32> = (0..8).flat_map(|i| [first(i, 0), first(0, i + 1)]).collect();
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), 16);
    }

    #[test]
    fn uniform_fills_the_unit_interval() {
        let (mut rng, n) = (Rng::new(1, 2), 100_000);
        let values: Vec<f32> = (0..n).map(|_| rng.uniform()).collect();
        assert!(values.iter().all(|v| (0.0..1.0).contains(v)));
        let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / f64::from(n);
        // Standard error of the mean: 1/sqrt(12 n) = 9e-4.
        assert!((mean - 0.5).abs() <= 4e-3, "mean {mean}");
        assert!((0..100).all(|_| (-3.0..=5.0).contains(&rng.uniform_in(-3.0, 5.0))));
    }

    #[test]
    fn normal_has_its_moments() {
        let mut values = vec![0.0; 200_001];
        Rng::new(5, 0).fill_normal(&mut values, 2.0);
        let n = values.len() as f64;
        let moment = |p: i32| values.iter().map(|&v| f64::from(v / 2.0).powi(p)).sum::<f64>() / n;
        // Standard errors of the four moments: sqrt(1, 2, 15, 96) / sqrt(n), at most 0.022.
        for (p, want, tolerance) in [(1, 0.0, 0.01), (2, 1.0, 0.015), (3, 0.0, 0.04), (4, 3.0, 0.1)] {
            let got = moment(p);
            assert!((got - want).abs() <= tolerance, "moment {p}: {got}");
        }
        let neighbours = values.windows(2).map(|w| f64::from(w[0] * w[1]) / 4.0).sum::<f64>() / n;
        assert!(neighbours.abs() <= 0.01, "the two values of a pair are correlated: {neighbours}");
    }

    #[test]
    fn below_is_even() {
        let (mut rng, mut counts) = (Rng::new(8, 1), [0u32; 7]);
        for _ in 0..70_000 {
            counts[rng.below(7)] += 1;
        }
        // Standard deviation of a count: sqrt(10000 * 6/7) = 93.
        assert!(counts.iter().all(|&c| c.abs_diff(10_000) <= 450), "{counts:?}");
        assert_eq!(rng.below(1), 0);
    }

    #[test]
    fn shuffle_reaches_every_order_evenly() {
        let (mut rng, mut counts) = (Rng::new(4, 4), std::collections::BTreeMap::new());
        for _ in 0..24_000 {
            let mut items = [0, 1, 2, 3];
            rng.shuffle(&mut items);
            *counts.entry(items).or_insert(0u32) += 1;
        }
        assert_eq!(counts.len(), 24);
        assert!(counts.values().all(|&c| c.abs_diff(1000) <= 160), "{counts:?}");
    }
}
