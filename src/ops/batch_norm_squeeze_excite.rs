//! BatchNorm, squeeze-excite and hard-swish in one op, as a MobileNetV3 bottleneck chains them after its depthwise
//! convolution:
//!
//! `t = BN(x)`, `g = hsigmoid(relu(mean_hw(t) · v1) · v2)`, `y = hswish(t ⊙ g)`
//!
//! x, y: `[N, H, W, E]`; gamma, beta: `[E]`; v1: `[E, S]`, v2: `[S, E]`, no biases. PyTorch: `batch_norm`, `mean`, two
//! `linear`, `relu`, `hardsigmoid`, `hardswish`. Inputs `x, gamma, beta, v1, v2` and, with running statistics, `mean,
//! var`. Outputs y, mean `[G, E]`, var `[G, E]` (copies of the given ones when frozen) and how far the mean of
//! each image is from it `[N, E]`.
//!
//! The mean of an affine map is the affine map of the mean, so the gate needs no pass of its own: forward walks x twice
//! (moments, apply). Backward walks x and dy twice: with `u = t g`, `du = dy · hswish'(u)`, the per-image sums of `du` and
//! `du · x̂` give the gradient of the gate (`Σ du·t`), of v1, v2, gamma and beta, and all that dx needs:
//! `dt = du · g + dt̄/P`, `dx = a (dt − Σdt/M − x̂ Σ(dt·x̂)/M)`.

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::activation::Kind;
use super::batch_norm::{Statistics, moments};
use super::normalise::{
    Affine, Sums, add_groups, group_images, group_moments, group_of, group_of_image, image_moments,
};
use super::normalise_cuda::{CudaGate, Cut, GateGradient, Norm};
use crate::buffer::Buffer;
use crate::device::cpu::{self, Matrix, blocked_sums, simd, simd_fn};
use crate::device::cuda::{Gpu, GpuArg, GpuOut, Values};
use crate::error::Result;
use crate::op::{Arg, Case, List, Op, expect_inputs, expect_nhwc, expect_shape, list, refuse};
use crate::real::Real;
use crate::shape::Shape;

/// See the head of this file.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BatchNormSqueezeExcite {
    /// Added to the variance.
    pub eps: f64,
    /// Number of ghost groups of a batch; given statistics are one group, whatever it says.
    pub groups: usize,
    /// Where mean and variance come from.
    pub statistics: Statistics,
}

impl BatchNormSqueezeExcite {
    /// The passes on a device, still without the gate.
    fn norm<'a>(&self, cut: Cut, x: &[GpuArg<'a>], given: [Values<'a>; 2]) -> Norm<'a> {
        Norm {
            cut,
            eps: self.eps,
            act: Kind::HardSwish,
            gamma: x[1].data.floats(),
            beta: x[2].data.floats(),
            mean: given[0].floats(),
            var: given[1].floats(),
            logit: None,
            residual: None,
        }
    }
}

/// A matrix as stored, `[rows, cols]`, and whether its transpose is meant.
#[derive(Clone, Copy)]
struct Operand<'a, T> {
    data: &'a [T],
    rows: usize,
    transposed: bool,
}

impl<'a, T> Operand<'a, T> {
    fn new(data: &'a [T], rows: usize) -> Self {
        Operand { data, rows, transposed: false }
    }

    fn t(self) -> Self {
        Operand { transposed: !self.transposed, ..self }
    }

    /// Rows and columns of the matrix that is meant.
    fn size(&self) -> [usize; 2] {
        let (rows, cols) = (self.rows, self.data.len() / self.rows);
        if self.transposed { [cols, rows] } else { [rows, cols] }
    }
}

/// By definition.
fn plain_product<T: Real>(a: Operand<T>, b: Operand<T>) -> T::Array {
    let ([m, k], [_, n]) = (a.size(), b.size());
    let at = |x: &Operand<T>, i: usize, j: usize| {
        let cols = x.data.len() / x.rows;
        if x.transposed { x.data[j * cols + i] } else { x.data[i * cols + j] }
    };
    let mut c = T::array(m * n);
    c.iter_mut().enumerate().for_each(|(i, c)| *c = (0..k).map(|j| at(&a, i / n, j) * at(&b, j, i % n)).sum());
    c
}

