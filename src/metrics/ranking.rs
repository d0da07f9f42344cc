//! Ranks scores once; every threshold-free figure is then a walk along the two sorted lists.
//!
//! AUROC = sum over positives of (2 #{negatives below} + #{negatives equal}) / (2 P N): Mann-Whitney, ties count half,
//! in integers, never flipped. AP = sum (R_i - R_{i-1}) P_i and F1 = 2 tp / (tp + fp + P) over distinct thresholds,
//! as `sklearn.metrics.{roc_auc_score, average_precision_score, precision_recall_curve}` define them.

use super::radix;
use crate::{Error, Result};
use rayon::prelude::*;

/// Scores one task compares with the negatives: fixed, so that nothing depends on the number of threads.
const BLOCK: usize = 1 << 14;

/// Area under the ROC curve of raw `scores` (higher means more anomalous). `labels`: 0 is good, anything else is
/// defective (the protocol's `mask > 0`). `None` where only one of the two occurs: it is then undefined, not 0.5.
///
/// Errors: lengths differ; a score is NaN or infinite.
pub fn auroc(scores: &[f32], labels: &[u8]) -> Result<Option<f64>> {
    let mut samples = Samples::default();
    samples.push(scores, labels)?;
    Ok(samples.rank().auroc())
}

/// Scores collected picture by picture, 4 bytes each, split by label. The order of pushing does not matter.
#[derive(Debug, Clone, Default)]
pub struct Samples {
    positives: Vec<u32>,
    negatives: Vec<u32>,
}

impl Samples {
    /// Adds `scores` with one label each (0 good, else defective).
    ///
    /// Errors, with nothing added: lengths differ; a score is NaN or infinite.
    pub fn push(&mut self, scores: &[f32], labels: &[u8]) -> Result<()> {
        if scores.len() != labels.len() {
            let what =
                format!("{} scores and {} labels: there must be one label per score", scores.len(), labels.len());
            return Err(Error::Shape { op: "auroc", what });
        }
        check(scores)?;
        // Labels of noisy masks cannot be predicted, so no branch: write to both, advance one.
        const LEN: usize = 1 << 10;
        let (mut positives, mut negatives) = ([0; LEN], [0; LEN]);
        for (scores, labels) in scores.chunks(LEN).zip(labels.chunks(LEN)) {
            let (mut p, mut n) = (0, 0);
            for (&score, &label) in scores.iter().zip(labels) {
                let key = radix::key(score);
                (positives[p], negatives[n]) = (key, key);
                p += usize::from(label != 0);
                n += usize::from(label == 0);
            }
            self.positives.extend_from_slice(&positives[..p]);
            self.negatives.extend_from_slice(&negatives[..n]);
        }
        Ok(())
    }

    /// Adds scores that all have the same label.
    ///
    /// Errors, with nothing added: a score is NaN or infinite.
    pub fn push_all(&mut self, scores: &[f32], defective: bool) -> Result<()> {
        check(scores)?;
        let side = if defective { &mut self.positives } else { &mut self.negatives };
        side.extend(scores.iter().map(|&score| radix::key(score)));
        Ok(())
    }

    /// Adds all of `other`.
    pub fn append(&mut self, other: Samples) {
        self.positives.extend(other.positives);
        self.negatives.extend(other.negatives);
    }

    /// Sorts, once.
    pub fn rank(self) -> Ranking {
        let (positives, negatives) = rayon::join(|| radix::sort(self.positives), || radix::sort(self.negatives));
        Ranking { positives, negatives }
    }
}

/// Refuses NaN, which has no rank, and infinity, which only a diverged model gives.
fn check(scores: &[f32]) -> Result<()> {
    // Whole blocks without an early exit: this vectorises.
    let finite = |block: &[f32]| block.iter().fold(true, |all, score| all & score.is_finite());
    if scores.chunks(1 << 10).all(finite) {
        return Ok(());
    }
    let at = scores.iter().position(|score| !score.is_finite()).unwrap_or_default();
    Err(Error::data(
        "anomaly scores",
        format!("score {at} of {} is {}", scores.len(), scores[at]),
        "the model has diverged or its file is damaged: train again, with a smaller learning rate if it happens again",
    ))
}

