//! `grad doctor`: what the machine offers, and whether all is well.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::machine::Machine;
use super::ui::{OutputArgs, Ui};
use crate::backbone::Backbone;
use crate::config::{BackboneKind, Cache, Config, MachineArgs, Settings, SourceArgs};
use crate::device::cpu::simd::Simd;
use crate::error::{Error, Result};
use crate::model::ModelKind;

const MORE: &str = "\
Changes nothing. The exit code is not 0 if something is wrong.";

/// Say what this machine offers, and whether all is well
#[derive(clap::Args)]
#[command(after_help = MORE)]
pub struct DoctorArgs {
    /// Keeps features here [default: .grad/cache]
    #[arg(long, env = "GRAD_CACHE", value_name = "DIR|none", help_heading = "Machine")]
    cache: Option<Cache>,
    #[command(flatten)]
    machine: MachineArgs,
    #[command(flatten)]
    output: OutputArgs,
}

pub fn run(args: DoctorArgs) -> Result<()> {
    let ui = Ui::new(args.output);
    let source = SourceArgs { cache: args.cache, ..Default::default() };
    let config = Config::settle(Settings { machine: args.machine, source, ..Default::default() })?;
    let machine = Machine::choose(&config)?;
    let backbone = Backbone::lite0()?;
    let levels = Simd::available().into_iter().map(Simd::name).collect::<Vec<_>>().join(", ");
    let fault = cache_fault(&config.cache);
    let cache = match (&config.cache, &fault) {
        (Cache::None, _) => "none: features are computed anew each time".into(),
        (cache, None) => format!("{cache} (writable)"),
        (cache, Some(_)) => format!("{cache} (NOT writable)"),
    };

    let rows: [(&str, String); 9] = [
        ("version", env!("CARGO_PKG_VERSION").into()),
        ("processor", processor()),
        ("vectors", format!("{} (this machine has {levels})", machine.simd.name())),
        ("threads", machine.threads.to_string()),
        ("device", format!("cpu ({})", machine.why)),
        ("model", format!("{} (of {})", config.model.name(), ModelKind::ALL.map(ModelKind::name).join(", "))),
        ("backbone", format!("{} (built in)", BackboneKind::Lite0.name())),
        ("weights", backbone.digest().to_string()),
        ("cache", cache),
    ];
    let text: String = rows.iter().map(|(name, value)| format!("{name:<10} {value}\n")).collect();
    let mut value: Map<String, Value> = rows.into_iter().map(|(name, value)| (name.into(), value.into())).collect();
    value.insert("ok".into(), json!(fault.is_none()));
    ui.result(&value, text)?;
    fault.map_or(Ok(()), Err)
}

/// Why nothing can be kept there, if nothing can.
fn cache_fault(cache: &Cache) -> Option<Error> {
    let Cache::Folder(folder) = cache else { return None };
    // It is made when it is first needed: until then what counts is where it will be made.
    let there = folder.ancestors().find(|a| a.exists()).unwrap_or(Path::new("."));
    tempfile::tempfile_in(there).err().map(|e| Error::io("write into", there, &e))
}

/// The processor's own name, where the system tells it.
fn processor() -> String {
    let told = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = told.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    name.map_or(std::env::consts::ARCH.into(), |(_, name)| name.trim().into())
}
