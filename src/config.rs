//! Settings: flag > environment variable > file > default, settled into one checked [`Config`].
//!
//! Each setting is written once, as a field of one of four groups: it is a flag (`--grid-rate`), an environment variable
//! (`GRAD_GRID_RATE`) and a key of the `--config` file (`grid_rate`). clap reads the first two, serde the third. Only
//! `GRAD_DATA` is read here: it is a list of paths as `PATH` is one.
//! A key that is none of them is an error that names the file, the line and the nearest key.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, ValueEnum};
use serde::{Deserialize, Deserializer, Serialize};

use crate::backbone::Network;
use crate::data::demo::DemoCounts;
use crate::device::cuda::Precision;
use crate::error::{Error, Result};
use crate::model::{HeadConfig, MAX_ENTRIES, MemoryKind, ModelKind};
use crate::train::TrainConfig;

mod file;
mod value;

pub(crate) use file::suggest;
pub use value::{Cache, DeviceChoice, MseCoef, Schedule};

/// Seed of the demo set. Another `--seed` trains another model on the same pictures.
pub const DEMO_SEED: u64 = 0;

/// Pictures of the demo set.
pub fn demo_counts() -> DemoCounts {
    DemoCounts::default()
}

/// Share of the training pictures that is held out for thresholds, unless the user says another.
const HOLD_OUT: f64 = 0.1;

/// The gate constant of the paper, which belongs to features of EfficientNet-B4.
const B4_MSE_COEF: f64 = 0.05;

/// Which frozen network makes the features.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum BackboneKind {
    /// EfficientNet-Lite0, built in.
    Lite0,
    /// EfficientNet-Lite1; its weights are a file of the user's.
    Lite1,
    /// EfficientNet-Lite2; its weights are a file of the user's.
    Lite2,
    /// EfficientNet-B4, as published; its weights are a file of the user's.
    B4,
}

impl BackboneKind {
    /// Every kind.
    pub const ALL: [BackboneKind; 4] =
        [BackboneKind::Lite0, BackboneKind::Lite1, BackboneKind::Lite2, BackboneKind::B4];

