//! BatchNorm with the step that follows it: `y = act((x − mean) · rstd · gamma + beta [+ residual])`.
//!
//! PyTorch: `batch_norm`, then the addition and the activation. x, y, residual: `[N, H, W, C]`; gamma, beta: `[C]`.
//!
//! * `batch`: mean and biased variance of each ghost group of images (spec: group `g` of `G` holds images
//!   `gN/G .. (g+1)N/G`), returned as further outputs `[G, C]`; inputs `x, gamma, beta [, residual]`.
//! * `running`: given mean and variance `[C]`, constants; inputs `x, gamma, beta, mean, var [, residual]`.
//!
//! With `z = a·x + b [+ residual]`, `a = gamma · rstd`, `dz = dy · act'(z)`, and sums over a group of M positions:
//! `dbeta = Σ dz`, `dgamma = Σ dz · x̂`, `dx = a (dz − dbeta/M − x̂ · dgamma/M)` (`dx = a · dz` when frozen).
//! Forward walks x twice, backward walks x and dy twice: nothing in between is stored.

use std::ops::Range;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::activation::{Kind, with_kind};
use super::normalise::{
    Affine, Sums, add_groups, apply, gradient_residual, gradient_sums, gradient_x, group_images, group_moments,
    group_of, group_of_image, image_moments,
};
use super::normalise_cuda::{Cut, Norm};
use crate::buffer::Buffer;
use crate::device::cpu::{self, simd};
use crate::device::cuda::{Gpu, GpuArg, GpuOut, Values};
use crate::error::Result;
use crate::op::{Arg, Case, List, Op, expect_inputs, expect_nhwc, expect_shape, list, refuse};
use crate::real::Real;
use crate::shape::Shape;

/// Where mean and variance come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Statistics {
    /// The batch itself, each ghost group for itself.
    Batch,
    /// Inputs of the op.
    Running,
}

impl Statistics {
    /// How many groups are normalised apart, out of the `groups` asked for.
    pub(super) fn groups(self, groups: usize) -> usize {
        if self == Statistics::Batch { groups } else { 1 }
    }
}

/// See the head of this file.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BatchNorm {
    /// Added to the variance.
    pub eps: f64,
    /// Number of ghost groups of a batch; given statistics are one group, whatever it says.
    pub groups: usize,
    /// Where mean and variance come from.
    pub statistics: Statistics,
    /// Last step.
    pub act: Kind,
    /// Whether the last input is added before the activation.
    pub residual: bool,
}

/// Mean and biased variance per group and channel, by definition.
pub(super) fn moments<T: Real>(x: &[T], n: usize, c: usize, groups: usize, mean: &mut [T], var: &mut [T]) {
    let image = x.len() / n;
    for g in 0..groups {
        let images = group_images(n, groups, g);
        let rows = &x[images.start * image..images.end * image];
        let count = T::of((rows.len() / c) as f64);
        for k in 0..c {
            let channel = || rows.iter().skip(k).step_by(c);
            let m = channel().copied().sum::<T>() / count;
            mean[g * c + k] = m;
            var[g * c + k] = channel().map(|&v| (v - m) * (v - m)).sum::<T>() / count;
        }
    }
}

impl BatchNorm {
    /// Index of the residual among the inputs.
    fn residual_at(&self) -> usize {
        3 + 2 * (self.statistics == Statistics::Running) as usize
    }

    /// Mean and variance `[G, C]`, from the inputs or from the outputs of the forward pass.
    fn given<'a, T>(&self, x: &[Arg<'a, T>], y: &[&'a [T]]) -> (&'a [T], &'a [T]) {
        match self.statistics {
            Statistics::Batch => (y[1], y[2]),
            Statistics::Running => (x[3].data, x[4].data),
        }
    }

    /// The passes on a device, given mean and variance; `residual` says whether that input is read.
    fn norm<'a>(&self, cut: Cut, x: &[GpuArg<'a>], given: [Values<'a>; 2], residual: bool) -> Norm<'a> {
        Norm {
            cut,
            eps: self.eps,
            act: self.act,
            gamma: x[1].data.floats(),
            beta: x[2].data.floats(),
            mean: given[0].floats(),
            var: given[1].floats(),
            logit: None,
            residual: residual.then(|| x[self.residual_at()].data.reals()),
        }
    }
}

impl Op for BatchNorm {
    const NAME: &'static str = "batch_norm";

