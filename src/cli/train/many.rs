//! Several runs in one folder: one for each class (`--separate`), for each seed (`--seeds`), or for each of both. They
//! share pictures and features; each is an ordinary run, so the whole goes on where it was stopped.
//!
//! ```text
//! OUT/config.toml   OUT/CLASS/seed-N/…   OUT/summary.json
//! ```

use std::collections::BTreeMap;
use std::io::Write;

use serde_json::json;

use super::super::ui::{Ui, count};
use super::inputs::Inputs;
use super::member::{At, members};
use crate::atomic::write_atomic;
use crate::config::Config;
use crate::device::Device;
use crate::error::Result;
use crate::metrics::{Metrics, Spread};
use crate::run_folder::RunFolder;

/// Trains what is not trained yet, and prints one table of it all.
///
/// # Errors
/// What a run refuses.
pub fn train(ui: &Ui, config: &Config, device: &Device, mut whole: RunFolder) -> Result<()> {
    let inputs = Inputs::open(ui, config, device)?;
    let members = members(config, &inputs.pictures.dataset.classes, whole.path());
    whole.start(&config.to_toml())?;
    let at = At { ui, device, inputs: &inputs, go_on: format!("grad train --resume {}", whole.path().display()) };
    let mut by_seed: BTreeMap<u64, Vec<Metrics>> = BTreeMap::new();
    for (i, member) in members.iter().enumerate() {
        ui.note("run", format_args!("{} of {}: {}", i + 1, members.len(), member.folder.display()));
        if let Some(metrics) = member.measured(&at)? {
            by_seed.entry(member.seed).or_default().push(metrics);
        }
    }
    // In the order asked for.
    let seeds: Vec<u64> = if config.seeds.is_empty() { vec![config.seed] } else { config.seeds.clone() };
    let all: Vec<Metrics> = seeds.iter().filter_map(|seed| by_seed.remove(seed)).filter_map(Metrics::joined).collect();
    let spread = if all.len() > 1 { Some(Spread::of(&all)?) } else { None };
    let value = json!({ "run": whole.path().display().to_string(), "seeds": seeds, "metrics": all, "spread": spread });
    let text = serde_json::to_string_pretty(&value).expect("figures are plain data") + "\n";
    write_atomic(whole.path().join("summary.json"), |file| file.write_all(text.as_bytes()))?;
    ui.note("done", format_args!("{} in {}", count(members.len(), "run"), whole.path().display()));
    let table = match (&all[..], &spread) {
        (_, Some(spread)) => spread.table(),
        ([one, ..], None) => one.table(),
        ([], None) => String::new(),
    };
    ui.result(&value, table)
}
