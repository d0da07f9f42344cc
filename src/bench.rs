//! The training step, and inference, as benchmarks and the PyTorch comparison time them.

mod inference;

pub use inference::InferenceBench;

use crate::buffer::Buffer;
use crate::device::Device;
use crate::device::cuda::{Gpu, Precision};
use crate::error::Result;
use crate::model::{HeadConfig, ModelKind};
use crate::rng::Rng;
use crate::tensor::Tensor;
use crate::train::{TrainConfig, Trainer};

/// A head and a few batches of random features, used in turn: never zeros, never always the same.
pub struct StepBench {
    trainer: Trainer,
    batches: Vec<Tensor>,
    steps: usize,
}

impl StepBench {
    /// The published head of `kind` on `features` (height, width, channels), `images` a batch, on a device.
    ///
    /// # Errors
    /// [`crate::Error::Config`] when nothing can be trained on such features; what a device refuses.
    pub fn new(kind: ModelKind, features: [usize; 3], images: usize, device: &Device) -> Result<Self> {
        let head = HeadConfig::published(kind, features, 0.05);
        let precision = device.gpu().map_or(Precision::F32, Gpu::precision);
        let config = TrainConfig { batch: images, precision, ..TrainConfig::published(kind) };
        let trainer = Trainer::new(head, config)?.to(device)?;
        let [height, width, channels] = features;
        let batch = |i: u64| {
            let mut x = Buffer::filled(images * height * width * channels, 0.0);
            Rng::new(i, 0).fill_normal(&mut x, 1.0);
            let x = Tensor::new([images, height, width, channels], x);
            device.gpu().map_or(Ok(x.clone()), |gpu| x.to_gpu(gpu, false))
        };
        Ok(StepBench { trainer, batches: (0..4).map(batch).collect::<Result<_>>()?, steps: 0 })
    }

    /// One step: forward, backward, clip, AdamW. Returns the loss, which it waits for.
    ///
    /// # Errors
    /// What a device refuses.
    pub fn run(&mut self) -> Result<f64> {
        let x = &self.batches[self.steps % self.batches.len()];
        self.steps += 1;
        let groups = x.shape()[0].div_ceil(self.trainer.config.bn_group);
        let size = self.trainer.config.step_size(0);
        Ok(self.trainer.update(x, None, groups, size)?.0)
    }
}
