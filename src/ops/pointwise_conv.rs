//! 1x1 convolution, bias and activation: `y = act(x · w + bias)`.
//!
//! x: `[.., A]`, w: `[A, B]`, bias: `[B]` (optional), y: `[.., B]`. PyTorch: `conv2d` with a 1x1 kernel, or `linear`.
//! Channels last makes it one matrix product over all positions.
//!
//! `dz = dy · act'(z)`, `dx = dz · wᵀ`, `dw = xᵀ · dz`, `dbias = Σ dz`. With an activation, z is computed again: such
//! layers are the frozen backbone, which is never differentiated, and the small coordinate networks.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use super::activation::{Kind, activation_backward, bias_and_activation};
use crate::buffer::Buffer;
use crate::device::cpu::{self, Matrix};
use crate::error::Result;
use crate::op::{Arg, Case, Op, expect_inputs, expect_shape, refuse};
use crate::real::Real;
use crate::shape::Shape;

/// See the head of this file.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PointwiseConv {
    /// Last step.
    pub act: Kind,
}

impl PointwiseConv {
    /// `x · w + bias`.
    fn linear<T: Real>(x: &[Arg<T>], y: &mut [T]) {
        let (a, b) = (x[1].shape[0], x[1].shape[1]);
        for (x_row, y) in x[0].data.chunks_exact(a).zip(y.chunks_exact_mut(b)) {
            for (k, y) in y.iter_mut().enumerate() {
                let bias = x.get(2).map_or(T::zero(), |bias| bias.data[k]);
                *y = x_row.iter().enumerate().map(|(i, &v)| v * x[1].data[i * b + k]).sum::<T>() + bias;
            }
        }
    }
}

impl Op for PointwiseConv {
    const NAME: &'static str = "pointwise_conv";

    fn infer(&self, x: &[Shape]) -> Result<Vec<Shape>> {
        expect_inputs::<Self>(x, &[2, 3])?;
        if x[0].len() < 2 || x[0].channels() == 0 || x[1].numel() == 0 {
            return refuse::<Self, _>(format!(
                "x must be [.., A] and w [A, B], neither empty, got {} and {}",
                x[0], x[1]
            ));
        }
        let b = x[1].channels();
        expect_shape::<Self>("w", x[1], [x[0].channels(), b])?;
        if let Some(bias) = x.get(2) {
            expect_shape::<Self>("bias", *bias, [b])?;
        }
        Ok(vec![x[0].with_channels(b)])
    }

    fn differentiable(&self, _: usize) -> bool {
        true
    }

    fn reads_input(&self, i: usize) -> bool {
        i < 2 || self.act != Kind::Identity
    }

    fn reads_output(&self, _: usize) -> bool {
        false
    }

    fn reference_forward<T: Real>(&self, x: &[Arg<T>], y: &mut [&mut [T]]) {
        Self::linear(x, y[0]);
        y[0].iter_mut().for_each(|y| *y = self.act.value(*y));
    }

    fn reference_backward<T: Real>(&self, x: &[Arg<T>], _: &[&[T]], dy: &[T], dx: &mut [Option<&mut [T]>]) {
        let (a, b) = (x[1].shape[0], x[1].shape[1]);
        let dz = defined_through_activation(self.act, dy, |z| Self::linear(x, z));
        let rows = x[0].data.chunks_exact(a).zip(dz.chunks_exact(b));
        if let Some(dx) = &mut dx[0] {
            for (dx, dz) in dx.chunks_exact_mut(a).zip(dz.chunks_exact(b)) {
                for (dx, w) in dx.iter_mut().zip(x[1].data.chunks_exact(b)) {
                    *dx = w.iter().zip(dz).map(|(&w, &d)| w * d).sum();
                }
            }
        }
        if let Some(dw) = &mut dx[1] {
            dw.fill(T::zero());
            for (x, dz) in rows {
                for (i, dw) in dw.iter_mut().enumerate() {
                    *dw += x[i / b] * dz[i % b];
                }
            }
        }
        if let Some(Some(dbias)) = dx.get_mut(2) {
            dbias.fill(T::zero());
            dz.iter().enumerate().for_each(|(i, &d)| dbias[i % b] += d);
        }
    }

