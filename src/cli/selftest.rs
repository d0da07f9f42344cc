//! `grad selftest`: the pictures in a model file scored on this machine.

use serde_json::json;

use super::model_args::ModelArgs;
use super::ui::{OutputArgs, Ui, count};
use crate::config::SourceArgs;
use crate::device::cpu;
use crate::error::{Error, Result};
use crate::golden::{allowed, replay};

const MORE: &str = "\
A model file holds a few pictures with the scores they had where it was made.
Here they are scored again: this machine, device and build of the program must
give the same, up to rounding. The exit code is 5 if they do not.

Examples:
  grad selftest runs/parts
  grad selftest runs/parts --device cuda";

/// Check that a model gives the same scores on this machine
#[derive(clap::Args)]
#[command(after_help = MORE)]
pub struct SelftestArgs {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    output: OutputArgs,
}

pub fn run(args: SelftestArgs) -> Result<()> {
    let ui = Ui::new(args.output);
    let file = args.model.file();
    args.model.with_detector(&ui, SourceArgs::default(), |_, detector| {
        let gpu = detector.params.storage().gpu();
        let precision = gpu.map_or_else(|| cpu::products().precision(), |gpu| gpu.precision());
        // The coarser of what recorded and what replays.
        let allowed = allowed(precision).max(allowed(detector.info.train.precision));
        let replays = replay(&detector)?;
        if replays.is_empty() {
            let help = "it was written by an earlier version or imported: calibrate it, which adds them";
            return Err(Error::model(file, "holds no golden pictures to test with", help));
        }
        // A NaN fails too.
        let fails = |difference: f64| difference.is_nan() || difference > allowed;
        let worst = replays.iter().map(|r| r.difference()).fold(0.0, |a: f64, b| if b <= a { a } else { b });
        let mut text = format!("{:>10}  {:>10}  {:>10}  picture\n", "recorded", "here", "difference");
        for replay in &replays {
            let (difference, mark) = (replay.difference(), if fails(replay.difference()) { "  FAILED" } else { "" });
            let [recorded, here] = [replay.recorded[0], replay.here[0]];
            text += &format!("{recorded:>10.4}  {here:>10.4}  {:>9.4}%  {}{mark}\n", 100.0 * difference, replay.name);
        }
        let row = |r: &crate::golden::Replay| json!({ "picture": r.name, "recorded": r.recorded, "here": r.here, "difference": r.difference() });
        let value = json!({
            "ok": !fails(worst),
            "largest_difference": worst,
            "allowed": allowed,
            "pictures": replays.iter().map(row).collect::<Vec<_>>(),
        });
        ui.result(&value, text)?;
        if fails(worst) {
            let failed = replays.iter().filter(|r| fails(r.difference())).count();
            let what = format!(
                "{failed} of {} differ by up to {:.2} %, and rounding explains {:.0} %",
                count(replays.len(), "golden picture"),
                100.0 * worst,
                100.0 * allowed
            );
            let help = "try --device cpu; if that differs too, the model file or this build of the program is damaged";
            return Err(Error::Device { what, help: help.into() });
        }
        ui.note("selftest", format_args!("passed: the largest difference is {:.4} %", 100.0 * worst));
        Ok(())
    })
}
