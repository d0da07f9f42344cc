//! The training step, and inference, as benchmarks and the PyTorch comparison time them.

mod inference;

use std::time::Instant;

pub use inference::InferenceBench;
use rayon::prelude::*;

use crate::buffer::Buffer;
use crate::device::Device;
use crate::device::cuda::Gpu;
use crate::error::Result;
use crate::model::{HeadConfig, ModelKind};
use crate::rng::Rng;
use crate::train::{FeatureSource, Kept, TrainConfig, Trainer};

/// Pictures of an epoch: as many good ones as MVTec AD has to train on.
pub const PICTURES: usize = 3629;
/// So many are drawn, and the others are the same again: never zeros, never always the same.
const DRAWN: usize = 64;

/// Random features of [`PICTURES`] pictures.
struct Drawn(Vec<Buffer>);

impl FeatureSource for Drawn {
    fn len(&self) -> usize {
        PICTURES
    }

    fn get(&self, i: usize) -> &[f32] {
        &self.0[i % DRAWN]
    }
}

/// What some steps took.
#[derive(Clone, Copy, Debug)]
pub struct Taken {
    /// Seconds of a step by the wall clock: the host waits for the last of them, and at the end of an epoch.
    pub seconds: f64,
    /// Seconds of a step by the clock of the device; on the CPU by the wall clock.
    pub on_device: f64,
    /// The loss of the last.
    pub loss: f64,
}

/// A head in training on random features, step by step as training does it: on a device by replays of a graph.
pub struct StepBench {
    trainer: Trainer,
    features: Drawn,
}

impl StepBench {
    /// The published head of `kind` on `features` (height, width, channels), `images` a batch, on a device, to which every
    /// batch is uploaded unless [`Self::keep`] is called.
    ///
    /// # Errors
    /// [`crate::Error::Config`] when nothing can be trained on such features; what a device refuses.
    pub fn new(kind: ModelKind, features: [usize; 3], images: usize, device: &Device) -> Result<Self> {
        let head = HeadConfig::published(kind, features, 0.05);
        let config = TrainConfig { batch: images, precision: device.precision(), ..TrainConfig::published(kind) };
        let trainer = Trainer::new(head, config)?.to(device)?;
        let picture = |i: u64| {
            let mut x = Buffer::filled(features.iter().product(), 0.0);
            Rng::new(i, 0).fill_normal(&mut x, 1.0);
            x
        };
        Ok(StepBench { trainer, features: Drawn((0..DRAWN as u64).into_par_iter().map(picture).collect()) })
    }

    /// Keeps the features on the device, if they fit. Returns the seconds until they are there.
    ///
    /// # Errors
    /// What a device refuses.
    pub fn keep(&mut self, device: &Device) -> Result<(Kept, f64)> {
        let started = Instant::now();
        let kept = self.trainer.keep_features(&self.features)?;
        device.gpu().map_or(Ok(()), Gpu::synchronize)?;
        Ok((kept, started.elapsed().as_secs_f64()))
    }

    /// So many steps: batch, forward, backward, clip, AdamW.
    ///
    /// # Errors
    /// What a device refuses.
    pub fn run(&mut self, steps: usize) -> Result<Taken> {
        let (started, mut done, mut on_device, mut loss) = (Instant::now(), 0, 0.0, f64::NAN);
        while done < steps {
            let (reports, seconds) = self.trainer.timed(&self.features, steps - done)?;
            done += reports.len();
            on_device += seconds;
            loss = reports.last().map_or(f64::NAN, |report| report.loss);
        }
        let steps = steps as f64;
        Ok(Taken { seconds: started.elapsed().as_secs_f64() / steps, on_device: on_device / steps, loss })
    }

    /// Trains up to the end of the epoch. Returns its seconds, by the wall clock.
    ///
    /// # Errors
    /// What a device refuses.
    pub fn epoch(&mut self) -> Result<f64> {
        let (started, epoch) = (Instant::now(), self.trainer.progress.epoch);
        while self.trainer.progress.epoch == epoch {
            self.trainer.advance(&self.features)?;
        }
        Ok(started.elapsed().as_secs_f64())
    }

    /// Epochs of the published training.
    pub fn epochs(&self) -> usize {
        self.trainer.config.epochs
    }

    /// Kernels, copies and zeroings of a step; `None` on the CPU, and where a step is no graph.
    pub fn launches(&self) -> Option<usize> {
        self.trainer.launches()
    }
}
