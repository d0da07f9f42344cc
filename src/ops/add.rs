//! `y = a + b`: residuals of the backbone, jitter on the coordinates.
//!
//! a, b, y: one shape. PyTorch: `a + b`.

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::device::cpu;
use crate::device::cuda::{Gpu, GpuArg, GpuOut, Grid, Values, launch};
use crate::error::Result;
use crate::op::{Arg, Case, List, Op, expect_inputs, expect_shape, list};
use crate::real::Real;
use crate::shape::Shape;

/// See the head of this file.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Add {}

impl Op for Add {
    const NAME: &'static str = "add";

    fn infer(&self, x: &[Shape]) -> Result<List<Shape>> {
        expect_inputs::<Self>(x, &[2])?;
        expect_shape::<Self>("b", x[1], x[0])?;
        Ok(list([x[0]]))
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
        for ((y, &a), &b) in y[0].iter_mut().zip(x[0].data).zip(x[1].data) {
            *y = a + b;
        }
    }

    fn reference_backward<T: Real>(&self, _: &[Arg<T>], _: &[&[T]], dy: &[T], dx: &mut [Option<&mut [T]>]) {
        dx.iter_mut().flatten().for_each(|dx| dx.copy_from_slice(dy));
    }

    fn cpu_forward(&self, x: &[Arg<f32>], y: &mut [&mut [f32]]) {
        let chunks =
            y[0].par_chunks_mut(cpu::CHUNK).zip(x[0].data.par_chunks(cpu::CHUNK)).zip(x[1].data.par_chunks(cpu::CHUNK));
        chunks.for_each(|((y, a), b)| {
            self.reference_forward(&[a, b].map(|data| Arg { shape: [data.len()].into(), data }), &mut [y])
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
        let n = y[0].len();
        let [a, b] = [x[0], x[1]].map(|x| x.data.reals());
        launch::add_forward(gpu, Grid::threads(n.div_ceil(8)), a, b, &mut y[0].reals(), n)
    }

    fn cuda_backward(
        &self,
        gpu: &Gpu,
        _: &[GpuArg],
        _: &[Values],
        dy: Values,
        dx: &mut [Option<GpuOut>],
    ) -> Result<()> {
        dx.iter_mut().flatten().try_for_each(|dx| gpu.copy(dy.reals(), &mut dx.reals()))
    }

    fn flops(&self, _: &[Shape]) -> u64 {
        0
    }

    fn cases() -> Vec<Case<Self>> {
        [&[2, 3, 5][..], &[1], &[3, 7, 100]].map(|s| Case::new(Add {}, &[Shape::new(s); 2])).to_vec()
    }

    fn bench_cases() -> Vec<Case<Self>> {
        vec![Case::new(Add {}, &[[16, 28, 28, 432]; 2])]
    }

    fn refused() -> Vec<(Self, Vec<Shape>, &'static str)> {
        vec![(Add {}, vec![[2, 3].into()], "2"), (Add {}, vec![[2, 3].into(), [3, 2].into()], "[2, 3]")]
    }
}
