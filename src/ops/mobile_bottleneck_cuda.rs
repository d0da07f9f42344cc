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
//! In between, statistics, the gate and tables of coefficients: kernels over `[N, E]` and less. The kernels are in
//! `kernels/mobile_bottleneck*.cu`.

use super::normalise_cuda::{CudaGate, Cut, GateGradient, Norm};
use super::pointwise_conv::{LaidOut, Tiling};
use super::{Kind, MobileBottleneck};
use crate::device::cuda::{DeviceVec, Gpu, GpuArg, GpuOut, Grid, Real, Slice, SliceMut, Values, launch};
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
        let [gamma, beta] = [gamma, gamma + 1].map(|i| x[i].data.floats());
        Norm { cut, eps: self.eps, act, gamma, beta, mean: given[0], var: given[1], logit: None, residual: None }
    }

    pub(super) fn forward_on(&self, gpu: &Gpu, x: &[GpuArg], y: &mut [GpuOut]) -> Result<()> {
        let [y, y1, y2, y3, mean1, var1, mean2, var2, mean3, var3, deviation] = y else {
            unreachable!("infer promises eleven outputs")
        };
        let s = Sizes::new(x);

        let w = LaidOut::new(gpu, x[1].data.floats(), [s.c, s.e])?;
        let (cut, moments) = self.product(gpu, &s, x[0].data.reals(), None, &w, s.wide, &mut y1.reals())?;
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

        let w = LaidOut::new(gpu, x[9].data.floats(), [s.e, s.c])?;
        let (cut, moments) =
            self.product(gpu, &s, y2.as_values().reals(), Some((&table, s.images)), &w, s.narrow, &mut y3.reals())?;
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
        w: &LaidOut,
        y_shape: Shape,
        y: &mut SliceMut<Real>,
    ) -> Result<(Cut, DeviceVec<f64>)> {
        let (k, n) = (x.len() / s.m, y.len() / s.m);
        let tiling = Tiling::new(gpu, &[k], [s.m, n], 1);
        let cut = Cut::runs(y_shape, self.groups, tiling.rows());
        let mut moments = cut.partial(gpu)?;
        launch::mobile_bottleneck_product(
            gpu,
            tiling.grid([s.m, n], 1),
            x,
            table.map(|t| t.0.slice()),
            w.values.slice(),
            y,
            &mut moments.slice_mut(),
            s.m,
            n,
            k,
            w.pitch,
            s.positions(),
            table.map_or(1, |t| t.1),
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
        let [dx, dw1, dgamma1, dbeta1, ddepthwise, dgamma2, dbeta2, dv1, dv2, dw3, dgamma3, dbeta3] = dx else {
            unreachable!("infer accepts twelve inputs")
        };
        let (s, [y1, y2, y3]) = (Sizes::new(x), [1, 2, 3].map(|i| y[i].reals()));
        let given = |i: usize| [y[i].floats(), y[i + 1].floats()];

        // BatchNorm 3, whose gradient in dy is known at once: dz3 = a dy + e y3 + f.
        let norm = self.norm_on(Cut::new(s.narrow, self.groups), x, 10, given(8), Kind::Identity);
        let sums = norm.gradient_sums(gpu, y3, dy)?;
        let through = norm.gradient_statistics(gpu, &sums, None, dgamma3.as_mut(), dbeta3.as_mut())?;
        let dz3 = Changed { dz: dy, x: y3, table: norm.gradient_coefficients(gpu, None, &through)? };

        // Down the projection to du, and the gate.
        let tiling = Tiling::new(gpu, &[s.c], [s.m, s.e], 1);
        let norm = self.norm_on(Cut::runs(s.wide, self.groups, tiling.rows()), x, 5, given(6), Kind::HardSwish);
        let deviation = y[10].floats();
        let pooled = CudaGate::pooled(&norm, gpu, deviation)?;
        let gate = CudaGate::new(&norm, gpu, pooled, x[7].data.floats(), x[8].data.floats())?;
        let norm = norm.with_gate(&gate);
        let h2 = norm.coefficients(gpu)?;
        let (mut du, mut sums) = (gpu.scratch(y2.len())?, norm.cut.partial(gpu)?);
        let w = LaidOut::transposed(gpu, x[9].data.floats(), [1, s.e, s.c])?;
        launch::mobile_bottleneck_project_gradient(
            gpu,
            tiling.grid_of_two([s.m, s.e], 1),
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
            tiling as usize,
        )?;
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

        if let Some(dw1) = dw1 {
            self.weight_gradient(gpu, &s, x[0].data.reals(), None, &dz1, &mut dw1.floats())?;
        }
        let Some(dx) = dx else { return Ok(()) };
        let w = LaidOut::transposed(gpu, x[1].data.floats(), [1, s.c, s.e])?;
        let tiling = Tiling::new(gpu, &[s.e], [s.m, s.c], 1);
        launch::mobile_bottleneck_expand_gradient(
            gpu,
            tiling.grid_of_two([s.m, s.c], 1),
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
        let (tiling, slabs) = Tiling::with_slabs(gpu, &[a, b], [a, b], s.m);
        slabs.sum(gpu, a * b, dw, |partial, slab| {
            launch::mobile_bottleneck_weight_gradient(
                gpu,
                tiling.grid_of_two([a, b], slabs.count),
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
                tiling as usize,
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
