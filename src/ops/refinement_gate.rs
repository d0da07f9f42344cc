//! The refinement gate: how much of the input is trusted at each position.
//!
//! Per position, over C channels, with reconstruction f and features x:
//! `e = mean (f − x)²`, `m = 1 − round(clamp(k·e, 0, 1))`, `c = cos(f, x)`, `S = 0.3 m + 0.7 c`,
//! `x̂ = S x + (1 − S) f`. Rounding is half to even, so m is 1 up to and including `e = 0.5/k` and 0 above.
//!
//! f, x, x̂: `[N, H, W, C]`; x is a constant. Not clamped: S lies in [−0.7, 1].
//! S is *not* detached. m is a step and carries no gradient; the cosine does:
//! `df = (1 − S) dx̂ + (dx̂ · (x − f)) · 0.7 ∂c/∂f`, `∂c/∂f = x/(‖f‖‖x‖) − c f/‖f‖²`, where `‖f‖‖x‖` is at least 1e-8.
//! Source: arXiv 2402.18293, the similarity-guided refinement; PyTorch: `cosine_similarity` for c.

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::device::cpu::{simd, simd_fn};
use crate::device::cuda::{Gpu, GpuArg, GpuOut, Grid, Values, launch};
use crate::error::Result;
use crate::op::{Arg, Case, List, Op, expect_inputs, expect_nhwc, expect_shape, list};
use crate::real::Real;
use crate::shape::Shape;

/// See the head of this file.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RefinementGate {
    /// k: the gate trusts a position fully while its mean squared error is at most `0.5 / k`.
    pub mse_coef: f64,
    /// Weight of the step m in S.
    pub mse_weight: f64,
    /// Weight of the cosine in S.
    pub cos_weight: f64,
}

/// Threads of the kernels that share a position.
const WARP: usize = 32;

/// Smallest product of two norms that a cosine divides by.
const COSINE_GUARD: f64 = 1e-8;

/// The gate at one position.
struct Position<T> {
    /// S.
    trust: T,
    cosine: T,
    /// `‖f‖²`, and `‖f‖‖x‖` kept from zero.
    norm2: T,
    norms: T,
}

impl RefinementGate {
    /// From the sums over channels of `(f − x)²`, `f·x`, `f²` and `x²`.
    fn position<T: Real>(&self, c: usize, [distance, product, ff, xx]: [T; 4]) -> Position<T> {
        let inside = distance / T::of(c as f64) * T::of(self.mse_coef) <= T::of(0.5);
        let norms = (ff * xx).sqrt().max(T::of(COSINE_GUARD));
        let cosine = product / norms;
        let step = if inside { T::of(self.mse_weight) } else { T::zero() };
        // A NaN must not look like a position beyond the threshold.
        let step = if distance.is_nan() { distance } else { step };
        Position { trust: step + T::of(self.cos_weight) * cosine, cosine, norm2: ff, norms }
    }

    /// Factors `(p, q, r)` of `df = p dx̂ + q x + r f`, from the position and `Σ dx̂ (x − f)`.
    fn gradient<T: Real>(&self, at: &Position<T>, dot: T) -> [T; 3] {
        let d = T::of(self.cos_weight) * dot;
        // Below the guard the norms are a constant, and the cosine is linear in f.
        let guarded = at.norms <= T::of(COSINE_GUARD);
        let along = if guarded || at.norm2 == T::zero() { T::zero() } else { at.cosine / at.norm2 };
        [T::one() - at.trust, d / at.norms, -d * along]
    }
}

impl Op for RefinementGate {
    const NAME: &'static str = "refinement_gate";

    fn infer(&self, x: &[Shape]) -> Result<List<Shape>> {
        expect_inputs::<Self>(x, &[2])?;
        expect_nhwc::<Self>("reconstruction", x[0])?;
        expect_shape::<Self>("features", x[1], x[0])?;
        Ok(list([x[0]]))
    }

    fn differentiable(&self, i: usize) -> bool {
        i == 0
    }

    fn reads_input(&self, _: usize) -> bool {
        true
    }

    fn reads_output(&self, _: usize) -> bool {
        false
    }

    fn reference_forward<T: Real>(&self, x: &[Arg<T>], y: &mut [&mut [T]]) {
        let c = x[0].shape.channels();
        for ((y, f), x) in y[0].chunks_exact_mut(c).zip(x[0].data.chunks_exact(c)).zip(x[1].data.chunks_exact(c)) {
            let s = self.position(c, sums(f, x)).trust;
            for k in 0..c {
                y[k] = s * x[k] + (T::one() - s) * f[k];
            }
        }
    }

