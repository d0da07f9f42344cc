//! A trained model ready for use: pictures or features in, anomaly maps and scores out.
//!
//! ```text
//! picture -> prepare -> backbone -> x [H, W, C] -> head -> raw map [H, W] -> protocol -> map [S, S], score
//! ```
//! On the CPU every picture goes through the network on its own, as many at a time as there are threads; on a device all of
//! it happens there ([`crate::inference`]). Either way a score depends neither on the pictures beside it nor on the number of
//! threads.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use rayon::prelude::*;

use crate::backbone::Backbone;
use crate::calibrate::{GoodScore, Rule};
use crate::checkpoint::{ModelInfo, load_model};
use crate::config::BackboneKind;
use crate::data::{Picture, preprocess, resized};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::heatmap::Scale;
use crate::inference::{Inference, Input};
use crate::model::{FoldedHead, Head, HeadConfig};
use crate::nn::{Context, Params};
use crate::score::Scored;
use crate::tensor::Tensor;
use crate::train::FeatureSource;

/// Training pictures that the scale of heat maps is taken from.
const SCALE_PICTURES: usize = 256;
/// Maps that are held at a time while the scale is measured.
const SCALE_LOT: usize = 32;
/// Smoothing makes neighbours alike: every fourth pixel of every fourth row tells as much as all of them.
const SCALE_STEP: usize = 4;
/// A picture is painted in full colour where its map rises this many times as far above the median of training pictures
/// as the largest 0.1 % of theirs do. While a model holds no threshold, this is where "not seen in training" begins.
const SCALE_REACH: f32 = 1.5;
/// With a threshold: so many times as far above it as it is above that median. Faint and strong defects then differ.
const THRESHOLD_REACH: f32 = 3.0;

/// A model with the backbone it was trained on.
pub struct Detector {
    /// Everything the model file says.
    pub info: ModelInfo,
    /// The head's layers.
    pub head: Head,
    /// Their values.
    pub params: Params,
    /// Makes the features.
    pub backbone: Arc<Backbone>,
    /// Made when pictures or features are first scored on a device, of the parameters as they are then.
    inference: OnceLock<Inference>,
    /// The same in host memory.
    folded: OnceLock<FoldedHead>,
}

impl Detector {
    /// A detector of these parts, which must fit each other.
    pub fn new(info: ModelInfo, head: Head, params: Params, backbone: Arc<Backbone>) -> Self {
        Detector { info, head, params, backbone, inference: OnceLock::new(), folded: OnceLock::new() }
    }

