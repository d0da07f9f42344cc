//! PatchCore: patches of good pictures are kept, and how far features are from the nearest of them.
//!
//! ```text
//! patch   q[y, x] = mean of features over the 3x3 positions around (y, x); outside counts as zero and is counted   [C]
//! bank    M = greedy k-center coreset of all patches of all pictures: ratio · N H W of them, by distances |ψq - ψq'|
//!         ψ = Gaussian projection to d* channels: entries of N(0, 1 / d*)
//! map     s[p] = |q_p - m(q_p)|,   m(q) the nearest of M
//! picture q* = q[argmax s], m* = m(q*):   (1 - exp|q* - m*| / Σ_{m in N(m*)} exp|q* - m|) · |q* - m*|
//!         N(m*) the 9 points of M nearest to m*, itself among them
//! ```
//! Source: Roth et al., "Towards total recall in industrial anomaly detection", CVPR 2022 (arXiv 2106.08265), sections 3.1 to
//! 3.3, equations 5 to 7. d* = 128 and the zero padding are those of the authors' program; where there are not more than d*
//! channels nothing is projected. The paper pools each layer of its network before they are put together; cached features are
//! put together already, so they are pooled as they are.
//!
//! Besides the bank, memory holds the projected patches, `4 d*` bytes each, and of at most [`PatchCoreOptions::candidates`] of
//! them: from more patches than that, the coreset is chosen from a random subset. The bank's size is still a share of all.

use rayon::prelude::*;

use super::coreset::{Coreset, greedy};
use super::nearest::Bank;
use super::{Baseline, Progress, RawScored, Watch, checked};
use crate::device::cpu::{Matrix, gemm, no_epilogue};
use crate::rng::Rng;
use crate::train::FeatureSource;
use crate::{Error, Result};

/// What is drawn at random, each from its own stream of the seed: candidates, the first centre, the projection.
const CANDIDATE_STREAM: u64 = 21 << 40;
const START_STREAM: u64 = 22 << 40;
const PROJECTION_STREAM: u64 = 23 << 40;

/// Pictures read between two calls of `watch`.
const PICTURES: usize = 64;

/// Choices of PatchCore.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PatchCoreOptions {
    /// Share of all patches that is kept, in (0, 1]; at least `neighbours` are.
    pub ratio: f64,
    /// Neighbours that weigh the score of a picture; at least 1, which gives it no weight.
    pub neighbours: usize,
    /// Channels that distances are measured in while the coreset is chosen; 0 for all.
    pub projection: usize,
    /// Most patches that the coreset is chosen from.
    pub candidates: usize,
}

impl Default for PatchCoreOptions {
    /// PatchCore-1 %.
    fn default() -> Self {
        PatchCoreOptions { ratio: 0.01, neighbours: 9, projection: 128, candidates: 1 << 18 }
    }
}

impl PatchCoreOptions {
    /// Number of candidates and of patches kept, of `patches`.
    ///
    /// # Errors
    /// [`Error::Config`] when there is no patch, an option is out of range, or more are to be kept than there are candidates.
    fn sizes(&self, patches: usize) -> Result<[usize; 2]> {
        let Self { ratio, neighbours, candidates, .. } = *self;
        if !(ratio > 0.0 && ratio <= 1.0) || neighbours == 0 || candidates == 0 || patches == 0 {
            let what = format!(
                "PatchCore cannot work with ratio = {ratio}, neighbours = {neighbours}, candidates = {candidates} and \
                 {patches} patches"
            );
            return Err(Error::config(
                what,
                "give at least one good picture, a ratio above 0 and at most 1, and 9 neighbours",
            ));
        }
        let (candidates, kept) = (candidates.min(patches), (ratio * patches as f64).ceil() as usize);
        let kept = kept.max(neighbours).min(patches);
        if kept > candidates {
            let what = format!(
                "PatchCore is to keep {kept} of {patches} patches, and may choose from {candidates} of them only"
            );
            return Err(Error::config(
                what,
                format!(
                    "lower ratio to at most {:.3}, or raise candidates: time grows with both",
                    candidates as f64 / patches as f64
                ),
            ));
        }
        Ok([candidates, kept])
    }
}