    fn reference_backward<T: Real>(&self, x: &[Arg<T>], _: &[&[T]], dy: &[T], dx: &mut [Option<&mut [T]>]) {
        let Some(dx) = &mut dx[0] else { return };
        let c = x[0].shape.channels();
        let rows = x[0].data.chunks_exact(c).zip(x[1].data.chunks_exact(c)).zip(dy.chunks_exact(c));
        for (((f, x), dy), dx) in rows.zip(dx.chunks_exact_mut(c)) {
            let dot = (0..c).map(|k| dy[k] * (x[k] - f[k])).sum();
            let [p, q, r] = self.gradient(&self.position(c, sums(f, x)), dot);
            for k in 0..c {
                dx[k] = p * dy[k] + q * x[k] + r * f[k];
            }
        }
    }

    fn cpu_forward(&self, x: &[Arg<f32>], y: &mut [&mut [f32]]) {
        let c = x[0].shape.channels();
        let rows = y[0].par_chunks_mut(c).zip(x[0].data.par_chunks(c)).zip(x[1].data.par_chunks(c));
        rows.with_min_len(32).for_each(|((y, f), x)| {
            let mut lanes = [[0.0; LANES]; 5];
            lane_sums(simd(), f, x, x, &mut lanes);
            let s = self.position::<f64>(c, totals(&lanes)).trust as f32;
            mix(simd(), f, x, x, [1.0 - s, s, 0.0], y);
        });
    }

    fn cpu_backward(&self, x: &[Arg<f32>], _: &[&[f32]], dy: &[f32], dx: &mut [Option<&mut [f32]>]) {
        let Some(dx) = &mut dx[0] else { return };
        let c = x[0].shape.channels();
        let rows = dx.par_chunks_mut(c).zip(x[0].data.par_chunks(c)).zip(x[1].data.par_chunks(c)).zip(dy.par_chunks(c));
        rows.with_min_len(32).for_each(|(((dx, f), x), dy)| {
            let mut lanes = [[0.0; LANES]; 5];
            lane_sums(simd(), f, x, dy, &mut lanes);
            let dot = lanes[4].iter().map(|&v| f64::from(v)).sum();
            let [p, q, r] = self.gradient::<f64>(&self.position(c, totals(&lanes)), dot).map(|v| v as f32);
            mix(simd(), f, x, dy, [r, q, p], dx);
        });
    }

    fn input_in_f32(&self, _: usize) -> bool {
        false
    }

    fn output_in_f32(&self, _: usize) -> bool {
        false
    }

    fn cuda_forward(&self, gpu: &Gpu, x: &[GpuArg], y: &mut [GpuOut]) -> Result<()> {
        let (positions, c) = (x[0].shape.rows(), x[0].shape.channels());
        launch::refinement_gate_forward(
            gpu,
            Grid::threads(positions * WARP),
            x[0].data.reals(),
            x[1].data.reals(),
            &mut y[0].reals(),
            positions,
            c,
            self.mse_coef,
            self.mse_weight,
            self.cos_weight,
        )
    }

    fn cuda_backward(
        &self,
        gpu: &Gpu,
        x: &[GpuArg],
        _: &[Values],
        dy: Values,
        dx: &mut [Option<GpuOut>],
    ) -> Result<()> {
        let Some(dx) = &mut dx[0] else { return Ok(()) };
        let (positions, c) = (x[0].shape.rows(), x[0].shape.channels());
        launch::refinement_gate_backward(
            gpu,
            Grid::threads(positions * WARP),
            x[0].data.reals(),
            x[1].data.reals(),
            dy.reals(),
            &mut dx.reals(),
            positions,
            c,
            self.mse_coef,
            self.mse_weight,
            self.cos_weight,
        )
    }

    fn flops(&self, _: &[Shape]) -> u64 {
        0
    }

    fn cases() -> Vec<Case<Self>> {
        let op = RefinementGate { mse_coef: 0.05, mse_weight: 0.3, cos_weight: 0.7 };
        vec![
            // Errors of about 0.7: all inside.
            Case::new(op.clone(), &[[2, 3, 4, 5]; 2]),
            // Errors of about 12: on both sides of 10.
            Case::new(op.clone(), &[[2, 3, 4, 7]; 2]).range(0, -4.0, 4.0).range(1, -5.0, 5.0),
            Case::new(RefinementGate { mse_coef: 0.7, ..op.clone() }, &[[1, 2, 2, 33]; 2]),
            Case::new(op.clone(), &[[1, 1, 1, 2]; 2]),
            Case::new(op, &[[1, 2, 3, 140]; 2]).range(0, -6.0, 6.0),
        ]
    }

