//! The passes that `batch_norm` and `batch_norm_squeeze_excite` share: moments, and the affine map they become.
//!
//! Sums run over a few rows in f32, vectorised over channels, and from there in f64, always in the order of the
//! images: the same bits for any number of threads.

use std::ops::Range;

use rayon::prelude::*;

use super::activation::Kind;
use crate::buffer::{Buffer, Doubles};
use crate::device::cpu::{blocked_sums, simd, simd_fn};

/// The images of ghost group `g` of `groups`.
pub(crate) fn group_images(n: usize, groups: usize, g: usize) -> Range<usize> {
    g * n / groups..(g + 1) * n / groups
}

/// The ghost group of image `i` of `n`.
pub(super) fn group_of(n: usize, groups: usize, i: usize) -> usize {
    ((i + 1) * groups - 1) / n
}

/// The ghost group of each image.
pub(super) fn group_of_image(n: usize, groups: usize) -> Vec<usize> {
    (0..n).map(|i| group_of(n, groups, i)).collect()
}

/// Two sums per channel for each of some parts of a tensor, `[parts, 2, C]`.
pub(super) struct Sums {
    channels: usize,
    values: Doubles,
}

impl Sums {
    /// Unspecified values.
    pub fn new(parts: usize, channels: usize) -> Self {
        Sums { channels, values: Doubles::scratch(2 * parts * channels) }
    }

    /// Both sums of one part.
    pub fn of(&self, part: usize) -> [&[f64]; 2] {
        let (first, second) = self.values[2 * part * self.channels..][..2 * self.channels].split_at(self.channels);
        [first, second]
    }

    /// Both sums of one part, to be changed.
    pub fn part_mut(&mut self, part: usize) -> [&mut [f64]; 2] {
        self.values[2 * part * self.channels..][..2 * self.channels].split_at_mut(self.channels).into()
    }

    /// Both sums of every part.
    pub fn parts_mut(&mut self) -> impl Iterator<Item = [&mut [f64]; 2]> {
        let c = self.channels;
        self.values.chunks_exact_mut(2 * c).map(move |part| part.split_at_mut(c).into())
    }

