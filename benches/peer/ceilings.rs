//! What a CPU multiplies at best: products and sums a second of every core's registers, nothing read or written, as one JSON
//! object. No step can be faster than its products at that rate; `compare.py` puts it beside the steps.

use std::time::Instant;

use serde_json::{Map, json};

/// Sums that are kept at a time: more than the latency of an instruction times those begun in a cycle.
const SUMS: usize = 24;
/// Instructions of one of [`SUMS`].
const ROUNDS: usize = 4 << 20;

/// A loop over registers: its name, and the products it adds up for each [`SUMS`] × [`ROUNDS`].
type Ceiling = (&'static str, usize, fn(f32) -> f32);

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{Ceiling, ROUNDS, SUMS};
    use std::arch::x86_64::*;

    macro_rules! ceiling {
        ($name:ident, $features:literal, $set:ident, $step:expr, $add:ident, $first:ident) => {
            pub fn $name(seed: f32) -> f32 {
                #[target_feature(enable = $features)]
                fn run(seed: f32) -> f32 {
                    let (a, b) = ($set(seed), $set(1.0 - seed));
                    let mut sums: [_; SUMS] = std::array::from_fn(|i| $set(i as f32));
                    for _ in 0..ROUNDS {
                        sums.iter_mut().for_each(|sum| *sum = $step(a, b, *sum));
                    }
                    $first(sums.into_iter().reduce(|a, b| $add(a, b)).expect("there are some"))
                }
                // SAFETY: `ceilings` names this only where the features are.
                unsafe { run(seed) }
            }
        };
    }

    ceiling!(avx512, "avx512f", _mm512_set1_ps, |a, b, c| _mm512_fmadd_ps(a, b, c), _mm512_add_ps, _mm512_cvtss_f32);
    ceiling!(
        avx512_bf16,
        "avx512f,avx512bf16",
        _mm512_set1_ps,
        |a, b, c| {
            // SAFETY: both types are 64 bytes of any content.
            let [a, b] = unsafe { std::mem::transmute::<[__m512; 2], [__m512bh; 2]>([a, b]) };
            _mm512_dpbf16_ps(c, a, b)
        },
        _mm512_add_ps,
        _mm512_cvtss_f32
    );

    /// Those of this machine.
    pub fn ceilings() -> Vec<Ceiling> {
        let mut found: Vec<Ceiling> = vec![];
        if is_x86_feature_detected!("avx512f") {
            found.push(("f32", 16, avx512));
        }
        if is_x86_feature_detected!("avx512bf16") {
            found.push(("bf16", 32, avx512_bf16));
        }
        found
    }
}

/// None are known on this processor.
#[cfg(not(target_arch = "x86_64"))]
mod x86 {
    pub fn ceilings() -> Vec<super::Ceiling> {
        vec![]
    }
}

fn main() {
    let mut rates = Map::new();
    for (name, lanes, run) in x86::ceilings() {
        let seconds = |_| {
            let started = Instant::now();
            rayon::broadcast(|core| std::hint::black_box(run(std::hint::black_box(0.5 + core.index() as f32 / 1e3))));
            started.elapsed().as_secs_f64()
        };
        // The fastest: what slows a loop over registers is somebody else.
        let fastest = (0..15).map(seconds).fold(f64::INFINITY, f64::min);
        let products = SUMS * ROUNDS * lanes * rayon::current_num_threads();
        rates.insert(name.into(), json!(2.0 * products as f64 / fastest));
    }
    println!("{}", json!({ "flops_per_second": rates }));
}