    fn infer(&self, x: &[Shape]) -> Result<List<Shape>> {
        expect_inputs::<Self>(x, &[self.residual_at() + self.residual as usize])?;
        let (n, _, _, c) = expect_nhwc::<Self>("x", x[0])?;
        for (name, s) in ["gamma", "beta", "mean", "var"].into_iter().zip(&x[1..self.residual_at()]) {
            expect_shape::<Self>(name, *s, [c])?;
        }
        if self.residual {
            expect_shape::<Self>("residual", x[self.residual_at()], x[0])?;
        }
        match self.statistics {
            Statistics::Batch if self.groups == 0 || self.groups > n => {
                refuse::<Self, _>(format!("{n} images cannot be split into {} ghost groups", self.groups))
            }
            Statistics::Batch => Ok(list([x[0], [self.groups, c].into(), [self.groups, c].into()])),
            Statistics::Running => Ok(list([x[0]])),
        }
    }

    fn differentiable(&self, i: usize) -> bool {
        i < 3 || i == self.residual_at()
    }

    fn reads_input(&self, i: usize) -> bool {
        // The residual matters only through the slope of the activation.
        i != self.residual_at() || self.act != Kind::Identity
    }

    fn reads_output(&self, i: usize) -> bool {
        i > 0
    }

    fn reference_forward<T: Real>(&self, x: &[Arg<T>], y: &mut [&mut [T]]) {
        let (n, _, _, c) = x[0].shape.nhwc().expect("checked by infer");
        let (y, statistics) = y.split_first_mut().expect("one output at least");
        if let [mean, var] = statistics {
            moments(x[0].data, n, c, self.groups, mean, var);
        }
        let (mean, var): (&[T], &[T]) = match statistics {
            [mean, var] => (mean, var),
            _ => (x[3].data, x[4].data),
        };
        let group = group_of_image(n, self.statistics.groups(self.groups));
        let image = x[0].data.len() / n;
        for (i, (y, &v)) in y.iter_mut().zip(x[0].data).enumerate() {
            let (k, s) = (i % c, group[i / image] * c + i % c);
            let rstd = (var[s] + T::of(self.eps)).sqrt().recip();
            let mut z = (v - mean[s]) * rstd * x[1].data[k] + x[2].data[k];
            if self.residual {
                z += x[self.residual_at()].data[i];
            }
            *y = self.act.value(z);
        }
    }

    fn reference_backward<T: Real>(&self, x: &[Arg<T>], y: &[&[T]], dy: &[T], dx: &mut [Option<&mut [T]>]) {
        let (n, _, _, c) = x[0].shape.nhwc().expect("checked by infer");
        let (mean, var) = self.given(x, y);
        let group = group_of_image(n, self.statistics.groups(self.groups));
        let image = x[0].data.len() / n;
        let rstd: Vec<T> = var.iter().map(|&v| (v + T::of(self.eps)).sqrt().recip()).collect();
        let gamma = x[1].data;
        let mut normal = vec![T::zero(); dy.len()];
        let mut dz = dy.to_vec();
        let mut dgamma = vec![T::zero(); mean.len()];
        let mut dbeta = vec![T::zero(); mean.len()];
        for i in 0..dy.len() {
            let (k, s) = (i % c, group[i / image] * c + i % c);
            normal[i] = (x[0].data[i] - mean[s]) * rstd[s];
            if self.act != Kind::Identity {
                let residual = if self.residual { x[self.residual_at()].data[i] } else { T::zero() };
                dz[i] = dy[i] * self.act.slope(normal[i] * gamma[k] + x[2].data[k] + residual);
            }
            dbeta[s] += dz[i];
            dgamma[s] += dz[i] * normal[i];
        }
        if let Some(dx) = &mut dx[0] {
            for i in 0..dy.len() {
                let (k, g) = (i % c, group[i / image]);
                let s = g * c + k;
                let m = T::of((group_images(n, self.statistics.groups(self.groups), g).len() * image / c) as f64);
                let centred = match self.statistics {
                    Statistics::Batch => dz[i] - dbeta[s] / m - normal[i] * dgamma[s] / m,
                    Statistics::Running => dz[i],
                };
                dx[i] = gamma[k] * rstd[s] * centred;
            }
        }
        for (i, sums) in [(1, dgamma), (2, dbeta)] {
            if let Some(dx) = &mut dx[i] {
                for (k, dx) in dx.iter_mut().enumerate() {
                    *dx = sums.iter().skip(k).step_by(c).copied().sum();
                }
            }
        }
        if let Some(Some(dx)) = dx.get_mut(self.residual_at()) {
            dx.copy_from_slice(&dz);
        }
    }

    fn cpu_forward(&self, x: &[Arg<f32>], y: &mut [&mut [f32]]) {
        let (n, _, _, c) = x[0].shape.nhwc().expect("checked by infer");
        let (y, statistics) = y.split_first_mut().expect("one output at least");
        if let [mean, var] = statistics {
            group_moments(&image_moments(x[0].data, n, c), n, x[0].data.len() / (n * c), mean, var);
        }
        let (mean, var): (&[f32], &[f32]) = match statistics {
            [mean, var] => (mean, var),
            _ => (x[3].data, x[4].data),
        };
        let affine = Affine::new(x[1].data, x[2].data, mean, var, self.eps);
        let groups = self.statistics.groups(self.groups);
        let image = x[0].data.len() / n;
        y.par_chunks_mut(image).enumerate().for_each(|(i, y)| {
            let at = i * image..(i + 1) * image;
            let (a, b) = affine.of_group(group_of(n, groups, i));
            let residual = if self.residual { &x[self.residual_at()].data[at.clone()] } else { &[] };
            with_kind!(self.act, K => apply::<K>(simd(), &x[0].data[at], a, b, residual, y));
        });
    }

