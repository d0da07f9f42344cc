//! Mean over all positions of an image.
//!
//! x: `[N, H, W, C]`, y: `[N, C]`. PyTorch: `x.mean((2, 3))`. `dx = dy / (H W)`.

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::buffer::Doubles;
use crate::device::cpu::{blocked_sums, simd, simd_fn};
use crate::device::cuda::{Gpu, GpuArg, GpuOut, Grid, Values, launch};
use crate::error::Result;
use crate::op::{Arg, Case, List, Op, expect_inputs, expect_nhwc, list, refuse};
use crate::real::Real;
use crate::shape::Shape;

/// See the head of this file.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct GlobalAvgPool {}

impl Op for GlobalAvgPool {
    const NAME: &'static str = "global_avg_pool";

    fn infer(&self, x: &[Shape]) -> Result<List<Shape>> {
        expect_inputs::<Self>(x, &[1])?;
        let (n, h, w, c) = expect_nhwc::<Self>("x", x[0])?;
        if h * w == 0 {
            return refuse::<Self, _>(format!("the mean over no positions is undefined, got {}", x[0]));
        }
        Ok(list([[n, c].into()]))
    }

    fn differentiable(&self, _: usize) -> bool {
        true
    }

    fn reads_input(&self, _: usize) -> bool {
        false
    }

    fn reads_output(&self, _: usize) -> bool {
        false
    }

    fn reference_forward<T: Real>(&self, x: &[Arg<T>], y: &mut [&mut [T]]) {
        let (_, h, w, c) = x[0].shape.nhwc().expect("checked by infer");
        for (i, y) in y[0].iter_mut().enumerate() {
            let image = &x[0].data[i / c * h * w * c..(i / c + 1) * h * w * c];
            *y = image.iter().skip(i % c).step_by(c).copied().sum::<T>() / T::of((h * w) as f64);
        }
    }

    fn reference_backward<T: Real>(&self, x: &[Arg<T>], _: &[&[T]], dy: &[T], dx: &mut [Option<&mut [T]>]) {
        let (_, h, w, c) = x[0].shape.nhwc().expect("checked by infer");
        let Some(dx) = &mut dx[0] else { return };
        for (i, dx) in dx.iter_mut().enumerate() {
            *dx = dy[i / (h * w * c) * c + i % c] / T::of((h * w) as f64);
        }
    }

    fn cpu_forward(&self, x: &[Arg<f32>], y: &mut [&mut [f32]]) {
        let (_, h, w, c) = x[0].shape.nhwc().expect("checked by infer");
        y[0].par_chunks_mut(c).zip(x[0].data.par_chunks(h * w * c)).for_each(|(y, x)| {
            let mut sums = Doubles::scratch(c);
            blocked_sums(h * w, [&mut sums], |rows, [s]| column_sums(simd(), &x[rows.start * c..rows.end * c], s));
            y.iter_mut().zip(&sums[..]).for_each(|(y, s)| *y = (s / (h * w) as f64) as f32);
        });
    }

    fn cpu_backward(&self, x: &[Arg<f32>], y: &[&[f32]], dy: &[f32], dx: &mut [Option<&mut [f32]>]) {
        self.reference_backward(x, y, dy, dx);
    }

    fn input_in_f32(&self, _: usize) -> bool {
        false
    }

    fn output_in_f32(&self, _: usize) -> bool {
        false
    }

    fn cuda_forward(&self, gpu: &Gpu, x: &[GpuArg], y: &mut [GpuOut]) -> Result<()> {
        let (n, h, w, c) = x[0].shape.nhwc().expect("checked by infer");
        let grid = Grid::blocks(n * c.div_ceil(16));
        launch::global_avg_pool_forward(gpu, grid, x[0].data.reals(), &mut y[0].reals(), h * w, c)
    }

    fn cuda_backward(
        &self,
        gpu: &Gpu,
        x: &[GpuArg],
        _: &[Values],
        dy: Values,
        dx: &mut [Option<GpuOut>],
    ) -> Result<()> {
        let (_, h, w, c) = x[0].shape.nhwc().expect("checked by infer");
        let Some(dx) = &mut dx[0] else { return Ok(()) };
        let n = dx.len();
        let grid = Grid::threads(if c.is_multiple_of(4) { n / 4 } else { n });
        launch::global_avg_pool_backward(gpu, grid, dy.reals(), &mut dx.reals(), h * w, c, n)
    }

    fn flops(&self, _: &[Shape]) -> u64 {
        0
    }

    fn cases() -> Vec<Case<Self>> {
        [[2, 3, 4, 5], [3, 1, 1, 2], [2, 8, 7, 17], [1, 14, 15, 20]].map(|x| Case::new(GlobalAvgPool {}, &[x])).to_vec()
    }

    fn bench_cases() -> Vec<Case<Self>> {
        vec![Case::new(GlobalAvgPool {}, &[[16, 28, 28, 216]])]
    }

    fn refused() -> Vec<(Self, Vec<Shape>, &'static str)> {
        vec![
            (GlobalAvgPool {}, vec![], "1"),
            (GlobalAvgPool {}, vec![[2, 3].into()], "[N, H, W, C]"),
            (GlobalAvgPool {}, vec![[2, 0, 3, 4].into()], "no positions"),
        ]
    }
}

simd_fn! {
    fn column_sums<FMA>(x: &[f32], sum: &mut [f32]) {
        let c = sum.len();
        for row in x.chunks_exact(c) {
            for k in 0..c {
                sum[k] += row[k];
            }
        }
    }
}
