//! Ranks scores once; every figure is then part of one walk along the two sorted lists.
//!
//! ```text
//! AUROC   = sum over positives of (2 #{negatives below} + #{negatives equal}) / (2 P N)     Mann-Whitney, in integers
//! AP      = sum (R_i - R_{i-1}) P_i over distinct thresholds        F1 = 2 tp / (tp + fp + P)
//! AUPRO   = 1/L integral from 0 to L of PRO d(FPR), L = 0.3         PRO = mean over regions of their found share
//! ```
//! AUROC, AP and F1 as scikit-learn's `roc_auc_score` (never flipped), `average_precision_score` and
//! `precision_recall_curve` define them.
//!
//! AUPRO as the evaluation code published with MVTec AD defines it: regions are 8-connected; the false-positive rate is
//! over all good pixels of the class, those of good pictures too; every distinct score is a threshold; between two points
//! of the curve it is a straight line, so a tie of good and defective pixels is a slope and not a step; the line that
//! crosses FPR 0.3 is cut there. A pixel of a region of area a lifts PRO by 1/(a R), so the integral is a sum over
//! positives: each adds 1/(a R) times what lies to the right of it, up to the limit.

use super::pile::Sorted;
use super::radix;
use super::samples::Samples;
use crate::Result;
use rayon::prelude::*;

/// Positives one task walks over: fixed, so that nothing depends on the number of threads.
const BLOCK: usize = 1 << 14;
/// Largest false-positive rate that AUPRO looks at, as in the publication of MVTec AD.
pub const FPR_LIMIT: f64 = 0.3;

/// Area under the ROC curve of raw `scores` (higher means more anomalous). `labels`: 0 is good, anything else is
/// defective (the protocol's `mask > 0`). `None` where only one of the two occurs: it is then undefined, not 0.5.
///
/// # Errors
/// Lengths differ; a score is NaN or infinite.
pub fn auroc(scores: &[f32], labels: &[u8]) -> Result<Option<f64>> {
    let mut samples = Samples::default();
    samples.push(scores, labels)?;
    Ok(samples.rank()?.figures().map(|figures| figures.auroc))
}

/// Scores sorted ascending, positives and negatives apart.
#[derive(Debug)]
pub struct Ranking {
    positives: Sorted<u64>,
    negatives: Sorted<u32>,
    regions: usize,
}

/// The best F1 over all thresholds. Chosen on the labels it is measured on: an oracle, not what a user will get.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct F1Max {
    /// F1 in [0, 1].
    pub value: f64,
    /// The highest threshold (score >= threshold is defective) that reaches it.
    pub threshold: f32,
}

/// What the whole ranking says, each in [0, 1].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Figures {
    /// Area under the ROC curve, ties counted half.
    pub auroc: f64,
    /// Average precision.
    pub average_precision: f64,
    /// Best F1.
    pub f1_max: F1Max,
    /// Area under the per-region overlap up to [`FPR_LIMIT`], divided by it.
    pub aupro: f64,
}

/// What one block of positives adds to the figures.
struct Part {
    /// Twice the pairs that are ranked right.
    wins: u128,
    /// Sum of the precision at each positive.
    precision: f64,
    best: F1Max,
    /// Sum over positives of 1/area times the good pixels to the right.
    overlap: f64,
}

impl Ranking {
    pub(super) fn new(positives: Sorted<u64>, negatives: Sorted<u32>, regions: usize) -> Self {
        Self { positives, negatives, regions }
    }

    /// How many positives were ranked.
    pub fn positives(&self) -> usize {
        self.positives.len()
    }

    /// How many negatives were ranked.
    pub fn negatives(&self) -> usize {
        self.negatives.len()
    }

    /// How many regions the positives make.
    pub fn regions(&self) -> usize {
        self.regions
    }

    /// All scores of positives and of negatives, ascending.
    pub(super) fn scores(&self) -> (Vec<f32>, Vec<f32>) {
        let positives = self.positives.iter().map(|&positive| radix::score(key(positive))).collect();
        (positives, self.negatives.iter().map(|&negative| radix::score(negative)).collect())
    }

