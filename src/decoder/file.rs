//! Decoder files: safetensors with one metadata entry, `grad_decoder`, so that neither kind of file is taken for the other.
//!
//! While a decoder is trained its file also holds both moments of AdamW and the place in the training; a finished one is
//! smaller. Both are written whole or not at all, and equal contents give equal bytes.

use std::path::{Path, PathBuf};

use image::RgbImage;
use rayon::prelude::*;
use safetensors::SafeTensors;
use serde::{Deserialize, Serialize};

use super::{Decoder, DecoderConfig, DecoderTrainer, DecoderTraining};
use crate::checkpoint::{read_optimiser, read_params, write_tensors};
use crate::detector::{Detector, unreadable};
use crate::error::{Error, Result};
use crate::nn::{Context, Params};
use crate::optim::AdamW;
use crate::tensor::Tensor;
use crate::train::Progress;

const KEY: &str = "grad_decoder";
/// Version of the files written; files of a later one are refused.
pub(super) const FORMAT: u32 = 1;

/// Everything about a decoder but its parameters.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DecoderInfo {
    /// Format of the file.
    pub format: u32,
    /// Version of the program that wrote it.
    pub version: String,
    /// Structure.
    pub decoder: DecoderConfig,
    /// Name of the backbone whose features it paints.
    pub backbone: String,
    /// Digest of its weights.
    pub backbone_digest: String,
    /// Pictures it was trained on.
    pub images: usize,
    /// Digest of these, in their order.
    pub pictures: String,
    /// How it was trained.
    pub training: DecoderTraining,
    /// Mean loss of each epoch.
    pub losses: Vec<f64>,
}

impl DecoderInfo {
    /// What is known before the first epoch, for features of the detector's backbone.
    pub fn new(detector: &Detector, trainer: &DecoderTrainer, images: usize, pictures: String) -> Self {
        DecoderInfo {
            format: FORMAT,
            version: env!("CARGO_PKG_VERSION").into(),
            decoder: trainer.decoder.config().clone(),
            backbone: detector.info.backbone.clone(),
            backbone_digest: detector.info.backbone_digest.clone(),
            images,
            pictures,
            training: trainer.training.clone(),
            losses: vec![],
        }
    }
}

/// The metadata entry.
#[derive(Serialize, Deserialize)]
struct Header {
    decoder: DecoderInfo,
    /// Only while it is trained.
    #[serde(skip_serializing_if = "Option::is_none")]
    unfinished: Option<Unfinished>,
}

#[derive(Serialize, Deserialize)]
struct Unfinished {
    progress: Progress,
    steps: u64,
}

impl Header {
    /// What no training can have written, if anything.
    fn fault(&self) -> Option<String> {
        let DecoderInfo { training, images, losses, .. } = &self.decoder;
        let (epoch, first) = match &self.unfinished {
            None => (training.epochs, Some(0)),
            Some(Unfinished { progress, .. }) => (progress.epoch, progress.step.checked_mul(training.batch)),
        };
        let there = losses.len() == epoch && first.is_some_and(|first| first < *images);
        let open = self.unfinished.is_none() || epoch < training.epochs;
        (!(there && open)).then(|| format!("{} losses of {epoch} epochs, on {images} pictures", losses.len()))
    }
}

/// Writes a decoder, with what it takes to go on unless it is finished.
///
/// # Errors
/// [`Error::Io`] when the file cannot be written; what was there before is unharmed. What a device refuses.
pub fn save(path: &Path, info: &DecoderInfo, trainer: &DecoderTrainer) -> Result<()> {
    let place = || Unfinished { progress: trainer.progress.clone(), steps: trainer.optimiser.steps };
    let header = Header { decoder: info.clone(), unfinished: (!trainer.finished()).then(place) };
    let optimiser = header.unfinished.as_ref().map(|_| &trainer.optimiser);
    let text = serde_json::to_string(&header).expect("a header is plain data");
    write_tensors(path, KEY, text, &trainer.params, optimiser, vec![])
}

/// Reads a decoder to go on with; without a trainer if it is finished.
///
/// # Errors
/// [`Error::Model`] saying what is wrong with the file: cut short, of another kind, of a later version, a tensor
/// missing, of another shape or not finite, or that it cannot be read.
pub fn load_unfinished(path: &Path) -> Result<(DecoderInfo, Option<DecoderTrainer>)> {
    let (header, decoder, params, optimiser) = load(path)?;
    let info = header.decoder;
    let trainer = header.unfinished.zip(optimiser).map(|(unfinished, optimiser)| {
        DecoderTrainer::resume(decoder, params, optimiser, info.training.clone(), unfinished.progress)
    });
    Ok((info, trainer))
}

