//! `grad doctor`: what the machine offers, and whether all is well.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::machine::{Machine, reason, threads};
use super::ui::{OutputArgs, Ui};
use crate::backbone::Backbone;
use crate::config::{BackboneKind, Cache, Config, DeviceChoice, MachineArgs, Settings, SourceArgs};
use crate::device::cpu::{Products, Simd};
use crate::device::cuda::{ARCHITECTURES, Facts, Gpu};
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
    let machine = Machine::open(&config, None);
    let device = machine.as_ref().map_or_else(|e| format!("none: {}", reason(e)), |m| m.description.clone());
    let ordinal = if let DeviceChoice::Cuda(n) = config.device { n } else { 0 };
    let [driver, gpu] = match Gpu::probe(ordinal) {
        Ok(facts) => describe(&facts),
        Err(refusal) => [format!("none: {}", reason(&refusal)), "none".into()],
    };
    let kernels = match ARCHITECTURES {
        "" => "none: no nvcc was found when this program was compiled",
        architectures => architectures,
    };
    let backbone = Backbone::lite0()?;
    let levels = Simd::available().into_iter().map(Simd::name).collect::<Vec<_>>().join(", ");
    let fault = cache_fault(&config.cache);
    let cache = match (&config.cache, &fault) {
        (Cache::None, _) => "none: features are computed anew each time".into(),
        (cache, None) => format!("{cache} (writable)"),
        (cache, Some(_)) => format!("{cache} (NOT writable)"),
    };

    let rows: [(&str, String); 13] = [
        ("version", env!("CARGO_PKG_VERSION").into()),
        ("processor", processor()),
        ("vectors", format!("{} (this machine has {levels})", Simd::requested()?.name())),
        ("products", Products::explain()),
        ("threads", threads(&config).to_string()),
        ("device", device),
        ("kernels", kernels.into()),
        ("driver", driver),
        ("gpu", gpu),
        ("model", format!("{} (of {})", config.model.name(), ModelKind::ALL.map(ModelKind::name).join(", "))),
        ("backbone", format!("{} (built in)", BackboneKind::Lite0.name())),
        ("weights", backbone.digest().to_string()),
        ("cache", cache),
    ];
    let text: String = rows.iter().map(|(name, value)| format!("{name:<10} {value}\n")).collect();
    let mut value: Map<String, Value> = rows.into_iter().map(|(name, value)| (name.into(), value.into())).collect();
    value.insert("ok".into(), json!(fault.is_none() && machine.is_ok()));
    ui.result(&value, text)?;
    machine.and(fault.map_or(Ok(()), Err))
}

/// Its driver; its name, kind and size.
fn describe(facts: &Facts) -> [String; 2] {
    let Facts { name, architecture: [major, minor], multiprocessors, memory, driver } = facts;
    let mib = memory >> 20;
    [
        format!("CUDA {}.{}", driver[0], driver[1]),
        format!("{name}, compute capability {major}.{minor}, {multiprocessors} multiprocessors, {mib} MiB"),
    ]
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
