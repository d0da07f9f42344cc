//! `grad train`: pictures -> features -> gate constant -> training -> model -> evaluation, all into one run folder.

use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::json;

use super::pictures::{Cached, Pictures, Selection};
use super::ui::{Bar, OutputArgs, Ui, count, size};
use super::{interrupt, machine};
use crate::atomic::write_atomic;
use crate::backbone::Backbone;
use crate::checkpoint::{FORMAT, ModelInfo, load_checkpoint, save_checkpoint, save_model};
use crate::config::{Config, ExtractorArgs, MachineArgs, MseCoef, RecipeArgs, Settings, SourceArgs};
use crate::data::Split;
use crate::detector::{Detector, open_backbone};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::evaluate::evaluate;
use crate::metrics::Metrics;
use crate::run_folder::RunFolder;
use crate::score::Protocol;
use crate::train::{EpochRecord, FeatureSource, Kept, Trainer};

/// At most this much work is lost when the process is killed.
const CHECKPOINT_EVERY: Duration = Duration::from_secs(30);

/// What a resumed run may have different from how it began. Nothing else: it would not be the same run.
const MAY_CHANGE: [&str; 7] = ["epochs", "data", "backbone_weights", "cache", "threads", "device", "precision"];

const MORE: &str = "\
Learns from ROOT/CLASS/train/good/*, measures on ROOT/CLASS/test/{good,DEFECT}/*
with the masks of ROOT/CLASS/ground_truth/DEFECT/*. Without --data, on the demo
set. `grad data check -h` lists other layouts. Everything it makes goes to a
folder of its own.

Examples:
  grad train
  grad train --data parts --model crad --out runs/parts
  grad train --resume runs/parts                   go on, to the same bits
  grad train --resume runs/parts --epochs 80       train longer
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
    let TrainArgs { source, recipe, extractor, machine, resume, output } = args;
    let ui = Ui::new(output);
    let flags = Settings { machine, source, extractor, recipe };
    let resumed = resume.is_some();
    let (mut config, run) = match resume {
        None => {
            let config = Config::settle(flags)?;
            let run = RunFolder::create(config.out.as_deref(), config.model.name())?;
            (config, run)
        }
        Some(folder) => {
            let run = RunFolder::resume(&folder)?;
            (resumed_config(&run, flags)?, run)
        }
    };
    // Nothing is left open in what a run's folder says of it.
    config.precision = Some(config.precision.unwrap_or_default());
    interrupt::watch()?;
    machine::on_device(&ui, &config, None, |device| Job { ui: &ui, config: &config, device, run, resumed }.train())
}

/// The settings of the run, with the few changes that are allowed.
fn resumed_config(run: &RunFolder, mut flags: Settings) -> Result<Config> {
    let mut nothing = Settings::default();
    for settings in [&mut nothing, &mut flags] {
        settings.machine.config = Some(run.config());
    }
    let (began, config) = (Config::settle(nothing)?, Config::settle(flags)?);
    match began.differences(&config).iter().find(|key| !MAY_CHANGE.contains(&key.as_str())) {
        None => Ok(config),
        Some(key) => Err(Error::config(
            format!("{key} is not what the run in {} began with", run.path().display()),
            format!("leave it out, or start another run; a resumed run may change {}", MAY_CHANGE.join(", ")),
        )),
    }
}

/// One run.
struct Job<'a> {
    ui: &'a Ui,
    config: &'a Config,
    device: &'a Device,
    run: RunFolder,
    resumed: bool,
}

impl Job<'_> {
    fn train(mut self) -> Result<()> {
        let (ui, config, started) = (self.ui, self.config, Instant::now());
        let by_default = config.model_is_default && !self.resumed;
        let why = if by_default { ": the default, the smallest of the three" } else { "" };
        ui.note("model", format_args!("{}{why}", config.model.name()));
        let pictures = Pictures::open(ui, config)?;
        pictures.dataset.require_training()?;
        let backbone = open_backbone(config.backbone, config.backbone_weights.as_deref())?.to(self.device)?;
        let cached = pictures.features(ui, config, &backbone, None)?;
        if interrupt::requested() {
            let kept = format!("before training began; features are kept in {}", config.cache);
            return Err(Error::Interrupted(kept));
        }
        let train = cached.select(Split::Train);
        let (mut info, trainer) = match self.resumed {
            true => self.reopen(&backbone, &pictures, train.len())?,
            false => self.begin(&backbone, &pictures, &cached, &train)?,
        };
        let mut trainer = trainer.to(self.device)?;
        self.say_kept(trainer.keep_features(&train)?);
        ui.note("run", format_args!("{}, {}", self.run.path().display(), count(config.epochs, "epoch")));
        self.run.start(&config.to_toml())?;
        self.epochs(&mut info, &mut trainer, &train)?;

        let Trainer { head, params, .. } = trainer;
        let mut detector = Detector { info, head, params, backbone };
        detector.info.score_scale = detector.measure_scale(&train)?;
        save_model(&self.run.model(), &detector.info, &detector.params)?;
        let metrics = self.measure(&detector, &pictures, &cached)?;
        let took = started.elapsed();
        ui.note("done", format_args!("{:.0} s, {}", took.as_secs_f64(), self.run.model().display()));
        self.report(&detector, metrics.as_ref(), took)
    }

    /// Where the features are while a device trains.
    fn say_kept(&self, kept: Kept) {
        match kept {
            Kept::OnHost => {}
            Kept::OnDevice(bytes) => self.ui.note("device", format_args!("keeps all features, {}", size(bytes))),
            Kept::Streamed(bytes) => {
                let what = format_args!("has no room for all features, {}: they are streamed", size(bytes));
                self.ui.note("device", what);
            }
        }
    }

    /// A fresh trainer, its gate fitted to the training features.
    fn begin(
        &self,
        backbone: &Backbone,
        pictures: &Pictures,
        cached: &Cached,
        train: &Selection,
    ) -> Result<(ModelInfo, Trainer)> {
        let config = self.config;
        let mse_coef = match config.mse_coef {
            MseCoef::Value(k) => k,
            MseCoef::Auto => {
                let energy = cached.features.mean_square(&train.of);
                let k = 0.5 / energy;
                if !(k.is_finite() && k > 0.0) {
                    return Err(Error::data(
                        pictures.dataset.root(),
                        format!("the features of the training pictures have a mean energy of {energy}"),
                        "the gate cannot be fitted to them: give --mse-coef, or other pictures",
                    ));
                }
                self.ui.note("gate", format_args!("mse_coef {k:.4} = 0.5 / {energy:.4}, the features' mean energy"));
                k
            }
        };
        let head = config.head(cached.features.shape(), mse_coef);
        let info = ModelInfo {
            format: FORMAT,
            version: env!("CARGO_PKG_VERSION").into(),
            head: head.clone(),
            backbone: config.backbone.name().into(),
            backbone_digest: backbone.digest().to_string(),
            image_size: config.image_size,
            classes: pictures.dataset.classes.clone(),
            protocol: Protocol::official(),
            score_scale: None,
            train: config.train(),
            record: vec![],
            images: train.len(),
            data: pictures.origins.clone(),
        };
        Ok((info, Trainer::new(head, config.train())?))
    }

    /// The trainer of the checkpoint, if it belongs to these pictures and this backbone.
    fn reopen(&self, backbone: &Backbone, pictures: &Pictures, images: usize) -> Result<(ModelInfo, Trainer)> {
        let path = self.run.checkpoint();
        let (mut info, mut trainer) = load_checkpoint(&path)?;
        if info.backbone_digest != backbone.digest().to_string() {
            let help = "resume with the --backbone-weights that the run began with";
            return Err(Error::model(path, "it was trained on features of other backbone weights", help));
        }
        let classes = &pictures.dataset.classes;
        if (classes, images) != (&info.classes, info.images) {
            let what = format!(
                "{} ({}) are not what the run was trained on: {} ({})",
                count(images, "training picture"),
                classes.join(", "),
                info.images,
                info.classes.join(", ")
            );
            return Err(Error::data(pictures.dataset.root(), what, "bring the pictures back, or start another run"));
        }
        let done = trainer.progress.epoch + usize::from(trainer.progress.step > 0);
        if done > self.config.epochs {
            return Err(Error::config(
                format!("epochs is {}, and epoch {done} has begun already", self.config.epochs),
                "ask for at least as many epochs, or start another run",
            ));
        }
        trainer.config.epochs = self.config.epochs;
        trainer.config.precision = self.config.train().precision;
        info.train = trainer.config.clone();
        info.version = env!("CARGO_PKG_VERSION").into();
        match trainer.finished() {
            true => self.ui.note("resume", "every epoch is trained already"),
            false => self.ui.note(
                "resume",
                format_args!("at epoch {}, step {}", trainer.progress.epoch + 1, trainer.progress.step + 1),
            ),
        }
        Ok((info, trainer))
    }

    /// Trains until every epoch is done or the user asks to stop.
    fn epochs(&self, info: &mut ModelInfo, trainer: &mut Trainer, train: &dyn FeatureSource) -> Result<()> {
        let checkpoint = self.run.checkpoint();
        let mut log = self.run.epoch_log(trainer.progress.epoch)?;
        // Before the first step, so that there is always one to go on from.
        save_checkpoint(&checkpoint, info, trainer)?;
        let mut saved = Instant::now();
        let steps = trainer.steps_per_epoch(train.len());
        let bar = self.ui.bar("train", steps * trainer.config.epochs);
        bar.at(steps * trainer.progress.epoch + trainer.progress.step);
        while !trainer.finished() {
            let report = trainer.step(train)?;
            bar.advance(1);
            if let Some(record) = report.epoch {
                log.push(&record)?;
                self.say_epoch(&bar, &record);
                info.record.push(record.summary);
            }
            let stop = interrupt::requested();
            if stop || trainer.finished() || saved.elapsed() >= CHECKPOINT_EVERY {
                save_checkpoint(&checkpoint, info, trainer)?;
                saved = Instant::now();
            }
            if stop && !trainer.finished() {
                let at = format!("in epoch {}; everything is saved", trainer.progress.epoch + 1);
                let resume = format!("grad train --resume {}", self.run.path().display());
                return Err(Error::Interrupted(format!("{at}\n  go on with: {resume}")));
            }
        }
        Ok(())
    }

    fn say_epoch(&self, bar: &Bar, record: &EpochRecord) {
        let EpochRecord { summary, seconds, images_per_second } = record;
        if !bar.is_hidden() {
            return bar.message(format!("loss {:.5}", summary.loss));
        }
        let of = format!("{}/{}", summary.epoch, self.config.epochs);
        let speed = format!("{seconds:.1} s, {images_per_second:.1} pictures/s");
        self.ui.note("epoch", format_args!("{of:<7} loss {:.5}  {speed}", summary.loss));
    }

    /// Metrics on the test pictures, written to the folder; `None` when there are none.
    fn measure(&self, detector: &Detector, pictures: &Pictures, cached: &Cached) -> Result<Option<Metrics>> {
        let test = cached.select(Split::Test);
        if test.is_empty() {
            self.ui.warn("there are no test pictures, so nothing was measured");
            return Ok(None);
        }
        let bar = self.ui.bar("evaluate", test.len());
        let metrics = evaluate(detector, &pictures.dataset, &test.items(), &test, &|n| bar.advance(n))?;
        let text = serde_json::to_string_pretty(&metrics).expect("metrics are plain data") + "\n";
        write_atomic(self.run.metrics(), |file| file.write_all(text.as_bytes()))?;
        Ok(Some(metrics))
    }

    fn report(&self, detector: &Detector, metrics: Option<&Metrics>, took: Duration) -> Result<()> {
        let value = json!({
            "run": self.run.path().display().to_string(),
            "model": self.run.model().display().to_string(),
            "epochs": detector.info.record.len(),
            "loss": detector.info.record.last().map(|epoch| epoch.loss),
            "seconds": took.as_secs_f64(),
            "metrics": metrics,
        });
        self.ui.result(&value, metrics.map(Metrics::table).unwrap_or_default())
    }
}
