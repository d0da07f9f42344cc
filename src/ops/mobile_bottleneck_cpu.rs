//! `mobile_bottleneck` on the CPU: the order of the walks, and what each reads and writes of a whole tensor.
//!
//! With c the bytes of x, and E = 2 C, beside what the ops of the chain move when they run one by one. Memory that is
//! written without being read before is fetched first and counts twice.
//!
//! ```text
//!                                                              here    chain
//! forward    expand        x -> y1, moments                     5 c      7 c
//!            depthwise     y1 -> y2, moments                    6 c     14 c
//!            project       y2 -> y3, moments                    4 c     11 c
//!            apply         y3, x -> y                           4 c      4 c
//! backward   sums          dy, y3                               2 c      2 c
//!            project'      dy, y3, y2 -> du, sums               8 c     16 c
//!            dw3           dy, y3, y2                           4 c      3 c
//!            depthwise'    du, y2, y1 -> dt over du, sums       8 c     30 c
//!            dw1           x, dt, y1                            5 c      3 c
//!            expand'       dt, y1, dy -> dx                     7 c      7 c
//!                                                              53 c     97 c
//! ```
//! At 16 images of 28 x 28 x 432 that is 0.95 GB less for a block. The products remain. What is kept for backward is x, y1,
//! y2 and y3, 6 c, where the chain keeps 10 c.
//!
//! In between, statistics, the gate and tables of coefficients, over `[N, E]` and less.

use rayon::prelude::*;

use super::MobileBottleneck;
use super::activation::Kind;
use super::batch_norm::Statistics;
use super::batch_norm_squeeze_excite::{Gate, deviations};
use super::mobile_bottleneck_lines::{Backward, Picture, forward};
use super::normalise::{Affine, Sums, add_groups, apply, gradient_sums, group_moments, group_of, row_moments};
use super::on_load::{Activated, Changed, Lines, OnLoad, Slots, Transposed};
use crate::buffer::Buffer;
use crate::device::cpu::{Matrix, blocked_sums, gemm, no_epilogue, simd, simd_fn};
use crate::op::Arg;

/// The sizes of a call: x `[n, h, w, c]`, expanded to e channels.
#[derive(Clone, Copy)]
struct Sizes {
    n: usize,
    /// Rows of all images.
    m: usize,
    c: usize,
    e: usize,
    groups: usize,
    picture: Picture,
}

impl Sizes {
    fn positions(self) -> usize {
        self.picture.h * self.picture.w
    }

    /// Tables with a line for each ghost group.
    fn by_group(self) -> Lines {
        Lines { images: self.n, positions: self.positions(), tables: self.groups }
    }

    /// Tables with a line for each image.
    fn by_image(self) -> Lines {
        Lines { tables: self.n, ..self.by_group() }
    }

    fn group(self, image: usize) -> usize {
        group_of(self.n, self.groups, image)
    }
}

impl MobileBottleneck {
    fn sizes(&self, x: &[Arg<f32>]) -> Sizes {
        let (n, h, w, c) = x[0].shape.nhwc().expect("checked by infer");
        let e = x[2].shape[0];
        Sizes { n, m: n * h * w, c, e, groups: self.groups, picture: Picture { h, w, e } }
    }

