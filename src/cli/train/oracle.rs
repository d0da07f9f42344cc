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
        let figure = metrics.mean.image_auroc;
        let Metrics { mean, .. } = metrics;
        // A finished run that is opened again measures its last epoch again.
        self.measured.retain(|m| m.epoch < epoch);
        self.measured.push(Measured { epoch, image_auroc: mean.image_auroc, pixel_auroc: mean.pixel_auroc });
        if self.best.as_ref().is_none_or(|best| figure > best.metrics.mean.image_auroc) {
            save_model(&run.oracle_model(), &detector.info, &detector.params)?;
            self.best = Some(Best { epoch, metrics: metrics.clone() });
        }
        let text = serde_json::to_string_pretty(self).expect("figures are plain data") + "\n";
        write_atomic(run.oracle_json(), |file| file.write_all(text.as_bytes()))
    }
}
