//! What a model is worth: AUROC, AP and best F1 per class, for pictures and for pixels, and their unweighted means.
//!
//! Raw scores in, nothing scaled, clamped or flipped on the way. [`Samples`] -> [`Ranking`] is one sort that every
//! figure shares; [`ClassScores`] collects one class, [`Metrics`] is what `metrics.json` holds and the table prints.

mod radix;
mod ranking;

pub use ranking::{F1Max, Ranking, Samples, Step, auroc};

use crate::Result;
use crate::score::{Protocol, Scored};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Scores of one class, collected picture by picture in any order. Keeps 4 bytes per pixel.
#[derive(Debug, Clone, Default)]
pub struct ClassScores {
    image: Samples,
    pixel: Samples,
    vanished: usize,
    unmasked: usize,
}

impl ClassScores {
    /// Adds one picture: its score, its mask at the size of the map (0 good, else defective), its manifest label.
    ///
    /// With a mask, the picture counts as defective if the mask has a pixel, as the protocol says: a defect that
    /// vanished when the mask was made smaller counts as good, and is reported. Without a mask the manifest decides;
    /// a defective picture then tells nothing about pixels and is left out of the pixel figures, and reported.
    ///
    /// Errors, with nothing added: the mask is not as long as the map; a score is NaN or infinite.
    pub fn push(&mut self, scored: &Scored, mask: Option<&[u8]>, defective: bool) -> Result<()> {
        let seen = mask.map_or(defective, |mask| mask.iter().any(|&pixel| pixel != 0));
        let mut image = Samples::default();
        image.push_all(&[scored.image_score], seen)?;
        match mask {
            Some(mask) => self.pixel.push(&scored.map, mask)?,
            None if !defective => self.pixel.push_all(&scored.map, false)?,
            None => self.unmasked += 1,
        }
        self.image.append(image);
        self.vanished += usize::from(seen != defective);
        Ok(())
    }

    /// Sorts and measures.
    pub fn finish(self) -> ClassMetrics {
        let (image, pixel) = rayon::join(|| self.image.rank(), || self.pixel.rank());
        ClassMetrics {
            good: image.negatives(),
            defective: image.positives(),
            image_auroc: image.auroc(),
            image_ap: image.average_precision(),
            image_f1_max: image.f1_max().map(|best| best.value),
            pixel_auroc: pixel.auroc(),
            pixel_ap: pixel.average_precision(),
            pixel_f1_max: pixel.f1_max().map(|best| best.value),
            vanished: self.vanished,
            unmasked: self.unmasked,
        }
    }
}

/// Figures of one class, as fractions; `None` where good and defective do not both occur.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ClassMetrics {
    /// Area under the ROC of picture scores.
    pub image_auroc: Option<f64>,
    /// Area under the ROC of all pixels of all pictures.
    pub pixel_auroc: Option<f64>,
    /// Average precision of picture scores.
    pub image_ap: Option<f64>,
    /// Average precision of pixels.
    pub pixel_ap: Option<f64>,
    /// Best F1 of pictures over all thresholds: chosen on these labels, an oracle.
    pub image_f1_max: Option<f64>,
    /// Best F1 of pixels over all thresholds: chosen on these labels, an oracle.
    pub pixel_f1_max: Option<f64>,
    /// Pictures counted as good.
    pub good: usize,
    /// Pictures counted as defective.
    pub defective: usize,
    /// Pictures whose resized mask contradicts their manifest label; the mask decided.
    pub vanished: usize,
    /// Defective pictures without a mask, left out of the pixel figures.
    pub unmasked: usize,
}

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
    /// What a reader must know before trusting the numbers, one sentence each.
    pub warnings: Vec<String>,
}

impl Metrics {
    /// Puts the classes together.
    pub fn new(protocol: &Protocol, classes: BTreeMap<String, ClassMetrics>) -> Self {
        let mean = |figure: Figure| mean(classes.values().filter_map(figure));
        let total = |count: fn(&ClassMetrics) -> usize| classes.values().map(count).sum();
        let mean = ClassMetrics {
            image_auroc: mean(|c| c.image_auroc),
            pixel_auroc: mean(|c| c.pixel_auroc),
            image_ap: mean(|c| c.image_ap),
            pixel_ap: mean(|c| c.pixel_ap),
            image_f1_max: mean(|c| c.image_f1_max),
            pixel_f1_max: mean(|c| c.pixel_f1_max),
            good: total(|c| c.good),
            defective: total(|c| c.defective),
            vanished: total(|c| c.vanished),
            unmasked: total(|c| c.unmasked),
        };
        let warnings = classes.iter().flat_map(|(name, class)| class.warnings(name)).collect();
        Self { protocol: protocol.name.clone(), convention: protocol.describe(), classes, mean, warnings }
    }