    pub(super) fn forward_fast(&self, x: &[Arg<f32>], y: &mut [&mut [f32]]) {
        let [y, y1, y2, y3, mean1, var1, mean2, var2, mean3, var3, deviation] = y else {
            unreachable!("infer promises eleven outputs")
        };
        let s = self.sizes(x);
        let (image, wide_image) = (s.positions() * s.c, s.positions() * s.e);

        let mut slots = Slots::new(s.by_group(), s.e);
        let (a, b) = (Matrix::new(x[0].data, s.m, s.c), Matrix::new(x[1].data, s.c, s.e));
        slots.fill(|_, rows, sums| row_moments(rows, sums), |epilogue| gemm(s.m, s.e, s.c, &a, &b, y1, epilogue));
        slots.statistics(mean1, var1);
        let first = Affine::new(x[2].data, x[3].data, mean1, var1, self.eps);

        let mut moments = Sums::new(s.n, s.e);
        let pictures = y2.par_chunks_mut(wide_image).zip(y1.par_chunks(wide_image)).zip(moments.par_parts_mut());
        pictures.enumerate().for_each(|(i, ((y2, y1), moments))| {
            let (a, b) = first.of_group(s.group(i));
            forward(s.picture, y1, [a, b], x[4].data, y2, moments);
        });
        group_moments(&moments, s.n, s.positions(), mean2, var2);
        deviations(&moments, s.n, mean2, deviation);
        let second = Affine::new(x[5].data, x[6].data, mean2, var2, self.eps);
        let gate = Gate::fast(&second, deviation, x[6].data, [x[7], x[8]]);
        let [a, b] = gated(&second, &gate.gate, s);

        let mut slots = Slots::new(s.by_group(), s.c);
        let h2 = OnLoad(Activated { x: y2, a: &a, b: &b, lines: s.by_image() });
        let w = Matrix::new(x[9].data, s.e, s.c);
        slots.fill(|_, rows, sums| row_moments(rows, sums), |epilogue| gemm(s.m, s.c, s.e, &h2, &w, y3, epilogue));
        slots.statistics(mean3, var3);
        let third = Affine::new(x[10].data, x[11].data, mean3, var3, self.eps);
        let images = y.par_chunks_mut(image).zip(y3.par_chunks(image)).zip(x[0].data.par_chunks(image));
        images.enumerate().for_each(|(i, ((y, y3), x))| {
            let (a, b) = third.of_group(s.group(i));
            apply::<IDENTITY>(simd(), y3, a, b, x, y);
        });
    }

    pub(super) fn backward_fast(&self, x: &[Arg<f32>], y: &[&[f32]], dy: &[f32], dx: &mut [Option<&mut [f32]>]) {
        let [_, y1, y2, y3, mean1, var1, mean2, var2, mean3, var3, deviation] = *y else {
            unreachable!("infer promises eleven outputs")
        };
        let [dx, dw1, dgamma1, dbeta1, dtaps, gated_gradients @ .., dw3, dgamma3, dbeta3] = dx else {
            unreachable!("infer accepts twelve inputs")
        };
        let s = self.sizes(x);
        let (image, wide_image) = (s.positions() * s.c, s.positions() * s.e);

        // BatchNorm 3, whose gradient in dy is known at once: dz3 = a dy + e y3 + f.
        let third = Affine::new(x[10].data, x[11].data, mean3, var3, self.eps);
        let mut sums = Sums::new(s.n, s.c);
        sums.par_parts_mut().enumerate().for_each(|(i, sums)| {
            let (g, from) = (s.group(i), i * image);
            let ((a, b), mean) = (third.of_group(g), &mean3[g * s.c..(g + 1) * s.c]);
            blocked_sums(s.positions(), sums, |rows, [t, u]| {
                let at = from + rows.start * s.c..from + rows.end * s.c;
                gradient_sums::<IDENTITY>(simd(), &y3[at.clone()], &dy[at], a, b, &[], mean, t, u);
            });
        });
        let totals = third.gradient_statistics(s.n, &sums);
        add_groups(&totals, dgamma3.as_deref_mut(), dbeta3.as_deref_mut());
        let [e, f] = third.through_batch(mean3, &totals, s.n, s.positions());
        let dz3 = OnLoad(Changed { dz: dy, x: y3, a: &third.a, e: &e, f: &f, lines: s.by_group() });

        // Down the projection to du, and the gate.
        let second = Affine::new(x[5].data, x[6].data, mean2, var2, self.eps);
        let gate = Gate::fast(&second, deviation, x[6].data, [x[7], x[8]]);
        let [a, b] = gated(&second, &gate.gate, s);
        let (mut du, mut slots) = (Buffer::scratch(y2.len()), Slots::new(s.by_image(), s.e));
        let descend = |first: usize, rows: &mut [f32], sums: [&mut [f64]; 2]| {
            let i = first / s.positions();
            let (of, g) = (i * s.e..(i + 1) * s.e, s.group(i));
            let (a, b, mean) = (&a[of.clone()], &b[of], &mean2[g * s.e..(g + 1) * s.e]);
            blocked_sums(rows.len() / s.e, sums, |run, [t, u]| {
                let y2 = &y2[(first + run.start) * s.e..(first + run.end) * s.e];
                through_slope(simd(), y2, a, b, mean, &mut rows[run.start * s.e..run.end * s.e], t, u);
            });
        };
        let w = Matrix::new(x[9].data, s.e, s.c).t();
        slots.fill(descend, |epilogue| gemm(s.m, s.e, s.c, &dz3, &w, &mut du, epilogue));
        if let Some(dw3) = dw3 {
            let h2 = Transposed(Activated { x: y2, a: &a, b: &b, lines: s.by_image() });
            gemm(s.e, s.c, s.m, &h2, &dz3, dw3, no_epilogue);
        }
        let scale = [x[5].data, x[6].data];
        let (sums, batch) = (slots.totals(s.e), Statistics::Batch);
        let [e, f] = gate.gradients(&second, scale, mean2, deviation, &sums, s.positions(), batch, gated_gradients);

        // Through the depthwise convolution to dt, and BatchNorm 1: dz1 = a dt + e y1 + f.
        let first = Affine::new(x[2].data, x[3].data, mean1, var1, self.eps);
        let taps = 9 * s.e;
        let (mut sums, mut parts) = (Sums::new(s.n, s.e), Buffer::scratch(s.n * taps));
        let pictures = du.par_chunks_mut(wide_image).zip(sums.par_parts_mut()).zip(parts.par_chunks_mut(taps));
        pictures.enumerate().for_each(|(i, ((d, sums), part))| {
            let (at, of, g) = (i * wide_image..(i + 1) * wide_image, i * s.e..(i + 1) * s.e, s.group(i));
            let (a1, b1) = first.of_group(g);
            let walk = Backward {
                y1: &y1[at.clone()],
                y2: &y2[at],
                first: [a1, b1, &mean1[g * s.e..(g + 1) * s.e]],
                second: [&a[of.clone()], &e[of.clone()], &f[of]],
                taps: x[4].data,
            };
            walk.run(s.picture, d, sums, part);
        });
        let dt = du;
        if let Some(dtaps) = dtaps {
            dtaps.fill(0.0);
            for part in parts.chunks_exact(taps) {
                dtaps.iter_mut().zip(part).for_each(|(d, part)| *d += part);
            }
        }
        let totals = first.gradient_statistics(s.n, &sums);
        add_groups(&totals, dgamma1.as_deref_mut(), dbeta1.as_deref_mut());
        let [e, f] = first.through_batch(mean1, &totals, s.n, s.positions());
        let dz1 = OnLoad(Changed { dz: &dt, x: y1, a: &first.a, e: &e, f: &f, lines: s.by_group() });
        if let Some(dw1) = dw1 {
            gemm(s.c, s.e, s.m, &Matrix::new(x[0].data, s.m, s.c).t(), &dz1, dw1, no_epilogue);
        }
        if let Some(dx) = dx {
            gemm(s.m, s.c, s.e, &dz1, &Matrix::new(x[1].data, s.c, s.e).t(), dx, |first, rows| {
                rows.iter_mut().zip(&dy[first * s.c..]).for_each(|(dx, dy)| *dx += dy);
            });
        }
    }
}

