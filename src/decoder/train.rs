//! Training of the decoder, one step at a time: forward, mean squared error, backward, clip, AdamW.
//!
//! An epoch is every picture once, in an order drawn from the seed and the epoch, so that training which was stopped and
//! resumed ends in the same bits. The rate falls to a tenth for the last quarter of the epochs.

use std::path::Path;
use std::time::Instant;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::{Decoder, DecoderConfig};
use crate::buffer::Buffer;
use crate::data::resize::Bilinear;
use crate::data::{Picture, decode_file, preprocess};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::nn::{Context, Params};
use crate::optim::{AdamW, StepSize, Steps};
use crate::rng::Rng;
use crate::storage::Storage;
use crate::tensor::Tensor;
use crate::train::{FeatureSource, Progress};

/// Its random stream, apart from those of parameters, which are hashes of names, and of a head's training.
const SHUFFLE_STREAM: u64 = 3 << 40;

const BATCH: usize = 8;
const EPOCHS: usize = 20;
/// Fewer steps than this leave pictures blurred and pale.
const STEPS: usize = 600;

/// Epochs, and pictures of a step: far above what anyone asks for, so that nothing counted in them overflows.
const MAX: usize = 1 << 20;

/// How a decoder is trained.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DecoderTraining {
    /// Times every picture is seen.
    pub epochs: usize,
    /// Pictures in a step; the last of an epoch may have fewer.
    pub batch: usize,
    /// Learning rate until the last quarter.
    pub rate: f64,
    /// AdamW's weight decay.
    pub decay: f64,
    /// Largest global gradient norm.
    pub clip: f64,
    /// Start values and order of the pictures.
    pub seed: u64,
}

impl DecoderTraining {
    /// What `grad decoder` does.
    pub fn standard(epochs: usize, seed: u64) -> Self {
        DecoderTraining { epochs, batch: BATCH, rate: 0.002, decay: 0.01, clip: 1.0, seed }
    }

    /// Epochs for so many pictures unless the user says otherwise: 20, or more of a few pictures, for 600 steps.
    pub fn epochs_for(images: usize) -> usize {
        EPOCHS.max(STEPS.div_ceil(images.div_ceil(BATCH).max(1)))
    }

    /// What cannot be trained by, if anything.
    pub fn fault(&self) -> Option<String> {
        let positive = |v: f64| v > 0.0 && !v.is_nan();
        let sound = self.batch > 0 && self.rate.is_finite() && positive(self.rate) && positive(self.clip);
        let sound = sound && self.decay.is_finite() && self.decay >= 0.0 && self.batch <= MAX && self.epochs <= MAX;
        if self.epochs == 0 {
            return Some("epochs is 0, so nothing would be learnt".into());
        }
        (!sound).then(|| format!("it cannot be trained as it says: {self:?}"))
    }

    /// The rate in an epoch, counted from 0.
    fn rate_in(&self, epoch: usize) -> f64 {
        if 4 * epoch < 3 * self.epochs { self.rate } else { 0.1 * self.rate }
    }
}

/// The pictures to be painted, small, in the order of their features.
pub struct Targets {
    pictures: Vec<Picture>,
    mean: [f32; 3],
    std: [f32; 3],
}

impl Targets {
    /// Reads picture files and resizes each to `side` by `side` pixels; they are normalised by `mean` and `std`.
    ///
    /// # Errors
    /// [`Error::Io`] and [`Error::Data`] for a picture that cannot be read.
    pub fn read(paths: &[&Path], side: usize, mean: [f32; 3], std: [f32; 3]) -> Result<Self> {
        let small = |path: &&Path| {
            let Picture { width, height, rgb } = decode_file(path)?;
            let rgb = Bilinear::new((width, height), (side, side)).apply(&rgb, 3);
            Ok(Picture { width: side, height: side, rgb })
        };
        Ok(Targets { pictures: paths.par_iter().map(small).collect::<Result<_>>()?, mean, std })
    }

    /// Made elsewhere, all square and of one size.
    pub fn new(pictures: Vec<Picture>, mean: [f32; 3], std: [f32; 3]) -> Self {
        Targets { pictures, mean, std }
    }

    /// Those at some places, `[N, side, side, 3]`.
    fn batch(&self, places: &[usize]) -> Tensor {
        let side = self.pictures[places[0]].width;
        let image = side * side * 3;
        let mut values = Buffer::scratch(places.len() * image);
        values.par_chunks_mut(image).zip(places).for_each(|(to, &i)| {
            to.copy_from_slice(&preprocess(&self.pictures[i], side, self.mean, self.std));
        });
        Tensor::new([places.len(), side, side, 3], values)
    }
}

/// A decoder in training.
pub struct DecoderTrainer {
    /// Its layers.
    pub decoder: Decoder,
    /// Its values.
    pub params: Params,
    /// The optimiser's memory.
    pub optimiser: AdamW,
    /// How it is trained.
    pub training: DecoderTraining,
    /// Where it stands.
    pub progress: Progress,
    device: Device,
    grads: Storage,
    /// On a device: what its steps need from the host.
    steps: Option<Steps>,
}

impl DecoderTrainer {
    /// A fresh decoder.
    ///
    /// # Errors
    /// [`Error::Config`] when it cannot be built or trained.
    pub fn new(config: DecoderConfig, training: DecoderTraining) -> Result<Self> {
        if let Some(fault) = config.fault().or_else(|| training.fault()) {
            return Err(Error::config(fault, "change the settings of the decoder"));
        }
        let (decoder, params) = Decoder::new(config, Some(training.seed));
        let optimiser = AdamW::new(&params);
        Ok(Self::resume(decoder, params, optimiser, training, Progress::default()))
    }

