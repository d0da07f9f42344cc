//! Depthwise convolution, bias and activation: every channel has its own kernel.
//!
//! x: `[N, H, W, C]`, w: `[KH, KW, C]`, bias: `[C]` (optional), y: `[N, H', W', C]`, sizes as in `conv2d`.
//! PyTorch: `pad`, then `conv2d(groups=C)`. With an activation, z is computed again, as in `pointwise_conv`.

use serde::{Deserialize, Serialize};

use super::activation::{Kind, bias_and_activation};
use super::conv2d::{for_each_tap, output_size};
use super::pointwise_conv::{bias_gradient, defined_through_activation, through_activation};
use crate::device::cpu::{self, ConvGeometry, DepthwiseGeometry};
use crate::device::cuda::{self, DeviceVec, Gpu, GpuArg, GpuOut, Grid, Slice, SliceMut, Values, launch};
use crate::error::Result;
use crate::op::{Arg, Case, List, Op, expect_inputs, expect_nhwc, expect_shape, list, refuse};
use crate::real::Real;
use crate::shape::Shape;

/// See the head of this file.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DepthwiseConv2d {
    /// Step between outputs, both axes.
    pub stride: usize,
    /// Zeros around the picture: top, bottom, left, right.
    pub pad: [usize; 4],
    /// Last step.
    pub act: Kind,
}

impl DepthwiseConv2d {
    fn geometry(&self, x: Shape, w: Shape) -> DepthwiseGeometry {
        DepthwiseGeometry { n: x[0], h: x[1], w: x[2], c: x[3], kh: w[0], kw: w[1], stride: self.stride, pad: self.pad }
    }

    /// Walks outputs, kernel positions and inputs as a convolution of one channel does.
    fn taps(&self, x: Shape, w: Shape, f: impl FnMut(usize, usize, usize)) {
        let g = self.geometry(x, w);
        for_each_tap(
            &ConvGeometry { n: g.n, h: g.h, w: g.w, ci: 1, co: 1, kh: g.kh, kw: g.kw, stride: g.stride, pad: g.pad },
            f,
        );
    }

    /// `x * w + bias`.
    fn linear<T: Real>(&self, x: &[Arg<T>], y: &mut [T]) {
        let c = x[0].shape.channels();
        for (i, y) in y.iter_mut().enumerate() {
            *y = x.get(2).map_or(T::zero(), |bias| bias.data[i % c]);
        }
        self.taps(x[0].shape, x[1].shape, |o, k, i| {
            (0..c).for_each(|a| y[o * c + a] += x[0].data[i * c + a] * x[1].data[k * c + a]);
        });
    }

    /// `y = act(z)`, or with `dy` the gradient `dz = dy · act'(z)`.
    fn launch_forward(
        &self,
        gpu: &Gpu,
        x: &[GpuArg],
        dy: Option<Slice<cuda::Real>>,
        y: &mut SliceMut<cuda::Real>,
    ) -> Result<()> {
        let g = self.geometry(x[0].shape, x[1].shape);
        let kernel = match built_in(&g) {
            3 => launch::depthwise_conv2d_forward_3x3,
            5 => launch::depthwise_conv2d_forward_5x5,
            _ => launch::depthwise_conv2d_forward_any,
        };
        let (grid, [top, _, left, _]) = (strip_grid(&g, g.out_h(), g.out_w()), g.pad);
        let (x, w, bias) = (x[0].data.reals(), x[1].data.floats(), x.get(2).map(|bias| bias.data.floats()));
        let (oh, ow, kind) = (g.out_h(), g.out_w(), self.act as usize);
        kernel(gpu, grid, x, w, bias, dy, y, g.n, g.h, g.w, g.c, g.kh, g.kw, g.stride, top, left, oh, ow, kind)
    }
}

impl Op for DepthwiseConv2d {
    const NAME: &'static str = "depthwise_conv2d";

    fn infer(&self, x: &[Shape]) -> Result<List<Shape>> {
        expect_inputs::<Self>(x, &[2, 3])?;
        let (n, h, w, c) = expect_nhwc::<Self>("x", x[0])?;
        if x[1].len() != 3 || x[1].numel() == 0 {
            return refuse::<Self, _>(format!("w must be [KH, KW, C] and not empty, got {}", x[1]));
        }
        expect_shape::<Self>("w", x[1], [x[1][0], x[1][1], c])?;
        if let Some(bias) = x.get(2) {
            expect_shape::<Self>("bias", *bias, [c])?;
        }
        match output_size([h, w], [x[1][0], x[1][1]], self.stride, self.pad) {
            Some([oh, ow]) => Ok(list([[n, oh, ow, c].into()])),
            None => refuse::<Self, _>(format!("a kernel {} does not fit {} with {self:?}", x[1], x[0])),
        }
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
        self.linear(x, y[0]);
        y[0].iter_mut().for_each(|y| *y = self.act.value(*y));
    }

