//! Our matrix product beside that of the crate `gemm`, in f32 at the shapes of the models: `cargo bench --bench gemm`.
//!
//! Random factors, two threads. The two take turns, each first in every other pair, and what is printed is the median over
//! the pairs of our time divided by theirs: below 1 ours is faster. The crate takes AVX-512 wherever the machine has it, so
//! compare at `GRAD_SIMD=avx2` only on a machine without.
//!
//! On an AMD EPYC with AVX-512 ours takes 0.97 to 1.09 of the crate's time. The crate is not used: in the models an operand
//! of each of these products is made while it is packed, and sums are taken of the result while it is in cache; with the
//! crate both would be walks over memory, which take longer than what it gains.

use std::hint::black_box;
use std::time::Instant;

use grad::device::cpu::{Matrix, gemm, no_epilogue, simd};
use grad::rng::Rng;
use rayon::ThreadPoolBuilder;

const THREADS: usize = 2;
const PAIRS: usize = 9;

/// Rows, columns, terms of a sum; which operand is stored transposed; where the product is computed.
const SHAPES: [([usize; 3], Stored, &str); 6] = [
    ([12544, 864, 432], Stored::Plain, "crad: expand"),
    ([12544, 432, 864], Stored::BTransposed, "crad: gradient of what is expanded"),
    ([864, 432, 12544], Stored::ATransposed, "crad: gradient of the projection's weights"),
    ([432, 864, 12544], Stored::ATransposed, "crad: gradient of the expansion's weights"),
    ([12544, 216, 432], Stored::Plain, "crad-s: project"),
    ([12544, 432, 216], Stored::Plain, "crad-s: expand"),
];

#[derive(Clone, Copy, PartialEq)]
enum Stored {
    Plain,
    ATransposed,
    BTransposed,
}

/// One product of random factors.
struct Product {
    sizes: [usize; 3],
    stored: Stored,
    a: Vec<f32>,
    b: Vec<f32>,
    c: Vec<f32>,
}

impl Product {
    fn new(sizes: [usize; 3], stored: Stored) -> Self {
        let ([m, n, k], mut rng) = (sizes, Rng::new(0, 0));
        let [a, b] = [m * k, k * n].map(|len| (0..len).map(|_| rng.uniform_in(-1.0, 1.0)).collect());
        Product { sizes, stored, a, b, c: vec![0.0; m * n] }
    }

    fn ours(&mut self) {
        let [m, n, k] = self.sizes;
        let a = if self.stored == Stored::ATransposed {
            Matrix::new(&self.a, k, m).t()
        } else {
            Matrix::new(&self.a, m, k)
        };
        let b = if self.stored == Stored::BTransposed {
            Matrix::new(&self.b, n, k).t()
        } else {
            Matrix::new(&self.b, k, n)
        };
        gemm(m, n, k, &a, &b, &mut self.c, no_epilogue);
        black_box(&self.c);
    }

    fn theirs(&mut self) {
        let [m, n, k] = self.sizes;
        // Steps from column to column, and from row to row.
        let [a_cs, a_rs] = if self.stored == Stored::ATransposed { [m, 1] } else { [1, k] }.map(|s| s as isize);
        let [b_cs, b_rs] = if self.stored == Stored::BTransposed { [k, 1] } else { [1, n] }.map(|s| s as isize);
        let (c, a, b) = (self.c.as_mut_ptr(), self.a.as_ptr(), self.b.as_ptr());
        let parallel = ::gemm::Parallelism::Rayon(THREADS);
        // SAFETY: the steps stay within the three matrices, whose lengths are the products of their sides.
        unsafe {
            ::gemm::gemm(
                m, n, k, c, 1, n as isize, false, a, a_cs, a_rs, b, b_cs, b_rs, 0.0, 1.0, false, false, false, parallel,
            );
        }
        black_box(&self.c);
    }

    /// Seconds of ours and of theirs.
    fn pair(&mut self, ours_first: bool) -> [f64; 2] {
        let mut seconds = [0.0; 2];
        for ours in [ours_first, !ours_first] {
            let started = Instant::now();
            if ours {
                self.ours()
            } else {
                self.theirs()
            }
            seconds[usize::from(!ours)] = started.elapsed().as_secs_f64();
        }
        seconds
    }

    /// Whether both compute the same: a call that asks for something else is no comparison.
    fn agree(&mut self) -> bool {
        self.ours();
        let ours = std::mem::replace(&mut self.c, vec![f32::NAN; self.sizes[0] * self.sizes[1]]);
        self.theirs();
        // Of products below 1 the roundings of a sum are far below a thousandth of their number.
        ours.iter().zip(&self.c).all(|(a, b)| (a - b).abs() <= 1e-3 * self.sizes[2] as f32)
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// What the processor calls itself, where the system says so.
fn machine() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    name.map_or("unknown processor", |(_, name)| name).to_string()
}

fn main() {
    println!("{}, {} threads, {}; medians of {PAIRS} interleaved pairs", machine(), THREADS, simd().name());
    println!("{:>20}  {:>9} {:>9} {:>13}", "m x n x k", "ours ms", "crate ms", "ours / crate");
    let pool = ThreadPoolBuilder::new().num_threads(THREADS).build().expect("threads can be started");
    pool.install(|| {
        for (sizes, stored, what) in SHAPES {
            let mut product = Product::new(sizes, stored);
            assert!(product.agree(), "{sizes:?}: the two products differ");
            let pairs: Vec<[f64; 2]> = (0..PAIRS).map(|i| product.pair(i % 2 == 0)).collect();
            let of = |f: fn(&[f64; 2]) -> f64| median(pairs.iter().map(f).collect());
            let [m, n, k] = sizes;
            let (ours, theirs) = (1e3 * of(|t| t[0]), 1e3 * of(|t| t[1]));
            let ratio = of(|t| t[0] / t[1]);
            println!("{:>20}  {ours:9.1} {theirs:9.1} {ratio:13.3}  {what}", format!("{m}x{n}x{k}"));
        }
    });
}
