//! The model that a verb uses: which file, with which backbone, where.

use std::path::{Path, PathBuf};

use super::machine;
use super::pictures::DEMO;
use super::ui::Ui;
use crate::checkpoint::ModelInfo;
use crate::config::{Config, ExtractorArgs, MachineArgs, Settings, SourceArgs};
use crate::detector::{Detector, model_file};
use crate::error::Result;

/// A trained model, and the machine to use it on.
#[derive(clap::Args)]
pub struct ModelArgs {
    /// A run's folder, or its model.safetensors
    #[arg(value_name = "MODEL")]
    model: PathBuf,
    #[command(flatten)]
    machine: MachineArgs,
    /// Weights of the backbone [default: built in]
    #[arg(long, env = "GRAD_BACKBONE_WEIGHTS", value_name = "FILE", help_heading = "Machine")]
    backbone_weights: Option<PathBuf>,
}

impl ModelArgs {
    /// The model's file.
    pub fn file(&self) -> PathBuf {
        model_file(&self.model)
    }

    /// What the user named.
    pub fn path(&self) -> &Path {
        &self.model
    }

    /// Opens the model on the device asked for, says so, and does `work` with it and the settled configuration, which
    /// has the model's picture size and backbone.
    ///
    /// # Errors
    /// What settling, loading, the device and `work` refuse.
    pub fn with_detector<T: Send>(
        self,
        ui: &Ui,
        source: SourceArgs,
        work: impl FnOnce(Config, Detector) -> Result<T> + Send,
    ) -> Result<T> {
        let extractor = ExtractorArgs { backbone_weights: self.backbone_weights, ..Default::default() };
        let mut config = Config::settle(Settings { machine: self.machine, source, extractor, ..Default::default() })?;
        let detector = Detector::load(&self.model, config.backbone_weights.as_deref())?;
        let info = &detector.info;
        config.image_size = info.image_size;
        config.backbone = detector.kind();
        detector.backbone.doubts().iter().for_each(|doubt| ui.warn(doubt));
        ui.note("model", format_args!("{} on {}", info.head.kind.name(), info.backbone));
        machine::on_device(ui, &config.clone(), Some(info.train.precision), |device| work(config, detector.to(device)?))
    }
}

/// Without pictures named by the user: those that the model was trained with, as far as it knows them.
pub fn pictures_of(config: &mut Config, info: &ModelInfo) {
    if config.data.is_empty() {
        config.data = info.data.iter().filter(|origin| *origin != DEMO).map(PathBuf::from).collect();
        if config.classes.is_empty() {
            config.classes = info.classes.clone();
        }
    }
}