    /// Reads a model, `model.safetensors` or the folder of its run, and the backbone it needs: the built-in one, or the
    /// file `weights`.
    ///
    /// # Errors
    /// [`Error::Model`] when a file cannot be used, or the backbone is not the one that the model was trained on;
    /// [`Error::Config`] when the model needs a weight file and none is given.
    pub fn load(model: &Path, weights: Option<&Path>) -> Result<Self> {
        let model = &model_file(model);
        let (info, head, params) = load_model(model).map_err(unreadable)?;
        let Some(kind) = BackboneKind::find(&info.backbone) else {
            let what = format!("it needs the backbone `{}`, which this version does not have", info.backbone);
            return Err(Error::model(model, what, "use a later version of the program"));
        };
        let backbone = Arc::new(open_backbone(kind, weights)?);
        if !backbone.is(&info.backbone_digest) {
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
        Ok(Detector::new(info, head, params, backbone))
    }

    /// Which network makes its features.
    pub fn kind(&self) -> BackboneKind {
        BackboneKind::find(&self.info.backbone).expect("a detector is only made with a backbone that there is")
    }

    /// The same model on another device.
    ///
    /// # Errors
    /// What a device refuses.
    pub fn to(self, device: &Device) -> Result<Self> {
        let (params, backbone) = (self.params.to(device)?, Arc::new(self.backbone.to(device)?));
        Ok(Detector::new(self.info, self.head, params, backbone))
    }

    /// Where the model lies.
    pub fn device(&self) -> Device {
        self.params.storage().gpu().map_or(Device::Cpu, |gpu| Device::Gpu(gpu.clone()))
    }

    /// Scores features, each `[height, width, channels]`, in order.
    ///
    /// # Errors
    /// [`Error::Shape`] when they are not of this size, and what a device refuses.
    pub fn score_features(&self, features: &[&[f32]]) -> Result<Vec<Scored>> {
        match self.on_device()? {
            Some(inference) => inference.maps(Input::Features(self.checked(features)?), &self.info.protocol),
            None => features.par_iter().map(|x| self.score(&self.placed(&[x])?)).collect(),
        }
    }

    /// The networks on the device, if that is where they are.
    ///
    /// # Errors
    /// What a device refuses.
    pub fn on_device(&self) -> Result<Option<&Inference>> {
        if self.params.storage().gpu().is_none() {
            return Ok(None);
        }
        if let Some(inference) = self.inference.get() {
            return Ok(Some(inference));
        }
        let made = Inference::new(self.backbone.clone(), self.head.config(), &self.params, self.info.image_size)?;
        Ok(Some(self.inference.get_or_init(|| made)))
    }

    /// Refuses features of another size.
    fn checked<'f>(&self, features: &'f [&'f [f32]]) -> Result<&'f [&'f [f32]]> {
        let HeadConfig { height, width, channels, .. } = *self.head.config();
        match features.iter().find(|x| x.len() != height * width * channels) {
            None => Ok(features),
            Some(x) => {
                let what = format!("{} values are not {height}x{width}x{channels}", x.len());
                Err(Error::Shape { op: "score_features", what })
            }
        }
    }

    /// The map of features `[H, W, C]` before it is enlarged and smoothed, `[H, W]`.
    ///
    /// # Errors
    /// As [`Self::score_features`].
    pub fn raw_map(&self, features: &[f32]) -> Result<Vec<f32>> {
        Ok(self.raw(&self.placed(&[features])?)?.to_host()?.data().to_vec())
    }

    /// The map of features x `[1, H, W, C]` where the model lies, `[1, H, W, 1]`.
    fn raw(&self, x: &Tensor) -> Result<Tensor> {
        if x.gpu().is_some() {
            return self.head.score(&Context::eval(&self.params), x);
        }
        if let Some(folded) = self.folded.get() {
            return folded.score(x);
        }
        let made = FoldedHead::new(self.head.config(), &self.params, &Device::Cpu)?;
        self.folded.get_or_init(|| made).score(x)
    }

    /// Features, each `[H, W, C]`, as `[N, H, W, C]` where the model lies.
    pub(crate) fn placed(&self, features: &[&[f32]]) -> Result<Tensor> {
        let HeadConfig { height, width, channels, .. } = *self.head.config();
        let x = Tensor::from_slice([features.len(), height, width, channels], &self.checked(features)?.concat());
        self.params.storage().gpu().map_or(Ok(x.clone()), |gpu| x.to_gpu(gpu, false))
    }

    /// Scores pictures, in order.
    ///
    /// # Errors
    /// What a device refuses.
    pub fn score_pictures(&self, pictures: &[Picture]) -> Result<Vec<Scored>> {
        let scored = self.score_read(pictures.len(), &|i| Some(&pictures[i]))?;
        Ok(scored.into_iter().flatten().collect())
    }

    /// Scores `count` pictures, in order, that `read` gives, from any thread; none for a picture that it does not give. A
    /// device scores pictures while others are being read.
    ///
    /// # Errors
    /// What a device refuses.
    pub fn score_read<'p>(
        &self,
        count: usize,
        read: &(dyn Fn(usize) -> Option<&'p Picture> + Sync),
    ) -> Result<Vec<Option<Scored>>> {
        let (size, mean, std) = (self.info.image_size, self.backbone.mean(), self.backbone.std());
        let Some(inference) = self.on_device()? else {
            let score = |i| {
                let Some(picture) = read(i) else { return Ok(None) };
                let prepared = preprocess(picture, size, mean, std);
                let features = self.backbone.forward(&self.backbone.input(size, &[&prepared])?)?;
                self.score(&features).map(Some)
            };
            return (0..count).into_par_iter().map(score).collect();
        };
        let write = |i: usize, to: &mut [u8]| {
            if let Some(picture) = read(i) {
                to.copy_from_slice(&resized(picture, size));
            }
            Ok(())
        };
        let scored = inference.maps(Input::Pictures(count, &write), &self.info.protocol)?;
        Ok(scored.into_iter().enumerate().map(|(i, scored)| read(i).map(|_| scored)).collect())
    }

    /// Scores features x, `[1, height, width, channels]`, in host memory.
    fn score(&self, x: &Tensor) -> Result<Scored> {
        let raw = self.raw(x)?;
        let HeadConfig { height, width, .. } = *self.head.config();
        let size = self.info.image_size;
        self.info.protocol.score(raw.data(), height, width, size, size)
    }

    /// Median and 99.9 % quantile of the smoothed maps of training pictures, which heat maps are painted by; `None` if
    /// the two are not apart. At most 256 pictures are looked at, evenly spread.
    ///
    /// # Errors
    /// [`Error::Config`] when a score is not a number: the model has diverged. What a device refuses.
    pub fn measure_scale(&self, train: &dyn FeatureSource) -> Result<Option<[f32; 2]>> {
        let looked_at = train.len().min(SCALE_PICTURES);
        let chosen: Vec<&[f32]> = (0..looked_at).map(|i| train.get(i * train.len() / looked_at)).collect();
        let mut values: Vec<f32> = vec![];
        for lot in chosen.chunks(SCALE_LOT) {
            for scored in self.score_features(lot)? {
                let rows = scored.map.chunks_exact(scored.width).skip(SCALE_STEP / 2).step_by(SCALE_STEP);
                values.extend(rows.flat_map(|row| row.iter().skip(SCALE_STEP / 2).step_by(SCALE_STEP)));
            }
        }
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

    /// Scores of good pictures it was not trained on, in order.
    ///
    /// # Errors
    /// As [`Self::score_features`].
    pub fn good_scores(&self, features: &dyn FeatureSource) -> Result<Vec<GoodScore>> {
        let all: Vec<usize> = (0..features.len()).collect();
        let mut scores = Vec::with_capacity(all.len());
        for lot in all.chunks(SCALE_LOT) {
            let inputs: Vec<&[f32]> = lot.iter().map(|&i| features.get(i)).collect();
            scores.extend(self.features_scores(&inputs)?);
        }
        Ok(scores)
    }

    /// [`Self::score_features`] without the maps, which then stay on a device.
    fn features_scores(&self, features: &[&[f32]]) -> Result<Vec<GoodScore>> {
        match self.on_device()? {
            Some(inference) => inference.scores(Input::Features(self.checked(features)?), &self.info.protocol),
            None => Ok(self.score_features(features)?.iter().map(GoodScore::of).collect()),
        }
    }

    /// How heat maps are painted, the same for every picture. With a rule nothing is painted below its threshold of map
    /// values, which is also outlined; the colour is full three times as far above it as it is above the median of
    /// training pictures. `None` if the model has no scale.
    pub fn painting(&self, rule: Option<&Rule>) -> Option<Painting> {
        let [median, top] = self.info.score_scale?;
        let painting =
            |low: f32, high: f32, contour: f32| Some(Painting { scale: Scale::new(low, high).ok()?, contour });
        match rule.map(Rule::pixel_threshold).filter(|threshold| *threshold > median) {
            Some(threshold) => painting(threshold, threshold + THRESHOLD_REACH * (threshold - median), threshold),
            None => painting(median, median + SCALE_REACH * (top - median), median + SCALE_REACH * (top - median)),
        }
    }
}

/// How heat maps of a model are painted.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Painting {
    /// Where colour begins, and where it is full.
    pub scale: Scale,
    /// The map value that is outlined.
    pub contour: f32,
}

/// The model file of a run's folder, or the file itself.
pub fn model_file(model: &Path) -> PathBuf {
    if model.is_dir() { model.join("model.safetensors") } else { model.into() }
}

/// The backbone of a kind: the built-in one, or a file.
///
/// # Errors
/// [`Error::Config`] when it is not built in and there is no file; [`Error::Model`] for the file.
pub fn open_backbone(kind: BackboneKind, weights: Option<&Path>) -> Result<Backbone> {
    match (kind, weights) {
        (_, Some(path)) => Backbone::load(kind.network(), path).map_err(unreadable),
        (BackboneKind::Lite0, None) => Backbone::lite0(),
        (_, None) => Err(Error::config(
            format!("backbone {} has no built-in weights", kind.name()),
            "give the file that the model was trained with, .pth or .safetensors, by --backbone-weights",
        )),
    }
}

/// A model or weight file that cannot even be read is a fault of that file, and not of the disk.
pub fn unreadable(error: Error) -> Error {
    match error {
        Error::Io { path, cause, help, .. } => Error::model(path, format!("cannot be read: {cause}"), help),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::calibrate::Calibration;
    use crate::checkpoint::FORMAT;
    use crate::model::ModelKind;
    use crate::rng::Rng;
    use crate::score::Protocol;
    use crate::train::TrainConfig;

    struct Some64(Vec<Vec<f32>>);

    impl FeatureSource for Some64 {
        fn len(&self) -> usize {
            self.0.len()
        }
        fn get(&self, i: usize) -> &[f32] {
            &self.0[i]
        }
    }

    fn detector() -> Detector {
        let backbone = Arc::new(Backbone::lite0().unwrap());
        let config = HeadConfig { blocks: 1, ..HeadConfig::published(ModelKind::CradS, [8, 8, 152], 0.3) };
        let (head, params) = Head::new(config.clone(), Some(7));
        let info = ModelInfo {
            format: FORMAT,
            version: "test".into(),
            head: config,
            backbone: "lite0".into(),
            backbone_digest: backbone.digest().to_string(),
            image_size: 64,
            classes: vec!["a".into()],
            protocol: Protocol::official(),
            score_scale: None,
            train: TrainConfig::published(ModelKind::CradS),
            record: vec![],
            images: 5,
            data: vec![],
            hold_out: 0.0,
            trained_on: vec![],
            calibration: None,
            golden: vec![],
        };
        Detector::new(info, head, params, backbone)
    }

    fn features(n: usize) -> Some64 {
        let one = |i| {
            let mut x = vec![0.0; 8 * 8 * 152];
            Rng::new(3, i).fill_normal(&mut x, 1.5);
            x
        };
        Some64((0..n as u64).map(one).collect())
    }

    #[test]
    fn a_score_depends_on_its_own_picture_alone() {
        let (detector, source) = (detector(), features(5));
        let inputs: Vec<&[f32]> = (0..5).map(|i| source.get(i)).collect();
        let together = detector.score_features(&inputs).unwrap();
        assert!(together.iter().all(|s| s.map.len() == 64 * 64 && s.image_score.is_finite()));
        assert_ne!(together[0], together[1]);
        for (i, scored) in together.iter().enumerate() {
            assert_eq!(detector.score_features(&inputs[i..=i]).unwrap()[0], *scored);
        }
        let few = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        assert_eq!(few.install(|| detector.score_features(&inputs)).unwrap(), together);
        assert!(matches!(detector.score_features(&[&inputs[0][1..]]), Err(Error::Shape { .. })));
    }

    #[test]
    fn pictures_score_as_their_features_do() {
        let detector = detector();
        let rgb = (0..50 * 40 * 3).map(|i| (i * 31 % 251) as u8).collect();
        let picture = Picture { width: 50, height: 40, rgb };
        let scored = detector.score_pictures(std::slice::from_ref(&picture)).unwrap();
        let prepared = preprocess(&picture, 64, detector.backbone.mean(), detector.backbone.std());
        let features = detector.backbone.forward(&Tensor::from_slice([1, 64, 64, 3], &prepared)).unwrap();
        assert_eq!(detector.score_features(&[features.data()]).unwrap(), scored);
    }

    #[test]
    fn the_scale_spans_the_maps_of_training() {
        let (mut detector, source) = (detector(), features(6));
        let [low, high] = detector.measure_scale(&source).unwrap().unwrap();
        let inputs: Vec<&[f32]> = (0..6).map(|i| source.get(i)).collect();
        let maps = detector.score_features(&inputs).unwrap();
        // The rule again, by index: every fourth pixel of every fourth row, from the middle of the first four.
        let looked_at = |s: &Scored, keep: &dyn Fn(usize, usize) -> bool| -> Vec<f32> {
            (0..64 * 64).filter(|i| keep(i / 64, i % 64)).map(|i| s.map[i]).collect()
        };
        let pixels = |keep: &dyn Fn(usize, usize) -> bool| {
            let mut all: Vec<f32> = maps.iter().flat_map(|s| looked_at(s, keep)).collect();
            all.sort_by(f32::total_cmp);
            all
        };
        let sampled = pixels(&|y, x| y % 4 == 2 && x % 4 == 2);
        assert_eq!(sampled.len(), 6 * 16 * 16);
        assert_eq!([low, high], [sampled[768], sampled[1533]]);
        // Coarsely, that is the median and the top of all pixels too.
        let all = pixels(&|_, _| true);
        let below = |limit: f32| all.partition_point(|v| *v <= limit) as f64 / all.len() as f64;
        assert!((below(low) - 0.5).abs() <= 0.05 && below(high) >= 0.99, "{} {}", below(low), below(high));
        detector.info.score_scale = Some([low, high]);
        let painting = detector.painting(None).unwrap();
        assert!(painting.scale.low() == low && painting.scale.high() > high);
        // With a threshold nothing is painted below it.
        let held_out = detector.good_scores(&source).unwrap();
        let calibration = Calibration::new(0.5, &BTreeMap::from([("a".to_owned(), held_out.clone())])).unwrap();
        let rule = calibration.rule(None).unwrap();
        let painting = detector.painting(Some(&rule)).unwrap();
        assert_eq!((painting.scale.low(), painting.contour), (rule.pixel_threshold(), rule.pixel_threshold()));
        let peak = |scored: &Scored| scored.map.iter().copied().fold(f32::MIN, f32::max);
        assert!(held_out.iter().zip(&maps).all(|(h, m)| (h.image, h.peak) == (m.image_score, peak(m))));
        detector.info.score_scale = None;
        assert_eq!(detector.painting(Some(&rule)), None);
    }
}