    fn cpu_forward(&self, x: &[Arg<f32>], y: &mut [&mut [f32]]) {
        let (a, b) = (x[1].shape[0], x[1].shape[1]);
        let m = x[0].data.len() / a;
        let bias = x.get(2).map(|b| b.data);
        cpu::gemm(m, b, a, &Matrix::new(x[0].data, m, a), &Matrix::new(x[1].data, a, b), y[0], |_, rows| {
            bias_and_activation(bias, self.act, rows);
        });
    }

    fn cpu_backward(&self, x: &[Arg<f32>], _: &[&[f32]], dy: &[f32], dx: &mut [Option<&mut [f32]>]) {
        let (a, b) = (x[1].shape[0], x[1].shape[1]);
        let m = x[0].data.len() / a;
        let dz = through_activation(self.act, dy, |z| PointwiseConv { act: Kind::Identity }.cpu_forward(x, &mut [z]));
        let (x_matrix, w, dz_matrix) =
            (Matrix::new(x[0].data, m, a), Matrix::new(x[1].data, a, b), Matrix::new(&dz, m, b));
        if let Some(dx) = &mut dx[0] {
            cpu::gemm(m, a, b, &dz_matrix, &w.t(), dx, cpu::no_epilogue);
        }
        if let Some(dw) = &mut dx[1] {
            cpu::gemm(a, b, m, &x_matrix.t(), &dz_matrix, dw, cpu::no_epilogue);
        }
        if let Some(Some(dbias)) = dx.get_mut(2) {
            bias_gradient(&dz, dbias);
        }
    }

    fn flops(&self, x: &[Shape]) -> u64 {
        2 * (x[0].numel() * x[1].channels()) as u64
    }

    fn cases() -> Vec<Case<Self>> {
        let case = |act, shapes: &[&[usize]]| {
            Case::new(PointwiseConv { act }, &shapes.iter().map(|s| Shape::new(s)).collect::<Vec<_>>())
        };
        vec![
            case(Kind::Identity, &[&[2, 3, 2, 7], &[7, 5]]),
            case(Kind::Tanh, &[&[2, 3, 2, 4], &[4, 6], &[6]]),
            case(Kind::Swish, &[&[3, 5], &[5, 2], &[2]]),
            case(Kind::Identity, &[&[1, 1], &[1, 1], &[1]]),
            case(Kind::HardSwish, &[&[1, 5, 5, 3], &[3, 33]]),
        ]
    }

    fn bench_cases() -> Vec<Case<Self>> {
        let case =
            |a, b| Case::new(PointwiseConv { act: Kind::Identity }, &[&[16, 28, 28, a][..], &[a, b]].map(Shape::new));
        vec![case(432, 864), case(864, 432), case(432, 216), case(216, 432)]
    }

    fn refused() -> Vec<(Self, Vec<Shape>, &'static str)> {
        let op = PointwiseConv { act: Kind::Identity };
        let x = Shape::from([2, 3, 3, 4]);
        vec![
            (op.clone(), vec![x], "2, 3"),
            (op.clone(), vec![x, [3, 5].into()], "w must be [4, 5]"),
            (op.clone(), vec![x, [4, 5].into(), [4].into()], "bias must be [5]"),
            (op.clone(), vec![[4].into(), [4, 5].into()], "x must be"),
            (op, vec![x, [4, 0].into()], "empty"),
        ]
    }
}

/// `dz = dy · act'(z)` by definition; `forward` computes z.
pub(super) fn defined_through_activation<T: Real>(act: Kind, dy: &[T], forward: impl FnOnce(&mut [T])) -> Vec<T> {
    if act == Kind::Identity {
        return dy.to_vec();
    }
    let mut z = vec![T::nan(); dy.len()];
    forward(&mut z);
    dy.iter().zip(z).map(|(&d, z)| d * act.slope(z)).collect()
}

/// `dz = dy · act'(z)`, fast; without an activation dy itself. `forward` computes z.
pub(super) fn through_activation(act: Kind, dy: &[f32], forward: impl FnOnce(&mut [f32])) -> Cow<'_, [f32]> {
    if act == Kind::Identity {
        return Cow::Borrowed(dy);
    }
    let (mut z, mut dz) = (Buffer::scratch(dy.len()), vec![0.0; dy.len()]);
    forward(&mut z);
    activation_backward(act, &z, dy, &mut dz);
    Cow::Owned(dz)
}

/// Sum over all positions of each channel of dz.
pub(super) fn bias_gradient(dz: &[f32], dbias: &mut [f32]) {
    let sums = cpu::column_sums(dz, dbias.len());
    dbias.iter_mut().zip(sums).for_each(|(d, s)| *d = s as f32);
}