    /// [`Self::parts_mut`] over threads.
    pub fn par_parts_mut(&mut self) -> impl IndexedParallelIterator<Item = [&mut [f64]; 2]> {
        let c = self.channels;
        self.values.par_chunks_exact_mut(2 * c).map(move |part| part.split_at_mut(c).into())
    }
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

/// Mean and sum of squared deviations of each channel of some rows, in one walk.
///
/// Deviations are taken from the first row, so that a mean far from zero costs no digits.
pub(super) fn row_moments(rows: &[f32], [mean, squares]: [&mut [f64]; 2]) {
    let c = mean.len();
    let pivot = &rows[..c];
    blocked_sums(rows.len() / c, [mean, squares], |at, [s, q]| {
        shifted_sums(simd(), &rows[at.start * c..at.end * c], pivot, s, q);
    });
    from_pivot(pivot, rows.len() / c, [mean, squares]);
}

/// From sums of `count` deviations from a pivot, and of their squares, to mean and sum of squared deviations from it.
pub(super) fn from_pivot(pivot: &[f32], count: usize, [mean, squares]: [&mut [f64]; 2]) {
    let count = count as f64;
    for ((m, q), &p) in mean.iter_mut().zip(squares).zip(pivot) {
        *q = (*q - *m * *m / count).max(0.0);
        *m = f64::from(p) + *m / count;
    }
}

/// [`row_moments`] of every image of x `[N, H, W, C]`.
pub(super) fn image_moments(x: &[f32], n: usize, c: usize) -> Sums {
    let mut moments = Sums::new(n, c);
    moments.par_parts_mut().zip(x.par_chunks(x.len() / n)).for_each(|(moments, image)| row_moments(image, moments));
    moments
}

/// Mean and biased variance `[G, C]` of each ghost group, from the moments of images of so many positions.
pub(super) fn group_moments(images: &Sums, n: usize, positions: usize, mean: &mut [f32], var: &mut [f32]) {
    let c = images.channels;
    let groups = mean.len() / c;
    for (g, (mean, var)) in mean.chunks_exact_mut(c).zip(var.chunks_exact_mut(c)).enumerate() {
        merge_moments(group_images(n, groups, g).map(|i| (positions, images.of(i))), mean, var);
    }
}

/// Mean and biased variance `[C]` of parts of so many rows, merged in their order (Chan et al. 1979).
pub(super) fn merge_moments<'m>(
    parts: impl Iterator<Item = (usize, [&'m [f64]; 2])>,
    mean: &mut [f32],
    var: &mut [f32],
) {
    let mut total = Doubles::zeros(2 * mean.len());
    let (m, q) = total.split_at_mut(mean.len());
    let mut count = 0.0;
    for (n, [mean, squares]) in parts {
        let n = n as f64;
        let (share, cross) = (n / (count + n), count * n / (count + n));
        for k in 0..m.len() {
            let delta = mean[k] - m[k];
            q[k] += squares[k] + delta * delta * cross;
            m[k] += delta * share;
        }
        count += n;
    }
    mean.iter_mut().zip(m).for_each(|(to, m)| *to = *m as f32);
    var.iter_mut().zip(q).for_each(|(to, q)| *to = (*q / count) as f32);
}

/// `x̂ · gamma + beta` as `a x + b`, per ghost group and channel.
pub(super) struct Affine {
    channels: usize,
    pub a: Buffer,
    pub b: Buffer,
    pub rstd: Doubles,
}

impl Affine {
    pub fn new(gamma: &[f32], beta: &[f32], mean: &[f32], var: &[f32], eps: f64) -> Self {
        let (c, len) = (gamma.len(), mean.len());
        let (mut a, mut b, mut rstd) = (Buffer::scratch(len), Buffer::scratch(len), Doubles::scratch(len));
        for j in 0..len {
            rstd[j] = (f64::from(var[j]) + eps).sqrt().recip();
            let scale = f64::from(gamma[j % c]) * rstd[j];
            a[j] = scale as f32;
            b[j] = (f64::from(beta[j % c]) - f64::from(mean[j]) * scale) as f32;
        }
        Affine { channels: c, a, b, rstd }
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

    /// dbeta and dgamma of each ghost group, from Σ dz and Σ dz (x − mean) of each of n images.
    pub fn gradient_statistics(&self, n: usize, images: &Sums) -> Sums {
        let c = self.channels;
        let groups = self.a.len() / c;
        let mut total = Sums::new(groups, c);
        for (g, [dbeta, dgamma]) in total.parts_mut().enumerate() {
            dbeta.fill(0.0);
            dgamma.fill(0.0);
            for [s, t] in group_images(n, groups, g).map(|i| images.of(i)) {
                for k in 0..c {
                    dbeta[k] += s[k];
                    dgamma[k] += t[k] * self.rstd[g * c + k];
                }
            }
        }
        total
    }

    /// What flows to x through batch statistics, as `e x + f` `[G, C]`, given dbeta and dgamma of n images of so many
    /// positions.
    pub fn through_batch(&self, mean: &[f32], totals: &Sums, n: usize, positions: usize) -> [Buffer; 2] {
        let c = self.channels;
        let groups = mean.len() / c;
        let [mut e, mut f] = [(); 2].map(|()| Buffer::scratch(mean.len()));
        for j in 0..mean.len() {
            let m = (group_images(n, groups, j / c).len() * positions) as f64;
            let [dbeta, dgamma] = totals.of(j / c);
            (e[j], f[j]) = self.through_statistics(j, mean[j], dbeta[j % c] / m, dgamma[j % c] / m);
        }
        [e, f]
    }
}

/// dgamma and dbeta `[C]`, those that are asked for, from dbeta and dgamma of each of the ghost groups.
pub(super) fn add_groups(totals: &Sums, dgamma: Option<&mut [f32]>, dbeta: Option<&mut [f32]>) {
    let groups = totals.values.len() / (2 * totals.channels);
    for (which, out) in [(1, dgamma), (0, dbeta)] {
        for (k, out) in out.into_iter().flatten().enumerate() {
            *out = (0..groups).map(|g| totals.of(g)[which][k]).sum::<f64>() as f32;
        }
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
