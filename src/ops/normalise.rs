//! The passes that `batch_norm` and `batch_norm_squeeze_excite` share: moments, and the affine map they become.
//!
//! Sums run over a few rows in f32, vectorised over channels, and from there in f64, always in the order of the
//! images: the same bits for any number of threads.

use std::ops::Range;

use rayon::prelude::*;

use super::activation::Kind;
use crate::device::cpu::{blocked_sums, simd, simd_fn};

/// The images of ghost group `g` of `groups`.
pub(crate) fn group_images(n: usize, groups: usize, g: usize) -> Range<usize> {
    g * n / groups..(g + 1) * n / groups
}

/// The ghost group of each image.
pub(super) fn group_of_image(n: usize, groups: usize) -> Vec<usize> {
    (0..groups).flat_map(|g| group_images(n, groups, g).map(move |_| g)).collect()
}

/// Mean and sum of squared deviations of one image, per channel, over `positions` positions.
pub(super) struct Moments {
    pub positions: usize,
    pub mean: Vec<f64>,
    pub squares: Vec<f64>,
}

simd_fn! {
    fn shifted_sums<FMA>(x: &[f32], pivot: &[f32], sum: &mut [f32], square: &mut [f32]) {
        let c = pivot.len();
        let (sum, square) = (&mut sum[..c], &mut square[..c]);
        for row in x.chunks_exact(c) {
            for k in 0..c {
                let d = row[k] - pivot[k];
                sum[k] += d;
                square[k] += d * d;
            }
        }
    }
}

/// Moments of every image of x `[N, H, W, C]`, in one walk.
///
/// Deviations are taken from the first position of the image, so that a mean far from zero costs no digits.
pub(super) fn image_moments(x: &[f32], n: usize, c: usize) -> Vec<Moments> {
    x.par_chunks(x.len() / n)
        .map(|image| {
            let (pivot, positions) = (&image[..c], image.len() / c);
            let [sum, square] = blocked_sums(positions, c, |rows, [s, q]| {
                shifted_sums(simd(), &image[rows.start * c..rows.end * c], pivot, s, q);
            });
            let count = positions as f64;
            let squares = sum.iter().zip(&square).map(|(s, q)| (q - s * s / count).max(0.0)).collect();
            let mean = pivot.iter().zip(&sum).map(|(&p, s)| f64::from(p) + s / count).collect();
            Moments { positions, mean, squares }
        })
        .collect()
}

/// Mean and biased variance `[G, C]` of each ghost group, merged image by image (Chan et al. 1979).
pub(super) fn group_moments(images: &[Moments], groups: usize, mean: &mut [f32], var: &mut [f32]) {
    let c = mean.len() / groups;
    for g in 0..groups {
        let images = &images[group_images(images.len(), groups, g)];
        for k in 0..c {
            let (mut count, mut m, mut q) = (0.0, 0.0, 0.0);
            for image in images {
                let n = image.positions as f64;
                let delta = image.mean[k] - m;
                q += image.squares[k] + delta * delta * count * n / (count + n);
                m += delta * n / (count + n);
                count += n;
            }
            mean[g * c + k] = m as f32;
            var[g * c + k] = (q / count) as f32;
        }
    }
}

/// `x̂ · gamma + beta` as `a x + b`, per ghost group and channel.
pub(super) struct Affine {
    channels: usize,
    pub a: Vec<f32>,
    pub b: Vec<f32>,
    pub rstd: Vec<f64>,
}

impl Affine {
    pub fn new(gamma: &[f32], beta: &[f32], mean: &[f32], var: &[f32], eps: f64) -> Self {
        let c = gamma.len();
        let rstd: Vec<f64> = var.iter().map(|&v| (f64::from(v) + eps).sqrt().recip()).collect();
        let a: Vec<f64> = rstd.iter().enumerate().map(|(j, r)| f64::from(gamma[j % c]) * r).collect();
        let b = a.iter().enumerate().map(|(j, a)| (f64::from(beta[j % c]) - f64::from(mean[j]) * a) as f32).collect();
        Affine { channels: c, a: a.iter().map(|&a| a as f32).collect(), b, rstd }
    }

    /// `a` and `b` of one ghost group.
    pub fn of_group(&self, g: usize) -> (&[f32], &[f32]) {
        let s = g * self.channels..(g + 1) * self.channels;
        (&self.a[s.clone()], &self.b[s])
    }