    /// Name on the command line and in model files.
    pub fn name(self) -> &'static str {
        match self {
            BackboneKind::Lite0 => "lite0",
            BackboneKind::Lite1 => "lite1",
            BackboneKind::Lite2 => "lite2",
            BackboneKind::B4 => "b4",
        }
    }

    /// The network itself.
    pub fn network(self) -> Network {
        match self {
            BackboneKind::Lite0 => Network::Lite0,
            BackboneKind::Lite1 => Network::Lite1,
            BackboneKind::Lite2 => Network::Lite2,
            BackboneKind::B4 => Network::B4,
        }
    }

    /// The kind called `name`.
    pub fn find(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

/// Settings of the machine; every verb that computes has them.
#[derive(Debug, Clone, Default, Args, Deserialize)]
#[serde(default)]
#[command(next_help_heading = "Machine")]
pub struct MachineArgs {
    /// Threads [default: one per core]
    #[arg(long, env = "GRAD_THREADS", value_name = "N")]
    pub threads: Option<usize>,
    /// What computes.
    #[arg(long, env = "GRAD_DEVICE", value_name = "DEVICE", help = "auto, cpu or cuda[:N] [default: auto]")]
    pub device: Option<DeviceChoice>,
    /// f32, tf32 or bf16 [default: the model's; else bf16 on a CPU that multiplies it, f32 elsewhere and in studies]
    #[arg(long, env = "GRAD_PRECISION", value_name = "NAME", value_parser = precision_parser(), hide_possible_values = true)]
    pub precision: Option<Precision>,
    /// TOML file of settings, key = value
    #[arg(long, value_name = "FILE")]
    #[serde(skip)]
    pub config: Option<PathBuf>,
}

/// Which pictures are read, and where their features are kept.
#[derive(Debug, Clone, Default, Args, Deserialize)]
#[serde(default)]
#[command(next_help_heading = "Pictures")]
pub struct SourceArgs {
    /// Pictures: a folder or manifest; may be repeated
    #[arg(long, value_name = "DIR")]
    #[serde(deserialize_with = "value::one_or_many")]
    pub data: Option<Vec<PathBuf>>,
    /// Only these, comma-separated [default: all]
    #[arg(long, env = "GRAD_CLASSES", value_name = "NAMES", value_delimiter = ',')]
    pub classes: Option<Vec<String>>,
    /// Keeps features here [default: .grad/cache]
    #[arg(long, env = "GRAD_CACHE", value_name = "DIR|none")]
    pub cache: Option<Cache>,
}

/// Which network makes the features, of which picture size.
#[derive(Debug, Clone, Default, Args, Deserialize)]
#[serde(default)]
#[command(next_help_heading = "Features")]
pub struct ExtractorArgs {
    /// lite0, lite1, lite2 or b4 [default: lite0]
    #[arg(long, env = "GRAD_BACKBONE", value_name = "NAME", hide_possible_values = true)]
    pub backbone: Option<BackboneKind>,
    /// Its weights [default: lite0's, built in]
    #[arg(long, env = "GRAD_BACKBONE_WEIGHTS", value_name = "FILE")]
    pub backbone_weights: Option<PathBuf>,
    /// Side of a picture, k x 16 [default: 224]
    #[arg(long, env = "GRAD_IMAGE_SIZE", value_name = "PIXELS")]
    pub image_size: Option<usize>,
}

/// What is trained, and how.
#[derive(Debug, Clone, Default, Args, Deserialize)]
#[serde(default)]
#[command(next_help_heading = "Training")]
pub struct RecipeArgs {
    /// grad, crad or crad-s [default: crad-s]
    #[arg(long, env = "GRAD_MODEL", value_name = "NAME", value_parser = model_parser(), hide_possible_values = true)]
    pub model: Option<ModelKind>,
    /// Epochs [default: 50; grad 100; demo set 6]
    #[arg(long, env = "GRAD_EPOCHS", value_name = "N")]
    pub epochs: Option<usize>,
    /// Pictures per step [default: 16; demo set 8]
    #[arg(long, env = "GRAD_BATCH", value_name = "N")]
    pub batch: Option<usize>,
    /// Pictures per BatchNorm group [default: 16]
    #[arg(long, env = "GRAD_BN_GROUP", value_name = "N")]
    pub bn_group: Option<usize>,
    /// Learning rate of the network [default: 0.001]
    #[arg(long, env = "GRAD_RATE", value_name = "X")]
    pub rate: Option<f64>,
    /// Learning rate of the grids or memories [default: 0.1]
    #[arg(long, env = "GRAD_GRID_RATE", value_name = "X")]
    pub grid_rate: Option<f64>,
    /// Rate factors [default: 0:1,41:0.1,81:0.01; demo set 0:1,5:0.1]
    #[arg(long, env = "GRAD_SCHEDULE", value_name = "EPOCH:X,…")]
    pub schedule: Option<Schedule>,
    /// AdamW's weight decay [default: 0.01]
    #[arg(long, env = "GRAD_DECAY", value_name = "X")]
    pub decay: Option<f64>,
    /// Largest gradient norm, or inf [default: 0.1]
    #[arg(long, env = "GRAD_CLIP", value_name = "X")]
    pub clip: Option<f64>,
    /// Seed of all that is drawn [default: 0]
    #[arg(long, env = "GRAD_SEED", value_name = "N")]
    pub seed: Option<u64>,
    /// A run for each of these, then mean and spread: --seeds 1,2,3
    #[arg(long, env = "GRAD_SEEDS", value_name = "N,…", value_delimiter = ',', conflicts_with = "seed")]
    pub seeds: Option<Vec<u64>>,
    /// A model for each class, and the same table
    #[arg(long, env = "GRAD_SEPARATE", num_args = 0..=1, default_missing_value = "on", value_name = "on|off", value_parser = value::switch)]
    #[serde(deserialize_with = "switch")]
    pub separate: Option<bool>,
    /// Share of each class held out of training, for thresholds [default: 0.1]
    #[arg(long, env = "GRAD_HOLD_OUT", value_name = "X")]
    pub hold_out: Option<f64>,
    /// Measure on the test pictures every N epochs too [default: 0, never]
    #[arg(long, env = "GRAD_EVAL_EVERY", value_name = "N")]
    pub eval_every: Option<usize>,
    /// Its folder [default: runs/MODEL-1, -2, …]
    #[arg(long, env = "GRAD_OUT", value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// What the branches read: grid, vq or attention [default: grid]
    #[arg(long, env = "GRAD_MEMORY", value_name = "NAME", value_parser = memory_parser(), hide_possible_values = true, help_heading = "Model parts")]
    pub memory: Option<MemoryKind>,
    /// Entries of a local vq or attention memory [default: the cells of the grid]
    #[arg(long, env = "GRAD_LOCAL_ENTRIES", value_name = "N", help_heading = "Model parts")]
    pub local_entries: Option<usize>,
    /// Entries of a global one [default: the cells of the grid]
    #[arg(long, env = "GRAD_GLOBAL_ENTRIES", value_name = "N", help_heading = "Model parts")]
    pub global_entries: Option<usize>,
    /// Jitter of the local coordinates [default: on; off without coordinates]
    #[arg(long, env = "GRAD_JITTER", value_name = "on|off", value_parser = value::switch, help_heading = "Model parts")]
    #[serde(deserialize_with = "switch")]
    pub jitter: Option<bool>,
    /// Its standard deviation; the grid is 2 wide [default: 0.05]
    #[arg(long, env = "GRAD_JITTER_STD", value_name = "X", help_heading = "Model parts")]
    pub jitter_std: Option<f64>,
    /// Local branch [default: on]
    #[arg(long, env = "GRAD_LOCAL", value_name = "on|off", value_parser = value::switch, help_heading = "Model parts")]
    #[serde(deserialize_with = "switch")]
    pub local: Option<bool>,
    /// Global branch [default: on]
    #[arg(long, env = "GRAD_GLOBAL", value_name = "on|off", value_parser = value::switch, help_heading = "Model parts")]
    #[serde(deserialize_with = "switch")]
    pub global: Option<bool>,
    /// Refinement gate [default: on]
    #[arg(long, env = "GRAD_REFINE", value_name = "on|off", value_parser = value::switch, help_heading = "Model parts")]
    #[serde(deserialize_with = "switch")]
    pub refine: Option<bool>,
    /// Gate constant [default: auto; b4 0.05]
    #[arg(long, env = "GRAD_MSE_COEF", value_name = "auto|X", help_heading = "Model parts")]
    pub mse_coef: Option<MseCoef>,
    /// Cells per side of the local grid [default: 8]
    #[arg(long, env = "GRAD_LOCAL_RESOLUTION", value_name = "N", help_heading = "Model parts")]
    pub local_resolution: Option<usize>,
    /// Cells per side of the global grid [default: 4]
    #[arg(long, env = "GRAD_GLOBAL_RESOLUTION", value_name = "N", help_heading = "Model parts")]
    pub global_resolution: Option<usize>,
    /// Fusion blocks [default: 11; grad 7]
    #[arg(long, env = "GRAD_BLOCKS", value_name = "N", help_heading = "Model parts")]
    pub blocks: Option<usize>,
    /// Channels inside a bottleneck, times the features' [default: 1; crad 4]
    #[arg(long, env = "GRAD_EXPANSION", value_name = "X", help_heading = "Model parts")]
    pub expansion: Option<f64>,
}

fn model_parser() -> impl TypedValueParser<Value = ModelKind> {
    let names = ModelKind::ALL.map(ModelKind::name);
    PossibleValuesParser::new(names).map(|name| {
        let kind = ModelKind::ALL.into_iter().find(|kind| kind.name() == name);
        kind.expect("only the names of kinds are possible")
    })
}

fn memory_parser() -> impl TypedValueParser<Value = MemoryKind> {
    let names = MemoryKind::ALL.map(MemoryKind::name);
    PossibleValuesParser::new(names).map(|name| {
        let kind = MemoryKind::ALL.into_iter().find(|kind| kind.name() == name);
        kind.expect("only the names of memories are possible")
    })
}

fn precision_parser() -> impl TypedValueParser<Value = Precision> {
    let names = Precision::ALL.map(Precision::name);
    PossibleValuesParser::new(names).map(|name| {
        let precision = Precision::ALL.into_iter().find(|precision| precision.name() == name);
        precision.expect("only the names of precisions are possible")
    })
}

fn switch<'de, D: Deserializer<'de>>(from: D) -> Result<Option<bool>, D::Error> {
    value::switch_or_bool(from).map(Some)
}

/// Everything a user can set, nothing settled. A verb fills the groups it has flags for.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// The machine.
    pub machine: MachineArgs,
    /// The pictures.
    pub source: SourceArgs,
    /// The features.
    pub extractor: ExtractorArgs,
    /// The training.
    pub recipe: RecipeArgs,
}