    /// One that was trained before, in host memory.
    pub fn resume(
        decoder: Decoder,
        params: Params,
        optimiser: AdamW,
        training: DecoderTraining,
        progress: Progress,
    ) -> Self {
        let grads = Storage::Host(Buffer::filled(params.trained_range().len(), 0.0));
        DecoderTrainer { decoder, params, optimiser, training, progress, device: Device::Cpu, grads, steps: None }
    }

    /// Moves it to another device, to go on there.
    ///
    /// # Errors
    /// What a device refuses.
    pub fn to(self, device: &Device) -> Result<Self> {
        if device.holds(&self.grads) {
            return Ok(self);
        }
        let (params, optimiser) = (self.params.to(device)?, self.optimiser.to(device)?);
        let grads = device.copy_of(&self.grads)?;
        let steps = device.gpu().map(|gpu| Steps::new(gpu, &params, 1)).transpose()?;
        Ok(DecoderTrainer { params, optimiser, grads, steps, device: device.clone(), ..self })
    }

    /// Whether every epoch has been trained.
    pub fn finished(&self) -> bool {
        self.progress.epoch >= self.training.epochs
    }

    /// Steps of one epoch over `images` pictures.
    pub fn steps_per_epoch(&self, images: usize) -> usize {
        images.div_ceil(self.training.batch)
    }

    /// One step on the next batch; the mean loss of the epoch and its seconds, if this step ended it.
    ///
    /// # Errors
    /// [`Error::Data`] when there is no picture, or they are not those that it began with; [`Error::Shape`] when features or
    /// pictures do not fit; [`Error::Config`] when the loss is not a number any more; what a device refuses.
    pub fn step(&mut self, features: &dyn FeatureSource, targets: &Targets) -> Result<Option<(f64, f64)>> {
        let (started, images) = (Instant::now(), features.len());
        let first = self.progress.step * self.training.batch;
        if first >= images || targets.pictures.len() != images {
            let painted = targets.pictures.len();
            let what = format!("it holds {images} pictures with features, {painted} to paint; {first} are done");
            return Err(Error::data("training set", what, "give all good pictures that the training began with"));
        }
        let mut order: Vec<usize> = (0..images).collect();
        Rng::new(self.training.seed, SHUFFLE_STREAM + self.progress.epoch as u64).shuffle(&mut order);
        let places = &order[first..(first + self.training.batch).min(images)];
        let (x, pictures) = (self.placed(self.features(features, places)?)?, self.placed(targets.batch(places))?);
        let [loss, norm] = self.update(&x, &pictures)?;
        if !(loss.is_finite() && norm.is_finite()) {
            let at = format!("epoch {}, step {}", self.progress.epoch + 1, self.progress.step + 1);
            let help = "look for pictures whose features are not finite, or try another --seed";
            return Err(Error::config(format!("the decoder's training diverged at {at}: loss {loss}"), help));
        }
        let p = &mut self.progress;
        p.step += 1;
        p.loss += loss * places.len() as f64;
        p.gradient_norm += norm;
        p.seconds += started.elapsed().as_secs_f64();
        if p.step * self.training.batch < images {
            return Ok(None);
        }
        let ended = std::mem::take(p);
        p.epoch = ended.epoch + 1;
        Ok(Some((ended.loss / images as f64, ended.seconds)))
    }

    /// Forward, backward and AdamW on one batch, where the trainer's values lie: the loss, and the gradient norm before
    /// clipping.
    fn update(&mut self, x: &Tensor, pictures: &Tensor) -> Result<[f64; 2]> {
        let rate = self.training.rate_in(self.progress.epoch);
        let size = StepSize { grids: rate, network: rate, decay: self.training.decay, clip: self.training.clip };
        if let Some(steps) = &mut self.steps {
            steps.begin(self.optimiser.steps + 1, 1, size)?;
        }
        let cx = Context::train(&self.params, 1);
        let loss = self.decoder.loss(&cx, x, pictures)?;
        cx.finish(&loss, &mut self.params, &mut self.grads)?;
        let Some(steps) = &mut self.steps else {
            let norm = self.optimiser.step(&mut self.params, self.grads.host(), size);
            return Ok([loss.data()[0].into(), norm]);
        };
        self.optimiser.launch(&mut self.params, &self.grads, &loss, size.clip, steps)?;
        self.optimiser.steps += 1;
        Ok(steps.found(1)?[0])
    }

    fn features(&self, source: &dyn FeatureSource, places: &[usize]) -> Result<Tensor> {
        let DecoderConfig { height, width, channels, .. } = *self.decoder.config();
        let image = height * width * channels;
        let mut x = Buffer::scratch(places.len() * image);
        for (to, &i) in x.chunks_exact_mut(image).zip(places) {
            let from = source.get(i);
            if from.len() != image {
                let what = format!("{} values are not {height}x{width}x{channels}", from.len());
                return Err(Error::Shape { op: "decoder", what });
            }
            to.copy_from_slice(from);
        }
        Ok(Tensor::new([places.len(), height, width, channels], x))
    }

    fn placed(&self, t: Tensor) -> Result<Tensor> {
        self.device.gpu().map_or(Ok(t.clone()), |gpu| t.to_gpu(gpu, false))
    }
}
