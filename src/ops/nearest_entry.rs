//! The entry of a codebook that is nearest to each vector: vector quantisation.
//!
//! x: `[M.., C]`, keys: `[K, C]`, y: `[M..]`, `y_m = argmin_k ‖x_m − keys_k‖²`, a whole number. Of entries equally near the
//! first counts. An entry at a distance that is not a number is never near; where all are, y is 0.
//! PyTorch: `torch.cdist(x, keys).argmin(-1)`, which does not say how it breaks ties.
//!
//! A choice has no gradient. A rounding error is a wrong choice where two entries are almost equally near, so both fast
//! paths give the index of the f64 definition: the kernels add up f64 distances; the CPU compares
//! `g_k = ‖keys_k‖² − 2 x·keys_k` of a matrix product in f32 and measures again, by definition, what could be nearest.
//! A sum of C products in f32, in any order, is wrong by at most `γ ‖x‖‖keys_k‖` with `γ = C u / (1 − C u)`, u = 2⁻²⁴
//! (Higham, Accuracy and Stability of Numerical Algorithms, 3.1), so the nearest is among the k with
//! `g_k ≤ min g + 2 (2 γ ‖x‖ max ‖keys‖ + the same of f64)`.

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::buffer::{Buffer, Doubles};
use crate::device::cpu::{self, Matrix};
use crate::device::cuda::{Gpu, GpuArg, GpuOut, Grid, Values, launch};
use crate::error::Result;
use crate::op::{Arg, Case, List, Op, expect_inputs, expect_shape, list, refuse};
use crate::real::Real;
use crate::shape::Shape;

/// See the head of this file.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NearestEntry {}

/// Threads of the kernel that share a vector.
const WARP: usize = 32;

/// `‖x − key‖²`, added up in `T`.
fn distance<S: Real, T: Real>(x: &[S], key: &[S]) -> T {
    x.iter().zip(key).map(|(a, b)| T::of(a.f64()) - T::of(b.f64())).map(|d| d * d).sum()
}

/// The first of the nearest among `candidates`, which ascend.
fn nearest<S: Real, T: Real>(x: &[S], keys: &[S], candidates: impl Iterator<Item = usize>) -> usize {
    let c = x.len();
    let mut best = (0, T::infinity());
    for k in candidates {
        let d = distance::<S, T>(x, &keys[k * c..(k + 1) * c]);
        if d < best.1 {
            best = (k, d);
        }
    }
    best.0
}

fn norm2(v: &[f32]) -> f64 {
    v.iter().map(|&v| f64::from(v) * f64::from(v)).sum()
}

/// What the fast search may be wrong by at a vector, in `g`: see the head of this file.
fn doubt(c: usize, x_norm: f64, key_norm: f64) -> f64 {
    let c = c as f64;
    let unit = f64::from(f32::EPSILON) / 2.0;
    let product = c * unit / (1.0 - c * unit) * x_norm * key_norm + c * f64::from(f32::MIN_POSITIVE);
    2.0 * product + (c + 4.0) * f64::EPSILON * (x_norm + key_norm).powi(2)
}

impl Op for NearestEntry {
    const NAME: &'static str = "nearest_entry";

    fn infer(&self, x: &[Shape]) -> Result<List<Shape>> {
        expect_inputs::<Self>(x, &[2])?;
        let (c, entries) = (x[0].channels(), x[1][0]);
        if x[0].len() < 2 || c == 0 || entries == 0 {
            return refuse::<Self, _>(format!(
                "x must be [.., C] and keys [K, C], neither empty, got {} and {}",
                x[0], x[1]
            ));
        }
        expect_shape::<Self>("keys", x[1], [entries, c])?;
        Ok(list([Shape::new(&x[0][..x[0].len() - 1])]))
    }

    fn differentiable(&self, _: usize) -> bool {
        false
    }

    fn reads_input(&self, _: usize) -> bool {
        false
    }

    fn reads_output(&self, _: usize) -> bool {
        false
    }

