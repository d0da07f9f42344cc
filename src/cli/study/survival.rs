//! What a finished run of a study copies of a defect: the identity shortcut as a number.

use std::collections::BTreeMap;
use std::path::Path;

use super::super::train::inputs::Inputs;
use super::super::ui::Ui;
use crate::checkpoint::load_model;
use crate::data::Split;
use crate::detector::{Detector, model_file};
use crate::device::Device;
use crate::error::Result;
use crate::shortcut::{Sample, measure};
use crate::train::FeatureSource;

/// The share that survives, by class, where it is defined; by the model in a run's folder.
///
/// # Errors
/// What the model file, the masks and the device refuse.
pub fn measured(ui: &Ui, device: &Device, inputs: &Inputs, folder: &Path) -> Result<BTreeMap<String, f64>> {
    let (info, head, params) = load_model(&model_file(folder))?;
    let detector = Detector::new(info, head, params.to(device)?, inputs.backbone.clone());
    let (cached, dataset) = (inputs.cached(), &inputs.pictures.dataset);
    let (train, test) = (cached.select(Split::Train), cached.select(Split::Test));
    let bar = ui.bar("shortcut", test.len());
    let [train_items, test_items] = [train.items(), test.items()];
    let train = Sample { items: &train_items, features: &train };
    let test = Sample { items: &test_items, features: &test };
    let classes = measure(&detector, dataset, train, test, &|n| bar.advance(n))?.classes;
    Ok(classes.into_iter().filter_map(|(name, of)| Some((name, of.survival?))).collect())
}