    /// What flows to x through mean and variance, as `e x + f`: `−a (dbeta/M + x̂ dgamma/M)`.
    pub fn through_statistics(&self, j: usize, mean: f32, dbeta: f64, dgamma: f64) -> (f32, f32) {
        let a = f64::from(self.a[j]);
        let e = -a * self.rstd[j] * dgamma;
        (e as f32, (-a * dbeta - f64::from(mean) * e) as f32)
    }
}

simd_fn! {
    /// `y = act(a x + b [+ r])` over the rows of one image.
    pub(super) fn apply<FMA, const K: u8>(x: &[f32], a: &[f32], b: &[f32], r: &[f32], y: &mut [f32]) {
        let kind = const { Kind::ALL[K as usize] };
        let c = a.len();
        let b = &b[..c];
        for (i, (x, y)) in x.chunks_exact(c).zip(y.chunks_exact_mut(c)).enumerate() {
            if r.is_empty() {
                for k in 0..c {
                    y[k] = kind.fast_value(x[k] * a[k] + b[k]);
                }
            } else {
                let r = &r[i * c..(i + 1) * c];
                for k in 0..c {
                    y[k] = kind.fast_value(x[k] * a[k] + b[k] + r[k]);
                }
            }
        }
    }

    /// `s += dz`, `t += dz (x − mean)` over some rows, with `dz = dy · act'(a x + b [+ r])`.
    pub(super) fn gradient_sums<FMA, const K: u8>(
        x: &[f32], dy: &[f32], a: &[f32], b: &[f32], r: &[f32], mean: &[f32], s: &mut [f32], t: &mut [f32],
    ) {
        let kind = const { Kind::ALL[K as usize] };
        let c = a.len();
        let (b, mean, s, t) = (&b[..c], &mean[..c], &mut s[..c], &mut t[..c]);
        for (i, (x, dy)) in x.chunks_exact(c).zip(dy.chunks_exact(c)).enumerate() {
            if r.is_empty() {
                for k in 0..c {
                    let dz = dy[k] * kind.fast_slope(x[k] * a[k] + b[k]);
                    s[k] += dz;
                    t[k] += dz * (x[k] - mean[k]);
                }
            } else {
                let r = &r[i * c..(i + 1) * c];
                for k in 0..c {
                    let dz = dy[k] * kind.fast_slope(x[k] * a[k] + b[k] + r[k]);
                    s[k] += dz;
                    t[k] += dz * (x[k] - mean[k]);
                }
            }
        }
    }

    /// `dx = a dz + e x + f` over the rows of one image.
    pub(super) fn gradient_x<FMA, const K: u8>(
        x: &[f32], dy: &[f32], a: &[f32], b: &[f32], r: &[f32], e: &[f32], f: &[f32], dx: &mut [f32],
    ) {
        let kind = const { Kind::ALL[K as usize] };
        let c = a.len();
        let (b, e, f) = (&b[..c], &e[..c], &f[..c]);
        for (i, ((x, dy), dx)) in x.chunks_exact(c).zip(dy.chunks_exact(c)).zip(dx.chunks_exact_mut(c)).enumerate() {
            if r.is_empty() {
                for k in 0..c {
                    let dz = dy[k] * kind.fast_slope(x[k] * a[k] + b[k]);
                    dx[k] = a[k] * dz + e[k] * x[k] + f[k];
                }
            } else {
                let r = &r[i * c..(i + 1) * c];
                for k in 0..c {
                    let dz = dy[k] * kind.fast_slope(x[k] * a[k] + b[k] + r[k]);
                    dx[k] = a[k] * dz + e[k] * x[k] + f[k];
                }
            }
        }
    }

    /// `dr = dz` over the rows of one image.
    pub(super) fn gradient_residual<FMA, const K: u8>(x: &[f32], dy: &[f32], a: &[f32], b: &[f32], r: &[f32], dr: &mut [f32]) {
        let kind = const { Kind::ALL[K as usize] };
        if let Kind::Identity = kind {
            dr.copy_from_slice(dy);
            return;
        }
        let c = a.len();
        let b = &b[..c];
        let rows = x.chunks_exact(c).zip(dy.chunks_exact(c)).zip(r.chunks_exact(c)).zip(dr.chunks_exact_mut(c));
        for (((x, dy), r), dr) in rows {
            for k in 0..c {
                dr[k] = dy[k] * kind.fast_slope(x[k] * a[k] + b[k] + r[k]);
            }
        }
    }
}
