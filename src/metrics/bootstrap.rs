//! How far the figures of pictures may be off by the choice of test pictures: percentile bootstrap, stratified.
//!
//! For each of 1000 replicates every class draws as many good pictures from its good ones, and as many defective from its
//! defective ones, with replacement; every figure is worked out again. The interval is from the 26th smallest to the 26th
//! largest value: 950 of 1000 lie in it. The mean over classes has its own value in every replicate, and so its own
//! interval. Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13.
//!
//! A class draws from a generator seeded by its name, a replicate from a stream of its own: neither the other classes nor
//! the number of threads matter.

use super::class::{FALSE_REJECT_RATE, Intervals};
use super::ranking::{Ranking, allowed};
use crate::rng::Rng;
use rayon::prelude::*;
use std::ops::Range;

const REPLICATES: usize = 1000;
/// Values cut off at either end: 2.5 %.
const TAIL: usize = REPLICATES / 40;
/// With fewer good or fewer defective pictures an interval would be fiction.
const FEWEST: usize = 5;

/// AUROC, AP, best F1, recall.
type Values = [f64; 4];

/// What was done, for the reader of the numbers.
pub(super) fn method() -> String {
    format!(
        "percentile bootstrap, {REPLICATES} replicates, pictures drawn within good and within defective of each class; it \
         says how far a figure depends on which pictures were tested, not on training; too narrow where pictures are few, \
         not given below {FEWEST} good or {FEWEST} defective; a figure of 100 has an interval of no width, which is not \
         certainty"
    )
}

/// The intervals of every class, in order, and of their mean.
pub(super) fn intervals<'a>(
    classes: impl Iterator<Item = (&'a str, &'a Ranking)>,
) -> (Vec<Option<Intervals>>, Option<Intervals>) {
    let classes: Vec<_> = classes.collect();
    let replicates: Vec<_> = classes.iter().map(|(name, ranking)| replicates(name, ranking)).collect();
    let known: Vec<&Vec<Values>> = replicates.iter().flatten().collect();
    // The mean is over the classes that have figures; an interval over fewer of them would not be about that mean.
    let in_mean = classes.iter().filter(|(_, ranking)| ranking.positives().min(ranking.negatives()) > 0).count();
    let mean = (!known.is_empty() && known.len() == in_mean).then(|| {
        let mean = |i: usize, figure: usize| known.iter().map(|c| c[i][figure]).sum::<f64>() / known.len() as f64;
        percentiles(&(0..REPLICATES).map(|i| std::array::from_fn(|figure| mean(i, figure))).collect::<Vec<_>>())
    });
    (replicates.iter().map(|values| values.as_deref().map(percentiles)).collect(), mean)
}

fn percentiles(values: &[Values]) -> Intervals {
    let interval = |figure: usize| {
        let mut sorted: Vec<f64> = values.iter().map(|values| values[figure]).collect();
        sorted.sort_by(f64::total_cmp);
        [sorted[TAIL], sorted[REPLICATES - 1 - TAIL]]
    };
    Intervals { image_auroc: interval(0), image_ap: interval(1), image_f1_max: interval(2), image_recall: interval(3) }
}

/// The figures of every replicate of a class; `None` where pictures are too few.
fn replicates(name: &str, ranking: &Ranking) -> Option<Vec<Values>> {
    let (positives, negatives) = ranking.scores();
    if positives.len().min(negatives.len()) < FEWEST {
        return None;
    }
    let groups = groups(&positives, &negatives);
    let seed = u64::from_le_bytes(*blake3::hash(name.as_bytes()).as_bytes().first_chunk()?);
    let one = |stream: usize| {
        let mut rng = Rng::new(seed, stream as u64);
        let mut draw = |n: usize| {
            let mut times = vec![0_u32; n];
            (0..n).for_each(|_| times[rng.below(n)] += 1);
            times
        };
        let (good, defective) = (draw(negatives.len()), draw(positives.len()));
        measure(&groups, &defective, &good)
    };
    Some((0..REPLICATES).into_par_iter().map(one).collect())
}

/// Pictures of one score: which positives and which negatives.
struct Group {
    positives: Range<usize>,
    negatives: Range<usize>,
}

/// The distinct scores of two ascending lists, from the highest down.
fn groups(positives: &[f32], negatives: &[f32]) -> Vec<Group> {
    let (mut p, mut n) = (positives.len(), negatives.len());
    let mut groups = Vec::new();
    while p > 0 || n > 0 {
        let (positives, negatives) = (&positives[..p], &negatives[..n]);
        let score = [positives.last(), negatives.last()].into_iter().flatten().copied().fold(f32::MIN, f32::max);
        let below = |scores: &[f32]| scores.partition_point(|&x| x < score);
        groups.push(Group { positives: below(positives)..p, negatives: below(negatives)..n });
        (p, n) = (below(positives), below(negatives));
    }
    groups
}

