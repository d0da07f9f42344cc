//! Evaluation: every test picture scored, class by class, and measured against its mask.
//!
//! A class is scored, measured and forgotten before the next: memory holds the scores of one class, 4 bytes a pixel, and
//! beyond a budget not even those.

use std::collections::BTreeMap;

use crate::data::{Dataset, Item, load_mask_by};
use crate::detector::Detector;
use crate::error::Result;
use crate::metrics::{ClassScores, Metrics};
use crate::train::FeatureSource;

/// Pictures whose maps are held at a time.
const CHUNK: usize = 32;

/// Measures a detector on test pictures of `dataset`. `items[i]` has the features `features.get(i)`; `progress` is told
/// how many more pictures are done.
///
/// # Errors
/// [`crate::Error::Data`] when a mask cannot be read, what scoring refuses, and [`crate::Error::Io`] when scores beyond
/// the memory budget cannot be written to a temporary file.
pub fn evaluate(
    detector: &Detector,
    dataset: &Dataset,
    items: &[&Item],
    features: &dyn FeatureSource,
    progress: &dyn Fn(usize),
) -> Result<Metrics> {
    let protocol = &detector.info.protocol;
    let size = protocol.side(detector.info.image_size);
    let mut classes = BTreeMap::new();
    for (class, name) in dataset.classes.iter().enumerate() {
        let of_class: Vec<usize> = (0..items.len()).filter(|&i| items[i].class == class).collect();
        let mut scores = ClassScores::default();
        for chunk in of_class.chunks(CHUNK) {
            let inputs: Vec<&[f32]> = chunk.iter().map(|&i| features.get(i)).collect();
            for (scored, &i) in detector.score_features(&inputs)?.iter().zip(chunk) {
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
