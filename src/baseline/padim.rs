//! PaDiM: one Gaussian per position, and how far features are from it.
//!
//! ```text
//! for each position p of [H, W], over the N training pictures, of d channels chosen at random:
//!     mean_p = (1 / N) Σ x_p                                      [d]
//!     Σ_p    = (1 / (N - 1)) Σ (x_p - mean_p)(x_p - mean_p)ᵀ + ε I    [d, d],  ε = 0.01
//! map[p] = √((x_p - mean_p)ᵀ Σ_p⁻¹ (x_p - mean_p)) = |L_p⁻¹ (x_p - mean_p)|   with Σ_p = L_p L_pᵀ (Cholesky)
//! ```
//! Source: Defard et al., "PaDiM: a patch distribution modeling framework for anomaly detection and localization", ICPR 2021
//! workshops (arXiv 2011.08785), section III. They take d = 100 of the 448 channels of ResNet18; here 100 as well, and all
//! of them where there are not more. The score of a picture is the largest value of its map, so there is no own one.
//!
//! All in f64. Pictures are read once for each row of the map, position after position: besides the result, memory holds
//! `2 N d` numbers a thread.

use nalgebra::DMatrix;
use rayon::prelude::*;

use super::{Baseline, Progress, RawScored, Watch, checked};
use crate::rng::Rng;
use crate::train::FeatureSource;
use crate::{Error, Result};

/// The channels are drawn from this stream of the seed.
const CHANNEL_STREAM: u64 = 20 << 40;

/// Choices of PaDiM.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PadimOptions {
    /// Channels kept, drawn at random; all where there are not more.
    pub channels: usize,
    /// What is added to the diagonal of each covariance; above 0.
    pub epsilon: f64,
}

impl Default for PadimOptions {
    fn default() -> Self {
        PadimOptions { channels: 100, epsilon: 0.01 }
    }
}

/// A Gaussian for every position.
#[derive(Debug, Clone, PartialEq)]
pub struct Padim {
    shape: [usize; 3],
    /// Which channels are looked at, ascending, `[d]`.
    channels: Vec<usize>,
    pictures: usize,
    /// `[H W, d]`.
    means: Vec<f64>,
    /// Cholesky factors, the columns of each lower triangle one after the other, `[H W, d (d + 1) / 2]`.
    factors: Vec<f64>,
}

impl Padim {
    /// Fits the features of good pictures, each `shape = [H, W, C]`.
    ///
    /// # Errors
    /// As [`super::Method::fit`].
    pub fn fit(
        features: &dyn FeatureSource,
        shape: [usize; 3],
        options: &PadimOptions,
        seed: u64,
        watch: Watch,
    ) -> Result<Self> {
        let mut channels: Vec<usize> = (0..shape[2]).collect();
        if options.channels < channels.len() {
            Rng::new(seed, CHANNEL_STREAM).shuffle(&mut channels);
            channels.truncate(options.channels);
            channels.sort_unstable();
        }
        Self::fit_channels(features, shape, channels, options.epsilon, watch)
    }

    /// [`Self::fit`] with given channels, each below C.
    pub(super) fn fit_channels(
        features: &dyn FeatureSource,
        shape: [usize; 3],
        channels: Vec<usize>,
        epsilon: f64,
        watch: Watch,
    ) -> Result<Self> {
        let ([h, w, _], d, pictures) = (shape, channels.len(), features.len());
        if d == 0 || !(epsilon > 0.0 && epsilon.is_finite()) {
            let what = format!("PaDiM cannot work with {d} channels and epsilon = {epsilon}");
            return Err(Error::config(what, "keep at least one channel, and an epsilon above 0, such as 0.01"));
        }
        if pictures < 2 {
            let what = format!("PaDiM measures how pictures vary, and there is {pictures} to learn from");
            return Err(Error::config(what, "give at least 2 good pictures"));
        }
        for i in 0..pictures {
            checked(features.get(i), shape)?;
        }
        let triangle = d * (d + 1) / 2;
        let (mut means, mut factors) = (vec![0.0; h * w * d], vec![0.0; h * w * triangle]);
        let rows = means.chunks_mut((w * d).max(1)).zip(factors.chunks_mut((w * triangle).max(1)));
        for (y, (means, factors)) in rows.enumerate() {
            watch(Progress { stage: "gaussians", done: y, total: h })?;
            let positions = means.par_chunks_mut(d).zip(factors.par_chunks_mut(triangle)).enumerate();
            positions.try_for_each(|(x, (mean, factor))| {
                gaussian(features, shape, y * w + x, &channels, epsilon, mean, factor)
                    .ok_or_else(|| no_factor(y, x, epsilon))
            })?;
        }
        watch(Progress { stage: "gaussians", done: h, total: h })?;
        Ok(Padim { shape, channels, pictures, means, factors })
    }
}

