//! `grad study`: the comparisons of the paper on any pictures. Every row is a configuration, every row and seed an ordinary
//! run; pictures are opened and features computed once for all of them.
//!
//! ```text
//! OUT/study.json   OUT/config.toml   OUT/ROW/seed-N/…   OUT/ROW/CLASS/seed-N/… where every class has a model
//! ```

mod fit;
mod plan;
mod survival;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::train::inputs::Inputs;
use super::train::member::{At, Member, members};
use super::ui::{OutputArgs, Ui, count};
use super::{interrupt, machine};
use crate::config::{Config, ExtractorArgs, MachineArgs, RecipeArgs, Settings, SourceArgs};
use crate::data::Split;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::metrics::Metrics;
use crate::run_folder::{RUNS, RunFolder};
use crate::study::{self, Kind, Study};
use crate::train::TrainConfig;
use plan::{Planned, Vary};

/// Seeds of every row, unless the user names others.
const SEEDS: [u64; 3] = [1, 2, 3];

/// What a study that goes on may have different from how it began.
const MAY_CHANGE: [&str; 4] = ["data", "backbone_weights", "cache", "threads"];

const MORE: &str = "\
Every row is trained from each of --seeds [default: 1,2,3] and measured on the
test pictures; the table has mean and spread. Without --data, on the demo set,
with 4 epochs. --out is runs/study-NAME unless given. A study that was stopped
goes on with the same command; more seeds and axes are added to what is there.

Examples:
  grad study ablation
  grad study settings --vary blocks --vary jitter=off,0.1 --seeds 1,2
  grad study memory --data mvtec --hold-out 0 --out runs/table1
  grad report runs/study-ablation";

/// Compare parts and settings of the model, as the paper does
#[derive(clap::Args)]
#[command(after_help = MORE)]
pub struct StudyArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand)]
enum What {
    /// Branches, gate and jitter, one after the other: Table 5
    #[command(after_help = MORE)]
    Ablation(Box<CommonArgs>),
    /// Grids, vector quantisation and attention: Table 1
    #[command(after_help = MORE)]
    Memory(Box<CommonArgs>),
    /// One setting at a time round those given
    #[command(after_help = MORE)]
    Settings(Box<SettingsArgs>),
    /// PaDiM and PatchCore on the same features, beside the model
    #[command(after_help = MORE)]
    Baselines(Box<CommonArgs>),
}

#[derive(clap::Args)]
struct SettingsArgs {
    /// Only this; may be repeated: separate, local-resolution, global-resolution, expansion, blocks, jitter, batch
    #[arg(long, value_name = "AXIS[=V,…]")]
    vary: Vec<Vary>,
    #[command(flatten)]
    common: CommonArgs,
}

#[derive(clap::Args)]
struct CommonArgs {
    #[command(flatten)]
    source: SourceArgs,
    #[command(flatten)]
    recipe: RecipeArgs,
    #[command(flatten)]
    extractor: ExtractorArgs,
    #[command(flatten)]
    machine: MachineArgs,
    /// The figures of every class too
    #[arg(long, help_heading = "Output")]
    per_class: bool,
    #[command(flatten)]
    output: OutputArgs,
}

pub fn run(args: StudyArgs) -> Result<()> {
    let (kind, vary, common) = match args.what {
        What::Ablation(common) => (Kind::Ablation, vec![], *common),
        What::Memory(common) => (Kind::Memory, vec![], *common),
        What::Baselines(common) => (Kind::Baselines, vec![], *common),
        What::Settings(settings) => (Kind::Settings, settings.vary, settings.common),
    };
    let CommonArgs { source, recipe, extractor, machine, per_class, output } = common;
    let ui = Ui::new(output);
    plan::refuse_own(kind, &recipe)?;
    let one = recipe.seed;
    let mut config = Config::settle_for(Settings { machine, source, extractor, recipe }, TrainConfig::study)?;
    // Nothing is left open in what a folder says of it; fractions of a point are compared, which rounding must not decide.
    config.precision = Some(config.precision.unwrap_or_default());
    let seeds = match (&config.seeds[..], one) {
        ([], None) => SEEDS.to_vec(),
        ([], Some(seed)) => vec![seed],
        (seeds, _) => seeds.to_vec(),
    };
    // The rows have seeds of their own.
    (config.seed, config.seeds) = (0, vec![]);
    let out = config.out.take().unwrap_or_else(|| Path::new(RUNS).join(format!("study-{}", kind.name())));
    if kind == Kind::Settings {
        // A mistake is said before any work; how many classes there are is not known yet.
        plan::settings(&config, &vary, usize::MAX)?;
    }
    interrupt::watch()?;
    machine::on_device(&ui, &config, None, |device| {
        let mut work = Work::open(&ui, config.clone(), device, kind, out)?;
        let classes = work.inputs.pictures.dataset.classes.len();
        let rows = match kind {
            Kind::Ablation => plan::ablation(&config),
            Kind::Memory => plan::memory(&config),
            Kind::Settings => plan::settings(&config, &vary, classes)?,
            Kind::Baselines => plan::baselines(&config, classes),
        };
        work.measure(&seeds, &rows)?;
        let Work { study, folder, .. } = work;
        ui.result(&study.summary(folder.path())?, study.table(per_class)?)
    })
}

/// A study at work in its folder.
struct Work<'a> {
    ui: &'a Ui,
    config: Config,
    device: &'a Device,
    inputs: Inputs,
    folder: RunFolder,
    study: Study,
}

