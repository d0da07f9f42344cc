//! `basic_block` on a device: the order of the launches, and what each reads and writes of a whole tensor.
//!
//! With c the bytes of x:
//!
//! ```text
//! forward    conv 1        x -> y1, moments                  2 c
//!            conv 2        y1 -> y2, moments                 2 c
//!            apply         y2, x -> y                        3 c
//! backward   sums          dy, y2, x                         3 c
//!            dz2           dy, y2, x -> dz2, dy'             5 c
//!            conv 2'       dz2, y1 -> dt, sums               3 c
//!            dw2           y1, dz2                           2 c
//!            dz1           dt, y1 -> dz1                     3 c
//!            dw1           x, dz1                            2 c
//!            conv 1'       dz1, dy' -> dx                    3 c
//! ```
//! dy' is dy where y is not cut off, which y2 and x tell: y need not be kept. It has to be written for dx, and in that pass dz2
//! costs one c; made on load by both of its readers, it would cost two. In between are kernels over `[G, C]`: statistics and
//! tables of coefficients. The kernels are in `kernels/basic_block.cu` and `kernels/batch_norm*.cu`.

use super::normalise_cuda::{Cut, Norm};
use super::pointwise_conv::{LaidOut, Tiling};
use super::{BasicBlock, Kind};
use crate::device::cuda::{DeviceVec, Gpu, GpuArg, GpuOut, Real, Slice, SliceMut, Values, launch};
use crate::error::Result;
use crate::shape::Shape;

/// The sizes of a call.
#[derive(Clone, Copy)]
struct Sizes {
    x: Shape,
    h: usize,
    w: usize,
    /// Positions of all images.
    m: usize,
    c: usize,
}

impl Sizes {
    fn new(x: &[GpuArg]) -> Self {
        let (images, h, w, c) = x[0].shape.nhwc().expect("checked by infer");
        Sizes { x: x[0].shape, h, w, m: images * h * w, c }
    }

    /// Rows and columns of a product with patches.
    fn product(&self) -> [usize; 2] {
        [self.m, self.c]
    }
}