/// Every setting, settled and checked. Written to a run's folder as `config.toml`, in the form `--config` reads.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Config {
    /// Which model.
    pub model: ModelKind,
    /// Whether that is the default, and not the user's choice.
    #[serde(skip)]
    pub model_is_default: bool,
    /// Which network makes the features.
    pub backbone: BackboneKind,
    /// Its weights; `None` for the built-in ones.
    pub backbone_weights: Option<PathBuf>,
    /// Side of a prepared picture, pixels.
    pub image_size: usize,
    /// Folders and manifests of pictures; empty for the demo set.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub data: Vec<PathBuf>,
    /// Only these classes; empty for all.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub classes: Vec<String>,
    /// Times every picture is seen.
    pub epochs: usize,
    /// Pictures per step.
    pub batch: usize,
    /// Pictures that BatchNorm sees together.
    pub bn_group: usize,
    /// Learning rate of the network.
    pub rate: f64,
    /// Learning rate of the grids.
    pub grid_rate: f64,
    /// AdamW's weight decay.
    pub decay: f64,
    /// Largest gradient norm.
    pub clip: f64,
    /// Factor of both rates from an epoch on.
    pub schedule: Schedule,
    /// Seed of start values, order and jitter.
    pub seed: u64,
    /// A run for each of these seeds; empty for the one of `seed`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub seeds: Vec<u64>,
    /// Whether every class gets a model of its own.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub separate: bool,
    /// Share of each class's training pictures that is held out for thresholds.
    pub hold_out: f64,
    /// Epochs from one measurement on the test pictures to the next; 0 for the one at the end alone.
    pub eval_every: usize,
    /// What the branches read.
    pub memory: MemoryKind,
    /// Entries of the local memory; `None` for a grid.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub local_entries: Option<usize>,
    /// Entries of the global memory; `None` for a grid.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub global_entries: Option<usize>,
    /// Whether local coordinates are jittered.
    pub jitter: bool,
    /// Standard deviation of the jitter, in coordinates.
    pub jitter_std: f64,
    /// Whether the local branch exists.
    pub local: bool,
    /// Whether the global branch exists.
    pub global: bool,
    /// Whether the refinement gate exists.
    pub refine: bool,
    /// Constant of the gate.
    pub mse_coef: MseCoef,
    /// Side of the local grid.
    pub local_resolution: usize,
    /// Side of the global grid.
    pub global_resolution: usize,
    /// Fusion blocks.
    pub blocks: usize,
    /// Channels inside a bottleneck, times those of the features; not used by `grad`.
    pub expansion: f64,
    /// Threads; `None` for one per core. No result depends on it.
    pub threads: Option<usize>,
    /// What computes.
    pub device: DeviceChoice,
    /// How products are computed, and what a GPU stores. `None` for the precision that the model was trained
    /// in; where there is none, the device decides.
    pub precision: Option<Precision>,
    /// Where features are kept.
    pub cache: Cache,
    /// Folder of the run, if the user named one. Not written: no other run may have it.
    #[serde(skip)]
    pub out: Option<PathBuf>,
}

