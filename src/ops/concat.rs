//! Concatenation on channels, `a` first.
//!
//! a: `[.., A]`, b: `[.., B]`, y: `[.., A + B]`. PyTorch: `cat((a, b), dim=-1)` on channels-last data.

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::device::cuda::{Gpu, GpuArg, GpuOut, Grid, Values, launch};
use crate::error::Result;
use crate::op::{Arg, Case, List, Op, expect_inputs, expect_shape, list};
use crate::real::Real;
use crate::shape::Shape;

/// See the head of this file.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Concat {}

impl Op for Concat {
    const NAME: &'static str = "concat";

    fn infer(&self, x: &[Shape]) -> Result<List<Shape>> {
        expect_inputs::<Self>(x, &[2])?;
        if x[0].is_empty() || x[1].is_empty() {
            return crate::op::refuse::<Self, _>("a scalar has no channels");
        }
        expect_shape::<Self>("b", x[1], x[0].with_channels(x[1].channels()))?;
        Ok(list([x[0].with_channels(x[0].channels() + x[1].channels())]))
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
        let (a, b) = (x[0].shape.channels(), x[1].shape.channels());
        y[0].par_chunks_mut(a + b).with_min_len(64).enumerate().for_each(|(i, y)| {
            y[..a].copy_from_slice(&x[0].data[i * a..(i + 1) * a]);
            y[a..].copy_from_slice(&x[1].data[i * b..(i + 1) * b]);
        });
    }

    fn reference_backward<T: Real>(&self, x: &[Arg<T>], _: &[&[T]], dy: &[T], dx: &mut [Option<&mut [T]>]) {
        let (a, b) = (x[0].shape.channels(), x[1].shape.channels());
        for (i, from) in [0..a, a..a + b].into_iter().enumerate() {
            if let Some(dx) = &mut dx[i] {
                let rows = dx.par_chunks_mut(from.len()).zip(dy.par_chunks(a + b));
                rows.with_min_len(64).for_each(|(dx, dy)| dx.copy_from_slice(&dy[from.clone()]));
            }
        }
    }

    // Copying has only one way to be right: the definition is the fast path.
    fn cpu_forward(&self, x: &[Arg<f32>], y: &mut [&mut [f32]]) {
        self.reference_forward(x, y);
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
        let (n, [a, b]) = (y[0].len(), [x[0], x[1]].map(|x| x.shape.channels()));
        let grid = Grid::threads(n / group(a, b));
        launch::concat_forward(gpu, grid, x[0].data.reals(), x[1].data.reals(), &mut y[0].reals(), a, b, n)
    }

    fn cuda_backward(
        &self,
        gpu: &Gpu,
        x: &[GpuArg],
        _: &[Values],
        dy: Values,
        dx: &mut [Option<GpuOut>],
    ) -> Result<()> {
        let (n, [a, b]) = (dy.len(), [x[0], x[1]].map(|x| x.shape.channels()));
        let [da, db] = dx else { unreachable!("infer accepts two inputs") };
        let (mut da, mut db) = (da.as_mut().map(GpuOut::reals), db.as_mut().map(GpuOut::reals));
        launch::concat_backward(gpu, Grid::threads(n / group(a, b)), dy.reals(), da.as_mut(), db.as_mut(), a, b, n)
    }

    fn flops(&self, _: &[Shape]) -> u64 {
        0
    }

    fn cases() -> Vec<Case<Self>> {
        vec![
            Case::new(Concat {}, &[[2, 3, 2, 5], [2, 3, 2, 3]]),
            Case::new(Concat {}, &[[1, 1], [1, 4]]),
            Case::new(Concat {}, &[[2, 3, 5, 8], [2, 3, 5, 4]]),
        ]
    }

    fn bench_cases() -> Vec<Case<Self>> {
        vec![Case::new(Concat {}, &[[16, 28, 28, 216]; 2])]
    }

    fn refused() -> Vec<(Self, Vec<Shape>, &'static str)> {
        vec![
            (Concat {}, vec![[2, 3].into()], "2"),
            (Concat {}, vec![[2, 3].into(), [3, 3].into()], "b must be [2, 3]"),
            (Concat {}, vec![[].into(), [].into()], "channels"),
        ]
    }
}

/// Values that a thread of the kernel copies at once.
fn group(a: usize, b: usize) -> usize {
    if a.is_multiple_of(4) && b.is_multiple_of(4) { 4 } else { 1 }
}
