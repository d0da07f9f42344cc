//! `mobile_bottleneck` on a device: the order of the launches, and what each reads and writes of a whole tensor.
//!
//! With c the bytes of x, and E = 2 C:
//!
//! ```text
//! forward    expand        x -> y1, moments                               3 c
//!            depthwise     y1 -> y2, moments                              4 c
//!            project       y2 -> y3, moments                              3 c
//!            apply         y3, x -> y                                     3 c
//! backward   sums          dy, y3                                         2 c
//!            project'      dy, y3, y2 -> du, sums                         6 c
//!            dw3           dy, y3, y2                                     4 c
//!            depthwise'    du, y2, y1 -> dt, sums, parts of ddepthwise    8 c
//!            dw1           x, dt, y1                                      5 c
//!            expand'       dt, y1, dy -> dx                               6 c
//! ```
//! Where products by warpgroups (`kernels/hopper/`) were measured to be faster, dz3 = a dy + e y3 + f is written before project'
//! (3 c more, 1 c less) and dz1 before expand' and dw1 (6 c more, 4 c less).
//!
//! In between, statistics, the gate and tables of coefficients: kernels over `[N, E]` and less. The kernels are in
//! `kernels/mobile_bottleneck*.cu`.

use super::normalise_cuda::{CudaGate, Cut, GateGradient, Norm, SummedProduct};
use super::pointwise_conv::{LaidOut, weight_gradient as plain_weight_gradient};
use super::{Kind, MobileBottleneck};
use crate::device::cuda::wgmma::{Product, Summed, Sums};
use crate::device::cuda::{
    DeviceVec, Gpu, GpuArg, GpuOut, Grid, Real, Slice, SliceMut, Tiling, Two, Values, launch, sum_in_slabs, wgmma,
};
use crate::error::Result;
use crate::shape::Shape;

/// Positions of a strip of the depthwise kernels, and strips that a block of them works on at once.
const STRIP: usize = 7;
const STRIPS: usize = 32;
/// Channels of such a block.
const GROUP: usize = 32;

/// The sizes of a call: x `[images, h, w, c]`, expanded to e channels.
#[derive(Clone, Copy)]
struct Sizes {
    narrow: Shape,
    wide: Shape,
    h: usize,
    w: usize,
    images: usize,
    /// Positions of all images.
    m: usize,
    c: usize,
    e: usize,
}

impl Sizes {
    fn new(x: &[GpuArg]) -> Self {
        let (images, h, w, c) = x[0].shape.nhwc().expect("checked by infer");
        let e = x[2].shape[0];
        Sizes { narrow: x[0].shape, wide: x[0].shape.with_channels(e), h, w, images, m: images * h * w, c, e }
    }

    fn positions(&self) -> usize {
        self.h * self.w
    }

    /// How the depthwise kernels cut a picture.
    fn rows(&self, groups: usize) -> Cut {
        Cut::rows(self.wide, groups, (STRIPS / self.w.div_ceil(STRIP)).max(1))
    }

    fn depthwise_grid(&self, cut: &Cut) -> Grid {
        Grid::blocks3(self.e.div_ceil(GROUP), cut.slabs, self.images)
    }
}

