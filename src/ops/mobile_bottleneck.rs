//! The block of CRAD in training, in one op: a MobileNetV3 bottleneck with batch statistics.
//!
//! ```text
//! y1 = x w1                  h1 = hswish(BN1(y1))
//! y2 = depthwise3x3(h1)      h2 = hswish(t gate), t = BN2(y2), gate = hsigmoid(relu(mean(t) v1) v2)
//! y3 = h2 w3                 y = x + BN3(y3)
//! ```
//! x, y, y3: `[N, H, W, C]`; y1, y2: `[N, H, W, E]`; w1: `[C, E]`, depthwise: `[3, 3, E]`, v1: `[E, S]`, v2: `[S, E]`,
//! w3: `[E, C]`; a gamma and a beta for each BatchNorm. Inputs `x, w1, gamma1, beta1, depthwise, gamma2, beta2, v1, v2, w3,
//! gamma3, beta3`. Outputs y, then y1, y2, y3, mean and variance of each BatchNorm `[G, ..]`, and how far the mean of each
//! image of y2 is from it `[N, E]`.
//!
//! The definition is the chain of the ops `pointwise_conv`, `batch_norm`, `depthwise_conv2d` and
//! `batch_norm_squeeze_excite`. On the CPU (`mobile_bottleneck_cpu.rs`) and on a device (`mobile_bottleneck_cuda.rs`) nothing
//! but y1, y2, y3 and y is written: statistics are taken where values are made, h1 and h2 are made where they are read.

use serde::{Deserialize, Serialize};

use super::composed::{Defined, Links, between};
use super::{BatchNorm, BatchNormSqueezeExcite, DepthwiseConv2d, Kind, PointwiseConv, Statistics};
use crate::device::cuda::{Gpu, GpuArg, GpuOut, Values};
use crate::error::Result;
use crate::op::{Arg, Case, List, Op, expect_inputs, expect_nhwc, expect_shape, refuse};
use crate::real::Real;
use crate::shape::Shape;

/// See the head of this file.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MobileBottleneck {
    /// Added to the variances.
    pub eps: f64,
    /// Number of ghost groups of a batch.
    pub groups: usize,
}

/// The links of the chain that have no attributes.
const CONV: PointwiseConv = PointwiseConv { act: Kind::Identity };
const DEPTHWISE: DepthwiseConv2d = DepthwiseConv2d { stride: 1, pad: [1; 4], act: Kind::Identity };

impl MobileBottleneck {
    fn norm(&self, act: Kind, residual: bool) -> BatchNorm {
        BatchNorm { eps: self.eps, groups: self.groups, statistics: Statistics::Batch, act, residual }
    }

    fn gated(&self) -> BatchNormSqueezeExcite {
        BatchNormSqueezeExcite { eps: self.eps, groups: self.groups, statistics: Statistics::Batch }
    }

    fn forward<T: Real, L: Links<T>>(&self, x: &[Arg<T>], y: &mut [&mut [T]]) {
        let [y, y1, y2, y3, mean1, var1, mean2, var2, mean3, var3, deviation] = y else {
            unreachable!("infer promises eleven outputs")
        };
        let (narrow, wide) = (x[0].shape, x[0].shape.with_channels(x[2].shape[0]));
        L::forward(&CONV, &x[..2], &mut [y1]);
        let mut h = between::<T>(y1.len());
        L::forward(&self.norm(Kind::HardSwish, false), &[arg(wide, y1), x[2], x[3]], &mut [&mut h, mean1, var1]);
        L::forward(&DEPTHWISE, &[arg(wide, &h), x[4]], &mut [y2]);
        let inputs = [arg(wide, y2), x[5], x[6], x[7], x[8]];
        L::forward(&self.gated(), &inputs, &mut [&mut h, mean2, var2, deviation]);
        L::forward(&CONV, &[arg(wide, &h), x[9]], &mut [y3]);
        let inputs = [arg(narrow, y3), x[10], x[11], x[0]];
        L::forward(&self.norm(Kind::Identity, true), &inputs, &mut [y, mean3, var3]);
    }