    /// Every threshold-free figure; `None` where only one label occurs.
    pub fn figures(&self) -> Option<Figures> {
        if self.positives.is_empty() || self.negatives.is_empty() {
            return None;
        }
        // Blocks begin where a tie begins, so that every tie is whole.
        let start = |cut: usize| {
            let tied = key(self.positives[cut]);
            self.positives.partition_point(|&positive| key(positive) < tied)
        };
        let mut cuts: Vec<usize> = (0..self.positives()).step_by(BLOCK).map(start).collect();
        cuts.dedup();
        cuts.push(self.positives());
        let parts: Vec<Part> = cuts.par_windows(2).map(|cut| self.walk(cut[0], cut[1])).collect();
        let whole = parts.into_iter().reduce(|a, b| Part {
            wins: a.wins + b.wins,
            precision: a.precision + b.precision,
            best: better(a.best, b.best),
            overlap: a.overlap + b.overlap,
        })?;
        let (positives, negatives) = (self.positives() as f64, self.negatives() as f64);
        let pairs = self.positives() as u128 * self.negatives() as u128;
        Some(Figures {
            auroc: whole.wins as f64 / (2 * pairs) as f64,
            average_precision: whole.precision / positives,
            f1_max: whole.best,
            aupro: whole.overlap / (self.regions as f64 * FPR_LIMIT * negatives),
        })
    }

    /// The positives `from..to`, whole ties.
    fn walk(&self, from: usize, to: usize) -> Part {
        let limit = FPR_LIMIT * self.negatives() as f64;
        let best = F1Max { value: f64::NEG_INFINITY, threshold: f32::NEG_INFINITY };
        let mut part = Part { wins: 0, precision: 0.0, best, overlap: 0.0 };
        for step in Steps::new(&self.positives[..to], &self.negatives, from) {
            part.wins += step.positives as u128 * (2 * step.negatives_below + step.negatives) as u128;
            let tp = self.positives() - step.positives_below;
            let fp = self.negatives() - step.negatives_below;
            part.precision += step.positives as f64 * (tp as f64 / (tp + fp) as f64);
            let value = (2 * tp) as f64 / (tp + fp + self.positives()) as f64;
            part.best = better(part.best, F1Max { value, threshold: step.score });
            let (above, tied) = ((fp - step.negatives) as f64, step.negatives as f64);
            if above < limit {
                // Area under a line that rises from 0 at `above` to 1 at `above + tied`, and stays.
                let reach = limit - above;
                let area = if reach >= tied { reach - tied / 2.0 } else { reach * reach / (2.0 * tied) };
                let group = &self.positives[step.positives_below..][..step.positives];
                part.overlap += area * group.iter().map(|&positive| 1.0 / f64::from(positive as u32)).sum::<f64>();
            }
        }
        part
    }

    /// The share of positives found by the lowest threshold that calls at most the share `rate` of the negatives
    /// defective; `None` where only one label occurs. With fewer than `1 / rate` negatives, none may be called so. Found
    /// is what lies above the threshold: a positive that ties with the first negative that has to be let go is not found.
    pub fn recall_at(&self, rate: f64) -> Option<f64> {
        let last_kept = self.negatives().checked_sub(1 + allowed(rate, self.negatives()))?;
        let threshold = self.negatives[last_kept];
        let missed = self.positives.partition_point(|&positive| key(positive) <= threshold);
        (!self.positives.is_empty()).then(|| (self.positives() - missed) as f64 / self.positives() as f64)
    }
}

/// How many of `negatives` may be called defective at a rate below 1.
pub(super) fn allowed(rate: f64, negatives: usize) -> usize {
    // 0.07 x 100 is a little above 7 and 0.29 x 100 a little below 29: the share is meant, not its rounding.
    (rate * negatives as f64 + 1e-9) as usize
}

