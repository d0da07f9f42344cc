//! One run: features -> gate constant -> training -> thresholds -> model -> evaluation, all into one folder.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::super::pictures::{Cached, Selection};
use super::super::start::Start;
use super::super::ui::{Bar, Ui, count, size};
use super::super::{interrupt, thresholds};
use super::inputs::Inputs;
use super::oracle::{Best, Oracle};
use crate::atomic::write_atomic;
use crate::calibrate::{Calibration, DEFAULT_TARGET, GoodScore};
use crate::checkpoint::{FORMAT, ModelInfo, load_checkpoint, load_model, save_checkpoint, save_model};
use crate::config::{Config, MseCoef};
use crate::data::{Dataset, Item, Split};
use crate::detector::Detector;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::evaluate::evaluate;
use crate::golden;
use crate::metrics::Metrics;
use crate::run_folder::RunFolder;
use crate::score::Protocol;
use crate::train::{EpochRecord, FeatureSource, Kept, Trainer};

/// At most this much work is lost when the process is killed.
const CHECKPOINT_EVERY: Duration = Duration::from_secs(30);

/// A run to be trained.
pub struct Job<'a> {
    pub ui: &'a Ui,
    pub config: &'a Config,
    pub device: &'a Device,
    pub inputs: &'a Inputs,
    pub run: RunFolder,
    /// Whether it goes on from its checkpoint.
    pub resumed: bool,
    /// The model it starts from, if it is not a fresh one.
    pub start: Option<&'a Start>,
    /// What goes on with it, or with the whole that it is part of, once it was stopped.
    pub go_on: String,
    /// What its time is counted from.
    pub started: Instant,
}

/// A run that was trained.
pub struct Trained {
    pub run: PathBuf,
    pub model: PathBuf,
    pub epochs: usize,
    /// Of the last epoch.
    pub loss: Option<f64>,
    pub took: Duration,
    /// `None` without test pictures.
    pub metrics: Option<Metrics>,
    /// The best epoch, if several were measured.
    pub oracle: Option<Best>,
}

