//! Training: batches of cached features through the head, one step at a time.
//!
//! A step: forward, mean squared error, backward, clip, AdamW. An epoch is every picture once, in an order drawn from
//! the seed and the epoch. Whatever a step draws depends on the seed and its number alone, so a run that is stopped,
//! saved and resumed ends in the same bits as one that never was.
//!
//! Jitter: each ghost group flips a coin; on heads, Gaussian noise is added to its local coordinates.
//! Source: arXiv 2402.18293; the numbers in [`TrainConfig::published`] are those of the public configuration.

use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::buffer::Buffer;
use crate::error::{Error, Result};
use crate::model::{Head, HeadConfig, ModelKind};
use crate::nn::{Context, Params};
use crate::optim::{AdamW, StepSize};
use crate::rng::Rng;
use crate::storage::Storage;
use crate::tensor::Tensor;

/// Random streams of a run, apart from each other and from those of the parameters, which are hashes of names.
const SHUFFLE_STREAM: u64 = 1 << 40;
const JITTER_STREAM: u64 = 2 << 40;

/// How a head is trained.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainConfig {
    /// Times every picture is seen.
    pub epochs: usize,
    /// Pictures in a step; the last of an epoch may have fewer.
    pub batch: usize,
    /// Pictures that BatchNorm looks at together: a batch is split into groups of at most this many.
    pub bn_group: usize,
    /// Learning rate of everything but the grids.
    pub rate: f64,
    /// Learning rate of the grids.
    pub grid_rate: f64,
    /// `[epoch, factor]`: from this epoch on, both rates are multiplied by the factor.
    pub schedule: Vec<(usize, f64)>,
    /// AdamW's weight decay, on everything.
    pub decay: f64,
    /// Largest global gradient norm.
    pub clip: f64,
    /// Whether local coordinates are jittered.
    pub jitter: bool,
    /// Chance of a group's jitter in a step.
    pub jitter_probability: f64,
    /// Standard deviation of the jitter, in coordinate units.
    pub jitter_std: f64,
    /// Start values, order of the pictures and jitter.
    pub seed: u64,
}

impl TrainConfig {
    /// The published training of `kind`, on one device with batches of 16.
    pub fn published(kind: ModelKind) -> Self {
        TrainConfig {
            epochs: kind.published_epochs(),
            batch: 16,
            bn_group: 16,
            rate: 0.001,
            grid_rate: 0.1,
            // The public scheduler steps once late: 41 epochs at full rate, then 40 at a tenth.
            schedule: vec![(0, 1.0), (41, 0.1), (81, 0.01)],
            decay: 0.01,
            clip: 0.1,
            jitter: true,
            jitter_probability: 0.5,
            jitter_std: 0.05,
            seed: 0,
        }
    }

    /// A short training for the demo set: small batches, so that its few pictures make many steps, and the last epoch at
    /// a tenth of the rate. With data, features and evaluation well under three minutes on two cores.
    pub fn demo(kind: ModelKind) -> Self {
        let schedule = vec![(0, 1.0), (5, 0.1)];
        TrainConfig { epochs: 6, batch: 8, bn_group: 8, schedule, ..Self::published(kind) }
    }

    /// Factor of the rates in `epoch`, counted from 0.
    pub fn factor(&self, epoch: usize) -> f64 {
        self.schedule.iter().filter(|(from, _)| *from <= epoch).max_by_key(|(from, _)| *from).map_or(1.0, |(_, f)| *f)
    }

    /// Rates and constants of a step in `epoch`.
    pub fn step_size(&self, epoch: usize) -> StepSize {
        let f = self.factor(epoch);
        StepSize { grids: self.grid_rate * f, network: self.rate * f, decay: self.decay, clip: self.clip }
    }

    /// Checks that a run with these numbers makes sense.
    ///
    /// # Errors
    /// [`Error::Config`] naming the setting.
    pub fn check(&self) -> Result<()> {
        let counts = [("epochs", self.epochs), ("batch", self.batch), ("bn_group", self.bn_group)];
        if let Some((name, _)) = counts.into_iter().find(|(_, v)| *v == 0) {
            return Err(Error::config(format!("{name} is 0"), "use a number of at least 1"));
        }
        let mut numbers = vec![
            ("rate", self.rate),
            ("grid_rate", self.grid_rate),
            ("decay", self.decay),
            ("jitter_std", self.jitter_std),
            ("jitter_probability", self.jitter_probability),
        ];
        numbers.extend(self.schedule.iter().map(|(_, f)| ("schedule", *f)));
        if let Some((name, v)) = numbers.into_iter().find(|(_, v)| !(v.is_finite() && *v >= 0.0)) {
            return Err(Error::config(format!("{name} is {v}"), "use a finite number that is not negative"));
        }
        if self.clip.is_nan() || self.clip <= 0.0 {
            return Err(Error::config(
                format!("clip is {}", self.clip),
                "use a number above 0; inf turns clipping off",
            ));
        }
        Ok(())
    }
}

