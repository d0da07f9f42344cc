//! What all runs of a process share: pictures, their features and the backbone, opened, hashed and computed once.

use std::sync::Arc;

use rayon::prelude::*;

use super::super::interrupt;
use super::super::pictures::{Cached, Pictures};
use super::super::ui::{Ui, count};
use crate::backbone::Backbone;
use crate::config::Config;
use crate::data::{Split, fingerprint, hold_out};
use crate::detector::open_backbone;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::features::Features;

/// Pictures, some of them held out, with their features.
#[derive(Clone)]
pub struct Inputs {
    pub pictures: Pictures,
    pub backbone: Arc<Backbone>,
    features: Arc<Features>,
    /// Which of the features belong to each picture.
    records: Vec<usize>,
    /// Fingerprint of each picture, by its features; 0 where it is not for training.
    prints: Arc<Vec<u64>>,
}

impl Inputs {
    /// Opens the pictures of a configuration, holds some out, and takes their features from the cache or computes them.
    ///
    /// # Errors
    /// What pictures, weights, the device and the cache refuse; [`Error::Interrupted`] when the user asks to stop.
    pub fn open(ui: &Ui, config: &Config, device: &Device) -> Result<Self> {
        let mut pictures = Pictures::open(ui, config)?;
        pictures.dataset.require_training()?;
        hold_out(&mut pictures.dataset, config.hold_out);
        say_held_out(ui, &pictures);
        let backbone = open_backbone(config.backbone, config.backbone_weights.as_deref())?.to(device)?;
        let Cached { features, records, .. } = pictures.features(ui, config, &backbone, None)?;
        if interrupt::requested() {
            let kept = format!("before training began; features are kept in {}", config.cache);
            return Err(Error::Interrupted(kept));
        }
        let print = |item: &crate::data::Item| match item.split {
            Split::Train => fingerprint(&item.path),
            _ => Ok(0),
        };
        let prints = pictures.dataset.items.par_iter().map(print).collect::<Result<_>>()?;
        Ok(Inputs { pictures, backbone: Arc::new(backbone), features, records, prints: Arc::new(prints) })
    }

    /// The same of one class alone.
    pub fn of_class(&self, class: &str) -> Self {
        let mut pictures = self.pictures.clone();
        let items = self.pictures.dataset.items.iter().zip(&self.records);
        let of_class = items.filter(|(item, _)| self.pictures.dataset.class_of(item) == class);
        let records = of_class.map(|(_, &record)| record).collect();
        pictures.dataset.keep_classes(&[class.to_owned()]);
        let (backbone, features, prints) = (self.backbone.clone(), self.features.clone(), self.prints.clone());
        Inputs { pictures, backbone, features, records, prints }
    }

    /// The pictures with their features.
    pub fn cached(&self) -> Cached<'_> {
        Cached {
            items: self.pictures.dataset.items.iter().collect(),
            features: self.features.clone(),
            records: self.records.clone(),
        }
    }

    /// Fingerprints of the training pictures, ascending.
    pub fn fingerprints(&self) -> Vec<u64> {
        let items = self.pictures.dataset.items.iter().zip(&self.records);
        let of_training = items.filter(|(item, _)| item.split == Split::Train);
        let mut all: Vec<u64> = of_training.map(|(_, &record)| self.prints[record]).collect();
        all.sort_unstable();
        all
    }
}

/// How many pictures were taken out of training for thresholds.
fn say_held_out(ui: &Ui, pictures: &Pictures) {
    let held_out = pictures.dataset.of(Split::Validation).count();
    let what = match held_out {
        0 => "none: the model will have no threshold until `grad calibrate` is given good pictures".into(),
        n => format!("{} of good parts, for thresholds", count(n, "picture")),
    };
    ui.note("held out", what);
}
