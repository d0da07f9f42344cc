//! What is normal for a class: a mean for each position, and one covariance about them, as a metric.
//!
//! `Σ = mean over pictures and positions of (x − μ_p)(x − μ_p)ᵀ`, `Σ + λ I = L Lᵀ` (Cholesky), `⟨a, b⟩ = L⁻¹a · L⁻¹b`.
//! Mahalanobis' metric: a direction in which good parts differ much counts little.

use rayon::prelude::*;

/// λ as a share of the mean variance of a channel: directions in which no training picture differs stay finite.
const RIDGE: f64 = 0.01;

/// Means `[P, C]` and the factor L `[C, C]`, row by row, zero above its diagonal.
pub(super) struct Normal {
    pub(super) mean: Vec<f64>,
    factor: Vec<f64>,
    channels: usize,
}

impl Normal {
    /// Of the features of training pictures, each `[P, C]`; `None` where they do not differ or are fewer than two.
    pub fn of(pictures: &[&[f32]], channels: usize) -> Option<Self> {
        let (first, n) = (pictures.first()?, pictures.len() as f64);
        let mut mean = vec![0.0; first.len()];
        for picture in pictures {
            mean.iter_mut().zip(*picture).for_each(|(sum, &v)| *sum += f64::from(v) / n);
        }
        // A partial sum for each picture, added in order: the same bits on any number of threads.
        let outer = |picture: &&[f32]| {
            let mut sum = vec![0.0; channels * channels];
            let mut d = vec![0.0; channels];
            for (x, mean) in picture.chunks_exact(channels).zip(mean.chunks_exact(channels)) {
                d.iter_mut().zip(x).zip(mean).for_each(|((d, &x), m)| *d = f64::from(x) - m);
                for (i, row) in sum.chunks_exact_mut(channels).enumerate() {
                    let di = d[i];
                    row[..=i].iter_mut().zip(&d).for_each(|(sum, d)| *sum += di * d);
                }
            }
            sum
        };
        let mut factor = vec![0.0; channels * channels];
        for partial in pictures.par_iter().map(outer).collect::<Vec<_>>() {
            factor.iter_mut().zip(&partial).for_each(|(sum, part)| *sum += part);
        }
        let count = n * (first.len() / channels) as f64;
        factor.iter_mut().for_each(|v| *v /= count);
        let variance = (0..channels).map(|i| factor[i * channels + i]).sum::<f64>() / channels as f64;
        if pictures.len() < 2 || !(variance.is_finite() && variance > 0.0) {
            return None;
        }
        (0..channels).for_each(|i| factor[i * channels + i] += RIDGE * variance);
        cholesky(&mut factor, channels);
        Some(Normal { mean, factor, channels })
    }

    /// `[Σ w ⟨r − μ, x − μ⟩, Σ w ⟨x − μ, x − μ⟩]` over the positions of a picture; x and r: `[P, C]`, weights: `[P]`.
    pub fn products(&self, x: &[f32], r: &[f32], weights: &[f64]) -> [f64; 2] {
        let c = self.channels;
        let mut sums = [0.0; 2];
        let [mut of_x, mut of_r] = [vec![0.0; c], vec![0.0; c]];
        for (p, &w) in weights.iter().enumerate().filter(|(_, w)| **w > 0.0) {
            let at = p * c..(p + 1) * c;
            for (values, z) in [(x, &mut of_x), (r, &mut of_r)] {
                let from_mean = values[at.clone()].iter().zip(&self.mean[at.clone()]);
                z.iter_mut().zip(from_mean).for_each(|(z, (&v, m))| *z = f64::from(v) - m);
                self.whiten(z);
            }
            sums[0] += w * dot(&of_r, &of_x);
            sums[1] += w * dot(&of_x, &of_x);
        }
        sums
    }

    /// `z ← L⁻¹ z`.
    fn whiten(&self, z: &mut [f64]) {
        for i in 0..z.len() {
            let row = &self.factor[i * self.channels..][..=i];
            z[i] = (z[i] - dot(&row[..i], &z[..i])) / row[i];
        }
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// The factor of a positive definite matrix `[n, n]`, in its place; only the part up to the diagonal is read.
pub(super) fn cholesky(a: &mut [f64], n: usize) {
    for i in 0..n {
        let (above, row) = a.split_at_mut(i * n);
        for j in 0..i {
            row[j] = (row[j] - dot(&row[..j], &above[j * n..][..j])) / above[j * n + j];
        }
        row[i] = (row[i] - dot(&row[..i], &row[..i])).sqrt();
    }
}
