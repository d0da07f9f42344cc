//! Convolution, bias and activation: `y = act(x * w + bias)`, any kernel, stride and zero padding.
//!
//! x: `[N, H, W, A]`, w: `[KH, KW, A, B]`, bias: `[B]` (optional), y: `[N, H', W', B]` with
//! `H' = (H + top + bottom − KH) / stride + 1`. PyTorch: `pad`, then `conv2d` (a cross-correlation).
//!
//! `dx` and `dw` are the same product with its operands exchanged. With an activation, z is computed again, as in
//! `pointwise_conv`.

use serde::{Deserialize, Serialize};

use super::activation::{Kind, bias_and_activation};
use super::pointwise_conv::{
    FrozenWeights, LaidOut, bias_gradient, bias_gradient_on, defined_through_activation, dz_on, residual_of,
    through_activation,
};
use crate::device::cpu::{self, ConvGeometry};
use crate::device::cuda::{
    DeviceVec, Gpu, GpuArg, GpuOut, Real as Stored, Slice, SliceMut, Tiling, Two, Values, launch, sum_in_slabs, wgmma,
};
use crate::error::Result;
use crate::op::{Arg, Case, List, Op, expect_inputs, expect_nhwc, expect_shape, list, refuse};
use crate::real::Real;
use crate::shape::Shape;
use crate::storage::Storage;
use crate::tensor::Tensor;

/// See the head of this file.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Conv2d {
    /// Step between outputs, both axes.
    pub stride: usize,
    /// Zeros around the picture: top, bottom, left, right.
    pub pad: [usize; 4],
    /// Last step.
    pub act: Kind,
}

/// Output sizes of a convolution, or `None` when the kernel does not fit.
pub(super) fn output_size(size: [usize; 2], kernel: [usize; 2], stride: usize, pad: [usize; 4]) -> Option<[usize; 2]> {
    let axis = |i: usize| (size[i] + pad[2 * i] + pad[2 * i + 1]).checked_sub(kernel[i]).filter(|_| kernel[i] > 0);
    Some([axis(0)?.checked_div(stride)? + 1, axis(1)?.checked_div(stride)? + 1])
}

/// The input positions that each output reads: calls `f(output position, kernel position, input position)`, where
/// positions of pictures count all images.
pub(super) fn for_each_tap(g: &ConvGeometry, mut f: impl FnMut(usize, usize, usize)) {
    for n in 0..g.n {
        for (oy, ox) in (0..g.out_h()).flat_map(|y| (0..g.out_w()).map(move |x| (y, x))) {
            for (ky, kx) in (0..g.kh).flat_map(|y| (0..g.kw).map(move |x| (y, x))) {
                let (iy, ix) =
                    ((oy * g.stride + ky).wrapping_sub(g.pad[0]), (ox * g.stride + kx).wrapping_sub(g.pad[2]));
                if iy < g.h && ix < g.w {
                    f((n * g.out_h() + oy) * g.out_w() + ox, ky * g.kw + kx, (n * g.h + iy) * g.w + ix);
                }
            }
        }
    }
}

impl Conv2d {
    fn geometry(&self, x: Shape, w: Shape) -> ConvGeometry {
        ConvGeometry {
            n: x[0],
            h: x[1],
            w: x[2],
            ci: w[2],
            co: w[3],
            kh: w[0],
            kw: w[1],
            stride: self.stride,
            pad: self.pad,
        }
    }

    /// `x * w + bias`.
    fn linear<T: Real>(&self, x: &[Arg<T>], y: &mut [T]) {
        let g = self.geometry(x[0].shape, x[1].shape);
        for (i, y) in y.iter_mut().enumerate() {
            *y = x.get(2).map_or(T::zero(), |bias| bias.data[i % g.co]);
        }
        for_each_tap(&g, |o, k, i| {
            for a in 0..g.ci {
                for b in 0..g.co {
                    y[o * g.co + b] += x[0].data[i * g.ci + a] * x[1].data[(k * g.ci + a) * g.co + b];
                }
            }
        });
    }
}