/// The better of two; of equals the second, which has the higher threshold.
fn better(first: F1Max, second: F1Max) -> F1Max {
    if second.value >= first.value { second } else { first }
}

/// The score of a positive without its area.
#[inline]
fn key(positive: u64) -> u32 {
    (positive >> 32) as u32
}

/// One distinct score of a positive, seen from below.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Step {
    /// The score: as a threshold it calls everything at or above it defective.
    score: f32,
    /// Positives with exactly this score (at least 1).
    positives: usize,
    /// Positives with a lower score.
    positives_below: usize,
    /// Negatives with exactly this score.
    negatives: usize,
    /// Negatives with a lower score.
    negatives_below: usize,
}

/// Walks the groups of equal positives along the negatives.
struct Steps<'a> {
    positives: &'a [u64],
    negatives: &'a [u32],
    p: usize,
    n: usize,
}

impl<'a> Steps<'a> {
    /// Begins at the positive `from`, which must be the first of its score.
    fn new(positives: &'a [u64], negatives: &'a [u32], from: usize) -> Self {
        Self { positives, negatives, p: from, n: 0 }
    }
}

impl Iterator for Steps<'_> {
    type Item = Step;

    fn next(&mut self) -> Option<Step> {
        let tied = key(*self.positives.get(self.p)?);
        let (p, n) = (self.p, gallop(self.negatives, self.n, |negative| negative < tied));
        self.p = gallop(self.positives, p, |positive| key(positive) == tied);
        self.n = gallop(self.negatives, n, |negative| negative == tied);
        Some(Step {
            score: radix::score(tied),
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
fn gallop<T: Copy>(keys: &[T], from: usize, inside: impl Fn(T) -> bool) -> usize {
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
    use crate::Error;
    use proptest::prelude::*;
    use safetensors::SafeTensors;

    const FIXTURE: &[u8] = include_bytes!("../../fixtures/metrics.safetensors");

    fn ranked(scores: &[f32], labels: &[u8]) -> Ranking {
        let mut samples = Samples::default();
        samples.push(scores, labels).unwrap();
        samples.rank().unwrap()
    }

    /// AUROC, AP and best F1 against scikit-learn's.
    fn check_against(file: &SafeTensors, name: &str, scores: &[f32], labels: &[u8]) {
        let expected: Vec<f64> =
            bytemuck::pod_collect_to_vec(file.tensor(&format!("rank.{name}.expected")).unwrap().data());
        let ranking = ranked(scores, labels);
        let Figures { auroc, average_precision, f1_max: best, .. } = ranking.figures().unwrap();
        let ours = [auroc, average_precision, best.value];
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

    #[test]
    fn agrees_with_the_definition_of_aupro() {
        let file = SafeTensors::deserialize(FIXTURE).unwrap();
        let mut cases = 0;
        for name in file.names().iter().filter_map(|name| name.strip_prefix("overlap.")?.strip_suffix(".maps")) {
            let read = |what: &str| file.tensor(&format!("overlap.{name}.{what}")).unwrap();
            let scores: Vec<f32> = bytemuck::pod_collect_to_vec(read("maps").data());
            let expected: Vec<f64> = bytemuck::pod_collect_to_vec(read("expected").data());
            let (height, width) = (read("maps").shape()[1], read("maps").shape()[2]);
            let mut samples = Samples::default();
            for (scores, mask) in scores.chunks(height * width).zip(read("masks").data().chunks(height * width)) {
                samples.push_map(scores, mask, width).unwrap();
            }
            let ranking = samples.rank().unwrap();
            let Figures { auroc, average_precision, f1_max, aupro } = ranking.figures().unwrap();
            let ours = [auroc, average_precision, f1_max.value, aupro, ranking.regions() as f64];
            assert_eq!(ours.len(), expected.len());
            for (ours, expected) in ours.iter().zip(&expected) {
                assert!((ours - expected).abs() <= 1e-12, "{name}: {ours} for {expected}");
            }
            cases += 1;
        }
        assert_eq!(cases, 9);
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
            assert_eq!((ranking.figures(), ranking.recall_at(0.1)), (None, None));
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
        assert!(matches!(auroc(&[1.0, 2.0], &[1]), Err(Error::Shape { op: "Samples::push", .. })));
        let mut samples = Samples::default();
        assert!(samples.push(&[1.0, f32::NAN], &[0, 1]).is_err());
        assert!(samples.push_good(&[f32::NAN]).is_err());
        assert!(samples.push_map(&[1.0, f32::NAN], &[1, 1], 2).is_err());
        let ranking = samples.rank().unwrap();
        assert_eq!((ranking.positives(), ranking.negatives()), (0, 0));
    }

    #[test]
    fn does_not_depend_on_threads_or_order() {
        let scores: Vec<f32> = (0..70_000_u32).map(|i| (i.wrapping_mul(40_503) % 9_973) as f32 * 0.37).collect();
        let labels: Vec<u8> = (0..70_000_u32).map(|i| u8::from(i % 3 == 0)).collect();
        let figures = |samples: Samples| {
            let Figures { auroc, average_precision, f1_max, aupro } = samples.rank().unwrap().figures().unwrap();
            [auroc, average_precision, f1_max.value, f1_max.threshold.into(), aupro].map(f64::to_bits)
        };
        let filled = |budget: usize, order: &mut dyn Iterator<Item = usize>| {
            let mut samples = Samples::with_budget(budget);
            for at in order {
                let (scores, labels) = (&scores[at * 10_000..][..10_000], &labels[at * 10_000..][..10_000]);
                samples.push_map(scores, labels, 100).unwrap();
            }
            samples
        };
        let whole = figures(filled(usize::MAX, &mut (0..7)));
        for threads in [1, 2, 5] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            for budget in [usize::MAX, 1, 60_000] {
                let ours = pool.install(|| figures(filled(budget, &mut (0..7).rev())));
                assert_eq!(ours, whole, "{threads} threads, {budget} bytes in memory");
            }
        }
    }

    #[test]
    fn recall_counts_ties_against_us() {
        let good: Vec<f32> = (0..200).map(|i| i as f32).collect();
        let recall = |defective: &[f32], rate: f64| {
            let mut samples = Samples::default();
            samples.push_good(&good).unwrap();
            samples.push(defective, &vec![1; defective.len()]).unwrap();
            samples.rank().unwrap().recall_at(rate).unwrap()
        };
        // Two of 200 good ones may go: 198 and 199. What ties with 197 would take it along.
        let defective = [500.0, 198.0, 197.5, 197.0, 12.0];
        assert_eq!(recall(&defective, 0.01), 0.6);
        assert_eq!(recall(&defective, 0.004), 0.2); // none of them
        assert_eq!(recall(&defective, 0.015), 0.8);
        assert_eq!((allowed(0.29, 100), allowed(0.07, 100), allowed(0.01, 99)), (29, 7, 0));
    }

    #[test]
    fn a_tie_is_a_slope_of_the_overlap_curve() {
        let aupro = |scores: &[f32], mask: &[u8]| {
            let mut samples = Samples::default();
            samples.push_map(scores, mask, scores.len()).unwrap();
            samples.rank().unwrap().figures().unwrap().aupro
        };
        // Ten good pixels, the limit is at 3. Everything equal: a line from (0, 0) to (10, 1).
        let mask = [1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        assert!((aupro(&[7.0; 12], &mask) - 0.15).abs() <= 1e-15);
        // Half of the region before every good pixel, half tied with the first two of them.
        let scores = [9.0, 5.0, 5.0, 5.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0];
        assert!((aupro(&scores, &mask) - (0.5 + 0.5 * 2.0 / 3.0)).abs() <= 1e-15);
        // Found only beyond the limit.
        let scores = [0.0, 0.0, 5.0, 5.0, 5.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0];
        assert_eq!(aupro(&scores, &mask), 0.0);
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
            let ranking = ranked(&scores, &labels);
            for step in Steps::new(&ranking.positives, &ranking.negatives, 0) {
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