impl Job<'_> {
    /// Trains until every epoch is done, or goes on until then.
    ///
    /// # Errors
    /// What pictures, weights, the device and the disk refuse; [`Error::Interrupted`] when the user asks to stop.
    pub fn train(mut self) -> Result<Trained> {
        let (ui, config, inputs) = (self.ui, self.config, self.inputs);
        let by_default = config.model_is_default && !self.resumed;
        let why = if by_default { ": the default, the smallest of the three" } else { "" };
        ui.note("model", format_args!("{}{why}", config.model.name()));
        let (dataset, backbone) = (&inputs.pictures.dataset, &inputs.backbone);
        let cached = inputs.cached();
        let train = cached.select(Split::Train);
        let (mut info, trainer) = match self.resumed {
            true => self.reopen(train.len())?,
            false => self.begin(&cached, &train)?,
        };
        let mut trainer = trainer.to(self.device)?;
        self.say_kept(trainer.keep_features(&train)?);
        ui.note("run", format_args!("{}, {}", self.run.path().display(), count(config.epochs, "epoch")));
        self.run.start(&config.to_toml())?;
        let mut oracle = Oracle::open(&self.run, trainer.progress.epoch)?;
        let measure = |info: &ModelInfo, trainer: &Trainer| {
            // Parameters are shared, not copied; they are let go before the next step.
            let (head, params) = (trainer.head.clone(), trainer.params.clone());
            let detector = Detector::new(info.clone(), head, params, backbone.clone());
            let metrics = self.measure(&detector, &cached)?;
            metrics.map_or(Ok(()), |metrics| oracle.add(&self.run, info.record.len(), &detector, &metrics))
        };
        self.epochs(&mut info, &mut trainer, &train, measure)?;

        let (head, params) = trainer.into_model();
        let mut detector = Detector::new(info, head, params, backbone.clone());
        detector.info.score_scale = detector.measure_scale(&train)?;
        detector.info.calibration = match self.resumed.then(|| self.calibrated(&detector)).flatten() {
            Some(calibration) => Some(calibration),
            None => self.calibrate(&detector, &cached)?,
        };
        detector.info.golden = golden::of_items(&detector, dataset, &golden_items(&train))?;
        save_model(&self.run.model(), &detector.info, &detector.params)?;
        let metrics = self.measure(&detector, &cached)?;
        match &metrics {
            None => ui.warn("there are no test pictures, so nothing was measured"),
            Some(metrics) => {
                let text = serde_json::to_string_pretty(metrics).expect("metrics are plain data") + "\n";
                write_atomic(self.run.metrics(), |file| file.write_all(text.as_bytes()))?;
                if config.eval_every > 0 {
                    oracle.add(&self.run, detector.info.record.len(), &detector, metrics)?;
                }
            }
        }
        let took = self.started.elapsed();
        ui.note("done", format_args!("{:.0} s, {}", took.as_secs_f64(), self.run.model().display()));
        let record = &detector.info.record;
        Ok(Trained {
            run: self.run.path().into(),
            model: self.run.model(),
            epochs: record.len(),
            loss: record.last().map(|epoch| epoch.loss),
            took,
            metrics,
            oracle: oracle.best.filter(|_| config.eval_every > 0),
        })
    }

    fn dataset(&self) -> &Dataset {
        &self.inputs.pictures.dataset
    }

    /// The thresholds of the model file, if it is of these very parameters: `calibrate` may have chosen them since.
    fn calibrated(&self, detector: &Detector) -> Option<Calibration> {
        let (info, _, params) = load_model(&self.run.model()).ok()?;
        let host = detector.params.to(&Device::Cpu).ok()?;
        let same = params.values().iter().map(|v| v.to_bits()).eq(host.values().iter().map(|v| v.to_bits()));
        let kept = info.calibration.filter(|_| same)?;
        self.ui.note("threshold", format_args!("kept: {}", thresholds::promise(&kept)));
        Some(kept)
    }

    /// Thresholds from the pictures that were held out; `None` if there are none.
    fn calibrate(&self, detector: &Detector, cached: &Cached) -> Result<Option<Calibration>> {
        let held_out = cached.select(Split::Validation);
        if held_out.is_empty() {
            return Ok(None);
        }
        let mut scores: BTreeMap<String, Vec<GoodScore>> = BTreeMap::new();
        for (item, score) in held_out.items().iter().zip(detector.good_scores(&held_out)?) {
            scores.entry(self.dataset().class_of(item).to_owned()).or_default().push(score);
        }
        let calibration = Calibration::new(DEFAULT_TARGET, &scores)?;
        self.ui.note("threshold", thresholds::promise(&calibration));
        Ok(Some(calibration))
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
    fn begin(&self, cached: &Cached, train: &Selection) -> Result<(ModelInfo, Trainer)> {
        let (config, backbone) = (self.config, &self.inputs.backbone);
        let mse_coef = match config.mse_coef {
            MseCoef::Value(k) => k,
            MseCoef::Auto => {
                let energy = train.mean_square();
                let k = 0.5 / energy;
                if !(k.is_finite() && k > 0.0) {
                    return Err(Error::data(
                        self.dataset().root(),
                        format!("the features of the training pictures have a mean energy of {energy}"),
                        "the gate cannot be fitted to them: give --mse-coef, or other pictures",
                    ));
                }
                self.ui.note("gate", format_args!("mse_coef {k:.4} = 0.5 / {energy:.4}, the features' mean energy"));
                k
            }
        };
        let (head, trainer) = match self.start {
            Some(start) => start.trainer(config, backbone, cached.features.shape())?,
            None => {
                let head = config.head(cached.features.shape(), mse_coef);
                (head.clone(), Trainer::new(head, config.train())?)
            }
        };
        let info = ModelInfo {
            format: FORMAT,
            version: env!("CARGO_PKG_VERSION").into(),
            head,
            backbone: config.backbone.name().into(),
            backbone_digest: backbone.digest().to_string(),
            image_size: config.image_size,
            classes: self.dataset().classes.clone(),
            protocol: Protocol::official(),
            score_scale: None,
            train: config.train(),
            record: vec![],
            images: train.len(),
            data: self.inputs.pictures.origins.clone(),
            hold_out: config.hold_out,
            trained_on: self.inputs.fingerprints(),
            calibration: None,
            golden: vec![],
        };
        if let Some(start) = self.start {
            self.ui.note("start", start.describe());
        }
        Ok((info, trainer))
    }

    /// The trainer of the checkpoint, if it belongs to these pictures and this backbone.
    fn reopen(&self, images: usize) -> Result<(ModelInfo, Trainer)> {
        let path = self.run.checkpoint();
        let (mut info, mut trainer) = load_checkpoint(&path)?;
        if !self.inputs.backbone.is(&info.backbone_digest) {
            let help = "resume with the --backbone-weights that the run began with";
            return Err(Error::model(path, "it was trained on features of other backbone weights", help));
        }
        let classes = &self.dataset().classes;
        if (classes, images) != (&info.classes, info.images) {
            let what = format!(
                "{} ({}) are not what the run was trained on: {} ({})",
                count(images, "training picture"),
                classes.join(", "),
                info.images,
                info.classes.join(", ")
            );
            return Err(Error::data(self.dataset().root(), what, "bring the pictures back, or start another run"));
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

    /// Trains until every epoch is done or the user asks to stop; `measure` is called every so many epochs, if that was
    /// asked for, but not after the last.
    fn epochs(
        &self,
        info: &mut ModelInfo,
        trainer: &mut Trainer,
        train: &dyn FeatureSource,
        mut measure: impl FnMut(&ModelInfo, &Trainer) -> Result<()>,
    ) -> Result<()> {
        let checkpoint = self.run.checkpoint();
        // Before the first step, so that there is always one to go on from.
        save_checkpoint(&checkpoint, info, trainer)?;
        let mut log = self.run.epoch_log(trainer.progress.epoch)?;
        let mut saved = Instant::now();
        let steps = trainer.steps_per_epoch(train.len());
        let bar = self.ui.bar("train", steps * trainer.config.epochs);
        bar.at(steps * trainer.progress.epoch + trainer.progress.step);
        let mut kept = trainer.kept();
        // On a device that keeps all features, the steps of an epoch are one turn of this loop, and the user and the clock
        // are asked between two; otherwise each step is.
        while !trainer.finished() {
            let reports = trainer.advance(train)?;
            bar.advance(reports.len());
            // An epoch can end with the last of them alone.
            let ended = reports.last().and_then(|report| report.epoch.clone());
            if trainer.kept() != kept {
                kept = trainer.kept();
                self.say_kept(kept);
            }
            if let Some(record) = ended {
                log.push(&record)?;
                self.say_epoch(&bar, &record);
                info.record.push(record.summary);
                let due = self.config.eval_every > 0 && info.record.len().is_multiple_of(self.config.eval_every);
                if due && !trainer.finished() {
                    measure(info, trainer)?;
                }
            }
            let stop = interrupt::requested();
            if stop || trainer.finished() || saved.elapsed() >= CHECKPOINT_EVERY {
                save_checkpoint(&checkpoint, info, trainer)?;
                saved = Instant::now();
            }
            if stop && !trainer.finished() {
                let at = format!("in epoch {}; everything is saved", trainer.progress.epoch + 1);
                return Err(Error::Interrupted(format!("{at}\n  go on with: {}", self.go_on)));
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

    /// Metrics on the test pictures; `None` when there are none.
    fn measure(&self, detector: &Detector, cached: &Cached) -> Result<Option<Metrics>> {
        let test = cached.select(Split::Test);
        if test.is_empty() {
            return Ok(None);
        }
        let bar = self.ui.bar("evaluate", test.len());
        evaluate(detector, self.dataset(), &test.items(), &test, &|n| bar.advance(n)).map(Some)
    }
}

/// A few training pictures, evenly spread.
fn golden_items<'a>(train: &'a Selection) -> Vec<&'a Item> {
    let items = train.items();
    let count = golden::COUNT.min(items.len());
    (0..count).map(|i| items[i * items.len() / count]).collect()
}