fn fast_product(a: Operand<f32>, b: Operand<f32>) -> Buffer {
    fn matrix<'a>(x: &Operand<'a, f32>) -> Matrix<'a> {
        let m = Matrix::new(x.data, x.rows, x.data.len() / x.rows);
        if x.transposed { m.t() } else { m }
    }
    let ([m, k], [_, n]) = (a.size(), b.size());
    let mut c = Buffer::scratch(m * n);
    cpu::gemm_f32(m, n, k, &matrix(&a), &matrix(&b), &mut c, cpu::no_epilogue);
    c
}

/// The gate of every image and what led to it.
pub(super) struct Gate<'a, T: Real> {
    v1: Operand<'a, T>,
    v2: Operand<'a, T>,
    product: fn(Operand<T>, Operand<T>) -> T::Array,
    /// Mean of t over each image, `[N, E]`.
    pooled: T::Array,
    /// After the relu, `[N, S]`.
    hidden: T::Array,
    /// Before the hard sigmoid, `[N, E]`.
    logit: T::Array,
    /// `[N, E]`.
    pub gate: T::Array,
}

impl<'a, T: Real> Gate<'a, T> {
    fn new(pooled: T::Array, [v1, v2]: [Arg<'a, T>; 2], product: fn(Operand<T>, Operand<T>) -> T::Array) -> Self {
        let [v1, v2] = [v1, v2].map(|v| Operand::new(v.data, v.shape[0]));
        let n = pooled.len() / v1.rows;
        let mut hidden = product(Operand::new(&pooled, n), v1);
        hidden.iter_mut().for_each(|h| *h = Kind::Relu.value(*h));
        let logit = product(Operand::new(&hidden, n), v2);
        let mut gate = T::array(logit.len());
        gate.iter_mut().zip(&logit[..]).for_each(|(g, &s)| *g = Kind::HardSigmoid.value(s));
        Gate { v1, v2, product, pooled, hidden, logit, gate }
    }

    /// From the gradient of the gate to those of the pooled means, v1 and v2.
    fn backward(&self, dgate: &[T]) -> [T::Array; 3] {
        let n = self.pooled.len() / self.v1.rows;
        let mut dlogit = T::array(dgate.len());
        for ((dlogit, &d), &z) in dlogit.iter_mut().zip(dgate).zip(&self.logit[..]) {
            *dlogit = d * Kind::HardSigmoid.slope(z);
        }
        let dlogit = Operand::new(&dlogit, n);
        let mut dhidden = (self.product)(dlogit, self.v2.t());
        dhidden.iter_mut().zip(&self.hidden[..]).for_each(|(d, &h)| *d *= Kind::Relu.slope(h));
        let dhidden = Operand::new(&dhidden, n);
        let dv1 = (self.product)(Operand::new(&self.pooled, n).t(), dhidden);
        let dv2 = (self.product)(Operand::new(&self.hidden, n).t(), dlogit);
        [(self.product)(dhidden, self.v1.t()), dv1, dv2]
    }
}

impl<'a> Gate<'a, f32> {
    /// The gates of images whose means are so far from those of their groups: the mean of t is `a · deviation + beta`.
    pub fn fast(affine: &Affine, deviation: &[f32], beta: &[f32], v: [Arg<'a, f32>; 2]) -> Self {
        let c = beta.len();
        let (n, groups) = (deviation.len() / c, affine.a.len() / c);
        let mean = |i: usize| {
            let a = f64::from(affine.a[group_of(n, groups, i / c) * c + i % c]);
            (a * f64::from(deviation[i]) + f64::from(beta[i % c])) as f32
        };
        let mut pooled = Buffer::scratch(deviation.len());
        pooled.iter_mut().enumerate().for_each(|(i, p)| *p = mean(i));
        Gate::new(pooled, v, fast_product)
    }

    /// From Σ du and Σ du (x − mean) of every image to the gradients of gamma, beta, v1 and v2 that are asked for, and e and
    /// f `[N, E]` of `dx = a g du + e x + f`.
    #[expect(clippy::too_many_arguments)]
    pub fn gradients(
        &self,
        affine: &Affine,
        [gamma, beta]: [&[f32]; 2],
        mean: &[f32],
        deviation: &[f32],
        sums: &Sums,
        positions: usize,
        statistics: Statistics,
        gradients: &mut [Option<&mut [f32]>],
    ) -> [Buffer; 2] {
        let c = gamma.len();
        let (n, groups) = (deviation.len() / c, mean.len() / c);
        let [dgamma, dbeta, dv1, dv2, ..] = gradients else { unreachable!("one for each of four parameters") };
        let mut dgate = Buffer::scratch(n * c);
        for (i, dgate) in dgate.chunks_exact_mut(c).enumerate() {
            let ([s, t], rstd) = (sums.of(i), &affine.rstd[group_of(n, groups, i) * c..]);
            for k in 0..c {
                dgate[k] = (f64::from(gamma[k]) * t[k] * rstd[k] + f64::from(beta[k]) * s[k]) as f32;
            }
        }
        let [dpooled, of_v1, of_v2] = self.backward(&dgate);
        for (out, found) in [(dv1, of_v1), (dv2, of_v2)] {
            if let Some(out) = out {
                out.copy_from_slice(&found);
            }
        }

        // Σ dt and Σ dt (x − mean) of every image, with dt = g du + dpooled / P.
        let mut through = Sums::new(n, c);
        for (i, [ds, dt]) in through.parts_mut().enumerate() {
            let [s, t] = sums.of(i);
            for k in 0..c {
                let (g, dp) = (f64::from(self.gate[i * c + k]), f64::from(dpooled[i * c + k]));
                ds[k] = g * s[k] + dp;
                dt[k] = g * t[k] + dp * f64::from(deviation[i * c + k]);
            }
        }
        let totals = affine.gradient_statistics(n, &through);
        add_groups(&totals, dgamma.as_deref_mut(), dbeta.as_deref_mut());
        let of_groups = match statistics {
            Statistics::Batch => affine.through_batch(mean, &totals, n, positions),
            Statistics::Running => [(); 2].map(|()| Buffer::filled(mean.len(), 0.0)),
        };
        let [mut e, mut f] = [(); 2].map(|()| Buffer::scratch(n * c));
        for i in 0..n * c {
            let j = group_of(n, groups, i / c) * c + i % c;
            let pooled = f64::from(affine.a[j]) * f64::from(dpooled[i]) / positions as f64;
            (e[i], f[i]) = (of_groups[0][j], of_groups[1][j] + pooled as f32);
        }
        [e, f]
    }
}

impl Op for BatchNormSqueezeExcite {
    const NAME: &'static str = "batch_norm_squeeze_excite";

