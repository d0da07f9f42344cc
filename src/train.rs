//! Training: batches of cached features through the head, one step at a time.
//!
//! A step: forward, mean squared error, backward, clip, AdamW. An epoch is every picture once, in an order drawn from
//! the seed and the epoch. Whatever a step draws depends on the seed and its number alone, so a run that is stopped,
//! saved and resumed ends in the same bits as one that never was.
//!
//! On a device the parameters, the optimiser and, where they fit, all features stay there: a step uploads nothing, and the
//! host waits only to read the loss and the gradient norm.
//!
//! Jitter: each ghost group flips a coin; on heads, Gaussian noise is added to its local coordinates.
//! Source: arXiv 2402.18293; the numbers in [`TrainConfig::published`] are those of the public configuration.

mod config;
mod resident;

use std::ops::Range;
use std::time::Instant;

use serde::{Deserialize, Serialize};

pub use config::TrainConfig;
pub use resident::Kept;
use resident::Resident;

use crate::buffer::Buffer;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::model::{Head, HeadConfig};
use crate::nn::{Context, Params};
use crate::optim::{AdamW, StepSize};
use crate::rng::Rng;
use crate::storage::Storage;
use crate::tensor::Tensor;

/// Random streams of a run, apart from each other and from those of the parameters, which are hashes of names.
const SHUFFLE_STREAM: u64 = 1 << 40;
const JITTER_STREAM: u64 = 2 << 40;

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
    /// Where its values lie and its steps run.
    device: Device,
    grads: Storage,
    /// All features, where they are kept on the device.
    resident: Option<Resident>,
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

    /// A head that was trained before, as a checkpoint holds it: in host memory.
    pub fn resume(head: Head, params: Params, optimiser: AdamW, config: TrainConfig, progress: Progress) -> Self {
        let grads = Storage::Host(Buffer::filled(params.trained_range().len(), 0.0));
        Trainer { head, params, optimiser, config, progress, device: Device::Cpu, grads, resident: None }
    }

    /// Moves it to another device, to go on there; where it is already, nothing is copied.
    ///
    /// # Errors
    /// What a device refuses.
    pub fn to(self, device: &Device) -> Result<Self> {
        if device.holds(&self.grads) {
            return Ok(self);
        }
        let (params, optimiser) = (self.params.to(device)?, self.optimiser.to(device)?);
        let grads = device.copy_of(&self.grads)?;
        Ok(Trainer { params, optimiser, grads, device: device.clone(), resident: None, ..self })
    }

    /// Keeps all features on the device, if it is one and they fit; the steps that follow must be given the same.
    ///
    /// # Errors
    /// What a device refuses, except for want of memory: then batches are uploaded step by step.
    pub fn keep_features(&mut self, features: &dyn FeatureSource) -> Result<Kept> {
        let Device::Gpu(gpu) = &self.device else { return Ok(Kept::OnHost) };
        let (resident, kept) = Resident::new(gpu, features, &self.params)?;
        self.resident = resident;
        Ok(kept)
    }

    /// Whether every epoch has been trained.
    pub fn finished(&self) -> bool {
        self.progress.epoch >= self.config.epochs
    }

    /// Steps of one epoch over `images` pictures.
    pub fn steps_per_epoch(&self, images: usize) -> usize {
        images.div_ceil(self.config.batch)
    }

    /// The order of the pictures in the current epoch.
    fn order(&self, images: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..images).collect();
        Rng::new(self.config.seed, SHUFFLE_STREAM + self.progress.epoch as u64).shuffle(&mut order);
        order
    }

    /// The places of the current step's pictures in that order.
    fn places(&self, images: usize) -> Range<usize> {
        let first = self.progress.step * self.config.batch;
        first..(first + self.config.batch).min(images)
    }

    /// The features of the current step's pictures, `[N, H, W, C]`, on the trainer's device.
    fn batch(&mut self, features: &dyn FeatureSource) -> Result<Tensor> {
        let HeadConfig { height, width, channels, .. } = *self.head.config();
        let (images, places) = (features.len(), self.places(features.len()));
        let shape = [places.len(), height, width, channels];
        if let Some(mut resident) = self.resident.take() {
            let x = resident.batch(self.progress.epoch, || self.order(images), places, shape);
            self.resident = Some(resident);
            return x;
        }
        let image = height * width * channels;
        let mut x = Buffer::scratch(places.len() * image);
        for (to, &i) in x.chunks_exact_mut(image).zip(&self.order(images)[places]) {
            to.copy_from_slice(features.get(i));
        }
        let x = Tensor::new(shape, x);
        self.device.gpu().map_or(Ok(x.clone()), |gpu| x.to_gpu(gpu, false))
    }

    /// Noise for the local coordinates of this step, `[N, H, W, 2]`, on the trainer's device. `None` when there is none,
    /// or, on the CPU, when every coin says no.
    fn jitter(&self, images: usize, groups: usize) -> Result<Option<Tensor>> {
        let head = self.head.config();
        if !self.config.jitter || !head.local || !head.memory.has_coordinates() {
            return Ok(None);
        }
        if let Device::Gpu(gpu) = &self.device {
            let shape = [images, head.height, head.width, 2];
            let stream = JITTER_STREAM + self.optimiser.steps;
            return resident::jitter(gpu, shape, groups, &self.config, stream).map(Some);
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
        Ok(any.then(|| Tensor::new([images, head.height, head.width, 2], noise)))
    }

    /// One step on the next batch.
    ///
    /// # Errors
    /// [`Error::Data`] when there is no picture or its features do not fit the head; [`Error::Config`] when the loss is
    /// not a number any more.
    pub fn step(&mut self, features: &dyn FeatureSource) -> Result<StepReport> {
        let started = Instant::now();
        if features.is_empty() {
            return Err(Error::data("training set", "it holds no picture", "add good pictures to train on"));
        }
        let x = self.batch(features)?;
        let images = x.shape()[0];
        let groups = images.div_ceil(self.config.bn_group);
        let jitter = self.jitter(images, groups)?;
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
        p.loss += loss * images as f64;
        p.gradient_norm += gradient_norm;
        p.seconds += started.elapsed().as_secs_f64();
        let epoch = (p.step * self.config.batch >= features.len()).then(|| self.end_epoch(features.len()));
        Ok(StepReport { loss, gradient_norm, epoch })
    }

    /// Forward, backward and AdamW on one batch x `[N, H, W, C]` on the trainer's device: the loss, and the gradient norm before clipping.
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
    use crate::model::ModelKind;

    #[test]
    fn an_epoch_sees_every_picture_once_and_the_next_in_another_order() {
        let head = HeadConfig { blocks: 1, ..HeadConfig::published(ModelKind::CradS, [2, 2, 4], 0.05) };
        let config = TrainConfig { batch: 3, ..TrainConfig::published(ModelKind::CradS) };
        let mut trainer = Trainer::new(head, config).unwrap();
        let mut orders = vec![];
        for epoch in 0..2 {
            let mut order: Vec<usize> = vec![];
            for step in 0..trainer.steps_per_epoch(10) {
                trainer.progress = Progress { epoch, step, ..Progress::default() };
                order.extend(&trainer.order(10)[trainer.places(10)]);
            }
            let mut sorted = order.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, (0..10).collect::<Vec<_>>());
            orders.push(order);
        }
        assert_ne!(orders[0], orders[1]);
    }
}
