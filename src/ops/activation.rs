//! Element-wise non-linearities.
//!
//! | kind | y | PyTorch |
//! | --- | --- | --- |
//! | identity | x | `Identity` |
//! | relu | max(x, 0) | `relu` |
//! | relu6 | min(max(x, 0), 6) | `relu6` |
//! | hard_sigmoid | relu6(x + 3) / 6 | `hardsigmoid` |
//! | hard_swish | x · relu6(x + 3) / 6 | `hardswish` |
//! | sigmoid | 1 / (1 + e⁻ˣ) | `sigmoid` |
//! | swish | x · sigmoid(x) | `silu` |
//! | tanh | tanh(x) | `tanh` |
//!
//! x and y: any shape. The slope is recomputed from x.

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::device::cpu::{self, sigmoid_f32, simd, simd_fn, tanh_f32};
use crate::device::cuda::{Gpu, GpuArg, GpuOut, Grid, Values, launch};
use crate::error::Result;
use crate::op::{Arg, Case, List, Op, expect_inputs, list};
use crate::real::Real;
use crate::shape::Shape;

/// Which non-linearity; other ops carry one as their last step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)] // the table above says it
pub enum Kind {
    Identity,
    Relu,
    Relu6,
    HardSigmoid,
    HardSwish,
    Sigmoid,
    Swish,
    Tanh,
}

impl Kind {
    /// Every kind, for tests.
    pub const ALL: [Kind; 8] = [
        Kind::Identity,
        Kind::Relu,
        Kind::Relu6,
        Kind::HardSigmoid,
        Kind::HardSwish,
        Kind::Sigmoid,
        Kind::Swish,
        Kind::Tanh,
    ];

    /// The value at `x`.
    #[inline(always)]
    pub fn value<T: Real>(self, x: T) -> T {
        // Comparisons rather than max and min, which would swallow a NaN.
        let relu = |x: T| if x < T::zero() { T::zero() } else { x };
        let relu6 = |x: T| if x > T::of(6.0) { T::of(6.0) } else { relu(x) };
        let sigmoid = |x: T| T::one() / (T::one() + (-x).exp());
        match self {
            Kind::Identity => x,
            Kind::Relu => relu(x),
            Kind::Relu6 => relu6(x),
            Kind::HardSigmoid => relu6(x + T::of(3.0)) / T::of(6.0),
            Kind::HardSwish => x * (relu6(x + T::of(3.0)) / T::of(6.0)),
            Kind::Sigmoid => sigmoid(x),
            Kind::Swish => x * sigmoid(x),
            Kind::Tanh => x.tanh(),
        }
    }

    /// The derivative at `x`; at a kink, PyTorch's choice.
    #[inline(always)]
    pub fn slope<T: Real>(self, x: T) -> T {
        let (zero, one, three) = (T::zero(), T::one(), T::of(3.0));
        let step = |on: bool| if on { one } else { zero };
        let sigmoid = |x: T| one / (one + (-x).exp());
        match self {
            Kind::Identity => one,
            Kind::Relu => step(x > zero),
            Kind::Relu6 => step(x > zero && x < T::of(6.0)),
            Kind::HardSigmoid => step(x > -three && x < three) / T::of(6.0),
            Kind::HardSwish if x <= -three => zero,
            Kind::HardSwish if x >= three => one,
            Kind::HardSwish => (x + x + three) / T::of(6.0),
            Kind::Sigmoid => sigmoid(x) * (one - sigmoid(x)),
            Kind::Swish => sigmoid(x) * (one + x * (one - sigmoid(x))),
            Kind::Tanh => one - x.tanh() * x.tanh(),
        }
    }
}

/// A division takes longer than all the rest of a hard swish.
const SIXTH: f32 = 1.0 / 6.0;