impl Conv2d {
    /// `y = act(x * w + bias)`, or with dy: `y = dy · act'(x * w + bias)`.
    fn apply(&self, gpu: &Gpu, x: &[GpuArg], dy: Option<Slice<Stored>>, y: &mut SliceMut<Stored>) -> Result<()> {
        let g = self.geometry(x[0].shape, x[1].shape);
        let (w, bias, x) = (x[1].data.floats(), x.get(2).map(|bias| bias.data.floats()), x[0].data.reals());
        if let Some(product) = wgmma::Product::of_patches(gpu, &g, true, &[x, dy.unwrap_or(x), y.as_slice()]) {
            let w = LaidOut::transposed(gpu, w, [g.kh * g.kw, g.ci, g.co])?;
            return product.forward(gpu, x, w.values.slice(), w.pitch, bias, None, dy, y, self.act as usize);
        }
        let w = LaidOut::new(gpu, w, [g.kh * g.kw * g.ci, g.co])?;
        patches_product(gpu, &g, true, x, &w, bias, None, dy, y, self.act)
    }

    /// Whether the kernels of `kernels/hopper/` are taken for y of a product `[m, n, k, taps]`.
    pub(crate) fn by_warpgroups(gpu: &Gpu, shape: [usize; 4]) -> bool {
        gpu.takes(wgmma::PATCHES_FORWARD, shape)
    }

    /// Weights w that will not change, laid out for [`Self::frozen`]; nothing in host memory.
    pub(crate) fn lay_out(w: &Tensor) -> Result<Option<FrozenWeights>> {
        let (s, Some(gpu)) = (w.shape(), w.gpu()) else { return Ok(None) };
        FrozenWeights::new(gpu, w.values().floats(), [s[0] * s[1], s[2], s[3]], wgmma::PATCHES_FORWARD).map(Some)
    }

    /// The op on a device, with inputs x and bias and with w, of this shape, laid out before; a residual is added before the
    /// activation.
    pub(crate) fn frozen(
        &self,
        gpu: &Gpu,
        [x, bias]: [&Tensor; 2],
        w: Shape,
        laid_out: &FrozenWeights,
        residual: Option<&Tensor>,
    ) -> Result<Tensor> {
        let shape = self.infer(&[x.shape(), w, bias.shape()])?[0];
        let (g, mut y) = (self.geometry(x.shape(), w), gpu.scratch(shape.numel())?);
        let (x, bias) = (x.values().reals(), Some(bias.values().floats()));
        let (residual, mut to) = (residual_of::<Self>(residual, shape)?, y.slice_mut());
        let arrays = [x, residual.unwrap_or(x), to.as_slice()];
        if let Some(w) = &laid_out.transposed
            && let Some(product) = wgmma::Product::of_patches(gpu, &g, true, &arrays)
        {
            product.forward(gpu, x, w.values.slice(), w.pitch, bias, residual, None, &mut to, self.act as usize)?;
        } else {
            patches_product(gpu, &g, true, x, &laid_out.lines, bias, residual, None, &mut to, self.act)?;
        }
        Ok(Tensor::stored(shape, Storage::Reals(y)))
    }
}

/// Patches times weights, `forward` from x to y, or back from dy to dx; see `kernels/conv_patches.cuh`.
#[allow(clippy::too_many_arguments)]
fn patches_product(
    gpu: &Gpu,
    g: &ConvGeometry,
    forward: bool,
    x: Slice<Stored>,
    w: &LaidOut,
    bias: Option<Slice<f32>>,
    residual: Option<Slice<Stored>>,
    dy: Option<Slice<Stored>>,
    y: &mut SliceMut<Stored>,
    act: Kind,
) -> Result<()> {
    let (inner, outer) = ([g.h, g.w, g.ci], [g.out_h(), g.out_w(), g.co]);
    let (read, written) = if forward { (inner, outer) } else { (outer, inner) };
    let (stride, apart, direction) = if forward { (g.stride, 1, 1) } else { (1, g.stride, -1) };
    let [top, left] = [g.pad[0], g.pad[2]].map(|pad| -direction * pad as i32);
    let ([height, width, channels], [out_height, out_width, n]) = (read, written);
    let m = g.n * out_height * out_width;
    // Steps apart are found one by one only: lines of odd length make it so.
    let line = if apart == 1 { channels } else { 1 };
    let tiling = Tiling::new(gpu, &[line], [m, n], Two::Neither);
    launch::conv2d_forward(
        gpu,
        tiling.grid([m, n], 1, Two::Neither),
        x,
        w.values.slice(),
        bias,
        residual,
        dy,
        y,
        m,
        n,
        w.pitch,
        height,
        width,
        channels,
        out_height,
        out_width,
        g.kh * g.kw,
        g.kw,
        stride,
        apart,
        direction,
        top,
        left,
        act as usize,
        tiling as usize,
    )
}