    fn infer(&self, x: &[Shape]) -> Result<List<Shape>> {
        expect_inputs::<Self>(x, &[if self.statistics == Statistics::Batch { 5 } else { 7 }])?;
        let (n, h, w, c) = expect_nhwc::<Self>("x", x[0])?;
        expect_shape::<Self>("gamma", x[1], [c])?;
        expect_shape::<Self>("beta", x[2], [c])?;
        expect_shape::<Self>("v1", x[3], [c, x[3].channels()])?;
        expect_shape::<Self>("v2", x[4], [x[3].channels(), c])?;
        for (name, s) in ["mean", "var"].into_iter().zip(&x[5..]) {
            expect_shape::<Self>(name, *s, [c])?;
        }
        let groups = self.statistics.groups(self.groups);
        if groups == 0 || groups > n || h * w == 0 {
            return refuse::<Self, _>(format!("{} cannot be normalised in {groups} ghost groups", x[0]));
        }
        Ok(list([x[0], [groups, c].into(), [groups, c].into(), [n, c].into()]))
    }

    fn differentiable(&self, i: usize) -> bool {
        i < 5
    }

    fn reads_input(&self, i: usize) -> bool {
        i < 5
    }

    fn reads_output(&self, i: usize) -> bool {
        i > 0
    }

