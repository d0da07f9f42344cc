//! The best epoch on the test pictures: published numbers are often of it, and no user will ever have it, because choosing
//! it takes the answers. Kept apart from the model, under its own name.

use std::io::Write;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::atomic::write_atomic;
use crate::checkpoint::save_model;
use crate::detector::Detector;
use crate::error::{Error, Result};
use crate::metrics::Metrics;
use crate::run_folder::RunFolder;

/// What an epoch was worth on the test pictures.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// Counted from 1.
    pub epoch: usize,
    /// Mean over the classes.
    pub image_auroc: Option<f64>,
    /// Mean over the classes.
    pub pixel_auroc: Option<f64>,
}

/// The best epoch so far.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Best {
    /// Counted from 1.
    pub epoch: usize,
    /// All its figures.
    pub metrics: Metrics,
}

/// `oracle.json`: every epoch that was measured, and the best of them by mean image AUROC.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Oracle {
    /// In order.
    pub measured: Vec<Measured>,
    /// The first of the best.
    pub best: Option<Best>,
}

impl Oracle {
    /// What a run measured up to an epoch; later ones are about to be measured again.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn open(run: &RunFolder, epochs: usize) -> Result<Self> {
        let mut oracle = Self::read(&run.oracle_json())?;
        oracle.measured.retain(|m| m.epoch <= epochs);
        Ok(oracle)
    }

    /// Reads `oracle.json`; nothing was measured where there is none.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Data`] when the file is damaged.
    pub fn read(path: &Path) -> Result<Self> {
        let text = match std::fs::read_to_string(path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Oracle::default()),
            read => read.map_err(|e| Error::io("read", path, &e))?,
        };
        let damaged = |e| Error::data(path, format!("is damaged: {e}"), "remove it: it is written anew");
        serde_json::from_str(&text).map_err(damaged)
    }

    /// Adds an epoch; the model of the best is kept as `oracle.safetensors`.
    ///
    /// # Errors
    /// What writing refuses.
    pub fn add(&mut self, run: &RunFolder, epoch: usize, detector: &Detector, metrics: &Metrics) -> Result<()> {
        if self.note(epoch, metrics) {
            save_model(&run.oracle_model(), &detector.info, &detector.params)?;
        }
        let text = serde_json::to_string_pretty(self).expect("figures are plain data") + "\n";
        write_atomic(run.oracle_json(), |file| file.write_all(text.as_bytes()))
    }

    /// Whether this epoch is the best so far. A finished run that is opened again measures its last epoch again.
    fn note(&mut self, epoch: usize, metrics: &Metrics) -> bool {
        let Metrics { mean, .. } = metrics;
        self.measured.retain(|m| m.epoch < epoch);
        self.measured.push(Measured { epoch, image_auroc: mean.image_auroc, pixel_auroc: mean.pixel_auroc });
        let better = self.best.as_ref().is_none_or(|best| mean.image_auroc > best.metrics.mean.image_auroc);
        if better {
            self.best = Some(Best { epoch, metrics: metrics.clone() });
        }
        better
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::metrics::ClassMetrics;

    fn metrics(image_auroc: Option<f64>) -> Metrics {
        let mean = ClassMetrics { image_auroc, ..ClassMetrics::default() };
        Metrics {
            protocol: String::new(),
            convention: String::new(),
            classes: BTreeMap::new(),
            mean,
            warnings: vec![],
            interval_method: String::new(),
        }
    }

    #[test]
    fn the_first_of_the_best_epochs_is_kept() {
        let mut oracle = Oracle::default();
        let figures = [None, Some(0.7), Some(0.9), Some(0.9), Some(0.8)];
        let better: Vec<bool> =
            figures.iter().enumerate().map(|(i, figure)| oracle.note(i + 1, &metrics(*figure))).collect();
        assert_eq!(better, [true, true, true, false, false]);
        assert_eq!(oracle.best.as_ref().map(|best| best.epoch), Some(3));
        assert!(!oracle.note(5, &metrics(Some(0.8))), "the last epoch, measured again");
        assert_eq!(oracle.measured.iter().map(|m| m.epoch).collect::<Vec<_>>(), [1, 2, 3, 4, 5]);
    }
}
