//! The runs that a configuration with `separate` or `seeds` stands for: each is an ordinary run in a folder of its own.

use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::time::Instant;

use super::super::ui::Ui;
use super::inputs::Inputs;
use super::job::Job;
use crate::config::Config;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::metrics::Metrics;
use crate::run_folder::RunFolder;

/// Where runs take place, all of them on the same pictures.
pub struct At<'a> {
    pub ui: &'a Ui,
    pub device: &'a Device,
    pub inputs: &'a Inputs,
    /// What goes on with the whole once it was stopped.
    pub go_on: String,
}

/// One of the runs.
pub struct Member {
    pub seed: u64,
    /// The only class it sees, if it does not see all.
    class: Option<String>,
    config: Config,
    pub folder: PathBuf,
}

/// The runs in `whole`, class by class, and seed by seed within; `classes` are all there are.
pub fn members(config: &Config, classes: &[String], whole: &Path) -> Vec<Member> {
    let classes: Vec<Option<&String>> = match config.separate {
        false => vec![None],
        true => classes.iter().map(Some).collect(),
    };
    let seeds: Vec<Option<u64>> = match &config.seeds[..] {
        [] => vec![None],
        seeds => seeds.iter().copied().map(Some).collect(),
    };
    let mut members = vec![];
    for class in &classes {
        for seed in &seeds {
            let mut folder = whole.to_owned();
            folder.extend(class.map(|class| folder_name(class)));
            folder.extend(seed.map(|seed| format!("seed-{seed}")));
            let config = Config {
                seed: seed.unwrap_or(config.seed),
                seeds: vec![],
                separate: false,
                classes: class.map_or(config.classes.clone(), |class| vec![class.clone()]),
                ..config.clone()
            };
            members.push(Member { seed: config.seed, class: class.cloned(), config, folder });
        }
    }
    members
}

/// A class's name as one folder: classes of several data sets are named SET/CLASS.
pub fn folder_name(class: &str) -> String {
    class.replace(['/', '\\'], "-")
}

impl Member {
    /// What the run is worth, trained first as far as it is not.
    ///
    /// # Errors
    /// What a run refuses.
    pub fn measured(&self, at: &At) -> Result<Option<Metrics>> {
        let At { ui, device, .. } = *at;
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
        let (inputs, config) = (&*self.inputs(at.inputs), &self.config);
        let (go_on, started) = (at.go_on.clone(), Instant::now());
        Ok(Job { ui, config, device, inputs, run, resumed, start: None, go_on, started }.train()?.metrics)
    }

    /// What it sees of all there is.
    pub fn inputs<'a>(&self, all: &'a Inputs) -> Cow<'a, Inputs> {
        match &self.class {
            None => Cow::Borrowed(all),
            Some(class) => Cow::Owned(all.of_class(class)),
        }
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