    fn reference_forward<T: Real>(&self, x: &[Arg<T>], y: &mut [&mut [T]]) {
        let (n, h, w, c) = x[0].shape.nhwc().expect("checked by infer");
        let [y, mean, var, deviation] = y else { unreachable!("infer promises four outputs") };
        match self.statistics {
            Statistics::Batch => moments(x[0].data, n, c, self.groups, mean, var),
            Statistics::Running => {
                mean.copy_from_slice(x[5].data);
                var.copy_from_slice(x[6].data);
            }
        }
        let (group, image) = (group_of_image(n, self.statistics.groups(self.groups)), h * w * c);
        let t = |i: usize| {
            let (k, s) = (i % c, group[i / image] * c + i % c);
            (x[0].data[i] - mean[s]) / (var[s] + T::of(self.eps)).sqrt() * x[1].data[k] + x[2].data[k]
        };
        let positions = T::of((h * w) as f64);
        let over = |i: usize| (i / c * image..(i / c + 1) * image).skip(i % c).step_by(c);
        for (i, d) in deviation.iter_mut().enumerate() {
            *d = over(i).map(|j| x[0].data[j] - mean[group[i / c] * c + i % c]).sum::<T>() / positions;
        }
        let mut pooled = T::array(n * c);
        pooled.iter_mut().enumerate().for_each(|(i, p)| *p = over(i).map(t).sum::<T>() / positions);
        let gate = Gate::new(pooled, [x[3], x[4]], plain_product).gate;
        for (i, y) in y.iter_mut().enumerate() {
            *y = Kind::HardSwish.value(t(i) * gate[i / image * c + i % c]);
        }
    }

    fn reference_backward<T: Real>(&self, x: &[Arg<T>], y: &[&[T]], dy: &[T], dx: &mut [Option<&mut [T]>]) {
        let (n, h, w, c) = x[0].shape.nhwc().expect("checked by infer");
        let (mean, var, gamma, beta) = (y[1], y[2], x[1].data, x[2].data);
        let (group, image) = (group_of_image(n, self.statistics.groups(self.groups)), h * w * c);
        let rstd: Vec<T> = var.iter().map(|&v| (v + T::of(self.eps)).sqrt().recip()).collect();
        let positions = T::of((h * w) as f64);
        let (mut normal, mut pooled) = (vec![T::zero(); dy.len()], T::array(n * c));
        pooled.fill(T::zero());
        for i in 0..dy.len() {
            let s = group[i / image] * c + i % c;
            normal[i] = (x[0].data[i] - mean[s]) * rstd[s];
            pooled[i / image * c + i % c] += (normal[i] * gamma[i % c] + beta[i % c]) / positions;
        }
        let gate = Gate::new(pooled, [x[3], x[4]], plain_product);
        let (mut dt, mut dgate) = (dy.to_vec(), vec![T::zero(); n * c]);
        for i in 0..dy.len() {
            let (t, j) = (normal[i] * gamma[i % c] + beta[i % c], i / image * c + i % c);
            let du = dy[i] * Kind::HardSwish.slope(t * gate.gate[j]);
            dgate[j] += du * t;
            dt[i] = du * gate.gate[j];
        }
        let [dpooled, dv1, dv2] = gate.backward(&dgate);
        let (mut dgamma, mut dbeta) = (vec![T::zero(); mean.len()], vec![T::zero(); mean.len()]);
        for i in 0..dy.len() {
            dt[i] += dpooled[i / image * c + i % c] / positions;
            let s = group[i / image] * c + i % c;
            dgamma[s] += dt[i] * normal[i];
            dbeta[s] += dt[i];
        }
        if let Some(dx) = &mut dx[0] {
            for i in 0..dy.len() {
                let (k, g) = (i % c, group[i / image]);
                let (s, m) =
                    (g * c + k, T::of((group_images(n, self.statistics.groups(self.groups), g).len() * h * w) as f64));
                let through = match self.statistics {
                    Statistics::Batch => (dbeta[s] + normal[i] * dgamma[s]) / m,
                    Statistics::Running => T::zero(),
                };
                dx[i] = gamma[k] * rstd[s] * (dt[i] - through);
            }
        }
        for (i, sums) in [(1, dgamma), (2, dbeta)] {
            if let Some(dx) = &mut dx[i] {
                for (k, dx) in dx.iter_mut().enumerate() {
                    *dx = sums.iter().skip(k).step_by(c).copied().sum();
                }
            }
        }
        for (i, d) in [(3, dv1), (4, dv2)] {
            if let Some(dx) = &mut dx[i] {
                dx.copy_from_slice(&d);
            }
        }
    }

