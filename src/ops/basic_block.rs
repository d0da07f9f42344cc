//! The block of GRAD in training, in one op: a ResNet basic block with batch statistics.
//!
//! ```text
//! y1 = conv3x3(x, w1)        h1 = relu(BN1(y1))
//! y2 = conv3x3(h1, w2)       y = relu(BN2(y2) + x)
//! ```
//! x, y1, y2, y: `[N, H, W, C]`; w1, w2: `[3, 3, C, C]`; a gamma and a beta `[C]` for each BatchNorm. Inputs `x, w1, gamma1,
//! beta1, w2, gamma2, beta2`. Outputs y, then y1, y2, mean and variance of each BatchNorm `[G, C]`.
//!
//! The definition is the chain of the ops `conv2d` and `batch_norm`, and the CPU runs that chain. On a device
//! (`basic_block_cuda.rs`) the forward pass writes nothing but y1, y2 and y: statistics are taken where values are made, h1
//! is made where it is read.

use serde::{Deserialize, Serialize};

use super::composed::{Defined, Fast, Links, between};
use super::{BatchNorm, Conv2d, Kind, Statistics};
use crate::device::cuda::{Gpu, GpuArg, GpuOut, Values};
use crate::error::Result;
use crate::op::{Arg, Case, List, Op, expect_inputs, expect_nhwc, expect_shape, refuse};
use crate::real::Real;
use crate::shape::Shape;

/// See the head of this file.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BasicBlock {
    /// Added to the variances.
    pub eps: f64,
    /// Number of ghost groups of a batch.
    pub groups: usize,
}

/// The links of the chain that have no attributes of the block.
const CONV: Conv2d = Conv2d { stride: 1, pad: [1; 4], act: Kind::Identity };

impl BasicBlock {
    fn norm(&self, residual: bool) -> BatchNorm {
        BatchNorm { eps: self.eps, groups: self.groups, statistics: Statistics::Batch, act: Kind::Relu, residual }
    }

    fn forward<T: Real, L: Links<T>>(&self, x: &[Arg<T>], y: &mut [&mut [T]]) {
        let [y, y1, y2, mean1, var1, mean2, var2] = y else { unreachable!("infer promises seven outputs") };
        let like_x = |data| Arg { data, ..x[0] };
        L::forward(&CONV, &x[..2], &mut [y1]);
        let mut h1 = between::<T>(y1.len());
        L::forward(&self.norm(false), &[like_x(y1), x[2], x[3]], &mut [&mut h1, mean1, var1]);
        L::forward(&CONV, &[like_x(&h1), x[4]], &mut [y2]);
        L::forward(&self.norm(true), &[like_x(y2), x[5], x[6], x[0]], &mut [y, mean2, var2]);
    }

    fn backward<T: Real, L: Links<T>>(&self, x: &[Arg<T>], y: &[&[T]], dy: &[T], dx: &mut [Option<&mut [T]>]) {
        let [_, y1, y2, mean1, var1, mean2, var2] = *y else { unreachable!("infer promises seven outputs") };
        let [dx, dw1, dgamma1, dbeta1, dw2, dgamma2, dbeta2] = dx else { unreachable!("infer accepts seven inputs") };
        let like_x = |data| Arg { data, ..x[0] };
        let [mut h1, mut dz, mut dh, mut residual] = [(); 4].map(|()| between::<T>(y1.len()));
        let [mut mean, mut var] = [(); 2].map(|()| between::<T>(mean1.len()));

        let last = [like_x(y2), x[5], x[6], x[0]];
        let out = &mut [Some(&mut dz[..]), dgamma2.take(), dbeta2.take(), Some(&mut residual[..])];
        L::backward(&self.norm(true), &last, &[&[], mean2, var2], dy, out);

        let first = [like_x(y1), x[2], x[3]];
        L::forward(&self.norm(false), &first, &mut [&mut h1, &mut mean, &mut var]);
        L::backward(&CONV, &[like_x(&h1), x[4]], &[], &dz, &mut [Some(&mut dh), dw2.take()]);
        let out = &mut [Some(&mut dz[..]), dgamma1.take(), dbeta1.take()];
        L::backward(&self.norm(false), &first, &[&[], mean1, var1], &dh, out);
        L::backward(&CONV, &x[..2], &[], &dz, &mut [dx.as_deref_mut(), dw1.take()]);
        if let Some(dx) = dx {
            dx.iter_mut().zip(&residual[..]).for_each(|(dx, &r)| *dx += r);
        }
    }
}

