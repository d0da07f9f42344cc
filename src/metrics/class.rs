//! One class: its pictures are collected one by one, then measured.

use super::ranking::Ranking;
use super::samples::{Samples, check};
use crate::Result;
use crate::score::Scored;
use serde::{Deserialize, Serialize};

/// The share of good pictures that may be rejected where recall is reported.
pub const FALSE_REJECT_RATE: f64 = 0.01;

/// Scores of one class, collected picture by picture in any order. Keeps 4 bytes per pixel, 8 per defective one, in a
/// fixed amount of memory: see [`Samples`].
#[derive(Debug, Default)]
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
    /// # Errors
    /// With nothing added: the mask is not as long as the map; a score is NaN or infinite; as [`Samples::push_map`].
    pub fn push(&mut self, scored: &Scored, mask: Option<&[u8]>, defective: bool) -> Result<()> {
        let seen = mask.map_or(defective, |mask| mask.iter().any(|&pixel| pixel != 0));
        check(&[scored.image_score])?;
        match mask {
            Some(mask) if seen => self.pixel.push_map(&scored.map, mask, scored.width)?,
            Some(mask) if mask.len() != scored.map.len() => self.pixel.push(&scored.map, mask)?, // says so
            _ if !seen => self.pixel.push_good(&scored.map)?,
            _ => self.unmasked += 1,
        }
        self.image.push(&[scored.image_score], &[u8::from(seen)])?;
        self.vanished += usize::from(seen != defective);
        Ok(())
    }

    /// Sorts and measures.
    ///
    /// # Errors
    /// As [`Samples::rank`].
    pub fn finish(self) -> Result<Measured> {
        let (image, pixel) = rayon::join(|| self.image.rank(), || self.pixel.rank());
        let (image, pixel) = (image?, pixel?);
        let (of_image, of_pixel) = rayon::join(|| image.figures(), || pixel.figures());
        let metrics = ClassMetrics {
            image_auroc: of_image.map(|f| f.auroc),
            pixel_auroc: of_pixel.map(|f| f.auroc),
            image_ap: of_image.map(|f| f.average_precision),
            pixel_ap: of_pixel.map(|f| f.average_precision),
            image_f1_max: of_image.map(|f| f.f1_max.value),
            pixel_f1_max: of_pixel.map(|f| f.f1_max.value),
            image_f1_threshold: of_image.map(|f| f64::from(f.f1_max.threshold)),
            image_recall: image.recall_at(FALSE_REJECT_RATE),
            pixel_aupro: of_pixel.map(|f| f.aupro),
            good: image.negatives(),
            defective: image.positives(),
            vanished: self.vanished,
            unmasked: self.unmasked,
            intervals: None,
        };
        Ok(Measured { metrics, image })
    }
}

/// A class with the scores of its pictures, from which intervals are drawn.
#[derive(Debug)]
pub struct Measured {
    /// The figures, without intervals.
    pub metrics: ClassMetrics,
    pub(super) image: Ranking,
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
    /// The threshold of that F1; what these very labels would have liked best.
    #[serde(default)]
    pub image_f1_threshold: Option<f64>,
    /// Share of defective pictures found where at most [`FALSE_REJECT_RATE`] of the good test pictures are rejected.
    #[serde(default)]
    pub image_recall: Option<f64>,
    /// Area under the per-region overlap up to a false-positive rate of 30 %, divided by that.
    #[serde(default)]
    pub pixel_aupro: Option<f64>,
    /// Pictures counted as good.
    pub good: usize,
    /// Pictures counted as defective.
    pub defective: usize,
    /// Pictures whose resized mask contradicts their manifest label; the mask decided.
    pub vanished: usize,
    /// Defective pictures without a mask, left out of the pixel figures.
    pub unmasked: usize,
    /// How far the picture figures may be off by the choice of test pictures; `None` where there are too few.
    #[serde(default)]
    pub intervals: Option<Intervals>,
}

/// 95 % intervals `[low, high]` of the figures of pictures, as fractions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Intervals {
    /// Of [`ClassMetrics::image_auroc`].
    pub image_auroc: [f64; 2],
    /// Of [`ClassMetrics::image_ap`].
    pub image_ap: [f64; 2],
    /// Of [`ClassMetrics::image_f1_max`].
    pub image_f1_max: [f64; 2],
    /// Of [`ClassMetrics::image_recall`].
    pub image_recall: [f64; 2],
}

/// One figure of a class.
pub(super) type Figure = fn(&ClassMetrics) -> Option<f64>;

/// The columns of the table: four of pictures, four of pixels.
pub(super) const FIGURES: [(&str, Figure); 8] = [
    ("AUROC", |c| c.image_auroc),
    ("AP", |c| c.image_ap),
    ("F1max", |c| c.image_f1_max),
    ("R@1%", |c| c.image_recall),
    ("AUROC", |c| c.pixel_auroc),
    ("AP", |c| c.pixel_ap),
    ("F1max", |c| c.pixel_f1_max),
    ("AUPRO", |c| c.pixel_aupro),
];

impl ClassMetrics {
    /// Every figure from the figures of others, without counts.
    pub(super) fn combine(of: impl Fn(Figure) -> Option<f64>) -> Self {
        let [image_auroc, image_ap, image_f1_max, image_recall, pixel_auroc, pixel_ap, pixel_f1_max, pixel_aupro] =
            FIGURES.map(|(_, figure)| of(figure));
        Self {
            image_auroc,
            pixel_auroc,
            image_ap,
            pixel_ap,
            image_f1_max,
            pixel_f1_max,
            image_recall,
            pixel_aupro,
            ..Self::default()
        }
    }

    pub(super) fn warnings(&self, class: &str) -> Vec<String> {
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
