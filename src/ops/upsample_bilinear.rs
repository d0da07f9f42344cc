//! Bilinear resampling with aligned corners: output i reads position `i (in − 1)/(out − 1)`.
//!
//! x: `[N, H, W, C]`, y: `[N, H', W', C]`. PyTorch: `interpolate(mode="bilinear", align_corners=True)`.
//! A single output row or column reads position 0. Backward is the transposed map.

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::device::cuda::{Gpu, GpuArg, GpuOut, Grid, Values, launch};
use crate::error::Result;
use crate::op::{Arg, Case, List, Op, expect_inputs, expect_nhwc, list, refuse};
use crate::real::Real;
use crate::shape::Shape;

/// See the head of this file.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct UpsampleBilinear {
    /// Rows of the output.
    pub height: usize,
    /// Columns of the output.
    pub width: usize,
}

/// For each output of one axis: the lower source, the upper source and the weight of the upper.
fn axis<T: Real>(from: usize, to: usize) -> Vec<(usize, usize, T)> {
    let step = if to > 1 { (from - 1) as f64 / (to - 1) as f64 } else { 0.0 };
    let source = |i: usize| {
        let p = i as f64 * step;
        // The last position may come out a rounding above the last source.
        let low = (p as usize).min(from - 1);
        (low, (low + 1).min(from - 1), T::of(p - low as f64))
    };
    (0..to).map(source).collect()
}

impl UpsampleBilinear {
    /// The four sources of each output position of an image, with their weights.
    fn taps<T: Real>(&self, h: usize, w: usize) -> Vec<[(usize, T); 4]> {
        let (rows, cols) = (axis::<T>(h, self.height), axis::<T>(w, self.width));
        let at = |&(y0, y1, ty): &(usize, usize, T), &(x0, x1, tx): &(usize, usize, T)| {
            let (sy, sx) = (T::one() - ty, T::one() - tx);
            [(y0 * w + x0, sy * sx), (y0 * w + x1, sy * tx), (y1 * w + x0, ty * sx), (y1 * w + x1, ty * tx)]
        };
        rows.iter().flat_map(|r| cols.iter().map(move |c| at(r, c))).collect()
    }
}

/// Whole blocks of 256 threads for every line of `columns` positions: a thread has four channels where that is possible.
fn line_grid(lines: usize, columns: usize, channels: usize) -> Grid {
    let values = if channels.is_multiple_of(4) { columns * channels / 4 } else { columns * channels };
    Grid::blocks(lines * values.div_ceil(256))
}

impl Op for UpsampleBilinear {
    const NAME: &'static str = "upsample_bilinear";

    fn infer(&self, x: &[Shape]) -> Result<List<Shape>> {
        expect_inputs::<Self>(x, &[1])?;
        let (n, h, w, c) = expect_nhwc::<Self>("x", x[0])?;
        if h * w * self.height * self.width == 0 {
            return refuse::<Self, _>(format!("{} cannot become {} x {}", x[0], self.height, self.width));
        }
        Ok(list([[n, self.height, self.width, c].into()]))
    }

    fn differentiable(&self, _: usize) -> bool {
        true
    }

    fn reads_input(&self, _: usize) -> bool {
        false
    }

    fn reads_output(&self, _: usize) -> bool {
        false
    }

    fn reference_forward<T: Real>(&self, x: &[Arg<T>], y: &mut [&mut [T]]) {
        let (n, h, w, c) = x[0].shape.nhwc().expect("checked by infer");
        let taps = self.taps::<T>(h, w);
        let images = x[0].data.par_chunks(x[0].data.len() / n).zip(y[0].par_chunks_mut(taps.len() * c));
        images.for_each(|(x, y)| {
            for (taps, y) in taps.iter().zip(y.chunks_exact_mut(c)) {
                y.fill(T::zero());
                for &(i, weight) in taps {
                    y.iter_mut().zip(&x[i * c..]).for_each(|(y, &x)| *y += weight * x);
                }
            }
        });
    }