    fn backward<T: Real, L: Links<T>>(&self, x: &[Arg<T>], y: &[&[T]], dy: &[T], dx: &mut [Option<&mut [T]>]) {
        let [_, y1, y2, y3, mean1, var1, mean2, var2, mean3, var3, deviation] = *y else {
            unreachable!("infer promises eleven outputs")
        };
        let [dx, dw1, dgamma1, dbeta1, ddepthwise, dgamma2, dbeta2, dv1, dv2, dw3, dgamma3, dbeta3] = dx else {
            unreachable!("infer accepts twelve inputs")
        };
        let (narrow, wide) = (x[0].shape, x[0].shape.with_channels(x[2].shape[0]));
        let [mut h, mut d, mut dh] = [(); 3].map(|()| between::<T>(y1.len()));
        let [mut mean, mut var, mut far] = [mean2.len(), mean2.len(), deviation.len()].map(between::<T>);

        let last = [arg(narrow, y3), x[10], x[11], Arg { shape: narrow, data: &[] }];
        let mut dy3 = between::<T>(y3.len());
        let out = &mut [Some(&mut dy3[..]), dgamma3.take(), dbeta3.take(), None];
        L::backward(&self.norm(Kind::Identity, true), &last, &[&[], mean3, var3], dy, out);

        let gated = [arg(wide, y2), x[5], x[6], x[7], x[8]];
        L::forward(&self.gated(), &gated, &mut [&mut h, &mut mean, &mut var, &mut far]);
        L::backward(&CONV, &[arg(wide, &h), x[9]], &[], &dy3, &mut [Some(&mut dh), dw3.take()]);
        let out = &mut [Some(&mut d[..]), dgamma2.take(), dbeta2.take(), dv1.take(), dv2.take()];
        L::backward(&self.gated(), &gated, &[&[], mean2, var2, deviation], &dh, out);

        let (norm, first) = (self.norm(Kind::HardSwish, false), [arg(wide, y1), x[2], x[3]]);
        L::forward(&norm, &first, &mut [&mut h, &mut mean, &mut var]);
        L::backward(&DEPTHWISE, &[arg(wide, &h), x[4]], &[], &d, &mut [Some(&mut dh), ddepthwise.take()]);
        L::backward(&norm, &first, &[&[], mean1, var1], &dh, &mut [Some(&mut d), dgamma1.take(), dbeta1.take()]);
        L::backward(&CONV, &x[..2], &[], &d, &mut [dx.as_deref_mut(), dw1.take()]);
        if let Some(dx) = dx {
            dx.iter_mut().zip(dy).for_each(|(dx, &dy)| *dx += dy);
        }
    }
}

fn arg<T>(shape: Shape, data: &[T]) -> Arg<'_, T> {
    Arg { shape, data }
}

impl Op for MobileBottleneck {
    const NAME: &'static str = "mobile_bottleneck";

    fn infer(&self, x: &[Shape]) -> Result<List<Shape>> {
        expect_inputs::<Self>(x, &[12])?;
        let (n, h, w, c) = expect_nhwc::<Self>("x", x[0])?;
        let (e, s) = (x[1].channels(), x[7].channels());
        let expected: [(&str, &[usize]); 11] = [
            ("w1", &[c, e]),
            ("gamma1", &[e]),
            ("beta1", &[e]),
            ("depthwise", &[3, 3, e]),
            ("gamma2", &[e]),
            ("beta2", &[e]),
            ("v1", &[e, s]),
            ("v2", &[s, e]),
            ("w3", &[e, c]),
            ("gamma3", &[c]),
            ("beta3", &[c]),
        ];
        for ((name, shape), found) in expected.into_iter().zip(&x[1..]) {
            expect_shape::<Self>(name, *found, Shape::new(shape))?;
        }
        let g = self.groups;
        if g == 0 || g > n || h * w * e * s == 0 {
            return refuse::<Self, _>(format!("{} to {e} channels cannot be normalised in {g} ghost groups", x[0]));
        }
        let wide = x[0].with_channels(e);
        let statistics = [[g, e], [g, e], [g, e], [g, e], [g, c], [g, c], [n, e]].map(Shape::from);
        Ok([x[0], wide, wide, x[0]].into_iter().chain(statistics).collect())
    }

    fn differentiable(&self, _: usize) -> bool {
        true
    }

    fn reads_input(&self, _: usize) -> bool {
        true
    }

    fn reads_output(&self, i: usize) -> bool {
        i > 0
    }

    fn reference_forward<T: Real>(&self, x: &[Arg<T>], y: &mut [&mut [T]]) {
        self.forward::<T, Defined>(x, y);
    }

    fn reference_backward<T: Real>(&self, x: &[Arg<T>], y: &[&[T]], dy: &[T], dx: &mut [Option<&mut [T]>]) {
        self.backward::<T, Defined>(x, y, dy, dx);
    }

    fn cpu_forward(&self, x: &[Arg<f32>], y: &mut [&mut [f32]]) {
        self.forward_fast(x, y);
    }

    fn cpu_backward(&self, x: &[Arg<f32>], y: &[&[f32]], dy: &[f32], dx: &mut [Option<&mut [f32]>]) {
        self.backward_fast(x, y, dy, dx);
    }

    fn input_in_f32(&self, i: usize) -> bool {
        i > 0
    }