impl Config {
    /// Settles `flags` (which hold the environment too) over the file they name over the defaults.
    ///
    /// # Errors
    /// [`Error::Config`] naming the setting that cannot be used; [`Error::Io`] when the file cannot be read.
    pub fn settle(flags: Settings) -> Result<Config> {
        Self::settle_for(flags, TrainConfig::demo)
    }

    /// As [`Self::settle`], with `demo` for what is left open about training on the demo set.
    ///
    /// # Errors
    /// As [`Self::settle`].
    pub fn settle_for(flags: Settings, demo: fn(ModelKind) -> TrainConfig) -> Result<Config> {
        let file = flags.machine.config.as_deref().map(file::read).transpose()?.unwrap_or_default();
        macro_rules! pick {
            ($group:ident.$key:ident) => {
                flags.$group.$key.or(file.$group.$key)
            };
        }
        let model = pick!(recipe.model);
        let kind = model.unwrap_or(ModelKind::CradS);
        let backbone = pick!(extractor.backbone).unwrap_or(BackboneKind::Lite0);
        let data = flags.source.data.or_else(value::data_of_environment).or(file.source.data).unwrap_or_default();
        let train = if data.is_empty() { demo(kind) } else { TrainConfig::published(kind) };
        // Only its numbers count here: the shape of the features and the gate's constant are found later.
        let head = HeadConfig::published(kind, [1, 1, 1], B4_MSE_COEF);
        let memory = pick!(recipe.memory).unwrap_or(head.memory);
        let local_resolution = pick!(recipe.local_resolution).unwrap_or(head.local_resolution);
        let global_resolution = pick!(recipe.global_resolution).unwrap_or(head.global_resolution);
        let entries = |asked: Option<usize>, side: usize| match memory {
            MemoryKind::Grid => asked,
            _ => asked.or(Some(side.saturating_mul(side))),
        };
        let config = Config {
            model: kind,
            model_is_default: model.is_none(),
            backbone,
            backbone_weights: pick!(extractor.backbone_weights),
            image_size: pick!(extractor.image_size).unwrap_or(224),
            data,
            classes: pick!(source.classes).unwrap_or_default(),
            epochs: pick!(recipe.epochs).unwrap_or(train.epochs),
            batch: pick!(recipe.batch).unwrap_or(train.batch),
            bn_group: pick!(recipe.bn_group).unwrap_or(train.bn_group),
            rate: pick!(recipe.rate).unwrap_or(train.rate),
            grid_rate: pick!(recipe.grid_rate).unwrap_or(train.grid_rate),
            decay: pick!(recipe.decay).unwrap_or(train.decay),
            clip: pick!(recipe.clip).unwrap_or(train.clip),
            schedule: pick!(recipe.schedule).unwrap_or(Schedule(train.schedule)),
            seed: pick!(recipe.seed).unwrap_or(train.seed),
            seeds: pick!(recipe.seeds).unwrap_or_default(),
            separate: pick!(recipe.separate).unwrap_or(false),
            hold_out: pick!(recipe.hold_out).unwrap_or(HOLD_OUT),
            eval_every: pick!(recipe.eval_every).unwrap_or(0),
            memory,
            local_entries: entries(pick!(recipe.local_entries), local_resolution),
            global_entries: entries(pick!(recipe.global_entries), global_resolution),
            jitter: pick!(recipe.jitter).unwrap_or(train.jitter && memory.has_coordinates()),
            jitter_std: pick!(recipe.jitter_std).unwrap_or(train.jitter_std),
            local: pick!(recipe.local).unwrap_or(head.local),
            global: pick!(recipe.global).unwrap_or(head.global),
            refine: pick!(recipe.refine).unwrap_or(head.refine),
            mse_coef: pick!(recipe.mse_coef).unwrap_or(match backbone {
                BackboneKind::B4 => MseCoef::Value(B4_MSE_COEF),
                _ => MseCoef::Auto,
            }),
            local_resolution,
            global_resolution,
            blocks: pick!(recipe.blocks).unwrap_or(head.blocks),
            // Of features of one channel: a factor.
            expansion: pick!(recipe.expansion).unwrap_or(head.expansion as f64),
            threads: pick!(machine.threads),
            device: pick!(machine.device).unwrap_or(DeviceChoice::Auto),
            precision: pick!(machine.precision),
            cache: pick!(source.cache).unwrap_or_default(),
            out: pick!(recipe.out),
        };
        config.check()?;
        Ok(config)
    }

