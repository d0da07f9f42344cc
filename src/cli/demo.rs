//! `grad demo`: the demo set, to look at.

use std::path::PathBuf;

use serde_json::json;

use super::machine;
use super::ui::{OutputArgs, Ui};
use crate::config::{Config, DEMO_SEED, MachineArgs, Settings, demo_counts};
use crate::data::demo::write_demo;
use crate::error::Result;

const MORE: &str = "\
`grad train` uses the same set when there is no --data.

Example:
  grad demo demo_set";

/// Write the demo set: six photographed materials, good and damaged
#[derive(clap::Args)]
#[command(after_help = MORE)]
pub struct DemoArgs {
    /// Folder to write it to; must be empty or not there yet
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// Another one gives other pictures
    #[arg(long, value_name = "N", default_value_t = DEMO_SEED)]
    seed: u64,
    #[command(flatten)]
    machine: MachineArgs,
    #[command(flatten)]
    output: OutputArgs,
}

pub fn run(args: DemoArgs) -> Result<()> {
    let ui = Ui::new(args.output);
    let config = Config::settle(Settings { machine: args.machine, ..Default::default() })?;
    let made = machine::on_threads(&config, || write_demo(&args.dir, args.seed, demo_counts()))?;
    let (counts, damaged) = (made.counts, made.counts.per_kind * made.kinds.len());
    let value = json!({
        "dir": made.dir.display().to_string(),
        "seed": args.seed,
        "pictures": made.pictures(),
        "classes": made.classes,
        "kinds": made.kinds,
        "train_good_per_class": counts.train_good,
        "test_good_per_class": counts.test_good,
        "test_defective_per_class": damaged,
        "reused": made.reused,
    });
    let text = format!(
        "folder     {}{}\npictures   {}\nclasses    {}\ndamage     {}\nper class  {} good to train on; {} good and \
         {damaged} damaged to test\n",
        made.dir.display(),
        if made.reused { " (was there already)" } else { "" },
        made.pictures(),
        made.classes.join(", "),
        made.kinds.join(", "),
        counts.train_good,
        counts.test_good,
    );
    ui.result(&value, text)
}