    fn cpu_backward(&self, x: &[Arg<f32>], y: &[&[f32]], dy: &[f32], dx: &mut [Option<&mut [f32]>]) {
        let (n, _, _, c) = x[0].shape.nhwc().expect("checked by infer");
        let (mean, var) = self.given(x, y);
        let affine = Affine::new(x[1].data, x[2].data, mean, var, self.eps);
        let groups = self.statistics.groups(self.groups);
        let image = x[0].data.len() / n;
        let residual = |at: Range<usize>| match self.residual && self.act != Kind::Identity {
            true => &x[self.residual_at()].data[at],
            false => &[],
        };

        // Per image Σ dz and Σ dz (x − mean), then per group in the order of the images.
        let mut sums = Sums::new(n, c);
        sums.par_parts_mut().enumerate().for_each(|(i, sums)| {
            let (g, at) = (group_of(n, groups, i), i * image..(i + 1) * image);
            let (a, b) = affine.of_group(g);
            let (mean, r) = (&mean[g * c..(g + 1) * c], residual(at.clone()));
            let (x, dy) = (&x[0].data[at.clone()], &dy[at]);
            cpu::blocked_sums(image / c, sums, |rows, [s, t]| {
                let at = rows.start * c..rows.end * c;
                let r = if r.is_empty() { r } else { &r[at.clone()] };
                with_kind!(self.act, K => gradient_sums::<K>(simd(), &x[at.clone()], &dy[at], a, b, r, mean, s, t));
            });
        });
        let totals = affine.gradient_statistics(n, &sums);
        let [_, dgamma, dbeta, ..] = dx else { unreachable!("infer accepts three inputs at least") };
        add_groups(&totals, dgamma.as_deref_mut(), dbeta.as_deref_mut());

        // dx = a dz + e x + f, the last two from the paths through variance and mean.
        let [e, f] = match self.statistics {
            Statistics::Batch => affine.through_batch(mean, &totals, n, image / c),
            Statistics::Running => [(); 2].map(|()| Buffer::filled(c, 0.0)),
        };
        let per_image = |i: usize| {
            let (g, at) = (group_of(n, groups, i), i * image..(i + 1) * image);
            (g, &x[0].data[at.clone()], &dy[at.clone()], residual(at))
        };
        if let Some(dx) = &mut dx[0] {
            dx.par_chunks_mut(image).enumerate().for_each(|(i, dx)| {
                let (g, x, dy, r) = per_image(i);
                let ((a, b), s) = (affine.of_group(g), g * c..(g + 1) * c);
                with_kind!(self.act, K => gradient_x::<K>(simd(), x, dy, a, b, r, &e[s.clone()], &f[s], dx));
            });
        }
        if let Some(Some(dr)) = dx.get_mut(self.residual_at()) {
            dr.par_chunks_mut(image).enumerate().for_each(|(i, dr)| {
                let (g, x, dy, r) = per_image(i);
                let (a, b) = affine.of_group(g);
                with_kind!(self.act, K => gradient_residual::<K>(simd(), x, dy, a, b, r, dr));
            });
        }
    }

    fn input_in_f32(&self, i: usize) -> bool {
        i > 0 && i != self.residual_at()
    }

    fn output_in_f32(&self, i: usize) -> bool {
        i > 0
    }

    fn cuda_forward(&self, gpu: &Gpu, x: &[GpuArg], y: &mut [GpuOut]) -> Result<()> {
        let cut = Cut::new(x[0].shape, self.statistics.groups(self.groups));
        let (y, statistics) = y.split_first_mut().expect("one output at least");
        if let [mean, var] = statistics {
            cut.statistics(gpu, &cut.moments(gpu, x[0].data.reals())?, mean, var)?;
        }
        let given = match statistics {
            [mean, var] => [mean.as_values(), var.as_values()],
            _ => [x[3].data, x[4].data],
        };
        self.norm(cut, x, given, self.residual).apply(gpu, x[0].data.reals(), y)
    }