impl Op for Conv2d {
    const NAME: &'static str = "conv2d";

    fn infer(&self, x: &[Shape]) -> Result<List<Shape>> {
        expect_inputs::<Self>(x, &[2, 3])?;
        let (n, h, w, a) = expect_nhwc::<Self>("x", x[0])?;
        if x[1].len() != 4 || x[1].numel() == 0 {
            return refuse::<Self, _>(format!("w must be [KH, KW, A, B] and not empty, got {}", x[1]));
        }
        expect_shape::<Self>("w", x[1], [x[1][0], x[1][1], a, x[1][3]])?;
        if let Some(bias) = x.get(2) {
            expect_shape::<Self>("bias", *bias, [x[1][3]])?;
        }
        match output_size([h, w], [x[1][0], x[1][1]], self.stride, self.pad) {
            Some([oh, ow]) => Ok(list([[n, oh, ow, x[1][3]].into()])),
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
        let g = self.geometry(x[0].shape, x[1].shape);
        let dz = defined_through_activation(self.act, dy, |z| self.linear(x, z));
        dx.iter_mut().flatten().for_each(|d| d.fill(T::zero()));
        let (x_data, w_data) = (x[0].data, x[1].data);
        if let Some(Some(dbias)) = dx.get_mut(2) {
            dz.iter().enumerate().for_each(|(i, &d)| dbias[i % g.co] += d);
        }
        for_each_tap(&g, |o, k, i| {
            for a in 0..g.ci {
                for b in 0..g.co {
                    let (xi, wi, d) = (i * g.ci + a, (k * g.ci + a) * g.co + b, dz[o * g.co + b]);
                    if let Some(dx) = &mut dx[0] {
                        dx[xi] += w_data[wi] * d;
                    }
                    if let Some(dw) = &mut dx[1] {
                        dw[wi] += x_data[xi] * d;
                    }
                }
            }
        });
    }

    fn cpu_forward(&self, x: &[Arg<f32>], y: &mut [&mut [f32]]) {
        let bias = x.get(2).map(|b| b.data);
        let g = self.geometry(x[0].shape, x[1].shape);
        cpu::conv2d_forward(&g, x[0].data, x[1].data, y[0], |_, rows| bias_and_activation(bias, self.act, rows));
    }

    fn cpu_backward(&self, x: &[Arg<f32>], _: &[&[f32]], dy: &[f32], dx: &mut [Option<&mut [f32]>]) {
        let g = self.geometry(x[0].shape, x[1].shape);
        let linear = Conv2d { act: Kind::Identity, ..self.clone() };
        let dz = through_activation(self.act, dy, |z| linear.cpu_forward(x, &mut [z]));
        if let Some(dx) = &mut dx[0] {
            cpu::conv2d_backward_input(&g, &dz, x[1].data, dx);
        }
        if let Some(dw) = &mut dx[1] {
            cpu::conv2d_backward_weight(&g, x[0].data, &dz, dw);
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
        self.apply(gpu, x, None, &mut y[0].reals())
    }

    fn cuda_backward(
        &self,
        gpu: &Gpu,
        x: &[GpuArg],
        _: &[Values],
        dy: Values,
        dx: &mut [Option<GpuOut>],
    ) -> Result<()> {
        let g = self.geometry(x[0].shape, x[1].shape);
        let buffer = dz_on(gpu, self.act, dy.reals(), |dy, dz| self.apply(gpu, x, Some(dy), dz))?;
        let dz = buffer.as_ref().map_or(dy.reals(), DeviceVec::slice);
        if let Some(dx) = &mut dx[0] {
            let (w, dx) = (x[1].data.floats(), &mut dx.reals());
            if let Some(product) = wgmma::Product::of_patches(gpu, &g, false, &[dz, dx.as_slice()]) {
                let w = LaidOut::new(gpu, w, [g.kh * g.kw * g.ci, g.co])?;
                product.forward(gpu, dz, w.values.slice(), w.pitch, None, None, None, dx, Kind::Identity as usize)?;
            } else {
                let w = LaidOut::transposed(gpu, w, [g.kh * g.kw, g.ci, g.co])?;
                patches_product(gpu, &g, false, dz, &w, None, None, None, dx, Kind::Identity)?;
            }
        }
        let product = wgmma::Product::gradient_of_patches(gpu, &g, &[x[0].data.reals(), dz]);
        if let (Some(dw), Some(product)) = (&mut dx[1], &product) {
            product.weight_gradient(gpu, x[0].data.reals(), dz, &mut dw.floats())?;
        } else if let Some(dw) = &mut dx[1] {
            let (x, rows, positions) = (x[0].data.reals(), g.kh * g.kw * g.ci, g.out_rows());
            let ([top, left], lines) = ([g.pad[0], g.pad[2]].map(|p| -(p as i32)), [g.ci, g.co]);
            let dw = &mut dw.floats();
            sum_in_slabs(gpu, &lines, [rows, g.co], positions, Two::Neither, dw, |grid, partial, slab, tiling| {
                launch::conv2d_weight_gradient(
                    gpu,
                    grid,
                    x,
                    dz,
                    partial,
                    positions,
                    g.co,
                    g.h,
                    g.w,
                    g.ci,
                    g.out_h(),
                    g.out_w(),
                    g.kh * g.kw,
                    g.kw,
                    g.stride,
                    top,
                    left,
                    slab,
                    tiling,
                )
            })?;
        }
        if let Some(Some(dbias)) = dx.get_mut(2) {
            bias_gradient_on(gpu, dz, &mut dbias.floats())?;
        }
        Ok(())
    }

    fn flops(&self, x: &[Shape]) -> u64 {
        let g = self.geometry(x[0], x[1]);
        2 * (g.n * g.out_h() * g.out_w()) as u64 * x[1].numel() as u64
    }

    fn cases() -> Vec<Case<Self>> {
        let case = |stride, pad, act, shapes: &[&[usize]]| {
            Case::new(Conv2d { stride, pad, act }, &shapes.iter().map(|s| Shape::new(s)).collect::<Vec<_>>())
        };
        vec![
            case(1, [1, 1, 1, 1], Kind::Identity, &[&[2, 4, 3, 3], &[3, 3, 3, 5]]),
            case(2, [0, 1, 0, 1], Kind::Relu6, &[&[2, 6, 5, 3], &[3, 3, 3, 4], &[4]]),
            case(1, [0, 0, 0, 0], Kind::Swish, &[&[1, 5, 5, 2], &[3, 3, 2, 3], &[3]]),
            case(1, [1, 1, 1, 1], Kind::Identity, &[&[1, 1, 1, 2], &[3, 3, 2, 2]]),
            case(2, [2, 1, 1, 2], Kind::Identity, &[&[1, 5, 6, 2], &[5, 5, 2, 3]]),
            case(1, [1, 1, 1, 1], Kind::Relu, &[&[2, 5, 6, 8], &[3, 3, 8, 16], &[16]]),
            case(2, [0, 1, 0, 1], Kind::Identity, &[&[1, 6, 6, 8], &[3, 3, 8, 8]]),
        ]
    }

    fn bench_cases() -> Vec<Case<Self>> {
        let op = Conv2d { stride: 1, pad: [1; 4], act: Kind::Identity };
        vec![
            Case::new(op.clone(), &[[16, 28, 28, 432], [3, 3, 432, 432]]),
            Case::new(Conv2d { stride: 2, pad: [0, 1, 0, 1], ..op }, &[[4, 224, 224, 3], [3, 3, 3, 32]]),
        ]
    }

    fn refused() -> Vec<(Self, Vec<Shape>, &'static str)> {
        let op = Conv2d { stride: 1, pad: [0; 4], act: Kind::Identity };
        let (x, w) = (Shape::from([2, 4, 4, 3]), Shape::from([3, 3, 3, 5]));
        vec![
            (op.clone(), vec![x], "2, 3"),
            (op.clone(), vec![x, [3, 3, 4, 5].into()], "w must be [3, 3, 3, 5]"),
            (op.clone(), vec![x, [3, 5].into()], "[KH, KW, A, B]"),
            (op.clone(), vec![x, w, [3].into()], "bias must be [5]"),
            (op.clone(), vec![[2, 2, 4, 3].into(), w], "does not fit"),
            (Conv2d { stride: 0, ..op }, vec![x, w], "does not fit"),
        ]
    }
}