    fn reference_forward<T: Real>(&self, x: &[Arg<T>], y: &mut [&mut [T]]) {
        let (entries, c) = (x[1].shape[0], x[1].shape[1]);
        for (y, x_m) in y[0].iter_mut().zip(x[0].data.chunks_exact(c)) {
            *y = T::of(nearest::<T, T>(x_m, x[1].data, 0..entries) as f64);
        }
    }

    fn reference_backward<T: Real>(&self, _: &[Arg<T>], _: &[&[T]], _: &[T], _: &mut [Option<&mut [T]>]) {}

    fn cpu_forward(&self, x: &[Arg<f32>], y: &mut [&mut [f32]]) {
        let (entries, c) = (x[1].shape[0], x[1].shape[1]);
        let (m, keys) = (x[0].data.len() / c, x[1].data);
        let mut products = Buffer::scratch(m * entries);
        let (a, b) = (Matrix::new(x[0].data, m, c), Matrix::new(keys, entries, c));
        cpu::gemm_f32(m, entries, c, &a, &b.t(), &mut products, cpu::no_epilogue);
        let mut norms = Doubles::scratch(entries);
        norms.iter_mut().zip(keys.chunks_exact(c)).for_each(|(norm, key)| *norm = norm2(key));
        let longest = norms.iter().fold(0.0f64, |a, b| a.max(*b)).sqrt();
        let rows = y[0].par_iter_mut().zip(products.par_chunks(entries)).zip(x[0].data.par_chunks(c));
        rows.with_min_len(64).for_each(|((y, products), x)| {
            let g = |k: usize| norms[k] - 2.0 * f64::from(products[k]);
            let limit = (0..entries).map(g).fold(f64::INFINITY, f64::min) + 2.0 * doubt(c, norm2(x).sqrt(), longest);
            let sure = limit.is_finite() && (0..entries).all(|k| g(k).is_finite());
            let found = nearest::<f32, f64>(x, keys, (0..entries).filter(|&k| !sure || g(k) <= limit));
            *y = found as f32;
        });
    }

    fn cpu_backward(&self, _: &[Arg<f32>], _: &[&[f32]], _: &[f32], _: &mut [Option<&mut [f32]>]) {}

    fn input_in_f32(&self, i: usize) -> bool {
        i == 1
    }

    fn output_in_f32(&self, _: usize) -> bool {
        true
    }

    fn cuda_forward(&self, gpu: &Gpu, x: &[GpuArg], y: &mut [GpuOut]) -> Result<()> {
        let (entries, c) = (x[1].shape[0], x[1].shape[1]);
        let m = y[0].len();
        let (x, keys) = (x[0].data.reals(), x[1].data.floats());
        launch::nearest_entry_forward(gpu, Grid::threads(m * WARP), x, keys, &mut y[0].floats(), m, entries, c)
    }

    fn cuda_backward(&self, _: &Gpu, _: &[GpuArg], _: &[Values], _: Values, _: &mut [Option<GpuOut>]) -> Result<()> {
        Ok(())
    }

    fn flops(&self, x: &[Shape]) -> u64 {
        2 * (x[0].numel() * x[1][0]) as u64
    }

    fn cases() -> Vec<Case<Self>> {
        let case = |x: &[usize], keys: &[usize]| Case::new(NearestEntry {}, &[x, keys].map(Shape::new));
        vec![
            case(&[2, 3, 4, 5], &[7, 5]),
            case(&[6, 40], &[16, 40]),
            case(&[1, 1], &[1, 1]),
            // Entries far closer to each other than to x: the product alone cannot tell them apart.
            case(&[1, 5, 5, 33], &[20, 33]).range(0, 900.0, 1000.0).range(1, -0.001, 0.001),
            case(&[1, 9, 11, 3], &[130, 3]),
        ]
    }

    fn bench_cases() -> Vec<Case<Self>> {
        let case = |m: &[usize], k: usize| Case::new(NearestEntry {}, &[m, &[k, 216]].map(Shape::new));
        vec![case(&[16, 28, 28, 216], 64), case(&[16, 28, 28, 216], 256), case(&[16, 216], 16)]
    }