/// Scores sorted ascending, positives and negatives apart.
#[derive(Debug, Clone)]
pub struct Ranking {
    positives: Vec<u32>,
    negatives: Vec<u32>,
}

/// One distinct score of a positive, seen from below.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Step {
    /// The score: as a threshold it calls everything at or above it defective.
    pub score: f32,
    /// Positives with exactly this score (at least 1).
    pub positives: usize,
    /// Positives with a lower score.
    pub positives_below: usize,
    /// Negatives with exactly this score.
    pub negatives: usize,
    /// Negatives with a lower score.
    pub negatives_below: usize,
}

/// The best F1 over all thresholds. Chosen on the labels it is measured on: an oracle, not what a user will get.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct F1Max {
    /// F1 in [0, 1].
    pub value: f64,
    /// The highest threshold (score >= threshold is defective) that reaches it.
    pub threshold: f32,
}

impl Ranking {
    /// How many positives were ranked.
    pub fn positives(&self) -> usize {
        self.positives.len()
    }

    /// How many negatives were ranked.
    pub fn negatives(&self) -> usize {
        self.negatives.len()
    }

    /// The distinct scores of the positives, ascending, with everything a threshold there decides. No other
    /// threshold can be better: between two of them, only false alarms change.
    pub fn steps(&self) -> impl Iterator<Item = Step> + '_ {
        Steps::new(&self.positives, &self.negatives)
    }

    /// Area under the ROC curve, ties counted half; `None` where only one label occurs.
    pub fn auroc(&self) -> Option<f64> {
        self.defined()?;
        // A block may split a tie: every positive counts for itself.
        let wins = |block: &[u32]| -> u128 {
            let twice = |step: Step| step.positives as u128 * (2 * step.negatives_below + step.negatives) as u128;
            Steps::new(block, &self.negatives).map(twice).sum()
        };
        let wins: u128 = self.positives.par_chunks(BLOCK).map(wins).sum();
        let pairs = self.positives() as u128 * self.negatives() as u128;
        Some(wins as f64 / (2 * pairs) as f64)
    }

    /// Average precision; `None` where only one label occurs.
    pub fn average_precision(&self) -> Option<f64> {
        self.defined()?;
        let sum: f64 = self
            .steps()
            .map(|step| {
                let (tp, fp) = self.at(&step);
                step.positives as f64 * (tp as f64 / (tp + fp) as f64)
            })
            .sum();
        Some(sum / self.positives() as f64)
    }

    /// The best F1 over all thresholds; `None` where only one label occurs.
    pub fn f1_max(&self) -> Option<F1Max> {
        self.defined()?;
        self.steps()
            .map(|step| {
                let (tp, fp) = self.at(&step);
                F1Max { value: (2 * tp) as f64 / (tp + fp + self.positives()) as f64, threshold: step.score }
            })
            .reduce(|best, next| if next.value >= best.value { next } else { best })
    }

    /// True and false positives when `step.score` is the threshold.
    fn at(&self, step: &Step) -> (usize, usize) {
        (self.positives() - step.positives_below, self.negatives() - step.negatives_below)
    }

    fn defined(&self) -> Option<()> {
        (!self.positives.is_empty() && !self.negatives.is_empty()).then_some(())
    }
}

/// Walks the groups of equal positives along the negatives.
struct Steps<'a> {
    positives: &'a [u32],
    negatives: &'a [u32],
    p: usize,
    n: usize,
}

impl<'a> Steps<'a> {
    fn new(positives: &'a [u32], negatives: &'a [u32]) -> Self {
        Self { positives, negatives, p: 0, n: 0 }
    }
}

impl Iterator for Steps<'_> {
    type Item = Step;

    fn next(&mut self) -> Option<Step> {
        let key = *self.positives.get(self.p)?;
        let (p, n) = (self.p, gallop(self.negatives, self.n, |negative| negative < key));
        self.p = gallop(self.positives, p, |positive| positive == key);
        self.n = gallop(self.negatives, n, |negative| negative == key);
        Some(Step {
            score: radix::score(key),
            positives: self.p - p,
            positives_below: p,
            negatives: self.n - n,
            negatives_below: n,
        })
    }
}

