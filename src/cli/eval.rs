//! `grad eval`: a model measured on test pictures.

use serde::Serialize;

use super::model_args::{ModelArgs, pictures_of};
use super::pictures::Pictures;
use super::ui::{OutputArgs, Ui};
use crate::config::SourceArgs;
use crate::data::{Split, hold_out};
use crate::error::{Error, Result};
use crate::evaluate::evaluate;
use crate::metrics::Metrics;
use crate::score::Protocol;
use crate::shortcut::{self, Sample, Shortcut};
use crate::train::FeatureSource;

const MORE: &str = "\
Without --data, on the pictures that came with those it was trained on.

Examples:
  grad eval runs/parts
  grad eval runs/parts/model.safetensors --data other_parts --json
  grad eval runs/parts --protocol dinomaly   score as that publication does
  grad eval runs/parts --shortcut            does it copy what it should not?";

/// Measure a model on test pictures: AUROC, AP, F1, recall, AUPRO
#[derive(clap::Args)]
#[command(after_help = MORE)]
pub struct EvalArgs {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    source: SourceArgs,
    /// Score as this publication does [default: the model's own]
    #[arg(long, value_name = "NAME", value_parser = Protocol::NAMES, help_heading = "Figures")]
    protocol: Option<String>,
    /// Also print 95 % intervals of the figures of pictures
    #[arg(long, help_heading = "Figures")]
    intervals: bool,
    /// Also measure how much of a defect the reconstruction keeps (docs/shortcut.md)
    #[arg(long, help_heading = "Figures")]
    shortcut: bool,
    #[command(flatten)]
    output: OutputArgs,
}

/// What was measured, for machines.
#[derive(Serialize)]
struct Measured<'a> {
    #[serde(flatten)]
    metrics: &'a Metrics,
    #[serde(skip_serializing_if = "Option::is_none")]
    shortcut: Option<Shortcut>,
}

pub fn run(args: EvalArgs) -> Result<()> {
    let EvalArgs { model, source, protocol, intervals, shortcut, output } = args;
    let ui = Ui::new(output);
    model.with_detector(&ui, source, |mut config, mut detector| {
        pictures_of(&mut config, &detector.info);
        if let Some(protocol) = protocol.as_deref().and_then(Protocol::named) {
            detector.info.protocol = protocol;
        }
        let mut pictures = Pictures::open(&ui, &config)?;
        // An imported model does not say which classes it knows.
        let known = &detector.info.classes;
        let unknown = |class: &&String| !known.is_empty() && !known.contains(class);
        for unknown in pictures.dataset.classes.iter().filter(unknown) {
            ui.warn(format_args!("{unknown}: the model was not trained on this class"));
        }
        // The measure needs what is normal: the pictures that were trained on.
        hold_out(&mut pictures.dataset, detector.info.hold_out);
        let split = (!shortcut).then_some(Split::Test);
        let cached = pictures.features(&ui, &config, &detector.backbone, split)?;
        let test = cached.select(Split::Test);
        if test.is_empty() {
            let help = "add some, as CLASS/test/good/ and CLASS/test/DEFECT/";
            return Err(Error::data(pictures.dataset.root(), "holds no test pictures", help));
        }
        let metrics = {
            let bar = ui.bar("evaluate", test.len());
            evaluate(&detector, &pictures.dataset, &test.items(), &test, &|n| bar.advance(n))?
        };
        let (mut table, mut found) = (metrics.table(), None);
        if intervals {
            table += &format!("\n{}", metrics.intervals_table());
        }
        if shortcut {
            let train = cached.select(Split::Train);
            let bar = ui.bar("shortcut", test.len());
            let [train_items, test_items] = [train.items(), test.items()];
            let train = Sample { items: &train_items, features: &train };
            let test = Sample { items: &test_items, features: &test };
            let measured = shortcut::measure(&detector, &pictures.dataset, train, test, &|n| bar.advance(n))?;
            table += &format!("\n{}", measured.table());
            found = Some(measured);
        }
        ui.result(&Measured { metrics: &metrics, shortcut: found }, table)
    })
}
