//! `grad train`: one run, or one for each class and seed, each in a folder of its own.

pub mod inputs;
mod job;
mod many;
pub mod member;
pub mod oracle;

use std::path::{Path, PathBuf};
use std::time::Instant;

use serde_json::json;

use super::interrupt;
use super::machine::Machine;
use super::start::Start;
use super::ui::{OutputArgs, Ui};
use crate::config::{Config, ExtractorArgs, MachineArgs, RecipeArgs, Settings, SourceArgs};
use crate::error::{Error, Result};
use crate::run_folder::RunFolder;
use inputs::Inputs;
use job::{Job, Trained};

/// What a resumed run may have different from how it began. Nothing else: it would not be the same run.
const MAY_CHANGE: [&str; 8] =
    ["epochs", "eval_every", "data", "backbone_weights", "cache", "threads", "device", "precision"];

const MORE: &str = "\
Learns from ROOT/CLASS/train/good/*, measures on ROOT/CLASS/test/{good,DEFECT}/*
with the masks of ROOT/CLASS/ground_truth/DEFECT/*. Thresholds come from good
pictures it does not learn from: ROOT/CLASS/validation/good/*, or a tenth of the
training pictures. `grad data check -h` lists other layouts. Without --data, on
the demo set. Everything it makes goes to a folder of its own.

Examples:
  grad train
  grad train --data parts --model crad --out runs/parts
  grad train --resume runs/parts                   go on, to the same bits
  grad train --resume runs/parts --epochs 80       train longer
  grad train --data parts --seeds 1,2,3            mean and spread
  grad train --data parts --separate               a model for each class
  grad train --from runs/parts --data new_parts    start from its weights
  grad train --config runs/parts/config.toml --seed 1";

/// Train a model on pictures without defects, then measure it
#[derive(clap::Args)]
#[command(after_help = MORE)]
pub struct TrainArgs {
    #[command(flatten)]
    source: SourceArgs,
    /// Go on with the run in this folder
    #[arg(long, value_name = "DIR", conflicts_with_all = ["config", "out"], help_heading = "Training")]
    resume: Option<PathBuf>,
    /// Start from this model, in a new run
    #[arg(long, value_name = "MODEL", conflicts_with_all = ["resume", "seeds", "separate"], help_heading = "Training")]
    from: Option<PathBuf>,
    #[command(flatten)]
    recipe: RecipeArgs,
    #[command(flatten)]
    extractor: ExtractorArgs,
    #[command(flatten)]
    machine: MachineArgs,
    #[command(flatten)]
    output: OutputArgs,
}

pub fn run(args: TrainArgs) -> Result<()> {
    let TrainArgs { source, recipe, extractor, machine, resume, from, output } = args;
    let ui = Ui::new(output);
    let mut flags = Settings { machine, source, extractor, recipe };
    let start = from.as_deref().map(Start::open).transpose()?;
    if let Some(start) = &start {
        start.settle(&mut flags);
    }
    let resumed = resume.is_some();
    let mut config = match &resume {
        None => Config::settle(flags)?,
        Some(folder) => resumed_config(folder, flags)?,
    };
    let machine = Machine::open(&config, None)?;
    // Nothing is left open in what a run's folder says of it.
    config.precision = Some(machine.precision);
    let many = config.separate || !config.seeds.is_empty();
    let run = match &resume {
        None => RunFolder::create(config.out.as_deref(), config.model.name())?,
        Some(folder) if many => RunFolder::reopen(folder)?,
        Some(folder) => RunFolder::resume(folder)?,
    };
    interrupt::watch()?;
    machine.run(&ui, &config, |device| {
        if many {
            return many::train(&ui, &config, device, run);
        }
        let started = Instant::now();
        let inputs = &Inputs::open(&ui, &config, device)?;
        let (go_on, start) = (format!("grad train --resume {}", run.path().display()), start.as_ref());
        let job = Job { ui: &ui, config: &config, device, inputs, run, resumed, start, go_on, started };
        let trained = job.train()?;
        ui.result(&json(&trained), table(&trained))
    })
}

/// What came of a run, for machines.
fn json(trained: &Trained) -> serde_json::Value {
    json!({
        "run": trained.run.display().to_string(),
        "model": trained.model.display().to_string(),
        "epochs": trained.epochs,
        "loss": trained.loss,
        "seconds": trained.took.as_secs_f64(),
        "metrics": trained.metrics,
        "oracle": trained.oracle,
    })
}

/// The same for people.
fn table(trained: &Trained) -> String {
    match (&trained.metrics, &trained.oracle) {
        (Some(metrics), Some(best)) => metrics.table_with_oracle(&best.metrics, best.epoch),
        (Some(metrics), None) => metrics.table(),
        (None, _) => String::new(),
    }
}

/// The settings of the run, with the few changes that are allowed.
fn resumed_config(folder: &Path, mut flags: Settings) -> Result<Config> {
    let file = RunFolder::config_of(folder)?;
    let mut nothing = Settings::default();
    for settings in [&mut nothing, &mut flags] {
        settings.machine.config = Some(file.clone());
    }
    let (began, config) = (Config::settle(nothing)?, Config::settle(flags)?);
    match began.differences(&config).iter().find(|key| !MAY_CHANGE.contains(&key.as_str())) {
        None => Ok(config),
        Some(key) => Err(Error::config(
            format!("{key} is not what the run in {} began with", folder.display()),
            format!("leave it out, or start another run; a resumed run may change {}", MAY_CHANGE.join(", ")),
        )),
    }
}
