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
use crate::score::Protocol;
use crate::train::FeatureSource;

const MORE: &str = "\
Without --data, on the pictures that came with those it was trained on.

Examples:
  grad eval runs/parts
  grad eval runs/parts/model.safetensors --data other_parts --json
  grad eval runs/parts --protocol dinomaly   score as that publication does";

/// Measure a model on test pictures: AUROC, AP, F1, recall and AUPRO per class
#[derive(clap::Args)]
#[command(after_help = MORE)]
pub struct EvalArgs {
    /// A run's folder, or its model.safetensors
    #[arg(value_name = "MODEL")]
    model: PathBuf,
    /// Score as this publication does, for this measurement only [default: the model's own]
    #[arg(long, value_name = "NAME", value_parser = Protocol::NAMES)]
    protocol: Option<String>,
    /// Also print 95 % intervals of the picture figures
    #[arg(long)]
    intervals: bool,
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
    let EvalArgs { model, protocol, intervals, source, machine, backbone_weights, output } = args;
    let ui = Ui::new(output);
    let extractor = ExtractorArgs { backbone_weights, ..Default::default() };
    let mut config = Config::settle(Settings { machine, source, extractor, ..Default::default() })?;
    let mut detector = Detector::load(&model, config.backbone_weights.as_deref())?;
    if let Some(protocol) = protocol.as_deref().and_then(Protocol::named) {
        detector.info.protocol = protocol;
    }
    machine::on_device(&ui, &config.clone(), Some(detector.info.train.precision), |device| {
        let detector = detector.to(device)?;
        let info = &detector.info;
        ui.note("model", format_args!("{} on {}", info.head.kind.name(), info.backbone));
        config.image_size = info.image_size;
        config.backbone = BackboneKind::find(&info.backbone).unwrap_or(config.backbone);
        config.data = config.data.take().or_else(|| info.data.first().filter(|d| *d != DEMO).map(PathBuf::from));
        let pictures = Pictures::open(&ui, &config)?;
        for unknown in pictures.dataset.classes.iter().filter(|class| !info.classes.contains(class)) {
            ui.warn(format_args!("{unknown}: the model was not trained on this class"));
        }
        let cached = pictures.features(&ui, &config, &detector.backbone, Some(Split::Test))?;
        let test = cached.select(Split::Test);
        if test.is_empty() {
            let help = "add some, as CLASS/test/good/ and CLASS/test/DEFECT/";
            return Err(Error::data(&pictures.dataset.root, "holds no test pictures", help));
        }
        let metrics = {
            let bar = ui.bar("evaluate", test.len());
            evaluate(&detector, &pictures.dataset, &test.items(), &test, &|n| bar.advance(n))?
        };
        let table = metrics.table();
        match intervals {
            false => ui.result(&metrics, table),
            true => ui.result(&metrics, table + "\n" + &metrics.intervals_table()),
        }
    })
}
