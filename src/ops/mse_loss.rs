//! Mean squared error over everything: `L = mean((a − b)²) [+ other]`.
//!
//! a, b: one shape; other: `[1]` (optional), a loss that this one is added to; L: `[1]`. b is the target, a constant.
//! PyTorch: `mse_loss(a, b)`. `da = 2 (a − b) dL / N`, `dother = dL`.

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::buffer::Doubles;
use crate::device::cpu;
use crate::device::cuda::{Gpu, GpuArg, GpuOut, Grid, Values, launch};
use crate::error::Result;
use crate::op::{Arg, Case, List, Op, expect_inputs, expect_shape, list, refuse};
use crate::real::Real;
use crate::shape::Shape;

/// See the head of this file.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MseLoss {}

/// Values that a block of the kernel adds up.
const PART: usize = 8192;

impl Op for MseLoss {
    const NAME: &'static str = "mse_loss";

    fn infer(&self, x: &[Shape]) -> Result<List<Shape>> {
        expect_inputs::<Self>(x, &[2, 3])?;
        expect_shape::<Self>("b", x[1], x[0])?;
        if let Some(other) = x.get(2) {
            expect_shape::<Self>("other", *other, [1])?;
        }
        if x[0].numel() == 0 {
            return refuse::<Self, _>("the mean over nothing is undefined");
        }
        Ok(list([[1].into()]))
    }

    fn differentiable(&self, i: usize) -> bool {
        i != 1
    }

    fn reads_input(&self, i: usize) -> bool {
        i < 2
    }

    fn reads_output(&self, _: usize) -> bool {
        false
    }

    fn reference_forward<T: Real>(&self, x: &[Arg<T>], y: &mut [&mut [T]]) {
        let squares = x[0].data.iter().zip(x[1].data).map(|(&a, &b)| (a - b) * (a - b));
        y[0][0] =
            squares.sum::<T>() / T::of(x[0].data.len() as f64) + x.get(2).map_or(T::zero(), |other| other.data[0]);
    }

    fn reference_backward<T: Real>(&self, x: &[Arg<T>], _: &[&[T]], dy: &[T], dx: &mut [Option<&mut [T]>]) {
        if let Some(Some(dother)) = dx.get_mut(2) {
            dother[0] = dy[0];
        }
        let Some(da) = &mut dx[0] else { return };
        let scale = T::of(2.0) * dy[0] / T::of(x[0].data.len() as f64);
        for ((d, &a), &b) in da.iter_mut().zip(x[0].data).zip(x[1].data) {
            *d = scale * (a - b);
        }
    }

    fn cpu_forward(&self, x: &[Arg<f32>], y: &mut [&mut [f32]]) {
        let [a, b] = [x[0].data, x[1].data];
        let mut partial = Doubles::scratch(a.len().div_ceil(cpu::CHUNK));
        let chunks = a.par_chunks(cpu::CHUNK).zip(b.par_chunks(cpu::CHUNK)).zip(&mut partial[..]);
        chunks.for_each(|((a, b), sum)| *sum = a.iter().zip(b).map(|(&a, &b)| f64::from(a - b).powi(2)).sum());
        let other = x.get(2).map_or(0.0, |other| f64::from(other.data[0]));
        y[0][0] = (partial.iter().sum::<f64>() / x[0].data.len() as f64 + other) as f32;
    }

    fn cpu_backward(&self, x: &[Arg<f32>], _: &[&[f32]], dy: &[f32], dx: &mut [Option<&mut [f32]>]) {
        if let Some(Some(dother)) = dx.get_mut(2) {
            dother[0] = dy[0];
        }
        let Some(da) = &mut dx[0] else { return };
        let scale = 2.0 * dy[0] / x[0].data.len() as f32;
        let chunks =
            da.par_chunks_mut(cpu::CHUNK).zip(x[0].data.par_chunks(cpu::CHUNK)).zip(x[1].data.par_chunks(cpu::CHUNK));
        chunks.for_each(|((d, a), b)| {
            for ((d, &a), &b) in d.iter_mut().zip(a).zip(b) {
                *d = scale * (a - b);
            }
        });
    }

    fn input_in_f32(&self, i: usize) -> bool {
        i == 2
    }

    fn output_in_f32(&self, _: usize) -> bool {
        true
    }

    fn cuda_forward(&self, gpu: &Gpu, x: &[GpuArg], y: &mut [GpuOut]) -> Result<()> {
        let n = x[0].shape.numel();
        let parts = n.div_ceil(PART);
        let mut sums = gpu.scratch::<f64>(parts)?;
        let (a, b) = (x[0].data.reals(), x[1].data.reals());
        launch::mse_loss_forward(gpu, Grid::blocks(parts), a, b, &mut sums.slice_mut(), n)?;
        let other = x.get(2).map(|other| other.data.floats());
        launch::mse_loss_forward_sum(gpu, Grid::blocks(1), sums.slice(), other, &mut y[0].floats(), parts, n)
    }

    fn cuda_backward(
        &self,
        gpu: &Gpu,
        x: &[GpuArg],
        _: &[Values],
        dy: Values,
        dx: &mut [Option<GpuOut>],
    ) -> Result<()> {
        if let Some(Some(dother)) = dx.get_mut(2) {
            gpu.copy(dy.floats(), &mut dother.floats())?;
        }
        let Some(da) = &mut dx[0] else { return Ok(()) };
        let n = x[0].shape.numel();
        // A thread has four values, a warp 128 neighbouring ones.
        let grid = Grid::threads(32 * n.div_ceil(128));
        launch::mse_loss_backward(gpu, grid, x[0].data.reals(), x[1].data.reals(), dy.floats(), &mut da.reals(), n)
    }

    fn flops(&self, _: &[Shape]) -> u64 {
        0
    }

    fn cases() -> Vec<Case<Self>> {
        vec![
            Case::new(MseLoss {}, &[[2, 3, 4, 5]; 2]),
            Case::new(MseLoss {}, &[[1]; 2]),
            Case::new(MseLoss {}, &[[5, 7].into(), [5, 7].into(), Shape::from([1])]),
            // Longer than a part of the sum.
            Case::new(MseLoss {}, &[[9001]; 2]),
        ]
    }

    fn bench_cases() -> Vec<Case<Self>> {
        vec![Case::new(MseLoss {}, &[[16, 28, 28, 216]; 2])]
    }

    fn refused() -> Vec<(Self, Vec<Shape>, &'static str)> {
        vec![
            (MseLoss {}, vec![[2].into()], "2"),
            (MseLoss {}, vec![[2].into(), [3].into()], "b must be [2]"),
            (MseLoss {}, vec![[2].into(), [2].into(), [2].into()], "other must be [1]"),
            (MseLoss {}, vec![[0].into(), [0].into()], "nothing"),
        ]
    }
}
