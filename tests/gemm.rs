//! The tile engine `kernels/gemm.cuh`: every tiling against plain sums, at sizes that no tile divides.
//!
//! The judges of the ops see the tilings that suit their small cases; here each is asked for by name.

use grad::device::cuda::{DeviceVec, Element, ElementKind, Gpu, Grid, Precision, Real, launch};
use grad::rng::Rng;

/// `ONE_BY_ONE`, `SMALL`, `LARGE` of `kernels/gemm.cuh`: rows and columns of a tile, bytes of shared memory.
const TILINGS: [([usize; 2], usize); 3] = [([64, 56], 34_816), ([64, 56], 34_816), ([128, 112], 71_680)];

fn grid(tiling: usize, [m, n]: [usize; 2], slabs: usize) -> Grid {
    let ([rows, columns], shared) = TILINGS[tiling];
    Grid::blocks2(m.div_ceil(rows) * n.div_ceil(columns), slabs).shared(shared)
}

/// Multiples of 1/64: every precision stores and multiplies them exactly, and so few of them sum up exactly.
fn draw(rng: &mut Rng, len: usize) -> Vec<f32> {
    (0..len).map(|_| (rng.uniform_in(-1.0, 1.0) * 64.0).round() / 64.0).collect()
}

/// Matrix products and convolutions on one device.
struct Device {
    gpu: Gpu,
}

impl Device {
    fn upload<T: Element<Host = f32>>(&self, values: &[f32]) -> DeviceVec<T> {
        self.gpu.upload(values).unwrap()
    }

    fn poisoned<T: Element<Host = f32>>(&self, len: usize) -> DeviceVec<T> {
        self.upload(&vec![f32::NAN; len])
    }

    /// Every value to the bit, but for the rounding to bf16 where it is stored so.
    fn expect<T: Element<Host = f32>>(&self, what: &str, got: &DeviceVec<T>, truth: &[f64]) {
        let rounded = T::KIND == ElementKind::Real && self.gpu.precision() == Precision::Bf16;
        let rounding = if rounded { 2f64.powi(-8) } else { 0.0 };
        for (i, (&got, truth)) in self.gpu.read(got.slice()).unwrap().iter().zip(truth).enumerate() {
            let err = (f64::from(got) - truth).abs();
            assert!(err <= rounding * truth.abs(), "{what}, {:?}: value {i} is {got}, not {truth}", self.gpu);
        }
    }

    /// `partial [slabs, n]` added.
    fn add(&self, partial: &DeviceVec<f32>, slabs: usize, n: usize) -> DeviceVec<f32> {
        let mut total = self.poisoned(n);
        let grid = Grid::blocks(n.div_ceil(32));
        launch::pointwise_conv_add_slabs(&self.gpu, grid, partial.slice(), &mut total.slice_mut(), slabs, n).unwrap();
        total
    }

    /// `x [m, k] · w [k, n]`, and `xᵀ · dz` with dz `[m, n]` in slabs of 64 rows.
    fn products(&self, tiling: usize, [m, n, k]: [usize; 3]) {
        let rng = &mut Rng::new(5, tiling as u64);
        let [x, w, dz] = [m * k, k * n, m * n].map(|len| draw(rng, len));
        let (mut y, mut dw) = (vec![0.0; m * n], vec![0.0; k * n]);
        for (row, dz) in (0..m).zip(dz.chunks_exact(n)) {
            for i in 0..k {
                let value = f64::from(x[row * k + i]);
                for j in 0..n {
                    y[row * n + j] += value * f64::from(w[i * n + j]);
                    dw[i * n + j] += value * f64::from(dz[j]);
                }
            }
        }
        let (gpu, what) = (&self.gpu, format!("tiling {tiling} of {m} x {n} x {k}"));
        let (x, dz, w) = (self.upload::<Real>(&x), self.upload::<Real>(&dz), self.upload::<f32>(&w));
        let pitch = n.next_multiple_of(8);
        let (mut laid_out, mut got) = (self.poisoned::<Real>(k * pitch), self.poisoned::<Real>(m * n));
        let threads = Grid::threads(k * pitch);
        launch::pointwise_conv_lay_out_weights(gpu, threads, w.slice(), &mut laid_out.slice_mut(), k, n, pitch)
            .unwrap();
        let (over, rounded, to) = (grid(tiling, [m, n], 1), laid_out.slice(), &mut got.slice_mut());
        launch::pointwise_conv_forward(gpu, over, x.slice(), rounded, None, None, None, to, m, n, k, pitch, 0, tiling)
            .unwrap();
        self.expect(&what, &got, &y);

        let slabs = m.div_ceil(64);
        let mut partial = self.poisoned::<f32>(slabs * k * n);
        let (over, to) = (grid(tiling, [k, n], slabs), &mut partial.slice_mut());
        launch::pointwise_conv_weight_gradient(gpu, over, x.slice(), dz.slice(), to, m, k, n, 64, tiling).unwrap();
        self.expect(&what, &self.add(&partial, slabs, k * n), &dw);
    }