    fn cuda_backward(
        &self,
        gpu: &Gpu,
        x: &[GpuArg],
        y: &[Values],
        dy: Values,
        dx: &mut [Option<GpuOut>],
    ) -> Result<()> {
        let frozen = self.statistics == Statistics::Running;
        let given = if frozen { [x[3].data, x[4].data] } else { [y[1], y[2]] };
        let cut = Cut::new(x[0].shape, self.statistics.groups(self.groups));
        let norm = self.norm(cut, x, given, self.residual && self.act != Kind::Identity);
        let (x, dy) = (x[0].data.reals(), dy.reals());
        let [dx, dgamma, dbeta, rest @ ..] = dx else { unreachable!("infer promises three inputs") };
        let dresidual = if self.residual { rest.last_mut().and_then(Option::as_mut) } else { None };
        let sums = norm.gradient_sums(gpu, x, dy)?;
        let through = norm.gradient_statistics(gpu, &sums, None, dgamma.as_mut(), dbeta.as_mut())?;
        norm.gradient_x(
            gpu,
            x,
            dy,
            None,
            (!frozen).then_some(&through),
            dx.as_mut().map(|d| d.reals()),
            dresidual.map(|d| d.reals()),
        )
    }

    fn flops(&self, _: &[Shape]) -> u64 {
        0
    }

    fn cases() -> Vec<Case<Self>> {
        let batch =
            |groups, act, residual| BatchNorm { eps: 1e-5, groups, statistics: Statistics::Batch, act, residual };
        let running =
            |act, residual| BatchNorm { eps: 1e-3, groups: 1, statistics: Statistics::Running, act, residual };
        vec![
            Case::new(batch(1, Kind::Identity, false), &[&[3, 2, 3, 5][..], &[5], &[5]].map(Shape::new))
                .range(0, -1.0, 3.0),
            Case::new(batch(2, Kind::HardSwish, false), &[&[4, 3, 2, 7][..], &[7], &[7]].map(Shape::new))
                .range(0, -5.0, 9.0),
            // Five images in two groups: two and three.
            Case::new(batch(2, Kind::Relu, true), &[&[5, 3, 2, 4][..], &[4], &[4], &[5, 3, 2, 4]].map(Shape::new)),
            Case::new(batch(1, Kind::Identity, true), &[&[2, 3, 2, 3][..], &[3], &[3], &[2, 3, 2, 3]].map(Shape::new)),
            Case::new(running(Kind::Relu6, false), &[&[2, 3, 2, 6][..], &[6], &[6], &[6], &[6]].map(Shape::new))
                .range(4, 0.1, 2.0),
            Case::new(
                running(Kind::Swish, true),
                &[&[1, 3, 2, 3][..], &[3], &[3], &[3], &[3], &[1, 3, 2, 3]].map(Shape::new),
            )
            .range(4, 0.1, 2.0),
            // More images to a group and more channels than a block of the device takes at once.
            Case::new(batch(2, Kind::HardSwish, false), &[&[19, 1, 2, 132][..], &[132], &[132]].map(Shape::new))
                .range(0, -1.0, 5.0),
            // More positions too.
            Case::new(batch(1, Kind::Relu, true), &[&[2, 43, 3, 5][..], &[5], &[5], &[2, 43, 3, 5]].map(Shape::new)),
            Case::new(batch(2, Kind::Tanh, false), &[&[3, 10, 14, 8][..], &[8], &[8]].map(Shape::new)),
        ]
    }

    fn bench_cases() -> Vec<Case<Self>> {
        let op = |act, residual| BatchNorm { eps: 1e-5, groups: 1, statistics: Statistics::Batch, act, residual };
        let (x, y) = (Shape::from([16, 28, 28, 864]), Shape::from([16, 28, 28, 432]));
        vec![
            Case::new(op(Kind::HardSwish, false), &[x, [864].into(), [864].into()]),
            Case::new(op(Kind::Relu, true), &[y, [432].into(), [432].into(), y]),
        ]
    }

    fn refused() -> Vec<(Self, Vec<Shape>, &'static str)> {
        let op = BatchNorm { eps: 1e-5, groups: 1, statistics: Statistics::Batch, act: Kind::Relu, residual: false };
        let (x, c) = (Shape::from([2, 3, 3, 4]), Shape::from([4]));
        vec![
            (op.clone(), vec![x, c], "3"),
            (op.clone(), vec![[2, 4].into(), c, c], "[N, H, W, C]"),
            (op.clone(), vec![x, [3].into(), c], "gamma"),
            (op.clone(), vec![x, c, [1, 4].into()], "beta"),
            (BatchNorm { groups: 3, ..op.clone() }, vec![x, c, c], "ghost groups"),
            (BatchNorm { groups: 0, ..op.clone() }, vec![x, c, c], "ghost groups"),
            (BatchNorm { residual: true, ..op.clone() }, vec![x, c, c, [2, 3, 4, 3].into()], "residual"),
            (BatchNorm { statistics: Statistics::Running, ..op }, vec![x, c, c, c, [5].into()], "var"),
        ]
    }
}