impl Op for BasicBlock {
    const NAME: &'static str = "basic_block";

    fn infer(&self, x: &[Shape]) -> Result<List<Shape>> {
        expect_inputs::<Self>(x, &[7])?;
        let (n, h, w, c) = expect_nhwc::<Self>("x", x[0])?;
        let (kernel, channels) = ([3, 3, c, c], [c]);
        let expected: [(&str, &[usize]); 6] = [
            ("w1", &kernel),
            ("gamma1", &channels),
            ("beta1", &channels),
            ("w2", &kernel),
            ("gamma2", &channels),
            ("beta2", &channels),
        ];
        for ((name, shape), found) in expected.into_iter().zip(&x[1..]) {
            expect_shape::<Self>(name, *found, Shape::new(shape))?;
        }
        let g = self.groups;
        if g == 0 || g > n || h * w * c == 0 {
            return refuse::<Self, _>(format!("{} cannot be normalised in {g} ghost groups", x[0]));
        }
        let statistics = Shape::from([g, c]);
        Ok([x[0]; 3].into_iter().chain([statistics; 4]).collect())
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
        self.forward::<f32, Fast>(x, y);
    }

    fn cpu_backward(&self, x: &[Arg<f32>], y: &[&[f32]], dy: &[f32], dx: &mut [Option<&mut [f32]>]) {
        self.backward::<f32, Fast>(x, y, dy, dx);
    }

    fn input_in_f32(&self, i: usize) -> bool {
        i > 0
    }

    fn output_in_f32(&self, i: usize) -> bool {
        i > 2
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
        2 * x[0].rows() as u64 * (x[1].numel() + x[4].numel()) as u64
    }

    fn cases() -> Vec<Case<Self>> {
        let case = |groups, x: [usize; 4]| Case::new(BasicBlock { eps: 1e-5, groups }, &shapes(x));
        vec![
            case(1, [2, 4, 3, 3]),
            case(2, [3, 3, 5, 8]),
            // Tiles that begin in one image and end in another, and more than one.
            case(2, [4, 9, 7, 8]),
        ]
    }

    fn bench_cases() -> Vec<Case<Self>> {
        vec![Case::new(BasicBlock { eps: 1e-5, groups: 1 }, &shapes([16, 28, 28, 432]))]
    }

    fn refused() -> Vec<(Self, Vec<Shape>, &'static str)> {
        let op = BasicBlock { eps: 1e-5, groups: 1 };
        let good = shapes([2, 3, 3, 4]);
        let with = |i: usize, s: &[usize]| {
            let mut x = good.clone();
            x[i] = Shape::new(s);
            x
        };
        vec![
            (op.clone(), good[..6].to_vec(), "7"),
            (op.clone(), with(0, &[2, 3, 4]), "[N, H, W, C]"),
            (op.clone(), with(1, &[5, 5, 4, 4]), "w1"),
            (op.clone(), with(4, &[3, 3, 4, 5]), "w2"),
            (op.clone(), with(6, &[3]), "beta2"),
            (BasicBlock { groups: 3, ..op }, good, "ghost groups"),
        ]
    }
}

fn shapes(x: [usize; 4]) -> Vec<Shape> {
    let c = x[3];
    [&x[..], &[3, 3, c, c], &[c], &[c], &[3, 3, c, c], &[c], &[c]].map(Shape::new).to_vec()
}