    fn cpu_forward(&self, x: &[Arg<f32>], y: &mut [&mut [f32]]) {
        let (n, h, w, c) = x[0].shape.nhwc().expect("checked by infer");
        let [y, mean, var, deviation] = y else { unreachable!("infer promises four outputs") };
        let images = image_moments(x[0].data, n, c);
        match self.statistics {
            Statistics::Batch => group_moments(&images, n, h * w, mean, var),
            Statistics::Running => {
                mean.copy_from_slice(x[5].data);
                var.copy_from_slice(x[6].data);
            }
        }
        let affine = Affine::new(x[1].data, x[2].data, mean, var, self.eps);
        let groups = self.statistics.groups(self.groups);
        deviations(&images, n, mean, deviation);
        let gate = Gate::fast(&affine, deviation, x[2].data, [x[3], x[4]]);
        let image = x[0].data.len() / n;
        y.par_chunks_mut(image).enumerate().for_each(|(i, y)| {
            let (a, b) = affine.of_group(group_of(n, groups, i));
            gated(simd(), &x[0].data[i * image..(i + 1) * image], a, b, &gate.gate[i * c..(i + 1) * c], y);
        });
    }

    fn cpu_backward(&self, x: &[Arg<f32>], y: &[&[f32]], dy: &[f32], dx: &mut [Option<&mut [f32]>]) {
        let (n, h, w, c) = x[0].shape.nhwc().expect("checked by infer");
        let (mean, var, deviation) = (y[1], y[2], y[3]);
        let affine = Affine::new(x[1].data, x[2].data, mean, var, self.eps);
        let groups = self.statistics.groups(self.groups);
        let gate = Gate::fast(&affine, deviation, x[2].data, [x[3], x[4]]);
        let image = x[0].data.len() / n;

        // Per image Σ du and Σ du (x − mean).
        let mut sums = Sums::new(n, c);
        sums.par_parts_mut().enumerate().for_each(|(i, sums)| {
            let g = group_of(n, groups, i);
            let ((a, b), mean) = (affine.of_group(g), &mean[g * c..(g + 1) * c]);
            let gate = &gate.gate[i * c..(i + 1) * c];
            blocked_sums(h * w, sums, |rows, [s, t]| {
                let at = i * image + rows.start * c..i * image + rows.end * c;
                gated_gradient_sums(simd(), &x[0].data[at.clone()], &dy[at], a, b, gate, mean, s, t);
            });
        });
        let (dx, gradients) = dx.split_first_mut().expect("five inputs at least");
        let scale = [x[1].data, x[2].data];
        let statistics = self.statistics;
        let [e, f] = gate.gradients(&affine, scale, mean, deviation, &sums, h * w, statistics, gradients);

        let Some(dx) = dx else { return };
        dx.par_chunks_mut(image).enumerate().for_each(|(i, dx)| {
            let (a, b) = affine.of_group(group_of(n, groups, i));
            let (at, of) = (i * image..(i + 1) * image, i * c..(i + 1) * c);
            let (gate, e, f) = (&gate.gate[of.clone()], &e[of.clone()], &f[of]);
            gated_gradient_x(simd(), &x[0].data[at.clone()], &dy[at], a, b, gate, e, f, dx);
        });
    }

    fn input_in_f32(&self, i: usize) -> bool {
        i > 0
    }

