//! The image decoder: from features back to a picture, so that reconstructions can be looked at.
//!
//! ```text
//! x [N, H, W, C]  -> relu(BN(conv1x1))                           [N, H, W, D]
//!                 -> 2 basic blocks                              [N, H, W, D]
//!                 -> upsample x2, relu(BN(conv3x3))              [N, 2H, 2W, D/2]
//!                 -> upsample x2, relu(BN(conv3x3))              [N, 4H, 4W, D/4]
//!                 -> conv1x1 + bias                              [N, 4H, 4W, 3]     loss = mean (y − picture)²
//! ```
//! One for all classes, D = 64, trained on the good training pictures alone, from the cached features. Pictures come out
//! at half the side of the prepared ones, as `(v/255 − mean)/std`. Upsampling is bilinear with aligned corners. It has no
//! part in any score. What its pictures say and what not: `docs/decoder.md`.
//!
//! The architecture is ours; what it is for: figures 1, 3 and 4 of arXiv 2402.18293.

mod file;
#[cfg(test)]
mod tests;
mod train;

use serde::{Deserialize, Serialize};

pub use file::{DecoderInfo, Painter, load_unfinished, save};
pub use train::{DecoderTrainer, DecoderTraining, Targets};

use crate::error::Result;
use crate::nn::{BasicBlock, Builder, Context, Id, Init, Norm, Params, Pointwise, Role, WEIGHT_STD};
use crate::ops::{Conv2d, Kind, MseLoss, UpsampleBilinear};
use crate::tensor::Tensor;

/// Factor of a side from features to picture.
const ENLARGED: usize = 4;
/// Far above what anyone trains, far below what would bring a machine down.
const MAX_PARAMETERS: u128 = 1 << 28;

/// A decoder's structure.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DecoderConfig {
    /// Rows H of the features.
    pub height: usize,
    /// Columns W of the features.
    pub width: usize,
    /// Channels C of the features.
    pub channels: usize,
    /// Channels D of the blocks.
    pub hidden: usize,
    /// Basic blocks.
    pub blocks: usize,
}

impl DecoderConfig {
    /// The one that `grad decoder` trains, for features `[height, width, channels]`.
    pub fn standard([height, width, channels]: [usize; 3]) -> Self {
        DecoderConfig { height, width, channels, hidden: 64, blocks: 2 }
    }

    /// Rows and columns of the pictures it paints.
    pub fn picture(&self) -> [usize; 2] {
        [ENLARGED * self.height, ENLARGED * self.width]
    }

    /// Number of trained parameters, counted without building anything: sizes may come from a damaged file.
    pub fn parameters(&self) -> u128 {
        let [c, d, blocks] = [self.channels, self.hidden, self.blocks].map(|v| v as u128);
        let (half, quarter) = (d / 2, d / 4);
        let norm = |channels: u128| 2 * channels;
        let block = 2 * (9 * d * d + norm(d));
        let ups = 9 * d * half + norm(half) + 9 * half * quarter + norm(quarter);
        c * d + norm(d) + blocks * block + ups + 3 * quarter + 3
    }

    /// What cannot be built, if anything.
    pub fn fault(&self) -> Option<String> {
        let sizes = [self.height, self.width, self.channels, self.hidden, self.blocks];
        if sizes.iter().any(|size| *size > 1 << 14) || [self.height, self.width, self.channels].contains(&0) {
            return Some(format!("sizes {sizes:?} cannot be built"));
        }
        if self.hidden < 4 || self.parameters() > MAX_PARAMETERS {
            return Some(format!("a width of {} cannot be built", self.hidden));
        }
        None
    }
}

/// Twice the side: `upsample -> conv3x3 -> BN -> relu`.
#[derive(Clone, Copy, Debug)]
struct Enlarge {
    conv: Id,
    norm: Norm,
}

