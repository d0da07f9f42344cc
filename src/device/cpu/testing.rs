//! What the tests of the kernels share: random data, drawn shapes, tolerances from f64 truth, runs on 1 and 2 threads.

use proptest::prelude::*;
use proptest::test_runner::RngSeed;

use super::bf16::rounded;
use super::products::Products;

/// Numbers in about [-1, 1), the same for the same seed.
pub fn random(len: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(0x1234_5678_9ABC_DEF1);
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

/// What `products` make of two numbers, exactly: of factors in two terms, the product of both small ones is left out.
pub fn product(products: Products, a: f32, b: f32) -> f64 {
    let [fa, fb] = [a, b].map(|v| f64::from(products.factor(v)));
    let small = |v: f32, factor: f64| factor - f64::from(rounded(v));
    let left_out = if products.terms() == 2 { small(a, fa) * small(b, fb) } else { 0.0 };
    fa * fb - left_out
}

/// Asserts that `got` is at most as far from the truth as 4 times what a plain f32 loop is, plus a few roundings of
/// the sum of absolute products (`scale`).
pub fn assert_close(got: &[f32], plain: &[f32], truth: &[f64], scale: &[f64], what: &str) {
    assert!(got.len() == truth.len() && plain.len() == truth.len() && scale.len() == truth.len(), "{what}");
    let error = |x: &[f32]| x.iter().zip(truth).map(|(&g, &t)| (f64::from(g) - t).abs()).fold(0.0, f64::max);
    let allowed = 4.0 * error(plain);
    for (i, (&g, &t)) in got.iter().zip(truth).enumerate() {
        let tolerance = allowed + 4.0 * f64::from(f32::EPSILON) * scale[i];
        assert!((f64::from(g) - t).abs() <= tolerance, "{what}: [{i}] is {g}, not {t} (tolerance {tolerance:e})");
    }
}

/// Result of `f`, after asserting that 1 and 2 threads give the same one.
pub fn same_bits_for_1_and_2_threads<T: PartialEq + std::fmt::Debug + Send>(f: impl Fn() -> T + Sync) -> T {
    let on = |threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(&f);
    let (one, two) = (on(1), on(2));
    assert!(one == two, "the result depends on the number of threads");
    one
}

/// `cases` drawn shapes, the same in every run: what fails, fails again. `PROPTEST_CASES` asks for more of them, and
/// `PROPTEST_RNG_SEED` for others.
pub fn shapes(cases: u32) -> ProptestConfig {
    let named = |variable: &str| std::env::var(variable).ok()?.parse::<u32>().ok();
    let cases = named("PROPTEST_CASES").unwrap_or(cases);
    ProptestConfig {
        cases,
        // Shapes that would take too long are drawn again.
        max_global_rejects: cases.saturating_mul(50),
        rng_seed: RngSeed::Fixed(named("PROPTEST_RNG_SEED").unwrap_or(0).into()),
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

/// A number of channels: few, and below, at and above what vectors, register tiles and blocks hold.
pub fn channels() -> impl Strategy<Value = usize> {
    prop_oneof![
        3 => 1..20_usize,
        3 => prop::sample::select(vec![1_usize, 3, 7, 8, 16, 31, 33, 48, 49, 65]),
        1 => Just(433_usize),
    ]
}