    fn refused() -> Vec<(Self, Vec<Shape>, &'static str)> {
        let x = Shape::from([2, 3, 4, 5]);
        vec![
            (NearestEntry {}, vec![x], "2"),
            (NearestEntry {}, vec![x, [7, 4].into()], "keys must be [7, 5]"),
            (NearestEntry {}, vec![x, [7, 5, 1].into()], "keys must be [7, 5]"),
            (NearestEntry {}, vec![x, [0, 5].into()], "empty"),
            (NearestEntry {}, vec![[5].into(), [7, 5].into()], "x must be"),
        ]
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn both(x: &[f32], keys: &[f32], c: usize) -> [Vec<f64>; 2] {
        let shapes = [[x.len() / c, c], [keys.len() / c, c]].map(Shape::from);
        let mut fast = vec![f32::NAN; x.len() / c];
        let args = [Arg { shape: shapes[0], data: x }, Arg { shape: shapes[1], data: keys }];
        NearestEntry {}.cpu_forward(&args, &mut [&mut fast]);
        let wide = [x, keys].map(|v| v.iter().map(|&v| f64::from(v)).collect::<Vec<f64>>());
        let args = [Arg { shape: shapes[0], data: &wide[0][..] }, Arg { shape: shapes[1], data: &wide[1] }];
        let mut exact = vec![f64::NAN; fast.len()];
        NearestEntry {}.reference_forward(&args, &mut [&mut exact]);
        [fast.iter().map(|&v| f64::from(v)).collect(), exact]
    }

    #[test]
    fn of_entries_equally_near_the_first_counts() {
        let keys = [3.0, 0.0, 1.0, 0.0, -1.0, 0.0, 1.0, 0.0];
        let [found, exact] = both(&[0.0, 5.0, 1.0, 1.0, 9.0, 0.0], &keys, 2);
        assert_eq!((&found[..], &exact[..]), (&[1.0, 1.0, 0.0][..], &[1.0, 1.0, 0.0][..]));
    }

    #[test]
    fn values_that_are_not_numbers_are_never_near() {
        let nan = f32::NAN;
        for (x, keys, expected) in [
            ([1.0, 1.0], [nan, 0.0, 9.0, 9.0], 1.0),
            ([1.0, nan], [0.0, 0.0, 1.0, 1.0], 0.0),
            ([1.0, 1.0], [f32::INFINITY, 0.0, 1.0, 2.0], 1.0),
            ([3e38, 3e38], [-3e38, -3e38, 3e38, 3e38], 1.0),
        ] {
            assert_eq!(both(&x, &keys, 2), [vec![expected], vec![expected]], "{x:?} {keys:?}");
        }
    }

    proptest! {
        /// Entries that are copies, or almost, of each other and of x: the fast path chooses as the definition does.
        #[test]
        fn near_ties_are_settled_as_by_definition(
            x in prop::collection::vec(-2.0f32..2.0, 24),
            pool in prop::collection::vec(-2.0f32..2.0, 12),
            picks in prop::collection::vec((0usize..5, -3i32..4, 0usize..6), 1..40),
            offset in prop::sample::select(vec![0.0f32, 7.0, 4096.0]),
        ) {
            let x: Vec<f32> = x.iter().map(|v| v + offset).collect();
            let mut keys = vec![];
            for (source, steps, at) in picks {
                let mut key: Vec<f32> = match source {
                    0 | 1 => pool[6 * source..6 * source + 6].iter().map(|v| v + offset).collect(),
                    row => x[6 * (row - 2)..6 * (row - 2) + 6].to_vec(),
                };
                key[at] = f32::from_bits(key[at].to_bits().wrapping_add_signed(steps));
                keys.extend(key);
            }
            let [fast, exact] = both(&x, &keys, 6);
            prop_assert_eq!(fast, exact);
        }
    }
}