/// The figures when positive `i` occurs `positives[i]` times and negative `j` `negatives[j]` times; as
/// [`Ranking::figures`] and [`Ranking::recall_at`] where everything occurs once.
fn measure(groups: &[Group], positives: &[u32], negatives: &[u32]) -> Values {
    let (total_p, total_n) = (positives.len() as u64, negatives.len() as u64);
    let most = allowed(FALSE_REJECT_RATE, negatives.len()) as u64;
    let (mut tp, mut fp, mut wins, mut found) = (0, 0, 0, 0);
    let (mut precision, mut best) = (0.0, 0.0_f64);
    for group in groups {
        let sum = |times: &[u32]| times.iter().map(|&times| u64::from(times)).sum::<u64>();
        let (p, n) = (sum(&positives[group.positives.clone()]), sum(&negatives[group.negatives.clone()]));
        (tp, fp) = (tp + p, fp + n);
        wins += p * (2 * (total_n - fp) + n);
        if p > 0 {
            precision += p as f64 * (tp as f64 / (tp + fp) as f64);
            best = best.max((2 * tp) as f64 / (tp + fp + total_p) as f64);
        }
        if fp <= most {
            found = tp;
        }
    }
    let total = total_p as f64;
    [wins as f64 / (2 * total_p * total_n) as f64, precision / total, best, found as f64 / total]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Samples;

    fn ranking(good: &[f32], defective: &[f32]) -> Ranking {
        let mut samples = Samples::default();
        samples.push_good(good).unwrap();
        samples.push(defective, &vec![1; defective.len()]).unwrap();
        samples.rank().unwrap()
    }

    fn normal(n: usize, mean: f32, stream: u64) -> Vec<f32> {
        let mut rng = Rng::new(11, stream);
        // Steps of a tenth: ties.
        (0..n).map(|_| ((rng.normal() + mean) * 10.0).round() / 10.0).collect()
    }

    #[test]
    fn every_picture_once_gives_the_figures_themselves() {
        for (good, defective) in [(120, 90), (300, 40), (7, 9)] {
            let ranking = ranking(&normal(good, 0.0, 1), &normal(defective, 1.0, 2));
            let (positives, negatives) = ranking.scores();
            let ours = measure(&groups(&positives, &negatives), &vec![1; defective], &vec![1; good]);
            let figures = ranking.figures().unwrap();
            let recall = ranking.recall_at(FALSE_REJECT_RATE).unwrap();
            let expected = [figures.auroc, figures.average_precision, figures.f1_max.value, recall];
            for (ours, expected) in ours.iter().zip(expected) {
                assert!((ours - expected).abs() <= 1e-14, "{ours} for {expected}");
            }
        }
    }

    /// The interval against the standard error of AUROC after Hanley and McNeil (Radiology 143, 1982).
    #[test]
    fn the_width_is_that_of_the_standard_error() {
        let (good, defective) = (200, 150);
        let ranking = ranking(&normal(good, 0.0, 3), &normal(defective, 1.0, 4));
        let auroc = ranking.figures().unwrap().auroc;
        let (q1, q2) = (auroc / (2.0 - auroc), 2.0 * auroc * auroc / (1.0 + auroc));
        let variance = auroc * (1.0 - auroc)
            + (defective - 1) as f64 * (q1 - auroc * auroc)
            + (good - 1) as f64 * (q2 - auroc * auroc);
        let error = (variance / (good * defective) as f64).sqrt();
        let [low, high] = intervals([("a", &ranking)].into_iter()).0[0].as_ref().unwrap().image_auroc;
        assert!(low < auroc && auroc < high);
        let ratio = (high - low) / (2.0 * 1.96 * error);
        assert!((ratio - 1.0).abs() <= 0.2, "{ratio}");
    }

    #[test]
    fn depends_on_neither_threads_nor_other_classes() {
        let (a, b) =
            (ranking(&normal(30, 0.0, 5), &normal(30, 1.0, 6)), ranking(&normal(20, 0.0, 7), &normal(50, 2.0, 8)));
        let both = || intervals([("a", &a), ("b", &b)].into_iter());
        let (classes, mean) = both();
        let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        assert_eq!(pool.install(both), (classes.clone(), mean.clone()));
        let (alone, its_mean) = intervals([("b", &b)].into_iter());
        assert_eq!((&alone[0], &its_mean), (&classes[1], &classes[1]));
        let width =
            |intervals: &Option<Intervals>| intervals.as_ref().map(|i| i.image_auroc[1] - i.image_auroc[0]).unwrap();
        assert!(width(&mean) < width(&classes[0]));
    }

    #[test]
    fn few_pictures_have_no_interval() {
        let few = ranking(&normal(4, 0.0, 5), &normal(30, 1.0, 6));
        let enough = ranking(&normal(5, 0.0, 5), &normal(5, 1.0, 6));
        let (classes, mean) = intervals([("few", &few), ("enough", &enough)].into_iter());
        assert!(classes[0].is_none() && classes[1].is_some() && mean.is_none());
        assert_eq!(intervals(std::iter::empty()), (vec![], None));
    }
}