impl Enlarge {
    fn new(b: &mut Builder, name: &str, from: usize, to: usize) -> Self {
        let conv = b.declare(format!("{name}.conv.weight"), [3, 3, from, to], Role::Network, Init::Normal(WEIGHT_STD));
        Enlarge { conv, norm: Norm::new(b, &format!("{name}.bn"), to) }
    }

    fn forward(&self, cx: &Context, x: &Tensor) -> Result<Tensor> {
        let [height, width] = [2 * x.shape()[1], 2 * x.shape()[2]];
        let t = cx.tape.apply(UpsampleBilinear { height, width }, &[x])?;
        let conv = Conv2d { stride: 1, pad: [1; 4], act: Kind::Identity };
        let t = cx.tape.apply(conv, &[&t, cx.param(self.conv)])?;
        self.norm.forward(cx, &t, Kind::Relu, None)
    }
}

/// A decoder's layers. Their values live in [`Params`].
#[derive(Clone, Debug)]
pub struct Decoder {
    config: DecoderConfig,
    stem: Pointwise,
    stem_norm: Norm,
    blocks: Vec<BasicBlock>,
    enlarge: [Enlarge; 2],
    paint: Pointwise,
}

impl Decoder {
    /// A decoder and its parameters, freshly drawn, or zero where they are about to be read from a file (no seed). The
    /// configuration must be free of faults.
    pub fn new(config: DecoderConfig, seed: Option<u64>) -> (Decoder, Params) {
        let (mut b, d) = (Builder::default(), config.hidden);
        let stem = Pointwise::new(&mut b, "stem", config.channels, d);
        let stem_norm = Norm::new(&mut b, "stem_bn", d);
        let blocks = (0..config.blocks).map(|i| BasicBlock::new(&mut b, &format!("blocks.{i}"), d)).collect();
        let enlarge = [("enlarge.0", d, d / 2), ("enlarge.1", d / 2, d / 4)];
        let enlarge = enlarge.map(|(name, from, to)| Enlarge::new(&mut b, name, from, to));
        let paint = Pointwise::with_bias(&mut b, "paint", d / 4, 3, Kind::Identity);
        let mut params = b.build(seed);
        // Layers start with 0.01, as heads do. From there the last one alone would take hundreds of steps to reach the
        // range of pictures: here all start as He et al. 2015 have it, sqrt(2 / inputs).
        let weights: Vec<(Id, usize)> = params
            .entries()
            .filter(|(_, e)| e.shape.len() > 1)
            .map(|(id, e)| (id, e.shape[..e.shape.len() - 1].iter().product()))
            .collect();
        for (id, inputs) in weights {
            let gain = ((2.0 / inputs as f64).sqrt() / WEIGHT_STD) as f32;
            params.get_mut(id).iter_mut().for_each(|v| *v *= gain);
        }
        (Decoder { config, stem, stem_norm, blocks, enlarge, paint }, params)
    }

    /// Structure.
    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// Pictures `[N, 4H, 4W, 3]` of the features x, `[N, H, W, C]`.
    ///
    /// # Errors
    /// When x does not fit this decoder.
    pub fn forward(&self, cx: &Context, x: &Tensor) -> Result<Tensor> {
        let t = self.stem.forward(cx, x)?;
        let mut t = cx.stage("stem", self.stem_norm.forward(cx, &t, Kind::Relu, None)?);
        for block in &self.blocks {
            t = block.forward(cx, &t)?;
        }
        for enlarge in &self.enlarge {
            t = enlarge.forward(cx, &t)?;
        }
        Ok(cx.stage("picture", self.paint.forward(cx, &t)?))
    }

    /// `mean (y − pictures)²`, `[1]`, with pictures `[N, 4H, 4W, 3]`.
    ///
    /// # Errors
    /// As [`Self::forward`].
    pub fn loss(&self, cx: &Context, x: &Tensor, pictures: &Tensor) -> Result<Tensor> {
        cx.tape.apply(MseLoss {}, &[&self.forward(cx, x)?, pictures])
    }
}