fn load(path: &Path) -> Result<(Header, Decoder, Params, Option<AdamW>)> {
    let bytes = std::fs::read(path).map_err(|e| unreadable(Error::io("read", path, &e)))?;
    let help = "remove it, and train another: `grad decoder RUN`";
    let damaged = |e: String| Error::model(path, format!("it is damaged: {e}"), help);
    let (_, metadata) = SafeTensors::read_metadata(&bytes).map_err(|e| damaged(e.to_string()))?;
    let file = SafeTensors::deserialize(&bytes).map_err(|e| damaged(e.to_string()))?;
    let Some(header) = metadata.metadata().as_ref().and_then(|m| m.get(KEY)) else {
        let help = "give a file that `grad decoder RUN` wrote";
        return Err(Error::model(path, "it is a safetensors file of another kind, not a decoder", help));
    };
    // The format first: a later one may hold fields that this version cannot read.
    let format = serde_json::from_str::<serde_json::Value>(header).ok().and_then(|h| h["decoder"]["format"].as_u64());
    if let Some(format) = format.filter(|f| *f > FORMAT.into()) {
        let help = "use the version of the program that wrote it, or a later one";
        return Err(Error::model(path, format!("it is of format {format}, this version reads up to {FORMAT}"), help));
    }
    let header: Header = serde_json::from_str(header).map_err(|e| damaged(format!("its description: {e}")))?;
    let DecoderInfo { decoder, training, .. } = &header.decoder;
    if let Some(fault) = decoder.fault().or_else(|| training.fault()).or_else(|| header.fault()) {
        return Err(damaged(fault));
    }
    if decoder.parameters() * 4 > bytes.len() as u128 {
        return Err(damaged("it is too short for the decoder it describes".into()));
    }
    let (decoder, mut params) = Decoder::new(decoder.clone(), None);
    read_params(&file, &mut params).map_err(damaged)?;
    let moments = header.unfinished.as_ref().map(|u| read_optimiser(&file, &params, u.steps));
    let optimiser = moments.transpose().map_err(damaged)?;
    Ok((header, decoder, params, optimiser))
}

/// A finished decoder beside the detector whose features it paints.
pub struct Painter {
    /// The file.
    pub path: PathBuf,
    /// What it says.
    pub info: DecoderInfo,
    decoder: Decoder,
    params: Params,
    mean: [f32; 3],
    std: [f32; 3],
}

impl Painter {
    /// Reads a decoder for the features of `detector`, where that lies.
    ///
    /// # Errors
    /// As [`load_unfinished`]; also when it is not finished, or was trained on other features; what a device refuses.
    pub fn open(path: &Path, detector: &Detector) -> Result<Self> {
        let (header, decoder, params, _) = load(path)?;
        let info = header.decoder;
        if header.unfinished.is_some() {
            let what =
                format!("its training was stopped after {} of {} epochs", info.losses.len(), info.training.epochs);
            return Err(Error::model(path, what, "run `grad decoder RUN` again: it goes on"));
        }
        let head = detector.head.config();
        let [own, theirs] = [
            [info.decoder.height, info.decoder.width, info.decoder.channels],
            [head.height, head.width, head.channels],
        ];
        if own != theirs || !detector.backbone.is(&info.backbone_digest) {
            let [own, theirs] = [own, theirs].map(|[h, w, c]| format!("{h}x{w}x{c}"));
            let what = format!(
                "it paints features {own} of {}, the model has {theirs} of {} with weights {}",
                info.backbone, detector.info.backbone, detector.info.backbone_digest
            );
            return Err(Error::model(path, what, "train one for this model: `grad decoder RUN`"));
        }
        let (mean, std) = (detector.backbone.mean(), detector.backbone.std());
        Ok(Painter { path: path.into(), info, decoder, params: params.to(&detector.device())?, mean, std })
    }

    /// What features look like, each `[H, W, C]`.
    ///
    /// # Errors
    /// [`Error::Shape`] for features of another size, and what a device refuses.
    pub fn paint(&self, features: &[&[f32]]) -> Result<Vec<RgbImage>> {
        match self.params.storage().gpu() {
            None => features.par_iter().map(|x| self.picture(x)).collect(),
            Some(_) => features.iter().map(|x| self.picture(x)).collect(),
        }
    }

    fn picture(&self, x: &[f32]) -> Result<RgbImage> {
        let DecoderConfig { height, width, channels, .. } = *self.decoder.config();
        if x.len() != height * width * channels {
            let what = format!("{} values are not {height}x{width}x{channels}", x.len());
            return Err(Error::Shape { op: "decoder", what });
        }
        let x = Tensor::from_slice([1, height, width, channels], x);
        let x = self.params.storage().gpu().map_or(Ok(x.clone()), |gpu| x.to_gpu(gpu, false))?;
        let y = self.decoder.forward(&Context::eval(&self.params), &x)?.to_host()?;
        let byte = |(i, v): (usize, &f32)| ((v * self.std[i % 3] + self.mean[i % 3]) * 255.0).round() as u8;
        let [rows, columns] = self.decoder.config().picture().map(|side| side as u32);
        let bytes = y.data().iter().enumerate().map(byte).collect();
        Ok(RgbImage::from_raw(columns, rows, bytes).expect("three values a pixel"))
    }
}
