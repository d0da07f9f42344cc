//! Training: batches of cached features through the head, one step at a time.
//!
//! A step: forward, mean squared error, backward, clip, AdamW. An epoch is every picture once, in an order drawn from
//! the seed and the epoch. Whatever a step draws depends on the seed and its number alone, so a run that is stopped,
//! saved and resumed ends in the same bits as one that never was.
//!
//! On a device the parameters, the optimiser and, where they fit, all features stay there. A step is a graph that needs no
//! word from the host, which looks only once an epoch at what the steps found ([`Trainer::advance`]).
//!
//! Jitter: each ghost group flips a coin; on heads, Gaussian noise is added to its local coordinates.
//! Source: arXiv 2402.18293; the numbers in [`TrainConfig::published`] are those of the public configuration.

mod config;
mod feed;
mod on_device;

use std::time::Instant;

use serde::{Deserialize, Serialize};

pub use config::TrainConfig;
pub use on_device::Kept;
use on_device::{AT_ONCE, OnDevice, STREAMED_AT_ONCE};

use crate::buffer::Buffer;
use crate::device::Device;
use crate::device::cuda::Gpu;
use crate::error::{Error, Result};
use crate::model::{Head, HeadConfig};
use crate::nn::{Context, Params, Spare};
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
    /// Whether steps on a device are replayed as graphs, at first as [`Gpu::graphs`] has it; launched piece by piece they give
    /// the same bits.
    pub graphs: bool,
    grads: Storage,
    /// Room that every step fills anew: its record, the order of the pictures, what was found.
    spare: Spare,
    order: Vec<usize>,
    reports: Vec<StepReport>,
    /// `None` on the CPU.
    on_device: Option<OnDevice>,
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
        let (spare, order, reports) = Default::default();
        Trainer {
            head,
            params,
            optimiser,
            config,
            progress,
            graphs: true,
            grads,
            spare,
            order,
            reports,
            on_device: None,
        }
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
        let on_device = device.gpu().map(|gpu| OnDevice::new(gpu, &params)).transpose()?;
        let graphs = device.gpu().is_none_or(Gpu::graphs);
        Ok(Trainer { params, optimiser, grads, on_device, graphs, ..self })
    }

    /// Keeps all features on the device, if it is one and they fit; the steps that follow must be given the same.
    ///
    /// # Errors
    /// What a device refuses, except for want of memory: then batches are uploaded step by step.
    pub fn keep_features(&mut self, features: &dyn FeatureSource) -> Result<Kept> {
        self.on_device.as_mut().map_or(Ok(Kept::OnHost), |device| device.keep(features, &self.params))
    }

    /// Where batches come from; features that were kept are let go when a step does not fit beside them.
    pub fn kept(&self) -> Kept {
        self.on_device.as_ref().map_or(Kept::OnHost, OnDevice::kept)
    }

    /// Kernels, copies and zeroings of a whole step on a device; `None` before one was recorded as a graph.
    pub fn launches(&self) -> Option<usize> {
        self.on_device.as_ref()?.launches(self.config.batch)
    }

    /// The trained head. Everything else, and what it holds on a device, is let go.
    pub fn into_model(self) -> (Head, Params) {
        (self.head, self.params)
    }

    /// Whether every epoch has been trained.
    pub fn finished(&self) -> bool {
        self.progress.epoch >= self.config.epochs
    }

    /// Steps of one epoch over `images` pictures.
    pub fn steps_per_epoch(&self, images: usize) -> usize {
        images.div_ceil(self.config.batch)
    }

    /// Sets the order of the pictures to that of the current epoch.
    fn shuffle(&mut self, images: usize) {
        self.order.clear();
        self.order.extend(0..images);
        Rng::new(self.config.seed, SHUFFLE_STREAM + self.progress.epoch as u64).shuffle(&mut self.order);
    }

    /// Noise for the local coordinates of this step, `[N, H, W, 2]`, in host memory; `None` when every coin says no.
    fn jitter(&self, images: usize, groups: usize) -> Option<Tensor> {
        let head = self.head.config();
        if !self.config.jitter || !head.local || !head.memory.has_coordinates() {
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
    /// not a number any more; what a device refuses.
    pub fn step(&mut self, features: &dyn FeatureSource) -> Result<StepReport> {
        Ok(self.go(features, 1, None)?[0].clone())
    }

    /// As many steps as can be done without the host: on a device those up to the end of the epoch, or as many as it does
    /// in a few seconds; otherwise one.
    ///
    /// # Errors
    /// As [`Self::step`]. Of steps that a device did at once, those after the one that failed have been done too, so
    /// nothing of the trainer should be kept.
    pub fn advance(&mut self, features: &dyn FeatureSource) -> Result<&[StepReport]> {
        let at_once = match self.kept() {
            Kept::OnDevice(_) if self.graphs => AT_ONCE,
            Kept::Streamed(_) if self.graphs => STREAMED_AT_ONCE,
            _ => 1,
        };
        self.go(features, at_once, None)
    }

    /// As [`Self::advance`], but at most so many steps. With them come the seconds that they took, by the clock of the
    /// device from the first launch to the end of the last, or on the CPU by the host's.
    ///
    /// # Errors
    /// As [`Self::advance`].
    pub fn timed(&mut self, features: &dyn FeatureSource, at_most: usize) -> Result<(&[StepReport], f64)> {
        let (mut seconds, started) = (0.0, Instant::now());
        let at_once = if self.on_device.is_some() { AT_ONCE } else { 1 };
        let on_host = self.on_device.is_none();
        let reports = self.go(features, at_once.min(at_most), Some(&mut seconds))?;
        Ok((reports, if on_host { started.elapsed().as_secs_f64() } else { seconds }))
    }

    /// Steps up to the end of the epoch, but at most so many.
    fn go(&mut self, features: &dyn FeatureSource, at_most: usize, clock: Option<&mut f64>) -> Result<&[StepReport]> {
        let started = Instant::now();
        if features.is_empty() {
            return Err(Error::data("training set", "it holds no picture", "add good pictures to train on"));
        }
        let count = at_most.min(self.steps_per_epoch(features.len()).saturating_sub(self.progress.step)).max(1);
        self.reports.clear();
        match self.on_device.take() {
            None => {
                let found = self.step_on_cpu(features)?;
                self.report(features.len(), found, started.elapsed().as_secs_f64())?;
            }
            Some(mut device) => {
                let found = self.steps_on(&mut device, features, count, clock);
                self.on_device = Some(device);
                let found = found?;
                let seconds = started.elapsed().as_secs_f64() / found.len() as f64;
                found.into_iter().try_for_each(|found| self.report(features.len(), found, seconds))?;
            }
        }
        Ok(&self.reports)
    }

    /// Counts a step that was done.
    fn report(&mut self, images: usize, [loss, gradient_norm]: [f64; 2], seconds: f64) -> Result<()> {
        if !(loss.is_finite() && gradient_norm.is_finite()) {
            let at = format!("epoch {}, step {}", self.progress.epoch + 1, self.progress.step + 1);
            return Err(Error::config(
                format!("training diverged at {at}: loss {loss}, gradient norm {gradient_norm}"),
                "lower rate and grid_rate, or look for pictures whose features are not finite",
            ));
        }
        let (p, batch) = (&mut self.progress, self.config.batch);
        p.loss += loss * (images - p.step * batch).min(batch) as f64;
        p.step += 1;
        p.gradient_norm += gradient_norm;
        p.seconds += seconds;
        let epoch = (p.step * batch >= images).then(|| self.end_epoch(images));
        self.reports.push(StepReport { loss, gradient_norm, epoch });
        Ok(())
    }

    fn step_on_cpu(&mut self, features: &dyn FeatureSource) -> Result<[f64; 2]> {
        let first = self.progress.step * self.config.batch;
        self.shuffle(features.len());
        let pictures = &self.order[first..features.len().min(first + self.config.batch)];
        let x = self.batch_of(features, pictures);
        let groups = pictures.len().div_ceil(self.config.bn_group);
        let jitter = self.jitter(pictures.len(), groups);
        let size = self.config.step_size(self.progress.epoch);
        self.update(&x, jitter.as_ref(), groups, size).map(|(loss, norm)| [loss, norm])
    }

    /// Forward, backward and AdamW on one batch x `[N, H, W, C]` where the trainer's values lie: the loss, and the gradient
    /// norm before clipping.
    ///
    /// # Errors
    /// When the shapes do not fit the head.
    pub fn update(&mut self, x: &Tensor, jitter: Option<&Tensor>, groups: usize, size: StepSize) -> Result<(f64, f64)> {
        let [loss, norm] = match self.on_device.take() {
            None => {
                let loss = self.gradients(x, jitter, groups)?;
                let norm = self.optimiser.step(&mut self.params, self.grads.host(), size);
                [loss.data()[0].into(), norm]
            }
            Some(mut device) => {
                let found = self.update_on(&mut device, x, jitter, groups, size);
                self.on_device = Some(device);
                found?
            }
        };
        Ok((loss, norm))
    }

    /// Forward and backward: the loss `[1]`; its gradients are in `self.grads`.
    fn gradients(&mut self, x: &Tensor, jitter: Option<&Tensor>, groups: usize) -> Result<Tensor> {
        let cx = Context::train_in(std::mem::take(&mut self.spare), &self.params, groups);
        let loss = self.head.loss(&cx, x, jitter)?;
        self.spare = cx.finish(&loss, &mut self.params, &mut self.grads)?;
        Ok(loss)
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
                trainer.shuffle(10);
                order.extend(&trainer.order[step * 3..(step * 3 + 3).min(10)]);
            }
            let mut sorted = order.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, (0..10).collect::<Vec<_>>());
            orders.push(order);
        }
        assert_ne!(orders[0], orders[1]);
    }
}