    /// The figures in per cent as an aligned text table: one line per class, the mean, the worst class of each
    /// column; below it the warnings and what the columns mean.
    pub fn table(&self) -> String {
        let (mean, worst) = ("mean", "worst");
        let name_width = self.classes.keys().map(|name| name.chars().count()).max().unwrap_or(0).max(worst.len());
        let mut table = String::new();
        let mut line = |text: String| {
            table.push_str(text.trim_end());
            table.push('\n');
        };
        let cells = |cells: [String; 6]| cells.map(|cell| format!("{cell:>7}")).concat();
        let figures = |of: &dyn Fn(Figure) -> Option<f64>| {
            cells(FIGURES.map(|(_, figure)| of(figure).map_or("-".into(), |x| format!("{:.2}", 100.0 * x))))
        };
        let rule = "-".repeat(name_width + 17 + 6 * 7);

        line(format!("{:name_width$}  {:>4}  {:>9}  {:^19}  {:^19}", "", "", "", "image %", "pixel %"));
        let heads = cells(FIGURES.map(|(head, _)| head.into()));
        line(format!("{:name_width$}  {:>4}  {:>9}{heads}", "class", "good", "defective"));
        line(rule.clone());
        for (name, class) in &self.classes {
            let row = figures(&|figure| figure(class));
            line(format!("{name:name_width$}  {:>4}  {:>9}{row}", class.good, class.defective));
        }
        line(rule);
        let row = figures(&|figure| figure(&self.mean));
        line(format!("{mean:name_width$}  {:>4}  {:>9}{row}", self.mean.good, self.mean.defective));
        let row = figures(&|figure| self.classes.values().filter_map(figure).reduce(f64::min));
        line(format!("{worst:name_width$}  {:>4}  {:>9}{row}", "", ""));
        line(format!("protocol {}", self.convention));
        line("F1max: at the threshold that is best for these very labels, an oracle; worst: of each column".into());
        self.warnings.iter().for_each(|warning| line(format!("warning: {warning}")));
        table
    }
}

/// One figure of a class.
type Figure = fn(&ClassMetrics) -> Option<f64>;

/// The columns of the table.
const FIGURES: [(&str, Figure); 6] = [
    ("AUROC", |c| c.image_auroc),
    ("AP", |c| c.image_ap),
    ("F1max", |c| c.image_f1_max),
    ("AUROC", |c| c.pixel_auroc),
    ("AP", |c| c.pixel_ap),
    ("F1max", |c| c.pixel_f1_max),
];

impl ClassMetrics {
    fn warnings(&self, class: &str) -> Vec<String> {
        let mut warnings = Vec::new();
        for (what, auroc) in [("image", self.image_auroc), ("pixel", self.pixel_auroc)] {
            match auroc {
                Some(auroc) if auroc < 0.5 => warnings.push(format!(
                    "{class}: {what} AUROC is {auroc:.4}, below 0.5: scores may be inverted; it is reported as it is"
                )),
                Some(_) => {}
                None => {
                    let missing = match (self.good, self.defective) {
                        (0, 0) => "no picture was scored",
                        (_, 0) => "there is no defective picture",
                        (0, _) if what == "image" => "there is no good picture",
                        _ if self.unmasked == self.defective => "no defective picture has a mask",
                        _ => "every pixel has the same label",
                    };
                    warnings.push(format!("{class}: {what} AUROC is undefined: {missing}"));
                }
            }
        }
        if self.vanished > 0 {
            let n = self.vanished;
            warnings.push(format!("{class}: {n} picture(s) counted by their resized mask, against their label"));
        }
        if self.unmasked > 0 {
            let n = self.unmasked;
            warnings.push(format!("{class}: {n} defective picture(s) without a mask are not in the pixel figures"));
        }
        warnings
    }
}

fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (sum, n) = values.fold((0.0, 0), |(sum, n), value| (sum + value, n + 1));
    (n > 0).then(|| sum / f64::from(n))
}

#[cfg(test)]
mod tests {
    use super::*;

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
        scores.finish()
    }

    fn metrics(classes: &[(&str, ClassMetrics)]) -> Metrics {
        let classes = classes.iter().map(|(name, class)| (name.to_string(), class.clone())).collect();
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
        let metrics = scores.finish();
        assert_eq!((metrics.good, metrics.defective, metrics.pixel_auroc), (1, 1, Some(1.0)));
    }

    fn example() -> Metrics {
        let bottle = ClassMetrics {
            image_auroc: Some(0.99125),
            pixel_auroc: Some(0.975),
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
    fn the_table_is_aligned() {
        let table = example().table();
        let expected = "
                                    image %              pixel %
class        good  defective  AUROC     AP  F1max  AUROC     AP  F1max
----------------------------------------------------------------------
bottle         20         63  99.12      -      -  97.50      -      -
capsule         3          9  25.00      -      -      -      -      -
metal_plate     4          0      -      -      -      -      -      -
----------------------------------------------------------------------
mean           27         72  62.06      -      -  97.50      -      -
worst                         25.00      -      -  97.50      -      -
";
        assert!(table.starts_with(&expected[1..]), "{table}");
        assert_eq!(table.lines().filter(|line| line.starts_with("warning: ")).count(), 4);
    }
}