    /// Checks that it can be trained.
    ///
    /// # Errors
    /// [`Error::Config`] naming the setting that cannot be used.
    pub fn check(&self) -> Result<()> {
        let whole = [
            ("image_size", self.image_size, 64, 2048),
            ("threads", self.threads.unwrap_or(1), 1, 1024),
            ("local_resolution", self.local_resolution, 1, 1024),
            ("global_resolution", self.global_resolution, 1, 64),
            ("blocks", self.blocks, 0, 100),
            ("local_entries", self.local_entries.unwrap_or(1), 1, MAX_ENTRIES),
            ("global_entries", self.global_entries.unwrap_or(1), 1, MAX_ENTRIES),
        ];
        for (key, value, low, high) in whole {
            if !(low..=high).contains(&value) {
                return Err(Error::config(format!("{key} is {value}"), format!("use a number from {low} to {high}")));
            }
        }
        if !self.image_size.is_multiple_of(16) {
            let below = self.image_size / 16 * 16;
            return Err(Error::config(
                format!("image_size is {}, not a multiple of 16", self.image_size),
                format!("use {below} or {}", below + 16),
            ));
        }
        if let Some(seed) = self.seeds.iter().enumerate().find(|(i, s)| self.seeds[..*i].contains(s)).map(|(_, s)| s) {
            return Err(Error::config(format!("seeds names {seed} twice"), "name each seed once"));
        }
        if self.model != ModelKind::Grad && !(1e-3..=64.0).contains(&self.expansion) {
            let what = format!("expansion is {}", self.expansion);
            return Err(Error::config(what, "use a number from 0.001 to 64"));
        }
        if !(0.0..1.0).contains(&self.hold_out) {
            let help = "use a number from 0, for none, to below 1, for example 0.1";
            return Err(Error::config(format!("hold_out is {}", self.hold_out), help));
        }
        if let Some(seed) = self.seeds.iter().chain([&self.seed]).find(|seed| i64::try_from(**seed).is_err()) {
            let what = format!("seed is {seed}, more than a configuration file can hold");
            return Err(Error::config(what, format!("use a number up to {}", i64::MAX)));
        }
        if self.backbone != BackboneKind::Lite0 && self.backbone_weights.is_none() {
            return Err(Error::config(
                format!("backbone {} has no built-in weights", self.backbone.name()),
                "give its file, .pth or .safetensors, with --backbone-weights, or use --backbone lite0",
            ));
        }
        if !self.local && !self.global {
            return Err(Error::config(
                "local and global are both off: the model would know nothing about a picture",
                "leave at least one of them on",
            ));
        }
        let entries = [("local_entries", self.local_entries), ("global_entries", self.global_entries)];
        if let (MemoryKind::Grid, Some((key, _))) = (self.memory, entries.iter().find(|(_, n)| n.is_some())) {
            return Err(Error::config(
                format!("{key} is set, but a grid has cells"),
                "set local_resolution and global_resolution, or memory to vq or attention",
            ));
        }
        if self.jitter && !self.memory.has_coordinates() {
            return Err(Error::config(
                format!("jitter is on, but a {} memory has no coordinates to jitter", self.memory.name()),
                "leave jitter out, or use memory grid",
            ));
        }
        self.train().check()
    }

