//! `y[n, h, w, c] = x[n, h, w, c] · g[n, c]`: the product of a squeeze-excite gate.
//!
//! x, y: `[N, H, W, C]`; g: `[N, C]`. PyTorch: `x * g[:, :, None, None]`.
//! `dx = dy · g`, `dg[n, c] = Σ_hw dy · x`.

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::buffer::Doubles;
use crate::device::cpu::{blocked_sums, simd, simd_fn};
use crate::device::cuda::{Gpu, GpuArg, GpuOut, Grid, Values, launch};
use crate::error::Result;
use crate::op::{Arg, Case, List, Op, expect_inputs, expect_nhwc, expect_shape, list};
use crate::real::Real;
use crate::shape::Shape;

/// See the head of this file.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ChannelScale {}

impl Op for ChannelScale {
    const NAME: &'static str = "channel_scale";

    fn infer(&self, x: &[Shape]) -> Result<List<Shape>> {
        expect_inputs::<Self>(x, &[2])?;
        let (n, _, _, c) = expect_nhwc::<Self>("x", x[0])?;
        expect_shape::<Self>("g", x[1], [n, c])?;
        Ok(list([x[0]]))
    }

    fn differentiable(&self, _: usize) -> bool {
        true
    }

    fn reads_input(&self, _: usize) -> bool {
        true
    }

    fn reads_output(&self, _: usize) -> bool {
        false
    }

    fn reference_forward<T: Real>(&self, x: &[Arg<T>], y: &mut [&mut [T]]) {
        let (_, h, w, c) = x[0].shape.nhwc().expect("checked by infer");
        for (i, (y, &v)) in y[0].iter_mut().zip(x[0].data).enumerate() {
            *y = v * x[1].data[i / (h * w * c) * c + i % c];
        }
    }

    fn reference_backward<T: Real>(&self, x: &[Arg<T>], _: &[&[T]], dy: &[T], dx: &mut [Option<&mut [T]>]) {
        let (_, h, w, c) = x[0].shape.nhwc().expect("checked by infer");
        let gate = |i: usize| i / (h * w * c) * c + i % c;
        let [dx, dg] = dx else { unreachable!("infer accepts two inputs") };
        if let Some(dx) = dx {
            dx.iter_mut().enumerate().for_each(|(i, dx)| *dx = dy[i] * x[1].data[gate(i)]);
        }
        if let Some(dg) = dg {
            dg.fill(T::zero());
            (0..dy.len()).for_each(|i| dg[gate(i)] += dy[i] * x[0].data[i]);
        }
    }

    fn cpu_forward(&self, x: &[Arg<f32>], y: &mut [&mut [f32]]) {
        scaled(x[0].data, x[1], y[0]);
    }

    fn cpu_backward(&self, x: &[Arg<f32>], _: &[&[f32]], dy: &[f32], dx: &mut [Option<&mut [f32]>]) {
        let [dx, dg] = dx else { unreachable!("infer accepts two inputs") };
        if let Some(dx) = dx {
            scaled(dy, x[1], dx);
        }
        if let Some(dg) = dg {
            let (n, c) = (x[1].shape[0], x[1].shape[1]);
            let image = dy.len() / n;
            dg.par_chunks_mut(c).enumerate().for_each(|(i, dg)| {
                let (x, dy) = (&x[0].data[i * image..][..image], &dy[i * image..][..image]);
                let mut sums = Doubles::scratch(c);
                blocked_sums(image / c, [&mut sums], |rows, [s]| {
                    products(simd(), &x[rows.start * c..rows.end * c], &dy[rows.start * c..rows.end * c], s);
                });
                dg.iter_mut().zip(&sums[..]).for_each(|(d, &s)| *d = s as f32);
            });
        }
    }

    fn input_in_f32(&self, _: usize) -> bool {
        false
    }

    fn output_in_f32(&self, _: usize) -> bool {
        false
    }

    fn cuda_forward(&self, gpu: &Gpu, x: &[GpuArg], y: &mut [GpuOut]) -> Result<()> {
        scaled_on_device(gpu, x[0].shape, x[0].data, x[1].data, &mut y[0])
    }

    fn cuda_backward(
        &self,
        gpu: &Gpu,
        x: &[GpuArg],
        _: &[Values],
        dy: Values,
        dx: &mut [Option<GpuOut>],
    ) -> Result<()> {
        let [dx, dg] = dx else { unreachable!("infer accepts two inputs") };
        if let Some(dx) = dx {
            scaled_on_device(gpu, x[0].shape, dy, x[1].data, dx)?;
        }
        let Some(dg) = dg else { return Ok(()) };
        let (n, h, w, c) = x[0].shape.nhwc().expect("checked by infer");
        let grid = Grid::blocks(n * c.div_ceil(16));
        launch::channel_scale_backward_g(gpu, grid, x[0].data.reals(), dy.reals(), &mut dg.reals(), h * w, c)
    }

    fn flops(&self, _: &[Shape]) -> u64 {
        0
    }

    fn cases() -> Vec<Case<Self>> {
        let case = |n, h, w, c| Case::new(ChannelScale {}, &[&[n, h, w, c][..], &[n, c]].map(Shape::new));
        vec![case(2, 3, 2, 5), case(1, 1, 1, 3), case(2, 8, 7, 17), case(1, 14, 15, 20)]
    }

    fn bench_cases() -> Vec<Case<Self>> {
        vec![Case::new(ChannelScale {}, &[&[16, 28, 28, 336][..], &[16, 336]].map(Shape::new))]
    }

    fn refused() -> Vec<(Self, Vec<Shape>, &'static str)> {
        let x = Shape::from([2, 3, 3, 4]);
        vec![
            (ChannelScale {}, vec![x], "2"),
            (ChannelScale {}, vec![[2, 4].into(), [2, 4].into()], "[N, H, W, C]"),
            (ChannelScale {}, vec![x, [4].into()], "g must be [2, 4]"),
        ]
    }
}

/// `y = x ⊙ g`, image by image.
fn scaled(x: &[f32], g: Arg<f32>, y: &mut [f32]) {
    let (n, c) = (g.shape[0], g.shape[1]);
    let image = x.len() / n;
    y.par_chunks_mut(image)
        .zip(x.par_chunks(image))
        .zip(g.data.par_chunks(c))
        .for_each(|((y, x), g)| scale_rows(simd(), x, g, y));
}

/// [`scaled`] on a device; `shape` is that of x.
fn scaled_on_device(gpu: &Gpu, shape: Shape, x: Values, g: Values, y: &mut GpuOut) -> Result<()> {
    let (_, h, w, c) = shape.nhwc().expect("checked by infer");
    let n = shape.numel();
    let grid = Grid::threads(if c.is_multiple_of(4) { n / 4 } else { n });
    launch::channel_scale_forward(gpu, grid, x.reals(), g.reals(), &mut y.reals(), h * w, c, n)
}

simd_fn! {
    fn scale_rows<FMA>(x: &[f32], g: &[f32], y: &mut [f32]) {
        let c = g.len();
        for (x, y) in x.chunks_exact(c).zip(y.chunks_exact_mut(c)) {
            for k in 0..c {
                y[k] = x[k] * g[k];
            }
        }
    }

    fn products<FMA>(x: &[f32], dy: &[f32], sum: &mut [f32]) {
        let c = sum.len();
        for (x, dy) in x.chunks_exact(c).zip(dy.chunks_exact(c)) {
            for k in 0..c {
                sum[k] += x[k] * dy[k];
            }
        }
    }
}