/// Where the features of training picture `i` come from.
pub trait FeatureSource: Sync {
    /// Number of pictures.
    fn len(&self) -> usize;
    /// Features of one picture, `[height, width, channels]`.
    fn get(&self, i: usize) -> &[f32];
    /// Whether there is nothing to train on.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// What an epoch did to the model; the same for the same seed, whatever the machine's speed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EpochSummary {
    /// Counted from 1.
    pub epoch: usize,
    /// Mean loss over the pictures.
    pub loss: f64,
    /// Learning rate of everything but the grids.
    pub rate: f64,
    /// Learning rate of the grids.
    pub grid_rate: f64,
    /// Mean gradient norm over the steps, before clipping.
    pub gradient_norm: f64,
}

/// One line of `train.jsonl`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EpochRecord {
    /// What it did.
    #[serde(flatten)]
    pub summary: EpochSummary,
    /// Wall-clock seconds.
    pub seconds: f64,
    /// Pictures per second.
    pub images_per_second: f64,
}

/// Where in its run a trainer stands; all that a checkpoint needs besides the arena and the optimiser.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Finished epochs.
    pub epoch: usize,
    /// Finished steps of the current epoch.
    pub step: usize,
    /// Sums over the current epoch: loss times pictures, gradient norms, seconds.
    pub loss: f64,
    /// See `loss`.
    pub gradient_norm: f64,
    /// See `loss`.
    pub seconds: f64,
}

/// What one step found.
#[derive(Clone, Debug, PartialEq)]
pub struct StepReport {
    /// Mean loss of the batch.
    pub loss: f64,
    /// Gradient norm before clipping.
    pub gradient_norm: f64,
    /// The record of the epoch, if this step ended it.
    pub epoch: Option<EpochRecord>,
}

/// A head in training.
pub struct Trainer {
    /// Its layers.
    pub head: Head,
    /// Its values.
    pub params: Params,
    /// The optimiser's memory.
    pub optimiser: AdamW,
    /// How it is trained.
    pub config: TrainConfig,
    /// Where it stands.
    pub progress: Progress,
    grads: Storage,
}

impl Trainer {
    /// A fresh head.
    ///
    /// # Errors
    /// [`Error::Config`] when the head cannot be built or the training makes no sense.
    pub fn new(head: HeadConfig, config: TrainConfig) -> Result<Self> {
        config.check()?;
        if let Some(fault) = head.fault() {
            return Err(Error::config(fault, "change the settings of the model"));
        }
        let (head, params) = Head::new(head, Some(config.seed));
        let optimiser = AdamW::new(&params);
        Ok(Self::resume(head, params, optimiser, config, Progress::default()))
    }

    /// A head that was trained before, as a checkpoint holds it.
    pub fn resume(head: Head, params: Params, optimiser: AdamW, config: TrainConfig, progress: Progress) -> Self {
        let grads = Storage::Host(Buffer::filled(params.trained_range().len(), 0.0));
        Trainer { head, params, optimiser, config, progress, grads }
    }

    /// Whether every epoch has been trained.
    pub fn finished(&self) -> bool {
        self.progress.epoch >= self.config.epochs
    }

    /// Steps of one epoch over `images` pictures.
    pub fn steps_per_epoch(&self, images: usize) -> usize {
        images.div_ceil(self.config.batch)
    }

