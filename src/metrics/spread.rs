//! Several runs that differ in nothing but their seed: mean and sample standard deviation of every figure.
//!
//! std = sqrt(sum (x_i - mean)^2 / (n - 1)). The deviation of the mean over classes is that of the runs' means; the mean
//! of the classes' deviations, which publications also print, is larger and stands beside it.

use super::class::{ClassMetrics, Figure};
use super::{Metrics, mean};
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Figures of one class, or of the mean over classes, over several runs; the counts are those of the first.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ClassSpread {
    /// Mean over the runs; `None` where a run does not have the figure.
    pub mean: ClassMetrics,
    /// Sample standard deviation over the runs; `None` also for a single run.
    pub std: ClassMetrics,
}

/// What several runs say together.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// How many runs.
    pub runs: usize,
    /// Name of the scoring protocol.
    pub protocol: String,
    /// What the protocol does, in words.
    pub convention: String,
    /// By name of the class.
    pub classes: BTreeMap<String, ClassSpread>,
    /// Of the runs' means over classes.
    pub mean: ClassSpread,
    /// Unweighted mean over classes of their standard deviations.
    pub mean_of_std: ClassMetrics,
}

impl Spread {
    /// Puts the metrics of runs together.
    ///
    /// # Errors
    /// [`Error::Config`] when there is none, or they were not measured on the same classes by the same protocol.
    pub fn of(runs: &[Metrics]) -> Result<Self> {
        let Some(first) = runs.first() else {
            return Err(Error::config("there is no run to take a mean of", "measure at least one"));
        };
        let same = |run: &Metrics| run.convention == first.convention && run.classes.keys().eq(first.classes.keys());
        if let Some(at) = runs.iter().position(|run| !same(run)) {
            return Err(Error::config(
                format!("run {} was measured on other classes or by another protocol than run 1", at + 1),
                "measure all of them the same way",
            ));
        }
        let of = |class: &dyn Fn(&Metrics) -> Option<ClassMetrics>| {
            ClassSpread::of(&runs.iter().filter_map(class).collect::<Vec<_>>())
        };
        let classes: BTreeMap<_, _> =
            first.classes.keys().map(|name| (name.clone(), of(&|run| run.classes.get(name).cloned()))).collect();
        Ok(Spread {
            runs: runs.len(),
            protocol: first.protocol.clone(),
            convention: first.convention.clone(),
            mean: of(&|run| Some(run.mean.clone())),
            mean_of_std: ClassMetrics::combine(|figure: Figure| mean(classes.values().filter_map(|c| figure(&c.std)))),
            classes,
        })
    }
}

impl ClassSpread {
    fn of(runs: &[ClassMetrics]) -> Self {
        let values = |figure: Figure| runs.iter().map(figure).collect::<Option<Vec<f64>>>();
        let average = |values: &[f64]| mean(values.iter().copied());
        let deviation = |values: &[f64]| {
            let average = average(values)?;
            let squares = values.iter().map(|x| (x - average) * (x - average)).sum::<f64>();
            (values.len() > 1).then(|| (squares / (values.len() - 1) as f64).sqrt())
        };
        let counts = |of: ClassMetrics| match runs.first() {
            Some(&ClassMetrics { good, defective, vanished, unmasked, .. }) => {
                ClassMetrics { good, defective, vanished, unmasked, ..of }
            }
            None => of,
        };
        ClassSpread {
            mean: counts(ClassMetrics::combine(|figure| average(&values(figure)?))),
            std: counts(ClassMetrics::combine(|figure| deviation(&values(figure)?))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::score::Protocol;

    fn run(brick: f64, wood: Option<f64>) -> Metrics {
        let class = |image_auroc| ClassMetrics { image_auroc, good: 12, defective: 18, ..ClassMetrics::default() };
        let mut run = Metrics::new(&Protocol::official(), BTreeMap::new());
        run.classes = [("brick".to_string(), class(Some(brick))), ("wood".to_string(), class(wood))].into();
        run.mean = class(mean([Some(brick), wood].into_iter().flatten()));
        run
    }

    #[test]
    fn mean_and_sample_deviation() {
        let spread = Spread::of(&[run(0.75, Some(0.5)), run(0.5, Some(0.75)), run(1.0, Some(1.0))]).unwrap();
        let brick = &spread.classes["brick"];
        assert_eq!((brick.mean.image_auroc, brick.std.image_auroc), (Some(0.75), Some(0.25)));
        assert_eq!((brick.mean.good, brick.mean.pixel_auroc, brick.std.pixel_auroc), (12, None, None));
        // Means of the runs: 0.625, 0.625, 1: deviations -1/8, -1/8, 1/4.
        assert_eq!(
            (spread.mean.mean.image_auroc, spread.mean.std.image_auroc),
            (Some(0.75), Some(0.046_875_f64.sqrt()))
        );
        assert_eq!(spread.mean_of_std.image_auroc, Some(0.25));
        let table = spread.table();
        assert!(table.contains("brick    75.00 ± 25.00"), "{table}");
        assert!(table.lines().all(|line| line.chars().count() <= 80), "{table}");
    }

    #[test]
    fn one_run_has_no_deviation_and_an_undefined_figure_no_mean() {
        let spread = Spread::of(&[run(0.75, None)]).unwrap();
        assert_eq!(spread.classes["brick"].std.image_auroc, None);
        assert_eq!(spread.classes["wood"].mean.image_auroc, None);
        let mixed = Spread::of(&[run(0.75, None), run(0.75, Some(1.0))]).unwrap();
        assert_eq!(mixed.classes["wood"].mean.image_auroc, None);
    }

    #[test]
    fn refuses_what_cannot_be_compared() {
        assert!(matches!(Spread::of(&[]), Err(Error::Config { .. })));
        let mut other = run(0.5, None);
        other.convention.push('x');
        assert!(Spread::of(&[run(0.5, None), other]).is_err());
        let mut fewer = run(0.5, None);
        fewer.classes.remove("wood");
        assert!(Spread::of(&[run(0.5, None), fewer]).unwrap_err().to_string().contains("run 2"));
    }
}
