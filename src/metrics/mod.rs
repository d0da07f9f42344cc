//! What a model is worth: AUROC, AP, best F1, recall and AUPRO per class, for pictures and for pixels, and their
//! unweighted means.
//!
//! ```text
//! map, mask -> Samples -> Ranking: one sort per class -> Figures: one walk -> ClassMetrics -> Metrics -> table, JSON
//! ```
//! Raw scores in, nothing scaled, clamped or flipped on the way. [`ClassScores`] collects one class, [`Metrics`] is what
//! `metrics.json` holds and the table prints; [`Spread`] is about several runs that differ in their seed.

mod bootstrap;
mod class;
mod pile;
mod radix;
mod ranking;
mod samples;
mod spread;
pub(crate) mod table;

pub use class::{ClassMetrics, ClassScores, FALSE_REJECT_RATE, Intervals, Measured};
pub use ranking::{F1Max, FPR_LIMIT, Figures, Ranking, auroc};
pub use samples::Samples;
pub use spread::{ClassSpread, Spread};

use crate::score::Protocol;
use class::Figure;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Everything `metrics.json` says about one evaluation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Metrics {
    /// Name of the scoring protocol.
    pub protocol: String,
    /// What the protocol does, in words: numbers of different protocols must not be compared.
    pub convention: String,
    /// Figures per class, by name.
    pub classes: BTreeMap<String, ClassMetrics>,
    /// Unweighted mean of each figure over the classes where it is defined; the counts are totals.
    pub mean: ClassMetrics,
    /// How the intervals were made, in words.
    #[serde(default)]
    pub interval_method: String,
    /// What a reader must know before trusting the numbers, one sentence each.
    pub warnings: Vec<String>,
}

impl Metrics {
    /// Puts the classes together and draws the intervals.
    pub fn new(protocol: &Protocol, measured: BTreeMap<String, Measured>) -> Self {
        let rankings = measured.iter().map(|(name, class)| (&name[..], &class.image));
        let (of_classes, of_mean) = bootstrap::intervals(rankings);
        let with_intervals = measured.into_iter().zip(of_classes);
        let classes: BTreeMap<_, _> = with_intervals
            .map(|((name, class), intervals)| (name, ClassMetrics { intervals, ..class.metrics }))
            .collect();
        Self::of_classes(protocol.name.clone(), protocol.describe(), classes, of_mean)
    }

    /// One table of what several models measured, each on classes of its own, by the same protocol; `None` without any.
    /// The mean has no interval: that would take the scores.
    pub fn joined(parts: Vec<Metrics>) -> Option<Self> {
        let Metrics { protocol, convention, .. } = parts.first()?;
        let (protocol, convention) = (protocol.clone(), convention.clone());
        let classes = parts.into_iter().flat_map(|part| part.classes).collect();
        Some(Self::of_classes(protocol, convention, classes, None))
    }

    fn of_classes(
        protocol: String,
        convention: String,
        classes: BTreeMap<String, ClassMetrics>,
        intervals: Option<Intervals>,
    ) -> Self {
        let total = |count: fn(&ClassMetrics) -> usize| classes.values().map(count).sum();
        let mean = ClassMetrics {
            good: total(|c| c.good),
            defective: total(|c| c.defective),
            vanished: total(|c| c.vanished),
            unmasked: total(|c| c.unmasked),
            intervals,
            ..ClassMetrics::combine(|figure: Figure| mean(classes.values().filter_map(figure)))
        };
        let warnings = classes.iter().flat_map(|(name, class)| class.warnings(name)).collect();
        Self { protocol, convention, interval_method: bootstrap::method(), warnings, classes, mean }
    }
}

fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (sum, n) = values.fold((0.0, 0), |(sum, n), value| (sum + value, n + 1));
    (n > 0).then(|| sum / f64::from(n))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::score::Scored;

    /// A picture whose map holds `map` and whose score is its largest value.
    fn scored(map: &[f32]) -> Scored {
        let image_score = map.iter().copied().fold(f32::MIN, f32::max);
        Scored { map: map.to_vec(), height: 1, width: map.len(), image_score }
    }

    /// Map, mask, label.
    type Picture<'a> = (&'a [f32], Option<&'a [u8]>, bool);

    fn class(pictures: &[Picture]) -> ClassMetrics {
        let mut scores = ClassScores::default();
        for &(map, mask, defective) in pictures {
            scores.push(&scored(map), mask, defective).unwrap();
        }
        scores.finish().unwrap().metrics
    }

    fn metrics(classes: &[(&str, ClassMetrics)]) -> Metrics {
        let measured =
            |metrics: &ClassMetrics| Measured { metrics: metrics.clone(), image: Samples::default().rank().unwrap() };
        let classes = classes.iter().map(|(name, class)| (name.to_string(), measured(class))).collect();
        Metrics::new(&Protocol::official(), classes)
    }

    #[test]
    fn measures_pictures_and_pixels() {
        let cable = class(&[
            (&[0.1, 0.2, 0.5], None, false),
            (&[0.3, 0.2, 0.1], Some(&[0, 0, 0]), false),
            (&[0.4, 0.1, 0.1], Some(&[1, 0, 0]), true),
            (&[0.1, 0.9, 0.2], Some(&[0, 7, 1]), true),
        ]);
        // Pictures: 0.4 and 0.9 against 0.5 and 0.3. Pixels: 0.4, 0.9, 0.2 against nine good ones, two of them 0.2.
        assert_eq!((cable.good, cable.defective, cable.vanished, cable.unmasked), (2, 2, 0, 0));
        assert_eq!(cable.image_auroc, Some(0.75));
        assert_eq!(cable.pixel_auroc, Some((8.0 + 9.0 + 6.0) / 27.0));
        assert_eq!(cable.image_f1_max, Some(0.8));
    }

    #[test]
    fn the_mask_decides_and_its_absence_is_reported() {
        let tile = class(&[
            (&[0.1, 0.2], None, false),
            (&[0.3, 0.2], Some(&[0, 0]), true), // its defect vanished
            (&[0.4, 0.9], None, true),          // its defect was never drawn
        ]);
        assert_eq!((tile.good, tile.defective, tile.vanished, tile.unmasked), (2, 1, 1, 1));
        assert_eq!((tile.image_auroc, tile.pixel_auroc), (Some(1.0), None));
        let warnings = metrics(&[("tile", tile)]).warnings.join("\n");
        for part in ["no defective picture has a mask", "counted by their resized mask", "without a mask"] {
            assert!(warnings.contains(part), "{warnings}");
        }
    }

    #[test]
    fn a_refused_picture_changes_nothing() {
        let mut scores = ClassScores::default();
        scores.push(&scored(&[0.1, 0.2]), None, false).unwrap();
        assert!(scores.push(&scored(&[0.3, 0.1]), Some(&[1]), true).is_err());
        assert!(scores.push(&scored(&[0.3, f32::NAN]), Some(&[0, 1]), true).is_err());
        let nan = Scored { image_score: f32::NAN, ..scored(&[0.1, 0.2]) };
        assert!(scores.push(&nan, Some(&[0, 1]), true).is_err());
        scores.push(&scored(&[0.1, 0.4]), Some(&[0, 1]), true).unwrap();
        let metrics = scores.finish().unwrap().metrics;
        assert_eq!((metrics.good, metrics.defective, metrics.pixel_auroc), (1, 1, Some(1.0)));
    }

    pub(super) fn example() -> Metrics {
        let bottle = ClassMetrics {
            image_auroc: Some(0.99125),
            pixel_auroc: Some(0.975),
            image_recall: Some(0.873),
            pixel_aupro: Some(0.9125),
            good: 20,
            defective: 63,
            ..ClassMetrics::default()
        };
        let capsule = ClassMetrics { image_auroc: Some(0.25), good: 3, defective: 9, ..ClassMetrics::default() };
        let new = ClassMetrics { good: 4, ..ClassMetrics::default() };
        metrics(&[("capsule", capsule), ("metal_plate", new), ("bottle", bottle)])
    }

    #[test]
    fn means_are_over_the_classes_where_defined() {
        let mean = example().mean;
        assert_eq!((mean.image_auroc, mean.pixel_auroc, mean.image_ap), (Some(0.620625), Some(0.975), None));
        assert_eq!((mean.good, mean.defective), (27, 72));
        assert_eq!(metrics(&[]).mean, ClassMetrics::default());
    }

    #[test]
    fn models_of_single_classes_make_one_table() {
        let whole = example();
        let parts = whole.classes.iter().map(|(name, class)| metrics(&[(name, class.clone())])).collect();
        assert_eq!(Metrics::joined(parts), Some(whole));
        assert_eq!(Metrics::joined(vec![]), None);
    }

    #[test]
    fn warns_when_inverted_or_undefined() {
        let warnings = example().warnings;
        assert!(warnings[0].starts_with("capsule: image AUROC is 0.2500, below 0.5: scores may be inverted"));
        assert_eq!(warnings[1], "capsule: pixel AUROC is undefined: every pixel has the same label");
        assert_eq!(warnings[2], "metal_plate: image AUROC is undefined: there is no defective picture");
        assert_eq!(warnings[3], "metal_plate: pixel AUROC is undefined: there is no defective picture");
        assert_eq!(warnings.len(), 4);
    }

    #[test]
    fn json_has_the_promised_form_and_comes_back() {
        let metrics = example();
        let json = serde_json::to_value(&metrics).unwrap();
        assert_eq!(json["protocol"], "official");
        assert_eq!(json["classes"]["bottle"]["image_auroc"], 0.99125);
        assert_eq!(json["classes"]["capsule"]["pixel_auroc"], serde_json::Value::Null);
        assert_eq!(json["mean"]["pixel_auroc"], 0.975);
        assert_eq!(serde_json::from_value::<Metrics>(json).unwrap(), metrics);
    }

    #[test]
    fn a_file_from_before_recall_and_intervals_is_read() {
        let class = r#"{"image_auroc":0.5,"pixel_auroc":null,"image_ap":0.5,"pixel_ap":null,"image_f1_max":0.5,
            "pixel_f1_max":null,"good":1,"defective":2,"vanished":0,"unmasked":0}"#;
        let text = format!(
            r#"{{"protocol":"official","convention":"official: ...","classes":{{"a":{class}}},"mean":{class},"warnings":[]}}"#
        );
        let metrics: Metrics = serde_json::from_str(&text).unwrap();
        assert_eq!(metrics.classes["a"].image_auroc, Some(0.5));
        assert_eq!((metrics.mean.pixel_aupro, metrics.mean.image_recall, metrics.mean.intervals), (None, None, None));
    }
}