    fn reference_backward<T: Real>(&self, x: &[Arg<T>], _: &[&[T]], dy: &[T], dx: &mut [Option<&mut [T]>]) {
        let Some(dx) = &mut dx[0] else { return };
        let (n, h, w, c) = x[0].shape.nhwc().expect("checked by infer");
        let taps = self.taps::<T>(h, w);
        dx.par_chunks_mut(h * w * c).zip(dy.par_chunks(dy.len() / n)).for_each(|(dx, dy)| {
            dx.fill(T::zero());
            for (taps, dy) in taps.iter().zip(dy.chunks_exact(c)) {
                for &(i, weight) in taps {
                    dx[i * c..].iter_mut().zip(dy).for_each(|(dx, &dy)| *dx += weight * dy);
                }
            }
        });
    }

    // Runs of whole channel rows, image by image: the definition is the fast path.
    fn cpu_forward(&self, x: &[Arg<f32>], y: &mut [&mut [f32]]) {
        self.reference_forward(x, y);
    }

    fn cpu_backward(&self, x: &[Arg<f32>], y: &[&[f32]], dy: &[f32], dx: &mut [Option<&mut [f32]>]) {
        self.reference_backward(x, y, dy, dx);
    }

    fn input_in_f32(&self, _: usize) -> bool {
        false
    }

    fn output_in_f32(&self, _: usize) -> bool {
        false
    }

    fn cuda_forward(&self, gpu: &Gpu, x: &[GpuArg], y: &mut [GpuOut]) -> Result<()> {
        let (n, h, w, c) = x[0].shape.nhwc().expect("checked by infer");
        let (height, width) = (self.height, self.width);
        let grid = line_grid(n * height, width, c);
        launch::upsample_bilinear_forward(gpu, grid, x[0].data.reals(), &mut y[0].reals(), h, w, height, width, c)
    }

    fn cuda_backward(
        &self,
        gpu: &Gpu,
        x: &[GpuArg],
        _: &[Values],
        dy: Values,
        dx: &mut [Option<GpuOut>],
    ) -> Result<()> {
        let (n, h, w, c) = x[0].shape.nhwc().expect("checked by infer");
        let Some(dx) = &mut dx[0] else { return Ok(()) };
        let (height, width) = (self.height, self.width);
        let grid = line_grid(n * h, w, c);
        launch::upsample_bilinear_backward(gpu, grid, dy.reals(), &mut dx.reals(), h, w, height, width, c)
    }

    fn flops(&self, _: &[Shape]) -> u64 {
        0
    }

    fn cases() -> Vec<Case<Self>> {
        let case = |height, width, x: [usize; 4]| Case::new(UpsampleBilinear { height, width }, &[x]);
        vec![
            case(6, 8, [2, 3, 4, 3]),
            case(4, 5, [1, 4, 5, 2]),
            case(3, 1, [2, 1, 2, 3]),
            case(2, 3, [1, 5, 7, 1]),
            case(6, 14, [2, 3, 7, 80]),
        ]
    }

    fn bench_cases() -> Vec<Case<Self>> {
        vec![Case::new(UpsampleBilinear { height: 28, width: 28 }, &[[16, 14, 14, 160]])]
    }

    fn refused() -> Vec<(Self, Vec<Shape>, &'static str)> {
        let op = UpsampleBilinear { height: 4, width: 4 };
        vec![
            (op.clone(), vec![], "1"),
            (op.clone(), vec![[2, 3].into()], "[N, H, W, C]"),
            (op.clone(), vec![[2, 0, 3, 1].into()], "cannot become"),
            (UpsampleBilinear { height: 0, ..op }, vec![[2, 3, 3, 1].into()], "cannot become"),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{tape::Tape, tensor::Tensor};

    #[test]
    fn doubles_with_the_corners_kept() {
        let x = Tensor::from_slice([1, 1, 3, 1], &[0.0, 1.0, 2.0]);
        let y = Tape::off().apply(UpsampleBilinear { height: 1, width: 6 }, &[&x]).unwrap();
        for (y, expected) in y.data().iter().zip([0.0, 0.4, 0.8, 1.2, 1.6, 2.0]) {
            assert!((y - expected).abs() <= 2e-7, "{y} {expected}");
        }
    }
}