    fn output_in_f32(&self, i: usize) -> bool {
        i > 3
    }

    fn cuda_forward(&self, gpu: &Gpu, x: &[GpuArg], y: &mut [GpuOut]) -> Result<()> {
        self.forward_on(gpu, x, y)
    }

    fn cuda_backward(
        &self,
        gpu: &Gpu,
        x: &[GpuArg],
        y: &[Values],
        dy: Values,
        dx: &mut [Option<GpuOut>],
    ) -> Result<()> {
        self.backward_on(gpu, x, y, dy.reals(), dx)
    }

    fn flops(&self, x: &[Shape]) -> u64 {
        let rows = x[0].rows() as u64;
        2 * rows * (x[1].numel() + x[4].numel() + x[9].numel()) as u64
    }

    fn cases() -> Vec<Case<Self>> {
        vec![
            case(1, [2, 4, 3], [3, 5, 2]),
            case(2, [3, 3, 5], [8, 16, 4]),
            // Tiles that begin in one image and end in another, and more than one; maps wider than a strip.
            case(2, [3, 9, 9], [8, 24, 3]),
            // More channels than the CPU's walk over lines has at a time, and all its widths of vectors.
            case(2, [3, 4, 5], [3, 73, 2]),
        ]
    }

    fn bench_cases() -> Vec<Case<Self>> {
        let op = MobileBottleneck { eps: 1e-5, groups: 1 };
        vec![Case::new(op, &shapes([16, 28, 28, 432], 864, 216))]
    }

    fn refused() -> Vec<(Self, Vec<Shape>, &'static str)> {
        let op = MobileBottleneck { eps: 1e-5, groups: 1 };
        let good = shapes([2, 3, 3, 4], 6, 2);
        let with = |i: usize, s: &[usize]| {
            let mut x = good.clone();
            x[i] = Shape::new(s);
            x
        };
        vec![
            (op.clone(), good[..11].to_vec(), "12"),
            (op.clone(), with(0, &[2, 3, 4]), "[N, H, W, C]"),
            (op.clone(), with(1, &[5, 6]), "w1"),
            (op.clone(), with(4, &[5, 5, 6]), "depthwise"),
            (op.clone(), with(8, &[3, 6]), "v2"),
            (op.clone(), with(9, &[6, 5]), "w3"),
            (op.clone(), with(11, &[6]), "beta3"),
            (MobileBottleneck { groups: 3, ..op }, good, "ghost groups"),
        ]
    }
}

/// Images `[n, h, w]` of c channels, e in between, s in the gate; inputs that every precision can be judged on.
fn case(groups: usize, [n, h, w]: [usize; 3], [c, e, s]: [usize; 3]) -> Case<MobileBottleneck> {
    // Small beta and gamma keep clear of the kinks of hswish at 3, where no precision but the finest knows the slope.
    Case::new(MobileBottleneck { eps: 1e-5, groups }, &shapes([n, h, w, c], e, s))
        // Around 0 the mean of many positions would be what cancellation leaves of them, in any f32.
        .range(0, -0.5, 1.5)
        .range(2, 0.4, 0.9)
        .range(3, -0.5, 0.5)
        .range(5, 0.4, 0.9)
}

fn shapes(x: [usize; 4], e: usize, s: usize) -> Vec<Shape> {
    let c = x[3];
    [&x[..], &[c, e], &[e], &[e], &[3, 3, e], &[e], &[e], &[e, s], &[s, e], &[e, c], &[c], &[c]]
        .map(Shape::new)
        .to_vec()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::check::{repeat_of, truth_of};
    use crate::device::cpu::Products;
    use crate::device::cpu::testing::{channels, shapes as drawn};
    use crate::device::cuda::Precision;

    proptest! {
        #![proptest_config(drawn(24))]
        #[test]
        fn any_shape_matches_the_definition(
            (n, groups) in (4..12_usize, 1..4_usize),
            (h, w) in (1..8_usize, 1..8_usize),
            (c, e, s) in (channels(), channels(), 4..10_usize),
        ) {
            // A judge of the largest of several errors needs several: of one parameter's gradient, which may be almost 0, the
            // relative error is luck. So it is of what two images and two hidden values of the gate have in common.
            let (c, e) = (c.max(7), e.max(7));
            // Of fewer values a variance may be next to nothing, and then no f32 knows what is left of a gradient.
            prop_assume!(n / groups * h * w >= 8 && n * h * w * c * e <= 60_000);
            let case = case(groups, [n, h, w], [c, e, s]);
            truth_of(&case);
            Precision::ALL.into_iter().flat_map(Products::available).for_each(|way| repeat_of(&case, way));
        }
    }
}
