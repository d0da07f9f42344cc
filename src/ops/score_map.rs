//! Distance between a picture's features and their refined reconstruction: `d_p = ‖x̂_p − x_p‖₂` over channels.
//!
//! x̂, x: `[N, H, W, C]`, d: `[N, H, W, 1]`; x is a constant. PyTorch: `(xhat - x).norm(dim=1, keepdim=True)`.
//! `dx̂ = dd · (x̂ − x) / d`, zero where d is zero.

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::device::cuda::{Gpu, GpuArg, GpuOut, Grid, Values, launch};
use crate::error::Result;
use crate::op::{Arg, Case, List, Op, expect_inputs, expect_nhwc, expect_shape, list};
use crate::real::Real;
use crate::shape::Shape;

/// See the head of this file.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ScoreMap {}

/// Threads of the kernels that share a position.
const WARP: usize = 32;

impl Op for ScoreMap {
    const NAME: &'static str = "score_map";

    fn infer(&self, x: &[Shape]) -> Result<List<Shape>> {
        expect_inputs::<Self>(x, &[2])?;
        expect_nhwc::<Self>("xhat", x[0])?;
        expect_shape::<Self>("x", x[1], x[0])?;
        Ok(list([x[0].with_channels(1)]))
    }

    fn differentiable(&self, i: usize) -> bool {
        i == 0
    }

    fn reads_input(&self, _: usize) -> bool {
        true
    }

    fn reads_output(&self, _: usize) -> bool {
        true
    }

    fn reference_forward<T: Real>(&self, x: &[Arg<T>], y: &mut [&mut [T]]) {
        let c = x[0].shape.channels();
        for ((y, a), b) in y[0].iter_mut().zip(x[0].data.chunks_exact(c)).zip(x[1].data.chunks_exact(c)) {
            *y = a.iter().zip(b).map(|(&a, &b)| (a - b) * (a - b)).sum::<T>().sqrt();
        }
    }

    fn reference_backward<T: Real>(&self, x: &[Arg<T>], y: &[&[T]], dy: &[T], dx: &mut [Option<&mut [T]>]) {
        let c = x[0].shape.channels();
        let Some(dx) = &mut dx[0] else { return };
        for (i, dx) in dx.iter_mut().enumerate() {
            let d = y[0][i / c];
            *dx = if d > T::zero() { dy[i / c] * (x[0].data[i] - x[1].data[i]) / d } else { T::zero() };
        }
    }

    fn cpu_forward(&self, x: &[Arg<f32>], y: &mut [&mut [f32]]) {
        let c = x[0].shape.channels();
        let rows = y[0].par_iter_mut().zip(x[0].data.par_chunks(c)).zip(x[1].data.par_chunks(c));
        rows.with_min_len(64).for_each(|((y, a), b)| {
            *y = a.iter().zip(b).map(|(&a, &b)| f64::from(a - b).powi(2)).sum::<f64>().sqrt() as f32;
        });
    }

    // A score is never trained on: the definition is fast enough.
    fn cpu_backward(&self, x: &[Arg<f32>], y: &[&[f32]], dy: &[f32], dx: &mut [Option<&mut [f32]>]) {
        self.reference_backward(x, y, dy, dx);
    }

    fn input_in_f32(&self, _: usize) -> bool {
        false
    }

    fn output_in_f32(&self, _: usize) -> bool {
        true
    }

    fn cuda_forward(&self, gpu: &Gpu, x: &[GpuArg], y: &mut [GpuOut]) -> Result<()> {
        let (positions, c) = (x[0].shape.rows(), x[0].shape.channels());
        let (a, b) = (x[0].data.reals(), x[1].data.reals());
        launch::score_map_forward(gpu, Grid::threads(positions * WARP), a, b, &mut y[0].floats(), positions, c)
    }

    fn cuda_backward(
        &self,
        gpu: &Gpu,
        x: &[GpuArg],
        y: &[Values],
        dy: Values,
        dx: &mut [Option<GpuOut>],
    ) -> Result<()> {
        let Some(dx) = &mut dx[0] else { return Ok(()) };
        let (positions, c) = (x[0].shape.rows(), x[0].shape.channels());
        launch::score_map_backward(
            gpu,
            Grid::threads(positions * WARP),
            x[0].data.reals(),
            x[1].data.reals(),
            y[0].floats(),
            dy.floats(),
            &mut dx.reals(),
            positions,
            c,
        )
    }

    fn flops(&self, _: &[Shape]) -> u64 {
        0
    }

    fn cases() -> Vec<Case<Self>> {
        vec![
            Case::new(ScoreMap {}, &[[2, 3, 4, 5]; 2]),
            Case::new(ScoreMap {}, &[[1, 1, 1, 1]; 2]),
            Case::new(ScoreMap {}, &[[1, 2, 2, 140]; 2]),
        ]
    }

    fn bench_cases() -> Vec<Case<Self>> {
        vec![Case::new(ScoreMap {}, &[[16, 28, 28, 216]; 2])]
    }

    fn refused() -> Vec<(Self, Vec<Shape>, &'static str)> {
        let x = Shape::from([2, 3, 4, 5]);
        vec![
            (ScoreMap {}, vec![x], "2"),
            (ScoreMap {}, vec![[2, 3].into(), [2, 3].into()], "[N, H, W, C]"),
            (ScoreMap {}, vec![x, [2, 3, 4, 6].into()], "x must be"),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{tape::Tape, tensor::Tensor};

    #[test]
    fn is_the_length_of_the_difference() {
        let [a, b] = [[3.972, 3.028], [4.0, 3.0]].map(|v| Tensor::from_slice([1, 1, 1, 2], &v));
        let d = Tape::off().apply(ScoreMap {}, &[&a, &b]).unwrap();
        let err = (d.data()[0] - 0.039_598_0).abs();
        assert!(err <= 5e-7, "{err}");
    }
}
