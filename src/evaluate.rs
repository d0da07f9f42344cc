//! Evaluation: every test picture scored, class by class, and measured against its mask.
//!
//! A class is scored, measured and forgotten before the next: memory holds the scores of one class, 4 bytes a pixel, and
//! beyond a budget not even those.

use std::collections::BTreeMap;

use crate::data::{Dataset, Item, load_mask_by};
use crate::detector::Detector;
use crate::error::Result;
use crate::metrics::{ClassScores, Metrics};
use crate::score::{Protocol, Scored};
use crate::train::FeatureSource;

/// Pictures whose maps are held at a time.
const CHUNK: usize = 32;

/// What makes scores of features: a trained model, or a baseline.
pub trait Scorer {
    /// How its maps become scores.
    fn protocol(&self) -> &Protocol;
    /// Side in pixels of the prepared pictures.
    fn image_size(&self) -> usize;
    /// Scores features, each `[height, width, channels]`, in order.
    ///
    /// # Errors
    /// [`crate::Error::Shape`] when they are not of its size, and what a device refuses.
    fn score_features(&self, features: &[&[f32]]) -> Result<Vec<Scored>>;
}

impl Scorer for Detector {
    fn protocol(&self) -> &Protocol {
        &self.info.protocol
    }

    fn image_size(&self) -> usize {
        self.info.image_size
    }

    fn score_features(&self, features: &[&[f32]]) -> Result<Vec<Scored>> {
        self.score_features(features)
    }
}

/// Measures a scorer on test pictures of `dataset`. `items[i]` has the features `features.get(i)`; `progress` is told
/// how many more pictures are done.
///
/// # Errors
/// [`crate::Error::Data`] when a mask cannot be read, what scoring refuses, and [`crate::Error::Io`] when scores beyond
/// the memory budget cannot be written to a temporary file.
pub fn evaluate(
    scorer: &dyn Scorer,
    dataset: &Dataset,
    items: &[&Item],
    features: &dyn FeatureSource,
    progress: &dyn Fn(usize),
) -> Result<Metrics> {
    let protocol = scorer.protocol();
    let size = protocol.side(scorer.image_size());
    let mut classes = BTreeMap::new();
    for (class, name) in dataset.classes.iter().enumerate() {
        let of_class: Vec<usize> = (0..items.len()).filter(|&i| items[i].class == class).collect();
        let mut scores = ClassScores::default();
        for chunk in of_class.chunks(CHUNK) {
            let inputs: Vec<&[f32]> = chunk.iter().map(|&i| features.get(i)).collect();
            for (scored, &i) in scorer.score_features(&inputs)?.iter().zip(chunk) {
                let item = items[i];
                // A defect whose place nobody marked says nothing about pixels.
                let known = !item.masks.is_empty() || item.label.is_good();
                let mask = known.then(|| load_mask_by(item, size, protocol.mask)).transpose()?;
                scores.push(scored, mask.as_deref(), !item.label.is_good())?;
            }
            progress(chunk.len());
        }
        classes.insert(name.clone(), scores.finish()?);
    }
    Ok(Metrics::new(protocol, classes))
}