impl Kind {
    /// [`Self::value`] in f32 without calls, so that a loop over it vectorises.
    #[inline(always)]
    #[expect(clippy::manual_clamp, reason = "clamp branches, and a loop over branches is not vectorised")]
    pub(crate) fn fast_value(self, x: f32) -> f32 {
        match self {
            Kind::Sigmoid => sigmoid_f32(x),
            Kind::Swish => x * sigmoid_f32(x),
            Kind::Tanh => tanh_f32(x),
            // A NaN that max and min swallow comes back by the factor x.
            Kind::HardSwish => x * ((x + 3.0).max(0.0).min(6.0) * SIXTH),
            _ => self.value(x),
        }
    }

    /// [`Self::slope`] in f32 without calls and without branches.
    #[inline(always)]
    pub(crate) fn fast_slope(self, x: f32) -> f32 {
        match self {
            Kind::Sigmoid => {
                let s = sigmoid_f32(x);
                s * (1.0 - s)
            }
            Kind::Swish => {
                let s = sigmoid_f32(x);
                s * (1.0 + x * (1.0 - s))
            }
            Kind::Tanh => {
                let t = tanh_f32(x);
                1.0 - t * t
            }
            Kind::HardSwish => {
                let inside = (x + x + 3.0) * SIXTH;
                let above = if x >= 3.0 { 1.0 } else { inside };
                if x <= -3.0 { 0.0 } else { above }
            }
            _ => self.slope(x),
        }
    }
}

/// Runs `$body` with `$K` a constant naming the kind, so that the choice is made once and not per value.
macro_rules! with_kind {
    ($kind:expr, $K:ident => $body:expr) => {{
        use $crate::ops::Kind;
        with_kind!(@ $kind, $K, $body, Identity, Relu, Relu6, HardSigmoid, HardSwish, Sigmoid, Swish, Tanh)
    }};
    (@ $kind:expr, $K:ident, $body:expr, $($name:ident),*) => {
        match $kind {
            $(Kind::$name => { const $K: u8 = Kind::$name as u8; $body })*
        }
    };
}
pub(crate) use with_kind;

simd_fn! {
    /// `x = act(x)` in place.
    fn value_in_place<FMA, const K: u8>(x: &mut [f32]) {
        let kind = const { Kind::ALL[K as usize] };
        for x in x {
            *x = kind.fast_value(*x);
        }
    }

    fn value<FMA, const K: u8>(x: &[f32], y: &mut [f32]) {
        let kind = const { Kind::ALL[K as usize] };
        for (y, &x) in y.iter_mut().zip(x) {
            *y = kind.fast_value(x);
        }
    }

    fn slope<FMA, const K: u8>(x: &[f32], dy: &[f32], dx: &mut [f32]) {
        let kind = const { Kind::ALL[K as usize] };
        for ((dx, &dy), &x) in dx.iter_mut().zip(dy).zip(x) {
            *dx = dy * kind.fast_slope(x);
        }
    }

    fn bias_value<FMA, const K: u8>(bias: &[f32], rows: &mut [f32]) {
        let kind = const { Kind::ALL[K as usize] };
        for row in rows.chunks_exact_mut(bias.len()) {
            for (x, &b) in row.iter_mut().zip(bias) {
                *x = kind.fast_value(*x + b);
            }
        }
    }
}

/// What follows a convolution while its rows are still in the cache: `rows = act(rows + bias)`.
pub(super) fn bias_and_activation(bias: Option<&[f32]>, kind: Kind, rows: &mut [f32]) {
    match bias {
        Some(bias) => with_kind!(kind, K => bias_value::<K>(simd(), bias, rows)),
        None if kind == Kind::Identity => {}
        None => with_kind!(kind, K => value_in_place::<K>(simd(), rows)),
    }
}

/// `dz = dy · act'(z)` over a whole tensor; `dz` may alias nothing.
pub(super) fn activation_backward(kind: Kind, z: &[f32], dy: &[f32], dz: &mut [f32]) {
    dz.par_chunks_mut(cpu::CHUNK).zip(z.par_chunks(cpu::CHUNK)).zip(dy.par_chunks(cpu::CHUNK)).for_each(
        |((dz, z), dy)| {
            with_kind!(kind, K => slope::<K>(simd(), z, dy, dz));
        },
    );
}