/// Mean and Cholesky factor of one position; `None` when there is no factor.
fn gaussian(
    features: &dyn FeatureSource,
    [_, _, c]: [usize; 3],
    position: usize,
    channels: &[usize],
    epsilon: f64,
    mean: &mut [f64],
    factor: &mut [f64],
) -> Option<()> {
    let (d, n) = (channels.len(), features.len());
    // A column per picture.
    let mut x = DMatrix::<f64>::zeros(d, n);
    for (i, column) in x.as_mut_slice().chunks_exact_mut(d).enumerate() {
        let values = &features.get(i)[position * c..][..c];
        column.iter_mut().zip(channels).for_each(|(v, &channel)| *v = f64::from(values[channel]));
        mean.iter_mut().zip(&*column).for_each(|(sum, v)| *sum += v);
    }
    mean.iter_mut().for_each(|sum| *sum /= n as f64);
    for column in x.as_mut_slice().chunks_exact_mut(d) {
        column.iter_mut().zip(&*mean).for_each(|(v, mean)| *v -= mean);
    }
    let mut covariance = &x * x.transpose();
    covariance /= (n - 1) as f64;
    (0..d).for_each(|i| covariance[(i, i)] += epsilon);
    let lower = covariance.cholesky()?.unpack();
    let mut rest = factor;
    for (j, column) in lower.as_slice().chunks_exact(d).enumerate() {
        let (packed, after) = rest.split_at_mut(d - j);
        packed.copy_from_slice(&column[j..]);
        rest = after;
    }
    Some(())
}

fn no_factor(y: usize, x: usize, epsilon: f64) -> Error {
    Error::config(
        format!(
            "PaDiM: the covariance at row {y}, column {x} is not positive definite: epsilon = {epsilon} is lost in it"
        ),
        "raise epsilon to the scale of the features' variance, or keep fewer channels",
    )
}

/// |L⁻¹ delta|, by forward substitution; `delta` is used up.
fn mahalanobis(factor: &[f64], delta: &mut [f64]) -> f64 {
    let (mut rest, mut sum) = (factor, 0.0);
    for j in 0..delta.len() {
        let (column, after) = rest.split_at(delta.len() - j);
        let z = delta[j] / column[0];
        sum += z * z;
        delta[j + 1..].iter_mut().zip(&column[1..]).for_each(|(d, l)| *d -= z * l);
        rest = after;
    }
    sum.sqrt()
}

impl Baseline for Padim {
    fn score(&self, features: &[f32]) -> Result<RawScored> {
        let d = self.channels.len();
        let positions = checked(features, self.shape)?.par_chunks_exact(self.shape[2]);
        let gaussians = self.means.par_chunks_exact(d).zip(self.factors.par_chunks_exact(d * (d + 1) / 2));
        let distance = |(x, (mean, factor)): (&[f32], (&[f64], &[f64]))| {
            let mut delta: Vec<f64> = self.channels.iter().zip(mean).map(|(&c, mean)| f64::from(x[c]) - mean).collect();
            mahalanobis(factor, &mut delta) as f32
        };
        Ok(RawScored { map: positions.zip(gaussians).map(distance).collect(), image: None })
    }

    fn bytes(&self) -> usize {
        size_of_val(&self.means[..]) + size_of_val(&self.factors[..])
    }

    fn describe(&self) -> String {
        let ([h, w, c], d) = (self.shape, self.channels.len());
        format!("PaDiM: {h}x{w} Gaussians over {d} of {c} channels, from {} pictures", self.pictures)
    }
}
