//! The training step as benchmarks and the PyTorch comparison time it.

use crate::buffer::Buffer;
use crate::model::{HeadConfig, ModelKind};
use crate::rng::Rng;
use crate::tensor::Tensor;
use crate::train::{TrainConfig, Trainer};

/// A head on 28 x 28 x 216 features and a few batches of random ones, used in turn: never zeros, never always the same.
pub struct StepBench {
    trainer: Trainer,
    batches: Vec<Tensor>,
    steps: usize,
}

impl StepBench {
    /// The published head of `kind`, `images` a batch.
    ///
    /// # Panics
    /// If `images` is 0.
    pub fn new(kind: ModelKind, images: usize) -> Self {
        let head = HeadConfig::published(kind, [28, 28, 216], 0.05);
        let trainer = Trainer::new(head, TrainConfig::published(kind)).expect("the published settings are sound");
        let batch = |i: u64| {
            let mut x = Buffer::filled(images * 28 * 28 * 216, 0.0);
            Rng::new(i, 0).fill_normal(&mut x, 1.0);
            Tensor::new([images, 28, 28, 216], x)
        };
        StepBench { trainer, batches: (0..4).map(batch).collect(), steps: 0 }
    }

    /// One step: forward, backward, clip, AdamW. Returns the loss.
    pub fn run(&mut self) -> f64 {
        let x = &self.batches[self.steps % self.batches.len()];
        self.steps += 1;
        let groups = x.shape()[0].div_ceil(16);
        let size = self.trainer.config.step_size(0);
        self.trainer.update(x, None, groups, size).expect("the shapes are the head's").0
    }
}