    /// Pictures of step `step` of epoch `epoch`, in order.
    fn batch(&self, images: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..images).collect();
        Rng::new(self.config.seed, SHUFFLE_STREAM + self.progress.epoch as u64).shuffle(&mut order);
        let first = self.progress.step * self.config.batch;
        order[first..(first + self.config.batch).min(images)].to_vec()
    }

    /// Noise for the local coordinates of this step, `[N, H, W, 2]`; `None` when every coin says no.
    fn jitter(&self, images: usize, groups: usize) -> Option<Tensor> {
        let head = self.head.config();
        if !self.config.jitter || !head.local {
            return None;
        }
        let mut rng = Rng::new(self.config.seed, JITTER_STREAM + self.optimiser.steps);
        let image = head.height * head.width * 2;
        let mut noise = Buffer::filled(images * image, 0.0);
        let mut any = false;
        for g in 0..groups {
            if f64::from(rng.uniform()) < self.config.jitter_probability {
                let group = crate::ops::ghost_group(images, groups, g);
                rng.fill_normal(&mut noise[group.start * image..group.end * image], self.config.jitter_std as f32);
                any = true;
            }
        }
        any.then(|| Tensor::new([images, head.height, head.width, 2], noise))
    }

    /// One step on the next batch.
    ///
    /// # Errors
    /// [`Error::Data`] when there is no picture or its features do not fit the head; [`Error::Config`] when the loss is
    /// not a number any more.
    pub fn step(&mut self, features: &dyn FeatureSource) -> Result<StepReport> {
        let started = Instant::now();
        let HeadConfig { height, width, channels, .. } = *self.head.config();
        let batch = self.batch(features.len());
        if batch.is_empty() {
            return Err(Error::data("training set", "it holds no picture", "add good pictures to train on"));
        }
        let image = height * width * channels;
        let mut x = Buffer::scratch(batch.len() * image);
        for (to, &i) in x.chunks_exact_mut(image).zip(&batch) {
            to.copy_from_slice(features.get(i));
        }
        let groups = batch.len().div_ceil(self.config.bn_group);
        let jitter = self.jitter(batch.len(), groups);
        let x = Tensor::new([batch.len(), height, width, channels], x);
        let (loss, gradient_norm) =
            self.update(&x, jitter.as_ref(), groups, self.config.step_size(self.progress.epoch))?;
        if !(loss.is_finite() && gradient_norm.is_finite()) {
            let at = format!("epoch {}, step {}", self.progress.epoch + 1, self.progress.step + 1);
            return Err(Error::config(
                format!("training diverged at {at}: loss {loss}, gradient norm {gradient_norm}"),
                "lower rate and grid_rate, or look for pictures whose features are not finite",
            ));
        }
        let p = &mut self.progress;
        p.step += 1;
        p.loss += loss * batch.len() as f64;
        p.gradient_norm += gradient_norm;
        p.seconds += started.elapsed().as_secs_f64();
        let epoch = (p.step * self.config.batch >= features.len()).then(|| self.end_epoch(features.len()));
        Ok(StepReport { loss, gradient_norm, epoch })
    }

    /// Forward, backward and AdamW on one batch x `[N, H, W, C]`: the loss, and the gradient norm before clipping.
    ///
    /// # Errors
    /// When the shapes do not fit the head.
    pub fn update(&mut self, x: &Tensor, jitter: Option<&Tensor>, groups: usize, size: StepSize) -> Result<(f64, f64)> {
        let cx = Context::train(&self.params, groups);
        let loss = self.head.loss(&cx, x, jitter)?;
        cx.finish(&loss, &mut self.params, &mut self.grads)?;
        let norm = self.optimiser.step(&mut self.params, &self.grads, size)?;
        Ok((loss.to_host()?.data()[0].into(), norm))
    }

    fn end_epoch(&mut self, images: usize) -> EpochRecord {
        let p = std::mem::take(&mut self.progress);
        let size = self.config.step_size(p.epoch);
        self.progress.epoch = p.epoch + 1;
        let summary = EpochSummary {
            epoch: p.epoch + 1,
            loss: p.loss / images as f64,
            rate: size.network,
            grid_rate: size.grids,
            gradient_norm: p.gradient_norm / p.step as f64,
        };
        EpochRecord { summary, seconds: p.seconds, images_per_second: images as f64 / p.seconds.max(f64::MIN_POSITIVE) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_published_schedule_drops_one_epoch_late() {
        let config = TrainConfig::published(ModelKind::Grad);
        for (epochs, factor) in [(0..41, 1.0), (41..81, 0.1), (81..100, 0.01)] {
            assert!(epochs.clone().all(|e| config.factor(e) == factor), "{epochs:?}");
        }
    }

    #[test]
    fn an_epoch_sees_every_picture_once_and_the_next_in_another_order() {
        let head = HeadConfig { blocks: 1, ..HeadConfig::published(ModelKind::CradS, [2, 2, 4], 0.05) };
        let config = TrainConfig { batch: 3, ..TrainConfig::published(ModelKind::CradS) };
        let mut trainer = Trainer::new(head, config).unwrap();
        let mut orders = vec![];
        for epoch in 0..2 {
            let mut order = vec![];
            for step in 0..trainer.steps_per_epoch(10) {
                trainer.progress = Progress { epoch, step, ..Progress::default() };
                order.extend(trainer.batch(10));
            }
            let mut sorted = order.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, (0..10).collect::<Vec<_>>());
            orders.push(order);
        }
        assert_ne!(orders[0], orders[1]);
    }

    #[test]
    fn impossible_settings_are_named() {
        let good = TrainConfig::published(ModelKind::Crad);
        good.check().unwrap();
        for (bad, word) in [
            (TrainConfig { batch: 0, ..good.clone() }, "batch"),
            (TrainConfig { rate: f64::NAN, ..good.clone() }, "rate"),
            (TrainConfig { clip: 0.0, ..good.clone() }, "clip"),
            (TrainConfig { schedule: vec![(3, -1.0)], ..good.clone() }, "schedule"),
        ] {
            assert!(bad.check().unwrap_err().to_string().contains(word));
        }
    }
}
