//! A model that training starts from: `grad train --from`. Its network, features and constants are the model's; pictures,
//! rates and epochs are the new run's.

use std::path::{Path, PathBuf};

use crate::backbone::Backbone;
use crate::checkpoint::{ModelInfo, load_start};
use crate::config::{BackboneKind, Config, MseCoef, Settings};
use crate::error::{Error, Result};
use crate::model::{Head, HeadConfig};
use crate::nn::Params;
use crate::optim::AdamW;
use crate::train::{Progress, Trainer};

/// A model read for training.
pub struct Start {
    path: PathBuf,
    info: ModelInfo,
    head: Head,
    params: Params,
    optimiser: Option<AdamW>,
}

impl Start {
    /// Reads a model file, or the one in the folder of a run.
    pub fn open(path: &Path) -> Result<Self> {
        let path = if path.is_dir() { path.join("model.safetensors") } else { path.into() };
        let (info, head, params, optimiser) = load_start(&path)?;
        Ok(Start { path, info, head, params, optimiser })
    }

    /// Settles what the model decides and the user left open.
    pub fn settle(&self, flags: &mut Settings) {
        let (head, recipe) = (&self.info.head, &mut flags.recipe);
        recipe.model.get_or_insert(head.kind);
        recipe.blocks.get_or_insert(head.blocks);
        recipe.expansion.get_or_insert(head.expansion as f64 / head.channels as f64);
        recipe.local.get_or_insert(head.local);
        recipe.global.get_or_insert(head.global);
        recipe.refine.get_or_insert(head.refine);
        recipe.memory.get_or_insert(head.memory);
        if recipe.memory == Some(head.memory) && !head.memory.has_coordinates() {
            recipe.local_entries.get_or_insert(head.local_entries);
            recipe.global_entries.get_or_insert(head.global_entries);
        }
        recipe.local_resolution.get_or_insert(head.local_resolution);
        recipe.global_resolution.get_or_insert(head.global_resolution);
        recipe.mse_coef.get_or_insert(MseCoef::Value(head.mse_coef));
        flags.extractor.image_size.get_or_insert(self.info.image_size);
        if let Some(kind) = BackboneKind::find(&self.info.backbone) {
            flags.extractor.backbone.get_or_insert(kind);
        }
    }

    /// What the run says of where it begins.
    pub fn describe(&self) -> String {
        let memory = match &self.optimiser {
            Some(optimiser) => format!("with the optimiser's memory of {} steps", optimiser.steps),
            None => "with fresh moments".into(),
        };
        format!("from {}, {memory}", self.path.display())
    }

    /// The trainer, and the head's description, for features `shape` of this backbone.
    ///
    /// # Errors
    /// [`Error::Config`] when a setting asks for another network; [`Error::Model`] when it was trained on other features.
    pub fn trainer(&self, config: &Config, backbone: &Backbone, shape: [usize; 3]) -> Result<(HeadConfig, Trainer)> {
        let head = &self.info.head;
        if !backbone.is(&self.info.backbone_digest) {
            return Err(Error::model(
                &self.path,
                format!("it was trained on other {} weights than {}", self.info.backbone, backbone.path().display()),
                format!("give the file with digest {} by --backbone-weights", self.info.backbone_digest),
            ));
        }
        let mse_coef = if let MseCoef::Value(k) = config.mse_coef { k } else { head.mse_coef };
        let HeadConfig { mse_weight, cos_weight, .. } = *head;
        let wanted = HeadConfig { mse_weight, cos_weight, ..config.head(shape, mse_coef) };
        if wanted != *head {
            return Err(Error::config(
                format!("{} is not the network that the settings ask for", self.path.display()),
                "leave out model, backbone, image_size and model parts with --from: they are the model's",
            ));
        }
        let mut optimiser = AdamW::new(&self.params);
        if let Some(saved) = &self.optimiser {
            optimiser.m.host_mut().copy_from_slice(saved.m.host());
            optimiser.v.host_mut().copy_from_slice(saved.v.host());
            optimiser.steps = saved.steps;
        }
        let (head, params) = (self.head.clone(), self.params.clone());
        Ok((wanted, Trainer::resume(head, params, optimiser, config.train(), Progress::default())))
    }
}
