//! `grad eval`: a model measured on test pictures.

use std::path::PathBuf;

use super::machine;
use super::pictures::{DEMO, Pictures};
use super::ui::{OutputArgs, Ui};
use crate::config::{BackboneKind, Config, ExtractorArgs, MachineArgs, Settings, SourceArgs};
use crate::data::Split;
use crate::detector::Detector;
use crate::error::{Error, Result};
use crate::evaluate::evaluate;
use crate::train::FeatureSource;

const MORE: &str = "\
Without --data, on the pictures that came with those it was trained on.

Examples:
  grad eval runs/parts
  grad eval runs/parts/model.safetensors --data other_parts --json";

/// Measure a model on test pictures: AUROC, AP and F1 per class
#[derive(clap::Args)]
#[command(after_help = MORE)]
pub struct EvalArgs {
    /// A run's folder, or its model.safetensors
    #[arg(value_name = "MODEL")]
    model: PathBuf,
    #[command(flatten)]
    source: SourceArgs,
    #[command(flatten)]
    machine: MachineArgs,
    /// Weights of the backbone [default: built in]
    #[arg(long, env = "GRAD_BACKBONE_WEIGHTS", value_name = "FILE", help_heading = "Machine")]
    backbone_weights: Option<PathBuf>,
    #[command(flatten)]
    output: OutputArgs,
}

pub fn run(args: EvalArgs) -> Result<()> {
    let EvalArgs { model, source, machine, backbone_weights, output } = args;
    let ui = Ui::new(output);
    let extractor = ExtractorArgs { backbone_weights, ..Default::default() };
    let mut config = Config::settle(Settings { machine, source, extractor, ..Default::default() })?;
    let detector = Detector::load(&model, config.backbone_weights.as_deref())?;
    machine::on_device(&ui, &config.clone(), Some(detector.info.train.precision), |device| {
        let detector = detector.to(device)?;
        let info = &detector.info;
        ui.note("model", format_args!("{} on {}", info.head.kind.name(), info.backbone));
        config.image_size = info.image_size;
        config.backbone = BackboneKind::find(&info.backbone).unwrap_or(config.backbone);
        if config.data.is_empty() {
            config.data = info.data.iter().filter(|data| *data != DEMO).map(PathBuf::from).collect();
        }
        let pictures = Pictures::open(&ui, &config)?;
        for unknown in pictures.dataset.classes.iter().filter(|class| !info.classes.contains(class)) {
            ui.warn(format_args!("{unknown}: the model was not trained on this class"));
        }
        let cached = pictures.features(&ui, &config, &detector.backbone, Some(Split::Test))?;
        let test = cached.select(Split::Test);
        if test.is_empty() {
            let help = "add some, as CLASS/test/good/ and CLASS/test/DEFECT/";
            return Err(Error::data(pictures.dataset.root(), "holds no test pictures", help));
        }
        let metrics = {
            let bar = ui.bar("evaluate", test.len());
            evaluate(&detector, &pictures.dataset, &test.items(), &test, &|n| bar.advance(n))?
        };
        ui.result(&metrics, metrics.table())
    })
}