    /// A 3x3 convolution with a zero on every side, and its gradient of w: x `[1, h, w, a]`, y `[1, h, w, b]`.
    fn convolutions(&self, tiling: usize, [h, w, a, b]: [usize; 4]) {
        let rng = &mut Rng::new(6, tiling as u64);
        let [x, weight, dz] = [h * w * a, 9 * a * b, h * w * b].map(|len| draw(rng, len));
        let (mut y, mut dw) = (vec![0.0; h * w * b], vec![0.0; 9 * a * b]);
        for (p, tap) in (0..h * w).flat_map(|p| (0..9).map(move |tap| (p, tap))) {
            let (iy, ix) = ((p / w + tap / 3).wrapping_sub(1), (p % w + tap % 3).wrapping_sub(1));
            if iy >= h || ix >= w {
                continue;
            }
            for (i, j) in (0..a).flat_map(|i| (0..b).map(move |j| (i, j))) {
                let (value, at) = (f64::from(x[(iy * w + ix) * a + i]), (tap * a + i) * b + j);
                y[p * b + j] += value * f64::from(weight[at]);
                dw[at] += value * f64::from(dz[p * b + j]);
            }
        }
        let (gpu, what) = (&self.gpu, format!("tiling {tiling} of {h} x {w} pixels, {a} to {b} channels"));
        let (x, dz, weight) = (self.upload::<Real>(&x), self.upload::<Real>(&dz), self.upload::<f32>(&weight));
        let (m, k, pitch) = (h * w, 9 * a, b.next_multiple_of(8));
        let (mut laid_out, mut got) = (self.poisoned::<Real>(k * pitch), self.poisoned::<Real>(m * b));
        let (threads, to) = (Grid::threads(k * pitch), &mut laid_out.slice_mut());
        launch::pointwise_conv_lay_out_weights(gpu, threads, weight.slice(), to, k, b, pitch).unwrap();
        let (over, rounded, to) = (grid(tiling, [m, b], 1), laid_out.slice(), &mut got.slice_mut());
        launch::conv2d_forward(
            gpu,
            over,
            x.slice(),
            rounded,
            None,
            None,
            None,
            to,
            m,
            b,
            pitch,
            h,
            w,
            a,
            h,
            w,
            9,
            3,
            1,
            1,
            1,
            -1,
            -1,
            0,
            tiling,
        )
        .unwrap();
        self.expect(&what, &got, &y);

        let slabs = m.div_ceil(64);
        let mut partial = self.poisoned::<f32>(slabs * k * b);
        let (over, to) = (grid(tiling, [k, b], slabs), &mut partial.slice_mut());
        launch::conv2d_weight_gradient(
            gpu,
            over,
            x.slice(),
            dz.slice(),
            to,
            m,
            b,
            h,
            w,
            a,
            h,
            w,
            9,
            3,
            1,
            -1,
            -1,
            64,
            tiling,
        )
        .unwrap();
        self.expect(&what, &self.add(&partial, slabs, k * b), &dw);
    }
}

#[test]
fn every_tiling_sums_every_product() {
    for precision in Precision::ALL {
        let device = Device { gpu: Gpu::emulated(precision).unwrap() };
        device.products(0, [67, 59, 35]);
        device.products(1, [67, 64, 40]);
        device.products(2, [131, 120, 136]);
    }
}

#[test]
fn every_tiling_gathers_every_patch() {
    for precision in Precision::ALL {
        let device = Device { gpu: Gpu::emulated(precision).unwrap() };
        device.convolutions(0, [5, 7, 3, 9]);
        device.convolutions(1, [7, 11, 8, 16]);
        device.convolutions(2, [12, 11, 16, 24]);
    }
}