/// A bank of patches.
#[derive(Debug, Clone, PartialEq)]
pub struct PatchCore {
    shape: [usize; 3],
    neighbours: usize,
    bank: Bank,
    patches: usize,
    candidates: usize,
    radius: f32,
}

impl PatchCore {
    /// Fits the features of good pictures, each `shape = [H, W, C]`.
    ///
    /// # Errors
    /// As [`super::Method::fit`].
    pub fn fit(
        features: &dyn FeatureSource,
        shape: [usize; 3],
        options: &PatchCoreOptions,
        seed: u64,
        watch: Watch,
    ) -> Result<Self> {
        let ([h, w, channels], PatchCoreOptions { projection, neighbours, .. }) = (shape, *options);
        let patches = features.len() * h * w;
        let [candidates, kept] = options.sizes(patches)?;
        let chosen = subset(patches, candidates, seed);
        let start = Rng::new(seed, START_STREAM).below(candidates);
        let matrix = (1..channels).contains(&projection).then(|| gaussian_matrix(channels, projection, seed));
        let (points, dim) = match &matrix {
            Some(matrix) => (gather(features, shape, &chosen, Some(matrix), watch)?, projection),
            None => (gather(features, shape, &chosen, None, watch)?, channels),
        };
        let Coreset { indices, radii, .. } = greedy(&points, dim, start, kept, watch)?;
        drop(points);
        let kept: Vec<usize> = indices.iter().map(|&i| chosen[i]).collect();
        let bank = bank(features, shape, &kept, watch)?;
        let radius = radii.last().copied().unwrap_or(0.0);
        Ok(PatchCore { shape, neighbours, bank, patches, candidates, radius })
    }

    /// Number of patches in the bank.
    pub fn bank_len(&self) -> usize {
        self.bank.len()
    }

    /// One whose bank is given.
    #[cfg(test)]
    pub(super) fn with_bank(
        features: &dyn FeatureSource,
        shape: [usize; 3],
        kept: &[usize],
        neighbours: usize,
    ) -> Result<Self> {
        let (patches, bank) = (features.len() * shape[0] * shape[1], bank(features, shape, kept, &|_| Ok(()))?);
        Ok(PatchCore { shape, neighbours, bank, patches, candidates: patches, radius: 0.0 })
    }

    /// Equation 7, of the patch that is farthest from its nearest.
    fn image_score(&self, patch: &[f32], nearest: usize, distance: f32) -> f32 {
        if self.neighbours == 1 {
            return distance;
        }
        // Nothing in the bank is nearer than `distance`, so each term is at least 1: the sum may become infinite, not 0.
        let term = |&m: &usize| f64::from(self.bank.distance(patch, m) - distance).exp();
        let sum: f64 = self.bank.neighbours(nearest, self.neighbours).iter().map(term).sum();
        ((1.0 - 1.0 / sum) * f64::from(distance)) as f32
    }
}

impl Baseline for PatchCore {
    fn score(&self, features: &[f32]) -> Result<RawScored> {
        let c = self.shape[2];
        let patches = self.bank.moved(aggregate(checked(features, self.shape)?, self.shape));
        let found = self.bank.nearest(&patches);
        let map: Vec<f32> = found.iter().map(|n| n.distance).collect();
        // The first of the largest.
        let farthest = (0..map.len()).reduce(|best, i| if map[i] > map[best] { i } else { best });
        let image = farthest.map(|i| self.image_score(&patches[i * c..][..c], found[i].index, map[i]));
        Ok(RawScored { map, image })
    }

    fn bytes(&self) -> usize {
        self.bank.bytes()
    }

    fn describe(&self) -> String {
        let (kept, c, Self { patches, candidates, radius, .. }) = (self.bank.len(), self.shape[2], self);
        format!(
            "PatchCore: {kept} of {patches} patches of {c} channels, chosen from {candidates}, covering radius {radius:.4}"
        )
    }
}

