//! `grad eval`: a model measured on test pictures.

use super::model_args::{ModelArgs, pictures_of};
use super::pictures::Pictures;
use super::ui::{OutputArgs, Ui};
use crate::config::SourceArgs;
use crate::data::Split;
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
    #[command(flatten)]
    output: OutputArgs,
}

pub fn run(args: EvalArgs) -> Result<()> {
    let EvalArgs { model, source, protocol, intervals, output } = args;
    let ui = Ui::new(output);
    model.with_detector(&ui, source, |mut config, mut detector| {
        pictures_of(&mut config, &detector.info);
        if let Some(protocol) = protocol.as_deref().and_then(Protocol::named) {
            detector.info.protocol = protocol;
        }
        let pictures = Pictures::open(&ui, &config)?;
        // An imported model does not say which classes it knows.
        let known = &detector.info.classes;
        let unknown = |class: &&String| !known.is_empty() && !known.contains(class);
        for unknown in pictures.dataset.classes.iter().filter(unknown) {
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
        let table = metrics.table();
        match intervals {
            false => ui.result(&metrics, table),
            true => ui.result(&metrics, table + "\n" + &metrics.intervals_table()),
        }
    })
}
