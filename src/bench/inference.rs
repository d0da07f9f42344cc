//! Inference as benchmarks and the PyTorch comparison time it: batches of pictures from bytes to scores, and the stages on
//! the way, on the CPU and on a device.

use std::sync::Arc;
use std::time::Instant;

use rayon::prelude::*;

use crate::backbone::Backbone;
use crate::calibrate::GoodScore;
use crate::data::normalisation;
use crate::device::Device;
use crate::error::Result;
use crate::inference::{Inference, Input, Laps};
use crate::model::{FoldedHead, Head, HeadConfig, ModelKind};
use crate::rng::Rng;
use crate::score::Protocol;
use crate::tensor::Tensor;

/// Pictures that are used in turn: never zeros, never always the same.
const PICTURES: usize = 64;

/// A backbone with a head that was never trained, and pictures of noise, prepared as bytes.
pub struct InferenceBench {
    backbone: Arc<Backbone>,
    head: FoldedHead,
    on_device: Option<Inference>,
    size: usize,
    pictures: Vec<Vec<u8>>,
    protocol: Protocol,
}

impl InferenceBench {
    /// The published head of `kind` on the features of `backbone`, for pictures of `size` by `size` pixels, on a device.
    ///
    /// # Errors
    /// [`crate::Error::Config`] when the backbone cannot use such pictures; what a device refuses.
    pub fn new(kind: ModelKind, backbone: &Backbone, size: usize, device: &Device) -> Result<Self> {
        backbone.check_size(size)?;
        let side = backbone.feature_size(size);
        let (head, params) = Head::new(HeadConfig::published(kind, [side, side, backbone.channels()], 0.05), Some(1));
        let backbone = Arc::new(backbone.to(device)?);
        let inference = || Inference::new(backbone.clone(), head.config(), &params, size);
        let on_device = device.gpu().map(|_| inference()).transpose()?;
        let folded = FoldedHead::new(head.config(), &params, &Device::Cpu)?;
        let picture = |i: u64| {
            let mut rng = Rng::new(i, 7);
            (0..size * size * 3).map(|_| rng.below(256) as u8).collect()
        };
        let pictures = (0..PICTURES as u64).into_par_iter().map(picture).collect();
        Ok(InferenceBench { backbone, head: folded, on_device, size, pictures, protocol: Protocol::official() })
    }

    /// Has a device take `n` pictures at once; see [`Inference::in_batches_of`].
    pub fn in_batches_of(&mut self, n: usize) {
        if let Some(inference) = &mut self.on_device {
            inference.in_batches_of(n);
        }
    }

    fn picture(&self, i: usize) -> &[u8] {
        &self.pictures[i % PICTURES]
    }

    /// Scores `count` pictures, as many at a time as fit: bytes in, scores and peaks out. On the CPU each goes through the
    /// networks by itself, as many at a time as there are threads.
    ///
    /// # Errors
    /// What a device refuses.
    pub fn scores(&self, count: usize) -> Result<Vec<GoodScore>> {
        let write = |i: usize, to: &mut [u8]| {
            to.copy_from_slice(self.picture(i));
            Ok(())
        };
        match &self.on_device {
            Some(inference) => inference.scores(Input::Pictures(count, &write), &self.protocol),
            None => (0..count).into_par_iter().map(|i| self.score(self.picture(i))).collect(),
        }
    }

    /// Scores a picture, given as bytes `[S, S, 3]`, on the CPU.
    ///
    /// # Errors
    /// What the networks refuse.
    pub fn score(&self, picture: &[u8]) -> Result<GoodScore> {
        Ok(self.on_cpu(1, picture.iter())?.0.remove(0))
    }

    /// Names and seconds of the stages of a batch of `n` pictures, `samples` times; see [`crate::inference::Stages::run`].
    /// The first run is not among them.
    ///
    /// # Errors
    /// What a device refuses.
    pub fn stages(&self, n: usize, samples: usize) -> Result<Vec<Laps>> {
        let Some(inference) = &self.on_device else {
            let batch = |i: usize| (i * n..(i + 1) * n).flat_map(|i| self.picture(i));
            return (0..=samples).map(|i| Ok(self.on_cpu(n, batch(i))?.1)).skip(1).collect();
        };
        let mut stages = inference.stages(n, &self.protocol)?;
        let mut run = |k: usize| stages.run(&|i, to| to.copy_from_slice(self.picture(k * n + i)));
        run(0)?;
        (1..=samples).map(run).collect()
    }

    /// Kernels, and copies and zeroings, of the graph of a batch of `n` pictures; none on the CPU.
    ///
    /// # Errors
    /// What a device refuses.
    pub fn launches(&self, n: usize) -> Result<Option<[usize; 2]>> {
        self.on_device.as_ref().map(|on| Ok(on.stages(n, &self.protocol)?.launches())).transpose()
    }

    /// Scores and stages of `n` pictures, as one batch.
    fn on_cpu<'a>(&self, n: usize, bytes: impl Iterator<Item = &'a u8>) -> Result<(Vec<GoodScore>, Laps)> {
        let (size, mut clock) = (self.size, Instant::now());
        let mut lap = |name| (name, std::mem::replace(&mut clock, Instant::now()).elapsed().as_secs_f64());
        let table = normalisation(self.backbone.mean(), self.backbone.std());
        let values: Vec<f32> = bytes.enumerate().map(|(i, &v)| table[i % 3][usize::from(v)]).collect();
        let prepare = lap("prepare");
        let features = self.backbone.forward(&Tensor::from_slice([n, size, size, 3], &values))?;
        let backbone = lap("backbone");
        let raw = self.head.score(&features)?;
        let head = lap("head");
        let HeadConfig { height, width, .. } = *self.head.config();
        let score = |raw| Ok(GoodScore::of(&self.protocol.score(raw, height, width, size, size)?));
        let scores = raw.data().par_chunks_exact(height * width).map(score).collect::<Result<_>>()?;
        Ok((scores, vec![prepare, backbone, head, lap("score")]))
    }
}