/// The kernels of `normalise` without an activation.
const IDENTITY: u8 = Kind::Identity as u8;

/// `(a x + b) gate` as `a x + b` of each image, `[N, E]`.
fn gated(norm: &Affine, gate: &[f32], s: Sizes) -> [Buffer; 2] {
    let [mut a, mut b] = [(); 2].map(|()| Buffer::scratch(s.n * s.e));
    for i in 0..s.n {
        let (of_a, of_b) = norm.of_group(s.group(i));
        for k in 0..s.e {
            let at = i * s.e + k;
            (a[at], b[at]) = (of_a[k] * gate[at], of_b[k] * gate[at]);
        }
    }
    [a, b]
}

simd_fn! {
    /// `d = d · hswish'(a y + b)`, and adds d to s and `d (y − mean)` to t.
    fn through_slope<FMA>(
        y: &[f32], a: &[f32], b: &[f32], mean: &[f32], d: &mut [f32], s: &mut [f32], t: &mut [f32],
    ) {
        let c = a.len();
        let (b, mean, s, t) = (&b[..c], &mean[..c], &mut s[..c], &mut t[..c]);
        for (y, d) in y.chunks_exact(c).zip(d.chunks_exact_mut(c)) {
            for k in 0..c {
                let du = d[k] * Kind::HardSwish.fast_slope(y[k] * a[k] + b[k]);
                d[k] = du;
                s[k] += du;
                t[k] += du * (y[k] - mean[k]);
            }
        }
    }
}
