//! Several runs in one folder: one for each class (`--separate`), for each seed (`--seeds`), or for each of both. They
//! share the features in the cache; each is an ordinary run, so the whole goes on where it was stopped.
//!
//! ```text
//! OUT/config.toml   OUT/CLASS/seed-N/…   OUT/summary.json
//! ```

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;

use serde_json::json;

use super::super::pictures::Pictures;
use super::super::ui::{Ui, count};
use super::job::Job;
use crate::atomic::write_atomic;
use crate::config::Config;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::metrics::{Metrics, Spread};
use crate::run_folder::RunFolder;

/// One of the runs.
struct Member {
    seed: u64,
    config: Config,
    folder: PathBuf,
}

/// Trains what is not trained yet, and prints one table of it all.
///
/// # Errors
/// What a run refuses.
pub fn train(ui: &Ui, config: &Config, device: &Device, mut whole: RunFolder) -> Result<()> {
    let members = members(ui, config, &whole)?;
    whole.start(&config.to_toml())?;
    let mut by_seed: BTreeMap<u64, Vec<Metrics>> = BTreeMap::new();
    for (i, member) in members.iter().enumerate() {
        ui.note("run", format_args!("{} of {}: {}", i + 1, members.len(), member.folder.display()));
        if let Some(metrics) = member.measured(ui, device, &whole)? {
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

/// The runs, class by class, and seed by seed within.
fn members(ui: &Ui, config: &Config, whole: &RunFolder) -> Result<Vec<Member>> {
    let classes: Vec<Option<String>> = match config.separate {
        false => vec![None],
        true => Pictures::open(ui, config)?.dataset.classes.into_iter().map(Some).collect(),
    };
    let seeds: Vec<Option<u64>> = match &config.seeds[..] {
        [] => vec![None],
        seeds => seeds.iter().copied().map(Some).collect(),
    };
    let mut members = vec![];
    for class in &classes {
        for seed in &seeds {
            let mut folder = whole.path().to_owned();
            folder.extend(class.as_deref().map(folder_name));
            folder.extend(seed.map(|seed| format!("seed-{seed}")));
            let config = Config {
                seed: seed.unwrap_or(config.seed),
                seeds: vec![],
                separate: false,
                classes: class.as_ref().map_or(config.classes.clone(), |class| vec![class.clone()]),
                ..config.clone()
            };
            members.push(Member { seed: config.seed, config, folder });
        }
    }
    Ok(members)
}

/// A class's name as one folder: classes of several data sets are named SET/CLASS.
fn folder_name(class: &str) -> String {
    class.replace(['/', '\\'], "-")
}

impl Member {
    /// What the run is worth, trained first as far as it is not.
    fn measured(&self, ui: &Ui, device: &Device, whole: &RunFolder) -> Result<Option<Metrics>> {
        if let Some(metrics) = self.done()? {
            ui.note("run", "is trained and measured already");
            return Ok(Some(metrics));
        }
        let (run, resumed) = match self.folder.join("checkpoint.safetensors").is_file() {
            true => (RunFolder::resume(&self.folder)?, true),
            false => {
                // Stopped before its first checkpoint: there is nothing to keep.
                match std::fs::remove_file(self.folder.join("config.toml")) {
                    Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                        return Err(Error::io("remove", self.folder.join("config.toml"), &e));
                    }
                    _ => {}
                }
                (RunFolder::create(Some(&self.folder), self.config.model.name())?, false)
            }
        };
        let resume = whole.path().to_owned();
        Ok(Job { ui, config: &self.config, device, run, resumed, resume, start: None }.train()?.metrics)
    }

    /// The figures of a finished run.
    fn done(&self) -> Result<Option<Metrics>> {
        let path = self.folder.join("metrics.json");
        let text = match std::fs::read_to_string(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            read => read.map_err(|e| Error::io("read", &path, &e))?,
        };
        let damaged = |e| Error::data(&path, format!("is damaged: {e}"), "remove it: it is written anew");
        serde_json::from_str(&text).map(Some).map_err(damaged)
    }
}