    fn bench_cases() -> Vec<Case<Self>> {
        let op = RefinementGate { mse_coef: 0.05, mse_weight: 0.3, cos_weight: 0.7 };
        vec![Case::new(op, &[[16, 28, 28, 216]; 2]).range(0, -6.0, 6.0)]
    }

    fn refused() -> Vec<(Self, Vec<Shape>, &'static str)> {
        let op = RefinementGate { mse_coef: 0.05, mse_weight: 0.3, cos_weight: 0.7 };
        let x = Shape::from([2, 3, 4, 5]);
        vec![
            (op.clone(), vec![x], "2"),
            (op.clone(), vec![[2, 3].into(), [2, 3].into()], "[N, H, W, C]"),
            (op, vec![x, [2, 3, 4, 6].into()], "features must be"),
        ]
    }
}

/// Sums over channels of `(f − x)²`, `f·x`, `f²` and `x²`.
fn sums<T: Real>(f: &[T], x: &[T]) -> [T; 4] {
    let mut s = [T::zero(); 4];
    for (&f, &x) in f.iter().zip(x) {
        s[0] += (f - x) * (f - x);
        s[1] += f * x;
        s[2] += f * f;
        s[3] += x * x;
    }
    s
}

/// Sums kept side by side, so that the loop over channels vectorises; added up in a fixed order.
const LANES: usize = 16;

fn totals(lanes: &[[f32; LANES]; 5]) -> [f64; 4] {
    std::array::from_fn(|i| lanes[i].iter().map(|&v| f64::from(v)).sum())
}

simd_fn! {
    /// Sums of `(f − x)²`, `f·x`, `f²`, `x²` and `d (x − f)`.
    fn lane_sums<FMA>(f: &[f32], x: &[f32], d: &[f32], lanes: &mut [[f32; LANES]; 5]) {
        let [distance, product, ff, xx, dot] = lanes;
        for ((f, x), d) in f.chunks(LANES).zip(x.chunks(LANES)).zip(d.chunks(LANES)) {
            for i in 0..f.len().min(LANES) {
                let r = f[i] - x[i];
                distance[i] += r * r;
                product[i] += f[i] * x[i];
                ff[i] += f[i] * f[i];
                xx[i] += x[i] * x[i];
                dot[i] -= d[i] * r;
            }
        }
    }

    /// `y = w0 f + w1 x + w2 d`.
    fn mix<FMA>(f: &[f32], x: &[f32], d: &[f32], w: [f32; 3], y: &mut [f32]) {
        for (((y, &f), &x), &d) in y.iter_mut().zip(f).zip(x).zip(d) {
            *y = w[0] * f + w[1] * x + w[2] * d;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Worked by hand: f, x, x̂ and the gradient of the mean squared error of x̂.
    #[test]
    fn agrees_with_the_worked_examples() {
        let op = RefinementGate { mse_coef: 0.05, mse_weight: 0.3, cos_weight: 0.7 };
        let examples: [[[f64; 2]; 4]; 3] = [
            [[3.0, 0.0], [0.0, 4.0], [3.0, 0.0], [3.0, -9.833_333_333]],
            [[3.0, 4.0], [4.0, 3.0], [3.972, 3.028], [-0.002_540_16, 0.002_101_12]],
            [[-3.0, -4.0], [3.0, 4.0], [-7.2, -9.6], [-17.34, -23.12]],
        ];
        for [f, x, refined, gradient] in examples {
            let args = [&f, &x].map(|data| Arg { shape: [1, 1, 1, 2].into(), data: &data[..] });
            let (mut y, mut df) = ([f64::NAN; 2], [f64::NAN; 2]);
            op.reference_forward(&args, &mut [&mut y]);
            // L = mean over two channels, so dL/dx̂ = x̂ − x.
            let dy = [y[0] - x[0], y[1] - x[1]];
            op.reference_backward(&args, &[], &dy, &mut [Some(&mut df), None]);
            for k in 0..2 {
                assert!((y[k] - refined[k]).abs() <= 1e-12, "{y:?} {refined:?}");
                assert!((df[k] - gradient[k]).abs() <= 1e-8, "{df:?} {gradient:?}");
            }
        }
    }

    #[test]
    fn the_threshold_itself_is_inside() {
        let op = RefinementGate { mse_coef: 0.05, mse_weight: 0.3, cos_weight: 0.7 };
        // e = (16 + 4)/2 = 10 exactly, and the cosine of (4, 0) with (0, 2) is zero: S is the step alone.
        for (x, expected) in [(2.0, 0.3), (2.000_001, 0.0)] {
            let at = op.position::<f64>(2, sums(&[4.0, 0.0], &[0.0, x]));
            assert!((at.trust - expected).abs() <= 1e-15, "{}", at.trust);
        }
    }
}