/// `y = act(x)`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Activation {
    /// Which non-linearity.
    pub kind: Kind,
}

impl Op for Activation {
    const NAME: &'static str = "activation";

    fn infer(&self, x: &[Shape]) -> Result<List<Shape>> {
        expect_inputs::<Self>(x, &[1])?;
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
        for (y, &x) in y[0].iter_mut().zip(x[0].data) {
            *y = self.kind.value(x);
        }
    }

    fn reference_backward<T: Real>(&self, x: &[Arg<T>], _: &[&[T]], dy: &[T], dx: &mut [Option<&mut [T]>]) {
        let Some(dx) = &mut dx[0] else { return };
        for ((dx, &dy), &x) in dx.iter_mut().zip(dy).zip(x[0].data) {
            *dx = dy * self.kind.slope(x);
        }
    }

    fn cpu_forward(&self, x: &[Arg<f32>], y: &mut [&mut [f32]]) {
        y[0].par_chunks_mut(cpu::CHUNK).zip(x[0].data.par_chunks(cpu::CHUNK)).for_each(|(y, x)| {
            with_kind!(self.kind, K => value::<K>(simd(), x, y));
        });
    }

    fn cpu_backward(&self, x: &[Arg<f32>], _: &[&[f32]], dy: &[f32], dx: &mut [Option<&mut [f32]>]) {
        if let Some(dx) = &mut dx[0] {
            activation_backward(self.kind, x[0].data, dy, dx);
        }
    }

    fn input_in_f32(&self, _: usize) -> bool {
        false
    }

    fn output_in_f32(&self, _: usize) -> bool {
        false
    }

    fn cuda_forward(&self, gpu: &Gpu, x: &[GpuArg], y: &mut [GpuOut]) -> Result<()> {
        let n = y[0].len();
        let (x, kind) = (x[0].data.reals(), self.kind as usize);
        launch::activation_forward(gpu, Grid::threads(n.div_ceil(8)), x, &mut y[0].reals(), kind, n)
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
        let n = dx.len();
        let (x, kind) = (x[0].data.reals(), self.kind as usize);
        launch::activation_backward(gpu, Grid::threads(n.div_ceil(8)), x, dy.reals(), &mut dx.reals(), kind, n)
    }

    fn flops(&self, _: &[Shape]) -> u64 {
        0
    }

    fn cases() -> Vec<Case<Self>> {
        let case = |kind, shape: [usize; 4]| Case::new(Activation { kind }, &[shape]).range(0, -8.0, 8.0);
        let mut cases = Kind::ALL.map(|kind| case(kind, [2, 3, 5, 7])).to_vec();
        // More than a whole block of the kernels.
        cases.push(case(Kind::Swish, [2, 23, 5, 9]));
        cases
    }

    fn bench_cases() -> Vec<Case<Self>> {
        [Kind::HardSwish, Kind::Swish]
            .map(|kind| Case::new(Activation { kind }, &[[16, 28, 28, 864]]).range(0, -4.0, 4.0))
            .to_vec()
    }

    fn refused() -> Vec<(Self, Vec<Shape>, &'static str)> {
        vec![(Activation { kind: Kind::Relu }, vec![], "1")]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_listed_in_the_order_of_their_discriminants() {
        for (i, kind) in Kind::ALL.into_iter().enumerate() {
            assert_eq!(kind as usize, i);
        }
    }

    #[test]
    fn a_nan_is_never_swallowed() {
        for kind in Kind::ALL {
            assert!(kind.value(f32::NAN).is_nan(), "{kind:?}");
            assert!(kind.fast_value(f32::NAN).is_nan(), "{kind:?}");
        }
    }
}