    /// How the head is trained.
    pub fn train(&self) -> TrainConfig {
        TrainConfig {
            epochs: self.epochs,
            batch: self.batch,
            bn_group: self.bn_group,
            rate: self.rate,
            grid_rate: self.grid_rate,
            schedule: self.schedule.0.clone(),
            decay: self.decay,
            clip: self.clip,
            jitter: self.jitter,
            jitter_std: self.jitter_std,
            seed: self.seed,
            precision: self.precision.unwrap_or_default(),
            ..TrainConfig::published(self.model)
        }
    }

    /// The head for features `[height, width, channels]` with the gate constant `mse_coef`.
    pub fn head(&self, features: [usize; 3], mse_coef: f64) -> HeadConfig {
        let expansion = match self.model {
            ModelKind::Grad => 0,
            _ => ((self.expansion * features[2] as f64).round() as usize).max(1),
        };
        HeadConfig {
            blocks: self.blocks,
            expansion,
            local_resolution: self.local_resolution,
            global_resolution: self.global_resolution,
            memory: self.memory,
            local_entries: self.local_entries.unwrap_or(0),
            global_entries: self.global_entries.unwrap_or(0),
            local: self.local,
            global: self.global,
            refine: self.refine,
            ..HeadConfig::published(self.model, features, mse_coef)
        }
    }

    /// The text of `config.toml`.
    pub fn to_toml(&self) -> String {
        let settings = toml::to_string(self).expect("settings are plain data");
        format!("# Every setting of this run. Train again like it: grad train --config THIS_FILE\n{settings}")
    }

    /// The keys whose values differ between two configurations.
    pub fn differences(&self, other: &Config) -> Vec<String> {
        differences(&self.table(), &other.table())
    }

    /// The keys whose values differ from those in the text of a `config.toml`, which this program wrote.
    ///
    /// # Errors
    /// [`Error::Config`] when it is no TOML.
    pub fn differences_from(&self, text: &str) -> Result<Vec<String>> {
        let other = text.parse().map_err(|e: toml::de::Error| {
            Error::config(format!("the stored settings are damaged: {}", e.message()), "choose another folder")
        })?;
        Ok(differences(&self.table(), &other))
    }

    /// What another configuration has different, by key; empty where it has nothing.
    pub fn changes(&self, other: &Config) -> BTreeMap<String, String> {
        let table = other.table();
        let text = |key: &String| table.get(key).map_or(String::new(), |value| value.to_string());
        self.differences(other).into_iter().map(|key| (key.clone(), text(&key))).collect()
    }

    fn table(&self) -> toml::Table {
        toml::Table::try_from(self).expect("settings are plain data")
    }
}

fn differences(a: &toml::Table, b: &toml::Table) -> Vec<String> {
    let keys: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
    keys.into_iter().filter(|key| a.get(*key) != b.get(*key)).cloned().collect()
}