impl<'a> Work<'a> {
    /// Takes the folder, or goes on in it.
    ///
    /// # Errors
    /// [`Error::Config`] when it holds something else, or a study of other settings; [`Error::Data`] when the pictures
    /// cannot be studied or have changed; what they and the device refuse.
    fn open(ui: &'a Ui, config: Config, device: &'a Device, kind: Kind, out: PathBuf) -> Result<Self> {
        // Before the pictures are opened, so that a mistake costs no time.
        let begun = Study::read(&out)?;
        let folder = match &begun {
            Some(begun) => {
                agree(begun, kind, &config, &out)?;
                RunFolder::hold(&out)?
            }
            None => RunFolder::create(Some(&out), kind.name())?,
        };
        let inputs = Inputs::open(ui, &config, device)?;
        let dataset = &inputs.pictures.dataset;
        let test = || dataset.of(Split::Test);
        let [good, defective] = [true, false].map(|good| test().filter(|item| item.label.is_good() == good).count());
        if good == 0 || defective == 0 {
            let missing = if good == 0 { "good" } else { "defective" };
            let help = "a study measures: add some, as CLASS/test/good/ and CLASS/test/DEFECT/";
            return Err(Error::data(dataset.root(), format!("holds no {missing} test pictures"), help));
        }
        let pictures = [dataset.of(Split::Train).count(), good + defective];
        // Another process may have written since.
        let study = match Study::read(&out)?.or(begun) {
            None => Study::new(kind, config.to_toml(), dataset.classes.clone(), pictures),
            Some(begun) if (&begun.classes, [begun.images, begun.tested]) == (&dataset.classes, pictures) => begun,
            Some(begun) => {
                let what = format!(
                    "{} and {} to test are not what the study in {} began with: {} and {}",
                    count(pictures[0], "training picture"),
                    pictures[1],
                    out.display(),
                    begun.images,
                    begun.tested
                );
                return Err(Error::data(dataset.root(), what, "bring the pictures back, or choose another --out"));
            }
        };
        Ok(Work { ui, config, device, inputs, folder, study })
    }

    /// Trains and measures what is not there yet: every row from the first seed, then from the next, so that rows can
    /// be compared whenever it is stopped.
    fn measure(&mut self, seeds: &[u64], rows: &[Planned]) -> Result<()> {
        rows.iter().try_for_each(|row| row.config.check())?;
        let added = rows.iter().map(|row| study::Row {
            name: row.name.clone(),
            about: row.about.clone(),
            changes: row.changes(&self.config),
            runs: vec![],
        });
        self.study.grow(seeds, added.collect())?;
        self.study.write(self.folder.path())?;
        self.folder.start(&self.config.to_toml())?;
        let seeds = self.study.seeds.clone();
        let all: Vec<(u64, &Planned)> =
            seeds.iter().flat_map(|&seed| rows.iter().map(move |row| (seed, row))).collect();
        for (i, (seed, row)) in all.iter().enumerate() {
            let done = self.study.has(&row.name, *seed);
            let note = if done { ", measured already" } else { "" };
            self.ui.note("study", format_args!("{} of {}: {}, seed {seed}{note}", i + 1, all.len(), row.about));
            if !done {
                let run = self.run(row, *seed)?;
                self.study.record(&row.name, run);
                self.study.write(self.folder.path())?;
                self.tidy(row, *seed);
            }
        }
        Ok(())
    }

    /// One row from one seed: a model, or one for each class.
    fn run(&self, row: &Planned, seed: u64) -> Result<study::Run> {
        let go_on = format!("the same command again; the study is in {}", self.folder.path().display());
        if let Some(method) = row.method {
            return fit::measured(self.ui, &row.config, &self.inputs, method, seed, &go_on);
        }
        let at = At { ui: self.ui, device: self.device, inputs: &self.inputs, go_on };
        let (mut all, mut seconds, mut survival): (Vec<Metrics>, f64, _) = (vec![], 0.0, BTreeMap::new());
        for member in self.members(row, seed) {
            if interrupt::requested() {
                return Err(Error::Interrupted(format!("all finished runs are kept\n  go on with: {}", at.go_on)));
            }
            all.extend(member.measured(&at)?);
            seconds += RunFolder::seconds(&member.folder)?;
            if self.study.kind == Kind::Memory {
                survival.extend(survival::measured(
                    self.ui,
                    self.device,
                    &member.inputs(&self.inputs),
                    &member.folder,
                )?);
            }
        }
        let metrics = Metrics::joined(all).expect("there are test pictures, or the study had not begun");
        Ok(study::Run { seed, seconds, metrics, survival })
    }

    fn members(&self, row: &Planned, seed: u64) -> Vec<Member> {
        let config = Config { seeds: vec![seed], ..row.config.clone() };
        members(&config, &self.inputs.pictures.dataset.classes, &self.folder.path().join(&row.name))
    }

    /// Takes away what only an unfinished run needs: the checkpoints of a study would fill a disk.
    fn tidy(&self, row: &Planned, seed: u64) {
        for member in self.members(row, seed) {
            // One that stays does no harm.
            let _ = std::fs::remove_file(member.folder.join("checkpoint.safetensors"));
        }
    }
}

/// Refuses to go on with a study that is another one.
fn agree(begun: &Study, kind: Kind, config: &Config, out: &Path) -> Result<()> {
    let help = "choose another --out, or give the settings that it began with";
    if begun.kind != kind {
        let what = format!("{} holds another study: {}", out.display(), begun.kind.name());
        return Err(Error::config(what, help));
    }
    let differences = config.differences_from(&begun.settings)?;
    match differences.iter().find(|key| !MAY_CHANGE.contains(&key.as_str())) {
        None => Ok(()),
        Some(key) => Err(Error::config(format!("{key} is not what the study in {} began with", out.display()), help)),
    }
}