impl MobileBottleneck {
    /// A BatchNorm whose scale is input `gamma`, given its statistics.
    fn norm_on<'a>(&self, cut: Cut, x: &[GpuArg<'a>], gamma: usize, given: [Slice<'a, f32>; 2], act: Kind) -> Norm<'a> {
        Norm::of_inputs(cut, self.eps, act, x, gamma, given)
    }

    pub(super) fn forward_on(&self, gpu: &Gpu, x: &[GpuArg], y: &mut [GpuOut]) -> Result<()> {
        let [y, y1, y2, y3, mean1, var1, mean2, var2, mean3, var3, deviation] = y else {
            unreachable!("infer promises eleven outputs")
        };
        let s = Sizes::new(x);

        let w = x[1].data.floats();
        let (cut, moments) = self.product(gpu, &s, x[0].data.reals(), None, w, s.wide, &mut y1.reals())?;
        cut.statistics(gpu, &moments, mean1, var1)?;
        let given = [&*mean1, var1].map(|v| v.as_values().floats());
        let table = self.norm_on(cut, x, 2, given, Kind::HardSwish).coefficients(gpu)?;

        let cut = s.rows(self.groups);
        let mut moments = cut.partial(gpu)?;
        launch::mobile_bottleneck_depthwise_forward(
            gpu,
            s.depthwise_grid(&cut),
            y1.as_values().reals(),
            table.slice(),
            x[4].data.floats(),
            &mut y2.reals(),
            &mut moments.slice_mut(),
            s.images,
            s.h,
            s.w,
            s.e,
            self.groups,
        )?;
        cut.statistics(gpu, &moments, mean2, var2)?;
        let given = [&*mean2, var2].map(|v| v.as_values().floats());
        let norm = self.norm_on(cut, x, 5, given, Kind::HardSwish);
        let pooled = CudaGate::pool(&norm, gpu, &moments, deviation)?;
        let gate = CudaGate::new(&norm, gpu, pooled, x[7].data.floats(), x[8].data.floats())?;
        let table = norm.with_gate(&gate).coefficients(gpu)?;

        let (w, y2) = (x[9].data.floats(), y2.as_values().reals());
        let (cut, moments) = self.product(gpu, &s, y2, Some((&table, s.images)), w, s.narrow, &mut y3.reals())?;
        cut.statistics(gpu, &moments, mean3, var3)?;
        let given = [&*mean3, var3].map(|v| v.as_values().floats());
        let last = self.norm_on(Cut::new(s.narrow, self.groups), x, 10, given, Kind::Identity);
        Norm { residual: Some(x[0].data.reals()), ..last }.apply(gpu, y3.as_values().reals(), y)
    }

    /// `y = h w` and the moments of y, where h is x, or what a table of so many rows makes of it.
    #[expect(clippy::too_many_arguments)]
    fn product(
        &self,
        gpu: &Gpu,
        s: &Sizes,
        x: Slice<Real>,
        table: Option<(&DeviceVec<f32>, usize)>,
        w: Slice<f32>,
        y_shape: Shape,
        y: &mut SliceMut<Real>,
    ) -> Result<(Cut, DeviceVec<f64>)> {
        let (k, n) = (x.len() / s.m, y.len() / s.m);
        let which = if table.is_some() { Summed::Project } else { Summed::Expand };
        if let Some(product) = Product::of_bottleneck(gpu, which, [s.m, n, k], &[x, y.as_slice()]) {
            let cut = Cut::runs(y_shape, self.groups, wgmma::TILE[0]);
            let (mut moments, w) = (cut.partial(gpu)?, LaidOut::transposed(gpu, w, [1, k, n])?);
            let table = table.map(|(values, tables)| wgmma::Table { values: values.slice(), tables });
            let to = Sums { partial: moments.slice_mut(), positions: s.positions(), slabs: cut.slabs };
            product.with_moments(gpu, x, table, w.values.slice(), w.pitch, y, to)?;
            return Ok((cut, moments));
        }
        let w = LaidOut::new(gpu, w, [k, n])?;
        let mut product = SummedProduct::new(gpu, y_shape, self.groups, &[k], Two::Neither)?;
        launch::mobile_bottleneck_product(
            gpu,
            product.grid,
            x,
            table.map(|t| t.0.slice()),
            w.values.slice(),
            y,
            &mut product.sums.slice_mut(),
            s.m,
            n,
            k,
            w.pitch,
            s.positions(),
            table.map_or(1, |t| t.1),
            product.cut.slabs,
            product.tiling as usize,
        )?;
        Ok((product.cut, product.sums))
    }

    pub(super) fn backward_on(
        &self,
        gpu: &Gpu,
        x: &[GpuArg],
        y: &[Values],
        dy: Slice<Real>,
        dx: &mut [Option<GpuOut>],
    ) -> Result<()> {
        let [dx, dw1, dgamma1, dbeta1, ddepthwise, dgamma2, dbeta2, dv1, dv2, dw3, dgamma3, dbeta3] = dx else {
            unreachable!("infer accepts twelve inputs")
        };
        let (s, [y1, y2, y3]) = (Sizes::new(x), [1, 2, 3].map(|i| y[i].reals()));
        let given = |i: usize| [y[i].floats(), y[i + 1].floats()];

        // BatchNorm 3, whose gradient in dy is known at once: dz3 = a dy + e y3 + f.
        let norm3 = self.norm_on(Cut::new(s.narrow, self.groups), x, 10, given(8), Kind::Identity);
        let sums = norm3.gradient_sums(gpu, y3, dy)?;
        let through3 = norm3.gradient_statistics(gpu, &sums, None, dgamma3.as_mut(), dbeta3.as_mut())?;
        let dz3 = Changed { dz: dy, x: y3, table: norm3.gradient_coefficients(gpu, None, &through3)? };

        // Down the projection to du, and the gate.
        let product = SummedProduct::new(gpu, s.wide, self.groups, &[s.c], Two::Rows)?;
        let warpgroups = Product::of_bottleneck(gpu, Summed::ProjectGradient, [s.m, s.e, s.c], &[dy, y2, y3]);
        let (cut, mut sums) = match &warpgroups {
            None => (product.cut, product.sums),
            Some(_) => {
                let cut = Cut::runs(s.wide, self.groups, wgmma::TILE[0]);
                let sums = cut.partial(gpu)?;
                (cut, sums)
            }
        };
        let norm = self.norm_on(cut, x, 5, given(6), Kind::HardSwish);
        let deviation = y[10].floats();
        let pooled = CudaGate::pooled(&norm, gpu, deviation)?;
        let gate = CudaGate::new(&norm, gpu, pooled, x[7].data.floats(), x[8].data.floats())?;
        let norm = norm.with_gate(&gate);
        let h2 = norm.coefficients(gpu)?;
        let mut du = gpu.scratch(y2.len())?;
        if let Some(warpgroups) = warpgroups {
            let mut dz = gpu.scratch(y3.len())?;
            norm3.gradient_x(gpu, y3, dy, None, Some(&through3), Some(dz.slice_mut()), None)?;
            let w = LaidOut::new(gpu, x[9].data.floats(), [s.e, s.c])?;
            let to = Sums { partial: sums.slice_mut(), positions: s.positions(), slabs: norm.cut.slabs };
            let (w, pitch, mean) = (w.values.slice(), w.pitch, (norm.mean, self.groups));
            warpgroups.through_slope(gpu, dz.slice(), w, pitch, y2, h2.slice(), mean, &mut du.slice_mut(), to)?;
        } else {
            let w = LaidOut::transposed(gpu, x[9].data.floats(), [1, s.e, s.c])?;
            launch::mobile_bottleneck_project_gradient(
                gpu,
                product.grid,
                dz3.dz,
                dz3.x,
                dz3.table.slice(),
                w.values.slice(),
                y2,
                h2.slice(),
                norm.mean,
                &mut du.slice_mut(),
                &mut sums.slice_mut(),
                s.m,
                s.e,
                s.c,
                w.pitch,
                s.positions(),
                self.groups,
                norm.cut.slabs,
                product.tiling as usize,
            )?;
        }
        if let Some(dw3) = dw3 {
            self.weight_gradient(gpu, &s, y2, Some((&h2, s.images)), &dz3, &mut dw3.floats())?;
        }
        let dpooled = gate.backward(&norm, gpu, &sums, dv1.as_mut(), dv2.as_mut())?;
        let gradient = Some(GateGradient { dpooled: dpooled.slice(), deviation });
        let through = norm.gradient_statistics(gpu, &sums, gradient, dgamma2.as_mut(), dbeta2.as_mut())?;
        let dz2 = norm.gradient_coefficients(gpu, gradient, &through)?;

        // Through the depthwise convolution to dt, and BatchNorm 1: dz1 = a dt + e y1 + f.
        let norm = self.norm_on(s.rows(self.groups), x, 2, given(4), Kind::HardSwish);
        let (h1, mut sums) = (norm.coefficients(gpu)?, norm.cut.partial(gpu)?);
        let (parts, taps) = (s.images * norm.cut.slabs, 9 * s.e);
        let (mut dt, mut dw) = (gpu.scratch(y1.len())?, gpu.scratch(parts * taps)?);
        launch::mobile_bottleneck_depthwise_backward(
            gpu,
            s.depthwise_grid(&norm.cut),
            du.slice(),
            y2,
            dz2.slice(),
            y1,
            h1.slice(),
            norm.mean,
            x[4].data.floats(),
            &mut dt.slice_mut(),
            &mut sums.slice_mut(),
            &mut dw.slice_mut(),
            s.images,
            s.h,
            s.w,
            s.e,
            self.groups,
        )?;
        drop(du);
        if let Some(total) = ddepthwise {
            let grid = Grid::blocks(taps.div_ceil(32));
            launch::pointwise_conv_add_slabs(gpu, grid, dw.slice(), &mut total.floats(), parts, taps)?;
        }
        let through = norm.gradient_statistics(gpu, &sums, None, dgamma1.as_mut(), dbeta1.as_mut())?;
        let dz1 = Changed { dz: dt.slice(), x: y1, table: norm.gradient_coefficients(gpu, None, &through)? };

        let (x0, w) = (x[0].data.reals(), x[1].data.floats());
        if let Some(mut dx) = dx.as_mut().map(|dx| dx.reals())
            && let Some(product) = Product::of_lines(gpu, [s.m, s.c, s.e], &[dy, dx.as_slice()])
        {
            // dt has the slope of the activation in it.
            let plain = Norm { cut: Cut::new(s.wide, self.groups), act: Kind::Identity, ..norm };
            let mut dz = gpu.scratch(y1.len())?;
            plain.gradient_x(gpu, y1, dt.slice(), None, Some(&through), Some(dz.slice_mut()), None)?;
            if let Some(dw1) = dw1 {
                plain_weight_gradient(gpu, x0, dz.slice(), &mut dw1.floats(), [s.m, s.c, s.e])?;
            }
            let (w, act) = (LaidOut::new(gpu, w, [s.c, s.e])?, Kind::Identity as usize);
            let (values, pitch) = (w.values.slice(), w.pitch);
            return product.forward(gpu, dz.slice(), values, pitch, None, Some(dy), None, &mut dx, act);
        }
        if let Some(dw1) = dw1 {
            self.weight_gradient(gpu, &s, x0, None, &dz1, &mut dw1.floats())?;
        }
        let Some(dx) = dx else { return Ok(()) };
        let w = LaidOut::transposed(gpu, w, [1, s.c, s.e])?;
        let tiling = Tiling::new(gpu, &[s.e], [s.m, s.c], Two::Rows);
        launch::mobile_bottleneck_expand_gradient(
            gpu,
            tiling.grid([s.m, s.c], 1, Two::Rows),
            dz1.dz,
            dz1.x,
            dz1.table.slice(),
            w.values.slice(),
            dy,
            &mut dx.reals(),
            s.m,
            s.c,
            s.e,
            w.pitch,
            s.positions(),
            self.groups,
            tiling as usize,
        )
    }

    /// `dw = h' dz` over all positions, h as in [`Self::product`].
    fn weight_gradient(
        &self,
        gpu: &Gpu,
        s: &Sizes,
        x: Slice<Real>,
        table: Option<(&DeviceVec<f32>, usize)>,
        dz: &Changed,
        dw: &mut SliceMut<f32>,
    ) -> Result<()> {
        let [a, b] = [x.len() / s.m, dz.x.len() / s.m];
        sum_in_slabs(gpu, &[a, b], [a, b], s.m, Two::Columns, dw, |grid, partial, slab, tiling| {
            launch::mobile_bottleneck_weight_gradient(
                gpu,
                grid,
                x,
                table.map(|t| t.0.slice()),
                dz.dz,
                dz.x,
                dz.table.slice(),
                partial,
                s.m,
                a,
                b,
                s.positions(),
                table.map_or(1, |t| t.1),
                self.groups,
                slab,
                tiling,
            )
        })
    }
}

/// The gradient of a BatchNorm's input that is made where it is read: `a dz + e x + f`.
struct Changed<'a> {
    dz: Slice<'a, Real>,
    x: Slice<'a, Real>,
    table: DeviceVec<f32>,
}
