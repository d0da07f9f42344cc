//! A trained model ready for use: pictures or features in, anomaly maps and scores out.
//!
//! ```text
//! picture -> prepare -> backbone -> x [H, W, C] -> head -> raw map [H, W] -> protocol -> map [S, S], score
//! ```
//! Every picture goes through the network on its own, as many at a time as there are threads. Its score therefore
//! depends neither on the pictures beside it nor on the number of threads.

use std::path::Path;

use rayon::prelude::*;

use crate::backbone::Backbone;
use crate::checkpoint::{ModelInfo, load_model};
use crate::config::BackboneKind;
use crate::data::{Picture, preprocess};
use crate::error::{Error, Result};
use crate::heatmap::Scale;
use crate::model::{Head, HeadConfig};
use crate::nn::{Context, Params};
use crate::score::Scored;
use crate::tensor::Tensor;
use crate::train::FeatureSource;

/// Training pictures that the scale of heat maps is taken from.
const SCALE_PICTURES: usize = 256;
/// Smoothing makes neighbours alike: every fourth pixel of every fourth row tells as much as all of them.
const SCALE_STEP: usize = 4;
/// A picture is painted in full colour where its map rises this many times as far above the median of training pictures
/// as the largest 0.1 % of theirs do. Until a model holds a threshold, this is where "not seen in training" begins.
const SCALE_REACH: f32 = 1.5;

/// A model with the backbone it was trained on.
pub struct Detector {
    /// Everything the model file says.
    pub info: ModelInfo,
    /// The head's layers.
    pub head: Head,
    /// Their values.
    pub params: Params,
    /// Makes the features.
    pub backbone: Backbone,
}

impl Detector {
    /// Reads a model and the backbone it needs: the built-in one, or the file `weights`.
    ///
    /// # Errors
    /// [`Error::Model`] when a file cannot be used, or the backbone is not the one that the model was trained on;
    /// [`Error::Config`] when the model needs a weight file and none is given; [`Error::Io`] when a file cannot be read.
    pub fn load(model: &Path, weights: Option<&Path>) -> Result<Self> {
        let (info, head, params) = load_model(model)?;
        let Some(kind) = BackboneKind::find(&info.backbone) else {
            let what = format!("it needs the backbone `{}`, which this version does not have", info.backbone);
            return Err(Error::model(model, what, "use a later version of the program"));
        };
        let backbone = open_backbone(kind, weights)?;
        let digest = backbone.digest().to_string();
        if digest != info.backbone_digest {
            return Err(Error::model(
                model,
                format!("it was trained on other {} weights than {}", kind.name(), backbone.path().display()),
                format!("give the file with digest {} by --backbone-weights", info.backbone_digest),
            ));
        }
        let side = backbone.feature_size(info.image_size);
        let HeadConfig { height, width, channels, .. } = *head.config();
        if [height, width, channels] != [side, side, backbone.channels()] || info.image_size % 16 != 0 {
            let what = format!("its head, {height}x{width}x{channels}, does not fit its backbone and picture size");
            return Err(Error::model(model, what, "the file is damaged: copy it again, or train again"));
        }
        info.protocol.check().map_err(|e| Error::model(model, e.to_string(), "the file is damaged: copy it again"))?;
        Ok(Detector { info, head, params, backbone })
    }

    /// Scores features, each `[height, width, channels]`, in order.
    ///
    /// # Errors
    /// [`Error::Shape`] when they are not of this size.
    pub fn score_features(&self, features: &[&[f32]]) -> Result<Vec<Scored>> {
        features.par_iter().map(|x| self.score_one(x)).collect()
    }

    /// Scores pictures, in order.
    ///
    /// # Errors
    /// None that a picture could cause.
    pub fn score_pictures(&self, pictures: &[Picture]) -> Result<Vec<Scored>> {
        let (size, mean, std) = (self.info.image_size, self.backbone.mean(), self.backbone.std());
        let one = |picture: &Picture| {
            let prepared = preprocess(picture, size, mean, std);
            let features = self.backbone.forward(&Tensor::from_slice([1, size, size, 3], &prepared))?;
            self.score_one(features.data())
        };
        pictures.par_iter().map(one).collect()
    }

    fn score_one(&self, x: &[f32]) -> Result<Scored> {
        let HeadConfig { height, width, channels, .. } = *self.head.config();
        if x.len() != height * width * channels {
            let what = format!("{} values are not {height}x{width}x{channels}", x.len());
            return Err(Error::Shape { op: "score_features", what });
        }
        let x = Tensor::from_slice([1, height, width, channels], x);
        let raw = self.head.score(&Context::eval(&self.params), &x)?;
        let size = self.info.image_size;
        self.info.protocol.score(raw.data(), height, width, size, size)
    }

    /// Median and 99.9 % quantile of the smoothed maps of training pictures, which heat maps are painted by; `None` if
    /// the two are not apart. At most 256 pictures are looked at, evenly spread.
    ///
    /// # Errors
    /// [`Error::Config`] when a score is not a number: the model has diverged.
    pub fn measure_scale(&self, train: &dyn FeatureSource) -> Result<Option<[f32; 2]>> {
        let looked_at = train.len().min(SCALE_PICTURES);
        let chosen: Vec<&[f32]> = (0..looked_at).map(|i| train.get(i * train.len() / looked_at)).collect();
        let mut values: Vec<f32> = chosen
            .par_iter()
            .map(|x| {
                let scored = self.score_one(x)?;
                let rows = scored.map.chunks_exact(scored.width).step_by(SCALE_STEP);
                Ok(rows.flat_map(|row| row.iter().copied().step_by(SCALE_STEP)).collect::<Vec<_>>())
            })
            .collect::<Result<Vec<_>>>()?
            .concat();
        if values.iter().any(|v| !v.is_finite()) {
            return Err(Error::config(
                "the trained model gives scores that are not numbers",
                "lower rate and grid_rate and train again",
            ));
        }
        let mut quantile = |q: f64| {
            let at = ((values.len() - 1) as f64 * q).round() as usize;
            *values.select_nth_unstable_by(at, f32::total_cmp).1
        };
        let ends = [quantile(0.5), quantile(0.999)];
        Ok((ends[0] < ends[1]).then_some(ends))
    }

    /// The scale heat maps are painted by, the same for every picture; `None` if the model has none.
    pub fn heat_scale(&self) -> Option<Scale> {
        let [low, high] = self.info.score_scale?;
        Scale::new(low, low + SCALE_REACH * (high - low)).ok()
    }
}

/// The backbone of a kind: the built-in one, or a file.
///
/// # Errors
/// [`Error::Config`] when it is not built in and there is no file; [`Error::Model`] and [`Error::Io`] for the file.
pub fn open_backbone(kind: BackboneKind, weights: Option<&Path>) -> Result<Backbone> {
    match (kind, weights) {
        (_, Some(path)) => Backbone::load(kind.network(), path),
        (BackboneKind::Lite0, None) => Backbone::lite0(),
        (BackboneKind::B4, None) => Err(Error::config(
            "backbone b4 has no built-in weights",
            "give the safetensors file that the model was trained with by --backbone-weights",
        )),
    }
}