/// The patches `kept`, numbered through all pictures, in that order.
fn bank(features: &dyn FeatureSource, shape: [usize; 3], kept: &[usize], watch: Watch) -> Result<Bank> {
    let channels = shape[2];
    // Read picture after picture.
    let mut order: Vec<usize> = (0..kept.len()).collect();
    order.sort_unstable_by_key(|&k| kept[k]);
    let ascending: Vec<usize> = order.iter().map(|&k| kept[k]).collect();
    let found = gather(features, shape, &ascending, None, watch)?;
    let mut points = vec![0.0; found.len()];
    for (point, &k) in found.chunks_exact(channels).zip(&order) {
        points[k * channels..][..channels].copy_from_slice(point);
    }
    Ok(Bank::new(points, channels))
}

/// The 3x3 means of features `[H, W, C]`, stride 1, zeros outside, divisor 9.
fn aggregate(features: &[f32], [h, w, c]: [usize; 3]) -> Vec<f32> {
    let mut out = vec![0.0; features.len()];
    if c == 0 {
        return out;
    }
    for (i, sums) in out.chunks_exact_mut(c).enumerate() {
        let (y, x) = (i / w, i % w);
        for y in y.saturating_sub(1)..(y + 2).min(h) {
            let row = &features[(y * w + x.saturating_sub(1)) * c..(y * w + (x + 2).min(w)) * c];
            for values in row.chunks_exact(c) {
                sums.iter_mut().zip(values).for_each(|(sum, v)| *sum += v);
            }
        }
        sums.iter_mut().for_each(|sum| *sum /= 9.0);
    }
    out
}

/// `count` of the numbers below `n`, ascending, every such set equally likely (selection sampling: Knuth, "The art of
/// computer programming" 3.4.2, algorithm S).
fn subset(n: usize, count: usize, seed: u64) -> Vec<usize> {
    let (mut rng, mut chosen) = (Rng::new(seed, CANDIDATE_STREAM), Vec::with_capacity(count));
    for i in 0..n {
        let wanted = count - chosen.len();
        if wanted == n - i || rng.below(n - i) < wanted {
            chosen.push(i);
        }
    }
    chosen
}

/// ψ, `[channels, to]`.
fn gaussian_matrix(channels: usize, to: usize, seed: u64) -> Vec<f32> {
    let mut matrix = vec![0.0; channels * to];
    Rng::new(seed, PROJECTION_STREAM).fill_normal(&mut matrix, (1.0 / to as f32).sqrt());
    matrix
}

/// The patches `chosen`, ascending, numbered through all pictures, `[chosen, C]`; or projected by a matrix `[C, d*]`.
pub(super) fn gather(
    features: &dyn FeatureSource,
    shape: [usize; 3],
    chosen: &[usize],
    matrix: Option<&[f32]>,
    watch: Watch,
) -> Result<Vec<f32>> {
    let [h, w, c] = shape;
    let dim = matrix.map_or(c, |matrix| matrix.len() / c);
    let mut out = vec![0.0; chosen.len() * dim];
    // Of each picture that has any: which one, its patches, where they go.
    let (mut parts, mut rest) = (vec![], &mut out[..]);
    for patches in chosen.chunk_by(|a, b| a / (h * w) == b / (h * w)) {
        let (part, after) = rest.split_at_mut(patches.len() * dim);
        parts.push((patches[0] / (h * w), patches, part));
        rest = after;
    }
    let total = parts.len();
    for (lot, parts) in parts.chunks_mut(PICTURES).enumerate() {
        watch(Progress { stage: "patches", done: lot * PICTURES, total })?;
        parts.par_iter_mut().try_for_each(|(picture, patches, out)| {
            let pooled = aggregate(checked(features.get(*picture), shape)?, shape);
            let of_chosen = |p: &usize| &pooled[p % (h * w) * c..][..c];
            let picked: Vec<f32> = patches.iter().flat_map(of_chosen).copied().collect();
            match matrix {
                None => out.copy_from_slice(&picked),
                Some(matrix) => {
                    let (picked, matrix) = (Matrix::new(&picked, patches.len(), c), Matrix::new(matrix, c, dim));
                    gemm(patches.len(), dim, c, &picked, &matrix, out, no_epilogue);
                }
            }
            Ok(())
        })?;
    }
    Ok(out)
}