impl BasicBlock {
    /// A BatchNorm whose scale is input `gamma`, given its statistics, and the ReLU after it.
    fn norm_on<'a>(&self, cut: Cut, x: &[GpuArg<'a>], gamma: usize, given: [Slice<'a, f32>; 2]) -> Norm<'a> {
        let [gamma, beta] = [gamma, gamma + 1].map(|i| x[i].data.floats());
        let [mean, var] = given;
        Norm { cut, eps: self.eps, act: Kind::Relu, gamma, beta, mean, var, logit: None, residual: None }
    }

    pub(super) fn forward_on(&self, gpu: &Gpu, x: &[GpuArg], y: &mut [GpuOut]) -> Result<()> {
        let [y, y1, y2, mean1, var1, mean2, var2] = y else { unreachable!("infer promises seven outputs") };
        let s = Sizes::new(x);

        let (cut, moments) = self.product(gpu, &s, x[0].data.reals(), None, x[1].data.floats(), &mut y1.reals())?;
        cut.statistics(gpu, &moments, mean1, var1)?;
        let given = [&*mean1, var1].map(|v| v.as_values().floats());
        let table = self.norm_on(cut, x, 2, given).coefficients(gpu)?;

        let (w, y1) = (x[4].data.floats(), y1.as_values().reals());
        let (cut, moments) = self.product(gpu, &s, y1, Some(&table), w, &mut y2.reals())?;
        cut.statistics(gpu, &moments, mean2, var2)?;
        let given = [&*mean2, var2].map(|v| v.as_values().floats());
        let last = self.norm_on(Cut::new(s.x, self.groups), x, 5, given);
        Norm { residual: Some(x[0].data.reals()), ..last }.apply(gpu, y2.as_values().reals(), y)
    }

    /// `y = conv3x3(h, w)` and the moments of y, where h is x, or what a table makes of it.
    fn product(
        &self,
        gpu: &Gpu,
        s: &Sizes,
        x: Slice<Real>,
        table: Option<&DeviceVec<f32>>,
        w: Slice<f32>,
        y: &mut SliceMut<Real>,
    ) -> Result<(Cut, DeviceVec<f64>)> {
        let w = LaidOut::new(gpu, w, [9 * s.c, s.c])?;
        let tiling = Tiling::new(gpu, &[s.c], s.product(), 1);
        let cut = Cut::runs(s.x, self.groups, tiling.rows());
        let mut moments = cut.partial(gpu)?;
        launch::basic_block_product(
            gpu,
            tiling.grid(s.product(), 1),
            x,
            table.map(DeviceVec::slice),
            w.values.slice(),
            y,
            &mut moments.slice_mut(),
            s.m,
            s.c,
            s.c,
            w.pitch,
            s.h,
            s.w,
            self.groups,
            cut.slabs,
            tiling as usize,
        )?;
        Ok((cut, moments))
    }

    pub(super) fn backward_on(
        &self,
        gpu: &Gpu,
        x: &[GpuArg],
        y: &[Values],
        dy: Slice<Real>,
        dx: &mut [Option<GpuOut>],
    ) -> Result<()> {
        let [dx, dw1, dgamma1, dbeta1, dw2, dgamma2, dbeta2] = dx else { unreachable!("infer accepts seven inputs") };
        let (s, [y1, y2]) = (Sizes::new(x), [1, 2].map(|i| y[i].reals()));
        let given = |i: usize| [y[i].floats(), y[i + 1].floats()];
        let slabs = Cut::new(s.x, self.groups);

        // The last ReLU and BatchNorm 2.
        let norm = Norm { residual: Some(x[0].data.reals()), ..self.norm_on(slabs, x, 5, given(5)) };
        let sums = norm.gradient_sums(gpu, y2, dy)?;
        let through = norm.gradient_statistics(gpu, &sums, None, dgamma2.as_mut(), dbeta2.as_mut())?;
        let (mut dz2, mut residual) = (gpu.scratch(y2.len())?, gpu.scratch(y2.len())?);
        let (into, also) = (Some(dz2.slice_mut()), Some(residual.slice_mut()));
        norm.gradient_x(gpu, y2, dy, None, Some(&through), into, also)?;

        // Through the second convolution to dt, and BatchNorm 1.
        let tiling = Tiling::new(gpu, &[s.c], s.product(), 1);
        let norm = self.norm_on(Cut::runs(s.x, self.groups, tiling.rows()), x, 2, given(3));
        let (h1, mut sums) = (norm.coefficients(gpu)?, norm.cut.partial(gpu)?);
        let mut dt = gpu.scratch(y1.len())?;
        let w = LaidOut::transposed(gpu, x[4].data.floats(), [9, s.c, s.c])?;
        launch::basic_block_hidden_gradient(
            gpu,
            tiling.grid(s.product(), 1),
            dz2.slice(),
            w.values.slice(),
            y1,
            h1.slice(),
            norm.mean,
            &mut dt.slice_mut(),
            &mut sums.slice_mut(),
            s.m,
            s.c,
            s.c,
            w.pitch,
            s.h,
            s.w,
            self.groups,
            norm.cut.slabs,
            tiling as usize,
        )?;
        if let Some(dw2) = dw2 {
            self.weight_gradient(gpu, &s, y1, Some(&h1), dz2.slice(), &mut dw2.floats())?;
        }
        let through = norm.gradient_statistics(gpu, &sums, None, dgamma1.as_mut(), dbeta1.as_mut())?;
        // dt has the slope of the ReLU in it.
        let plain = Norm { cut: slabs, act: Kind::Identity, ..norm };
        let mut dz1 = dz2;
        plain.gradient_x(gpu, y1, dt.slice(), None, Some(&through), Some(dz1.slice_mut()), None)?;

        if let Some(dw1) = dw1 {
            self.weight_gradient(gpu, &s, x[0].data.reals(), None, dz1.slice(), &mut dw1.floats())?;
        }
        let Some(dx) = dx else { return Ok(()) };
        let w = LaidOut::transposed(gpu, x[1].data.floats(), [9, s.c, s.c])?;
        launch::basic_block_input_gradient(
            gpu,
            tiling.grid(s.product(), 1),
            dz1.slice(),
            w.values.slice(),
            residual.slice(),
            &mut dx.reals(),
            s.m,
            s.c,
            s.c,
            w.pitch,
            s.h,
            s.w,
            tiling as usize,
        )
    }

    /// The gradient of the weights of `conv3x3(h, w)`, h as in [`Self::product`].
    fn weight_gradient(
        &self,
        gpu: &Gpu,
        s: &Sizes,
        x: Slice<Real>,
        table: Option<&DeviceVec<f32>>,
        dz: Slice<Real>,
        dw: &mut SliceMut<f32>,
    ) -> Result<()> {
        let size = [9 * s.c, s.c];
        let (tiling, slabs) = Tiling::with_slabs(gpu, &[s.c], size, s.m);
        slabs.sum(gpu, 9 * s.c * s.c, dw, |partial, slab| {
            launch::basic_block_weight_gradient(
                gpu,
                tiling.grid(size, slabs.count),
                x,
                table.map(DeviceVec::slice),
                dz,
                partial,
                s.m,
                s.c,
                s.c,
                s.h,
                s.w,
                self.groups,
                slab,
                tiling as usize,
            )
        })
    }
}