    fn reference_backward<T: Real>(&self, x: &[Arg<T>], _: &[&[T]], dy: &[T], dx: &mut [Option<&mut [T]>]) {
        let c = x[0].shape.channels();
        let dz = defined_through_activation(self.act, dy, |z| self.linear(x, z));
        dx.iter_mut().flatten().for_each(|d| d.fill(T::zero()));
        let (x_data, w_data) = (x[0].data, x[1].data);
        if let Some(Some(dbias)) = dx.get_mut(2) {
            dz.iter().enumerate().for_each(|(i, &d)| dbias[i % c] += d);
        }
        self.taps(x[0].shape, x[1].shape, |o, k, i| {
            for a in 0..c {
                let d = dz[o * c + a];
                if let Some(dx) = &mut dx[0] {
                    dx[i * c + a] += w_data[k * c + a] * d;
                }
                if let Some(dw) = &mut dx[1] {
                    dw[k * c + a] += x_data[i * c + a] * d;
                }
            }
        });
    }

    fn cpu_forward(&self, x: &[Arg<f32>], y: &mut [&mut [f32]]) {
        let bias = x.get(2).map(|b| b.data);
        let g = self.geometry(x[0].shape, x[1].shape);
        cpu::depthwise_forward(&g, x[0].data, x[1].data, y[0], |_, rows| bias_and_activation(bias, self.act, rows));
    }

    fn cpu_backward(&self, x: &[Arg<f32>], _: &[&[f32]], dy: &[f32], dx: &mut [Option<&mut [f32]>]) {
        let g = self.geometry(x[0].shape, x[1].shape);
        let linear = DepthwiseConv2d { act: Kind::Identity, ..self.clone() };
        let dz = through_activation(self.act, dy, |z| linear.cpu_forward(x, &mut [z]));
        if let Some(dx) = &mut dx[0] {
            cpu::depthwise_backward_input(&g, &dz, x[1].data, dx);
        }
        if let Some(dw) = &mut dx[1] {
            cpu::depthwise_backward_weight(&g, x[0].data, &dz, dw);
        }
        if let Some(Some(dbias)) = dx.get_mut(2) {
            bias_gradient(&dz, dbias);
        }
    }

    fn input_in_f32(&self, i: usize) -> bool {
        i > 0
    }

    fn output_in_f32(&self, _: usize) -> bool {
        false
    }

    fn cuda_forward(&self, gpu: &Gpu, x: &[GpuArg], y: &mut [GpuOut]) -> Result<()> {
        self.launch_forward(gpu, x, None, &mut y[0].reals())
    }

    fn cuda_backward(
        &self,
        gpu: &Gpu,
        x: &[GpuArg],
        _: &[Values],
        dy: Values,
        dx: &mut [Option<GpuOut>],
    ) -> Result<()> {
        let own = match self.act {
            Kind::Identity => None,
            _ => {
                let mut dz = gpu.scratch(dy.len())?;
                self.launch_forward(gpu, x, Some(dy.reals()), &mut dz.slice_mut())?;
                Some(dz)
            }
        };
        let dz = own.as_ref().map_or(dy.reals(), DeviceVec::slice);
        let g = self.geometry(x[0].shape, x[1].shape);
        let [dx, weights @ ..] = dx else { unreachable!("infer accepts two or three inputs") };
        if let Some(dx) = dx {
            launch_backward_x(gpu, &g, dz, x[1].data.floats(), &mut dx.reals())?;
        }
        if weights.iter().any(Option::is_some) {
            launch_backward_w(gpu, &g, x[0].data.reals(), dz, weights)
        } else {
            Ok(())
        }
    }

    fn flops(&self, _: &[Shape]) -> u64 {
        0
    }

    fn cases() -> Vec<Case<Self>> {
        let case = |stride, pad, act, shapes: &[&[usize]]| {
            Case::new(DepthwiseConv2d { stride, pad, act }, &shapes.iter().map(|s| Shape::new(s)).collect::<Vec<_>>())
        };
        vec![
            case(1, [1, 1, 1, 1], Kind::Identity, &[&[2, 4, 3, 5], &[3, 3, 5]]),
            case(2, [0, 1, 0, 1], Kind::Relu6, &[&[2, 6, 5, 3], &[3, 3, 3], &[3]]),
            case(1, [2, 2, 2, 2], Kind::Swish, &[&[1, 4, 5, 2], &[5, 5, 2], &[2]]),
            case(2, [1, 2, 1, 2], Kind::Identity, &[&[1, 6, 6, 17], &[5, 5, 17]]),
            case(1, [1, 1, 1, 1], Kind::Identity, &[&[1, 1, 1, 2], &[3, 3, 2]]),
            // The kernels with a size built in take channels in fours.
            case(1, [1, 1, 1, 1], Kind::Identity, &[&[3, 12, 9, 4], &[3, 3, 4], &[4]]),
            case(2, [0, 1, 0, 1], Kind::HardSwish, &[&[1, 5, 18, 36], &[3, 3, 36], &[36]]),
            case(1, [2, 2, 3, 1], Kind::Swish, &[&[1, 6, 8, 8], &[5, 5, 8]]),
            case(2, [1, 2, 2, 2], Kind::Relu6, &[&[1, 6, 7, 4], &[5, 5, 4], &[4]]),
            case(3, [0, 1, 3, 0], Kind::Identity, &[&[2, 6, 9, 8], &[2, 4, 8], &[8]]),
        ]
    }