    fn output_in_f32(&self, i: usize) -> bool {
        i > 0
    }

    fn cuda_forward(&self, gpu: &Gpu, x: &[GpuArg], y: &mut [GpuOut]) -> Result<()> {
        let cut = Cut::new(x[0].shape, self.statistics.groups(self.groups));
        let [y, mean, var, deviation] = y else { unreachable!("infer promises four outputs") };
        let moments = cut.moments(gpu, x[0].data.reals())?;
        match self.statistics {
            Statistics::Batch => cut.statistics(gpu, &moments, mean, var)?,
            Statistics::Running => {
                gpu.copy(x[5].data.floats(), &mut mean.floats())?;
                gpu.copy(x[6].data.floats(), &mut var.floats())?;
            }
        }
        let norm = self.norm(cut, x, [mean.as_values(), var.as_values()]);
        let pooled = CudaGate::pool(&norm, gpu, &moments, deviation)?;
        let gate = CudaGate::new(&norm, gpu, pooled, x[3].data.floats(), x[4].data.floats())?;
        norm.with_gate(&gate).apply(gpu, x[0].data.reals(), y)
    }

    fn cuda_backward(
        &self,
        gpu: &Gpu,
        x: &[GpuArg],
        y: &[Values],
        dy: Values,
        dx: &mut [Option<GpuOut>],
    ) -> Result<()> {
        let cut = Cut::new(x[0].shape, self.statistics.groups(self.groups));
        let (norm, deviation) = (self.norm(cut, x, [y[1], y[2]]), y[3].floats());
        let pooled = CudaGate::pooled(&norm, gpu, deviation)?;
        let gate = CudaGate::new(&norm, gpu, pooled, x[3].data.floats(), x[4].data.floats())?;
        let (norm, x, dy) = (norm.with_gate(&gate), x[0].data.reals(), dy.reals());
        let [dx, dgamma, dbeta, dv1, dv2, ..] = dx else { unreachable!("infer promises five inputs") };
        let sums = norm.gradient_sums(gpu, x, dy)?;
        let dpooled = gate.backward(&norm, gpu, &sums, dv1.as_mut(), dv2.as_mut())?;
        let gradient = Some(GateGradient { dpooled: dpooled.slice(), deviation });
        let through = norm.gradient_statistics(gpu, &sums, gradient, dgamma.as_mut(), dbeta.as_mut())?;
        let through = (self.statistics == Statistics::Batch).then_some(&through);
        norm.gradient_x(gpu, x, dy, gradient, through, dx.as_mut().map(|d| d.reals()), None)
    }

    fn flops(&self, _: &[Shape]) -> u64 {
        0
    }

    fn cases() -> Vec<Case<Self>> {
        let op = |groups, statistics| BatchNormSqueezeExcite { eps: 1e-5, groups, statistics };
        let shapes = |n, h, w, e, s| [&[n, h, w, e][..], &[e], &[e], &[e, s], &[s, e]].map(Shape::new).to_vec();
        let mut frozen = shapes(2, 3, 2, 5, 3);
        frozen.extend([Shape::from([5]), Shape::from([5])]);
        vec![
            Case::new(op(1, Statistics::Batch), &shapes(3, 2, 3, 4, 2))
                .range(0, -1.0, 3.0)
                .range(1, 0.5, 2.0)
                .range(4, -4.0, 4.0),
            Case::new(op(2, Statistics::Batch), &shapes(5, 3, 2, 6, 1)).range(3, -3.0, 3.0).range(4, -4.0, 4.0),
            Case::new(op(1, Statistics::Running), &frozen).range(4, -3.0, 3.0).range(6, 0.1, 2.0),
            // More images, channels and hidden values than a block of the device takes at once; then more positions.
            Case::new(op(2, Statistics::Batch), &shapes(19, 1, 2, 36, 33)).range(3, -0.5, 0.5).range(4, -0.5, 0.5),
            Case::new(op(1, Statistics::Batch), &shapes(2, 13, 10, 4, 2))
                .range(0, 0.5, 1.5)
                .range(3, -3.0, 3.0)
                .range(4, -4.0, 4.0),
        ]
    }