/// First index at or after `from` where `inside` no longer holds. Doubling steps, then bisection: cheap when the
/// answer is near, logarithmic when few positives stand among millions of negatives.
#[inline]
fn gallop(keys: &[u32], from: usize, inside: impl Fn(u32) -> bool) -> usize {
    let (mut low, mut step) = (from, 1);
    while keys.get(low + step - 1).is_some_and(|&key| inside(key)) {
        low += step;
        step *= 2;
    }
    let high = keys.len().min(low + step - 1);
    low + keys[low..high].partition_point(|&key| inside(key))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use safetensors::SafeTensors;

    const FIXTURE: &[u8] = include_bytes!("../../fixtures/metrics.safetensors");

    fn ranked(scores: &[f32], labels: &[u8]) -> Ranking {
        let mut samples = Samples::default();
        samples.push(scores, labels).unwrap();
        samples.rank()
    }

    /// AUROC, AP and best F1 against scikit-learn's.
    fn check_against(file: &SafeTensors, name: &str, scores: &[f32], labels: &[u8]) {
        let expected: Vec<f64> =
            bytemuck::pod_collect_to_vec(file.tensor(&format!("rank.{name}.expected")).unwrap().data());
        let ranking = ranked(scores, labels);
        let best = ranking.f1_max().unwrap();
        let ours = [ranking.auroc().unwrap(), ranking.average_precision().unwrap(), best.value];
        for (ours, expected) in ours.iter().zip(&expected) {
            assert!((ours - expected).abs() <= 1e-12, "{name}: {ours} for {expected}");
        }
        let tp = scores.iter().zip(labels).filter(|&(s, l)| *s >= best.threshold && *l != 0).count();
        let fp = scores.iter().zip(labels).filter(|&(s, l)| *s >= best.threshold && *l == 0).count();
        assert_eq!((2 * tp) as f64 / (tp + fp + ranking.positives()) as f64, best.value, "{name}");
    }

    #[test]
    fn agrees_with_scikit_learn() {
        let file = SafeTensors::deserialize(FIXTURE).unwrap();
        let mut cases = 0;
        for name in file.names().iter().filter_map(|name| name.strip_prefix("rank.")?.strip_suffix(".scores")) {
            let scores: Vec<f32> =
                bytemuck::pod_collect_to_vec(file.tensor(&format!("rank.{name}.scores")).unwrap().data());
            check_against(&file, name, &scores, file.tensor(&format!("rank.{name}.labels")).unwrap().data());
            cases += 1;
        }
        assert_eq!(cases, 8);
    }

    /// 600 000 scores with ties, made as fixtures/export_metrics.py makes them.
    #[test]
    fn agrees_with_scikit_learn_on_many() {
        let bits = |i: u32| i.wrapping_mul(2654435761);
        let labels: Vec<u8> = (0..600_000).map(|i| u8::from(bits(i) % 7 == 0)).collect();
        let scores: Vec<f32> = (0..600_000)
            .map(|i| (bits(i) >> 12) as f32 + f32::from(labels[i as usize]) * 131_072.0 - 524_288.0)
            .collect();
        check_against(&SafeTensors::deserialize(FIXTURE).unwrap(), "large", &scores, &labels);
    }

    #[test]
    fn ties_count_half() {
        assert_eq!(auroc(&[0.1, 0.4, 0.4, 0.3, 0.9], &[0, 0, 1, 1, 1]), Ok(Some(0.75)));
        assert_eq!(auroc(&[-0.0, 0.0], &[0, 1]), Ok(Some(0.5)));
        assert_eq!(auroc(&[2.0, 1.0], &[0, 255]), Ok(Some(0.0))); // not flipped to 1
    }

    #[test]
    fn one_label_is_undefined() {
        for labels in [[0; 3], [1; 3]] {
            let ranking = ranked(&[0.3, 0.1, 0.2], &labels);
            assert_eq!((ranking.auroc(), ranking.average_precision(), ranking.f1_max()), (None, None, None));
        }
        assert_eq!(auroc(&[], &[]), Ok(None));
    }

    #[test]
    fn refuses_what_has_no_rank() {
        for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut scores = vec![0.25; 3000];
            scores[2500] = bad;
            let message = auroc(&scores, &[0; 3000]).unwrap_err().to_string();
            assert!(message.contains(&format!("score 2500 of 3000 is {bad}")), "{message}");
        }
        assert!(matches!(auroc(&[1.0, 2.0], &[1]), Err(Error::Shape { op: "auroc", .. })));
        let mut samples = Samples::default();
        assert!(samples.push(&[1.0, f32::NAN], &[0, 1]).is_err());
        assert!(samples.push_all(&[f32::NAN], true).is_err());
        let ranking = samples.rank();
        assert_eq!((ranking.positives(), ranking.negatives()), (0, 0));
    }

    #[test]
    fn does_not_depend_on_threads_or_order() {
        let scores: Vec<f32> = (0..70_000_u32).map(|i| (i.wrapping_mul(40_503) % 9_973) as f32 * 0.37).collect();
        let labels: Vec<u8> = (0..70_000_u32).map(|i| u8::from(i % 3 == 0)).collect();
        let figures = |ranking: Ranking| [ranking.auroc(), ranking.average_precision()].map(|x| x.unwrap().to_bits());
        let whole = figures(ranked(&scores, &labels));
        for threads in [1, 2, 5] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let mut pieces = Samples::default();
            for at in (0..70_000).step_by(10_000).rev() {
                pieces.push(&scores[at..at + 10_000], &labels[at..at + 10_000]).unwrap();
            }
            assert_eq!(pool.install(|| figures(pieces.rank())), whole, "{threads} threads");
        }
    }

    /// Few levels make ties, many make order; both signs of zero.
    fn samples() -> impl Strategy<Value = Vec<(f32, u8)>> {
        let score = prop_oneof![(-3..4_i8).prop_map(f32::from), -1.0_f32..1.0, Just(-0.0), -1e30_f32..1e30];
        proptest::collection::vec((score, 0..2_u8), 2..80)
    }

    proptest! {
        #[test]
        fn equals_counting_all_pairs(samples in samples()) {
            let (scores, labels): (Vec<f32>, Vec<u8>) = samples.iter().copied().unzip();
            let of = |label| samples.iter().filter(move |s| s.1 == label).map(|s| s.0);
            let (mut halves, mut pairs) = (0_u32, 0_u32);
            for positive in of(1) {
                for negative in of(0) {
                    halves += 2 * u32::from(positive > negative) + u32::from(positive == negative);
                    pairs += 1;
                }
            }
            let expected = (pairs > 0).then(|| f64::from(halves) / f64::from(2 * pairs));
            prop_assert_eq!(auroc(&scores, &labels).unwrap(), expected);
        }

        #[test]
        fn keeps_under_rescaling_and_mirrors_under_inversion(samples in samples()) {
            let (scores, labels): (Vec<f32>, Vec<u8>) = samples.into_iter().unzip();
            let plain = auroc(&scores, &labels).unwrap();
            // Monotone without rounding two scores together: a power of two, and doubling the positive side only.
            for rescale in [|s: f32| s * 8.0, |s: f32| s + s.max(0.0)] {
                let rescaled: Vec<f32> = scores.iter().map(|&s| rescale(s)).collect();
                prop_assert_eq!(auroc(&rescaled, &labels).unwrap(), plain);
            }
            let inverted: Vec<f32> = scores.iter().map(|s| -s).collect();
            match (auroc(&inverted, &labels).unwrap(), plain) {
                (Some(inverted), Some(plain)) => prop_assert!((inverted - (1.0 - plain)).abs() <= 1e-15),
                (inverted, plain) => prop_assert_eq!(inverted, plain),
            }
        }

        #[test]
        fn steps_count_what_they_say(samples in samples()) {
            let (scores, labels): (Vec<f32>, Vec<u8>) = samples.iter().copied().unzip();
            let count = |label: u8, holds: &dyn Fn(f32) -> bool| {
                samples.iter().filter(|s| s.1 == label && holds(s.0)).count()
            };
            let mut seen = 0;
            for step in ranked(&scores, &labels).steps() {
                let (below, equal) = (|s| s < step.score, |s| s == step.score);
                prop_assert_eq!(step.positives, count(1, &equal));
                prop_assert_eq!(step.positives_below, count(1, &below));
                prop_assert_eq!(step.negatives, count(0, &equal));
                prop_assert_eq!(step.negatives_below, count(0, &below));
                seen += step.positives;
            }
            prop_assert_eq!(seen, count(1, &|_| true));
        }
    }
}