    fn bench_cases() -> Vec<Case<Self>> {
        let case = |k: usize| {
            let op = DepthwiseConv2d { stride: 1, pad: [k / 2; 4], act: Kind::Identity };
            Case::new(op, &[&[16, 28, 28, 864][..], &[k, k, 864]].map(Shape::new))
        };
        vec![case(3), case(5)]
    }

    fn refused() -> Vec<(Self, Vec<Shape>, &'static str)> {
        let op = DepthwiseConv2d { stride: 1, pad: [0; 4], act: Kind::Identity };
        let (x, w) = (Shape::from([2, 4, 4, 3]), Shape::from([3, 3, 3]));
        vec![
            (op.clone(), vec![x], "2, 3"),
            (op.clone(), vec![x, [3, 3, 4].into()], "w must be [3, 3, 3]"),
            (op.clone(), vec![x, [3, 3, 3, 1].into()], "[KH, KW, C]"),
            (op.clone(), vec![x, w, [4].into()], "bias must be [3]"),
            (op, vec![[2, 4, 2, 3].into(), w], "does not fit"),
        ]
    }
}

/// Of the kernels: the positions of a strip, and the channels that the threads of a block lie over.
const STRIP: usize = 7;
const GROUP: usize = 32;

/// The kernel size, 3 or 5, where there are kernels with that size built in; else 0.
fn built_in(g: &DepthwiseGeometry) -> usize {
    let fits = g.kh == g.kw && matches!(g.kh, 3 | 5) && g.stride <= 2 && g.c.is_multiple_of(4);
    if fits { g.kh } else { 0 }
}

/// How many strips a block of `threads` works on at once.
fn strips_at_once(g: &DepthwiseGeometry, threads: usize) -> usize {
    let lanes = if g.c.is_multiple_of(4) { GROUP / 4 } else { GROUP };
    threads / lanes
}

/// One strip a thread, over maps of `rows` x `columns`.
fn strip_grid(g: &DepthwiseGeometry, rows: usize, columns: usize) -> Grid {
    let strips = g.n * rows * columns.div_ceil(STRIP);
    Grid::blocks(g.c.div_ceil(GROUP) * strips.div_ceil(strips_at_once(g, 256)))
}

fn launch_backward_x(
    gpu: &Gpu,
    g: &DepthwiseGeometry,
    dz: Slice<cuda::Real>,
    w: Slice<f32>,
    dx: &mut SliceMut<cuda::Real>,
) -> Result<()> {
    let kernel = match (built_in(g), g.stride) {
        (3, 1) => launch::depthwise_conv2d_backward_x_3x3,
        (5, 1) => launch::depthwise_conv2d_backward_x_5x5,
        _ => launch::depthwise_conv2d_backward_x_any,
    };
    let (grid, [top, _, left, _]) = (strip_grid(g, g.h, g.w), g.pad);
    kernel(gpu, grid, dz, w, dx, g.n, g.h, g.w, g.c, g.kh, g.kw, g.stride, top, left, g.out_h(), g.out_w())
}

/// `weights`: the gradients of w and of the bias, as far as they are asked for.
fn launch_backward_w(
    gpu: &Gpu,
    g: &DepthwiseGeometry,
    x: Slice<cuda::Real>,
    dz: Slice<cuda::Real>,
    weights: &mut [Option<GpuOut>],
) -> Result<()> {
    /// Enough to fill a large device twice over; the number decides the order of the sums, so it is the same on all.
    const BLOCKS: usize = 1024;
    let kernel = match built_in(g) {
        3 => launch::depthwise_conv2d_backward_w_3x3,
        5 => launch::depthwise_conv2d_backward_w_5x5,
        _ => launch::depthwise_conv2d_backward_w_any,
    };
    let (groups, taps, [top, _, left, _]) = (g.c.div_ceil(GROUP), g.kh * g.kw, g.pad);
    let all = g.n * g.out_h() * g.out_w().div_ceil(STRIP);
    let strips = all.div_ceil(BLOCKS.div_ceil(groups)).max(2 * strips_at_once(g, 128));
    let parts = all.div_ceil(strips);
    let mut sums = gpu.scratch(parts * (taps + 1) * g.c)?;
    let (grid, partial, oh, ow) = (Grid::blocks(groups * parts), &mut sums.slice_mut(), g.out_h(), g.out_w());
    kernel(gpu, grid, x, dz, partial, g.n, g.h, g.w, g.c, g.kh, g.kw, g.stride, top, left, oh, ow, strips)?;
    let mut outputs = weights.iter_mut().map(|d| d.as_mut().map(GpuOut::floats));
    let (mut dw, mut dbias) = (outputs.next().flatten(), outputs.next().flatten());
    let grid = Grid::blocks(((taps + 1) * g.c).div_ceil(16));
    launch::depthwise_conv2d_backward_w_sum(gpu, grid, sums.slice(), dw.as_mut(), dbias.as_mut(), parts, taps, g.c)
}