    fn bench_cases() -> Vec<Case<Self>> {
        let shapes = [&[16, 28, 28, 864][..], &[864], &[864], &[864, 216], &[216, 864]].map(Shape::new);
        vec![Case::new(BatchNormSqueezeExcite { eps: 1e-5, groups: 1, statistics: Statistics::Batch }, &shapes)]
    }

    fn refused() -> Vec<(Self, Vec<Shape>, &'static str)> {
        let op = BatchNormSqueezeExcite { eps: 1e-5, groups: 1, statistics: Statistics::Batch };
        let good = [&[2, 3, 3, 4][..], &[4], &[4], &[4, 2], &[2, 4]].map(Shape::new).to_vec();
        let with = |i: usize, s: &[usize]| {
            let mut x = good.clone();
            x[i] = Shape::new(s);
            x
        };
        vec![
            (op.clone(), good[..4].to_vec(), "5"),
            (op.clone(), with(0, &[2, 3, 4]), "[N, H, W, C]"),
            (op.clone(), with(1, &[5]), "gamma"),
            (op.clone(), with(3, &[5, 2]), "v1"),
            (op.clone(), with(4, &[3, 4]), "v2"),
            (BatchNormSqueezeExcite { groups: 3, ..op }, good, "ghost groups"),
        ]
    }
}

/// How far the mean of each image is from that of its group `[N, C]`.
pub(super) fn deviations(images: &Sums, n: usize, mean: &[f32], deviation: &mut [f32]) {
    let c = deviation.len() / n;
    for (i, d) in deviation.chunks_exact_mut(c).enumerate() {
        let mean = &mean[group_of(n, mean.len() / c, i) * c..];
        let [of_image, _] = images.of(i);
        d.iter_mut().zip(of_image).zip(mean).for_each(|((d, i), &m)| *d = (i - f64::from(m)) as f32);
    }
}

simd_fn! {
    /// `y = hswish((a x + b) g)` over the rows of one image.
    fn gated<FMA>(x: &[f32], a: &[f32], b: &[f32], g: &[f32], y: &mut [f32]) {
        let c = a.len();
        let (b, g) = (&b[..c], &g[..c]);
        for (x, y) in x.chunks_exact(c).zip(y.chunks_exact_mut(c)) {
            for k in 0..c {
                y[k] = Kind::HardSwish.fast_value((x[k] * a[k] + b[k]) * g[k]);
            }
        }
    }

    /// `s += du`, `t += du (x − mean)` over some rows.
    fn gated_gradient_sums<FMA>(
        x: &[f32], dy: &[f32], a: &[f32], b: &[f32], g: &[f32], mean: &[f32], s: &mut [f32], t: &mut [f32],
    ) {
        let c = a.len();
        let (b, g, mean, s, t) = (&b[..c], &g[..c], &mean[..c], &mut s[..c], &mut t[..c]);
        for (x, dy) in x.chunks_exact(c).zip(dy.chunks_exact(c)) {
            for k in 0..c {
                let du = dy[k] * Kind::HardSwish.fast_slope((x[k] * a[k] + b[k]) * g[k]);
                s[k] += du;
                t[k] += du * (x[k] - mean[k]);
            }
        }
    }

    /// `dx = a g du + e x + f` over the rows of one image.
    fn gated_gradient_x<FMA>(
        x: &[f32], dy: &[f32], a: &[f32], b: &[f32], g: &[f32], e: &[f32], f: &[f32], dx: &mut [f32],
    ) {
        let c = a.len();
        let (b, g, e, f) = (&b[..c], &g[..c], &e[..c], &f[..c]);
        for ((x, dy), dx) in x.chunks_exact(c).zip(dy.chunks_exact(c)).zip(dx.chunks_exact_mut(c)) {
            for k in 0..c {
                let du = dy[k] * Kind::HardSwish.fast_slope((x[k] * a[k] + b[k]) * g[k]);
                dx[k] = a[k] * g[k] * du + e[k] * x[k] + f[k];
            }
        }
    }
}
