//! Model files and checkpoints: safetensors with one metadata entry, `grad`, that holds everything but the tensors.
//!
//! A model file is enough to use a model: parameters by name, [`ModelInfo`]. A checkpoint is a model file plus what it
//! takes to go on training to the bit: both moments of AdamW and the place in the run. Both are written whole or not
//! at all, and equal contents give equal bytes.

use std::collections::HashMap;
use std::path::Path;

use bytemuck::cast_slice;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde::{Deserialize, Serialize};

use crate::atomic::write_atomic;
use crate::calibrate::Calibration;
use crate::error::{Error, Result};
use crate::model::{Head, HeadConfig};
use crate::nn::Params;
use crate::optim::AdamW;
use crate::score::Protocol;
use crate::storage::Storage;
use crate::train::{EpochSummary, Progress, TrainConfig, Trainer};

/// The one metadata entry. Several would be written in no fixed order.
const KEY: &str = "grad";
/// Version of the files written; files of a later one are refused.
pub const FORMAT: u32 = 1;
const MOMENTS: [&str; 2] = ["optimiser.m", "optimiser.v"];

/// Everything about a model but its parameters.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelInfo {
    /// [`FORMAT`] of the file.
    pub format: u32,
    /// Version of the program that wrote it.
    pub version: String,
    /// Structure and constants of the head, the gate's included.
    pub head: HeadConfig,
    /// `lite0` or `b4`.
    pub backbone: String,
    /// Digest of the backbone's weights: a model is only valid with the features it was trained on.
    pub backbone_digest: String,
    /// Side of the prepared picture, pixels.
    pub image_size: usize,
    /// Classes it was trained on, by name.
    pub classes: Vec<String>,
    /// How a map becomes a score.
    pub protocol: Protocol,
    /// Median and 99.9 % quantile of the smoothed map over training pictures: the scale of heat maps.
    pub score_scale: Option<[f32; 2]>,
    /// How it was trained.
    pub train: TrainConfig,
    /// What each epoch did.
    pub record: Vec<EpochSummary>,
    /// Pictures it was trained on.
    pub images: usize,
    /// Folders they came from.
    pub data: Vec<String>,
    /// Share of the training pictures of each class that was held out.
    #[serde(default)]
    pub hold_out: f64,
    /// Fingerprints of the picture files it was trained on, ascending; empty where they are not known. What was learnt
    /// must not set a threshold.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub trained_on: Vec<u64>,
    /// Scores of good pictures it was not trained on, and the share of false rejects wanted; thresholds come from them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calibration: Option<Calibration>,
    /// Pictures with the scores they must have, on every machine.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub golden: Vec<Golden>,
}

/// A prepared picture in a model file, and what it scored where the model was made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Golden {
    /// Where it came from, for people.
    pub name: String,
    /// Its image score.
    pub score: f32,
    /// The largest value of its map.
    pub peak: f32,
    /// Red, green, blue, `[image_size, image_size, 3]`; a tensor of the file.
    #[serde(skip)]
    pub rgb: Vec<u8>,
}

/// Name of the tensor that holds the pixels of a golden picture.
fn golden_tensor(i: usize) -> String {
    format!("golden.{i}")
}

/// The metadata entry of either kind of file.
#[derive(Serialize, Deserialize)]
struct Header {
    model: ModelInfo,
    /// Place in the run and steps of the optimiser; only in a checkpoint.
    #[serde(skip_serializing_if = "Option::is_none")]
    training: Option<Training>,
}

#[derive(Serialize, Deserialize)]
struct Training {
    progress: Progress,
    steps: u64,
}

/// Writes a model file.
///
/// # Errors
/// [`Error::Io`] when the file cannot be written; what was there before is unharmed.
pub fn save_model(path: &Path, info: &ModelInfo, params: &Params) -> Result<()> {
    save(path, &Header { model: info.clone(), training: None }, params, None)
}

/// Writes a checkpoint of a run, whatever device it is on.
///
/// # Errors
/// As [`save_model`], and what the device refuses.
pub fn save_checkpoint(path: &Path, info: &ModelInfo, trainer: &Trainer) -> Result<()> {
    let training = Training { progress: trainer.progress.clone(), steps: trainer.optimiser.steps };
    let model = ModelInfo { train: trainer.config.clone(), ..info.clone() };
    save(path, &Header { model, training: Some(training) }, &trainer.params, Some(&trainer.optimiser))
}

fn save(path: &Path, header: &Header, params: &Params, optimiser: Option<&AdamW>) -> Result<()> {
    let side = header.model.image_size;
    let golden = header.model.golden.iter().enumerate();
    let golden = golden.map(|(i, g)| (golden_tensor(i), Dtype::U8, vec![side, side, 3], &g.rgb[..])).collect();
    let text = serde_json::to_string(header).expect("a header is plain data");
    write_tensors(path, KEY, text, params, optimiser, golden)
}

/// A tensor of a file: name, type, shape, bytes.
type Named<'a> = (String, Dtype, Vec<usize>, &'a [u8]);

/// Writes parameters, the moments of their optimiser and what else there is, with a `header` under the one key `key`.
pub(crate) fn write_tensors(
    path: &Path,
    key: &str,
    header: String,
    params: &Params,
    optimiser: Option<&AdamW>,
    more: Vec<Named>,
) -> Result<()> {
    let values = params.storage().on_host()?;
    let mut tensors: Vec<Named> = params
        .entries()
        .map(|(_, e)| (e.name.to_string(), Dtype::F32, e.shape.to_vec(), cast_slice(&values[e.range.clone()])))
        .collect();
    let moments: Vec<_> =
        optimiser.map_or(Ok(vec![]), |o| [&o.m, &o.v].into_iter().map(Storage::on_host).collect::<Result<_>>())?;
    let moments = MOMENTS.into_iter().zip(&moments);
    tensors.extend(moments.map(|(name, t)| (name.into(), Dtype::F32, vec![t.len()], cast_slice(&t[..]))));
    tensors.extend(more);
    let views = tensors.into_iter().map(|(name, dtype, shape, bytes)| {
        let view = TensorView::new(dtype, shape, bytes).expect("sizes agree with the values");
        (name, view)
    });
    let bytes = safetensors::serialize(views, Some(HashMap::from([(key.to_string(), header)])))
        .expect("the tensors of a model have different names");
    write_atomic(path, |w| std::io::Write::write_all(w, &bytes))
}

/// Fills `to` from the tensor `name`; what is wrong with it, if anything.
fn read_tensor(file: &SafeTensors, name: &str, shape: &[usize], to: &mut [f32]) -> Result<(), String> {
    let tensor = file.tensor(name).map_err(|_| format!("tensor {name} is missing"))?;
    if tensor.dtype() != Dtype::F32 || tensor.shape() != shape {
        return Err(format!("tensor {name} is {:?} {:?}, expected F32 {shape:?}", tensor.dtype(), tensor.shape()));
    }
    for (to, from) in to.iter_mut().zip(tensor.data().as_chunks::<4>().0) {
        *to = f32::from_le_bytes(*from);
    }
    match to.iter().position(|v| !v.is_finite()) {
        Some(i) => Err(format!("value {i} of tensor {name} is {}", to[i])),
        None => Ok(()),
    }
}

/// Fills all parameters from a file; what is wrong with it, if anything.
pub(crate) fn read_params(file: &SafeTensors, params: &mut Params) -> Result<(), String> {
    let entries: Vec<_> = params.entries().map(|(_, e)| e.clone()).collect();
    let values = params.values_mut();
    entries.iter().try_for_each(|e| read_tensor(file, &e.name, &e.shape, &mut values[e.range.clone()]))
}

/// The optimiser of a file that holds its moments; what is wrong with it, if anything.
pub(crate) fn read_optimiser(file: &SafeTensors, params: &Params, steps: u64) -> Result<AdamW, String> {
    let mut optimiser = AdamW { steps, ..AdamW::new(params) };
    for (name, to) in MOMENTS.into_iter().zip([&mut optimiser.m, &mut optimiser.v]) {
        let n = to.len();
        read_tensor(file, name, &[n], to.host_mut())?;
    }
    Ok(optimiser)
}

/// Reads a model file, or the model in a checkpoint.
///
/// # Errors
/// [`Error::Model`] saying what is wrong with the file: cut short, of another kind, of a later version, a tensor
/// missing, of another shape or not finite. [`Error::Io`] when it cannot be read.
pub fn load_model(path: &Path) -> Result<(ModelInfo, Head, Params)> {
    let (header, head, params, _) = load(path)?;
    Ok((header.model, head, params))
}

/// Reads a checkpoint.
///
/// # Errors
/// As [`load_model`]; also when the file is a finished model, which cannot be trained on.
pub fn load_checkpoint(path: &Path) -> Result<(ModelInfo, Trainer)> {
    let (header, head, params, optimiser) = load(path)?;
    let (Some(training), Some(optimiser)) = (header.training, optimiser) else {
        return Err(Error::model(
            path,
            "it is a model, not a checkpoint",
            "give the checkpoint.safetensors of the run",
        ));
    };
    let trainer = Trainer::resume(head, params, optimiser, header.model.train.clone(), training.progress);
    Ok((header.model, trainer))
}

/// Reads a model to start a run from, with the moments and steps of its optimiser where the file holds them.
///
/// # Errors
/// As [`load_model`].
pub fn load_start(path: &Path) -> Result<(ModelInfo, Head, Params, Option<AdamW>)> {
    let (header, head, params, optimiser) = load(path)?;
    Ok((header.model, head, params, optimiser))
}

fn load(path: &Path) -> Result<(Header, Head, Params, Option<AdamW>)> {
    let bytes = std::fs::read(path).map_err(|e| Error::io("read", path, &e))?;
    const AGAIN: &str = "copy the file again, or train again: `grad train`";
    let damaged = |e: String| Error::model(path, format!("it is damaged: {e}"), AGAIN);
    let (_, metadata) = SafeTensors::read_metadata(&bytes).map_err(|e| damaged(e.to_string()))?;
    let file = SafeTensors::deserialize(&bytes).map_err(|e| damaged(e.to_string()))?;
    let Some(header) = metadata.metadata().as_ref().and_then(|m| m.get(KEY)) else {
        let help = "give the model.safetensors of a run; weights of a backbone go to --backbone-weights";
        return Err(Error::model(path, "it is a safetensors file of another kind, not a model of this program", help));
    };
    // The format first: a later one may hold fields that this version cannot read.
    let format = serde_json::from_str::<serde_json::Value>(header).ok().and_then(|h| h["model"]["format"].as_u64());
    if format.is_some_and(|f| f > FORMAT.into()) {
        let help = "use the version of the program that wrote it, or a later one";
        return Err(Error::model(path, format!("it is of format {format:?}, this version reads up to {FORMAT}"), help));
    }
    let mut header: Header = serde_json::from_str(header).map_err(|e| damaged(format!("its description: {e}")))?;
    if let Some(fault) = header.model.head.fault() {
        return Err(damaged(fault));
    }
    if header.model.head.parameters() * 4 > bytes.len() as u128 {
        return Err(damaged("it is too short for the model it describes".into()));
    }
    header.model.protocol.check().map_err(|e| damaged(e.to_string()))?;
    header.model.train.check().map_err(|e| damaged(e.to_string()))?;
    header.model.calibration.iter().try_for_each(Calibration::check).map_err(|e| damaged(e.to_string()))?;
    let (head, mut params) = Head::new(header.model.head.clone(), None);

    read_params(&file, &mut params).map_err(damaged)?;
    let side = header.model.image_size;
    for (i, golden) in header.model.golden.iter_mut().enumerate() {
        let name = golden_tensor(i);
        let tensor = file.tensor(&name).map_err(|_| damaged(format!("tensor {name} is missing")))?;
        if tensor.dtype() != Dtype::U8 || tensor.shape() != [side, side, 3] {
            let found = format!("{:?} {:?}", tensor.dtype(), tensor.shape());
            return Err(damaged(format!("tensor {name} is {found}, expected U8 [{side}, {side}, 3]")));
        }
        golden.rgb = tensor.data().to_vec();
    }
    let moments = header.training.as_ref().map(|training| read_optimiser(&file, &params, training.steps));
    let optimiser = moments.transpose().map_err(damaged)?;
    Ok((header, head, params, optimiser))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::calibrate::GoodScore;
    use crate::model::ModelKind;

    fn calibration() -> Calibration {
        let scores = [0.3, 0.1, 0.2].map(|image| GoodScore { image, peak: 2.0 * image });
        Calibration::new(0.01, &BTreeMap::from([("a".to_owned(), scores.to_vec())])).unwrap()
    }

    fn tiny() -> (ModelInfo, Trainer) {
        let head = HeadConfig { blocks: 1, ..HeadConfig::published(ModelKind::CradS, [2, 3, 4], 0.05) };
        let train = TrainConfig::published(ModelKind::CradS);
        let trainer = Trainer::new(head.clone(), train.clone()).unwrap();
        let info = ModelInfo {
            format: FORMAT,
            version: "0".into(),
            head,
            backbone: "lite0".into(),
            backbone_digest: "00".into(),
            image_size: 4,
            classes: vec!["a".into()],
            protocol: Protocol::official(),
            score_scale: Some([0.1, 0.7]),
            train,
            record: vec![],
            images: 3,
            data: vec![],
            hold_out: 0.25,
            trained_on: vec![7, u64::MAX],
            calibration: Some(calibration()),
            golden: vec![Golden { name: "a/0.png".into(), score: 0.25, peak: 0.5, rgb: vec![9; 4 * 4 * 3] }],
        };
        (info, trainer)
    }

    #[test]
    fn what_is_saved_is_what_is_loaded() {
        let dir = tempfile::tempdir().unwrap();
        let (path, (info, mut trainer)) = (dir.path().join("c.safetensors"), tiny());
        trainer.progress = Progress { epoch: 2, step: 1, loss: 0.1 + 0.2, gradient_norm: 1.0 / 3.0, seconds: 0.7 };
        trainer.optimiser.steps = 17;
        crate::rng::Rng::new(1, 2).fill_normal(trainer.optimiser.m.host_mut(), 1.0);
        save_checkpoint(&path, &info, &trainer).unwrap();
        let (loaded_info, loaded) = load_checkpoint(&path).unwrap();
        assert_eq!(loaded_info, info);
        assert_eq!(loaded.progress, trainer.progress);
        assert_eq!(loaded.params.values(), trainer.params.values());
        assert_eq!(
            (loaded.optimiser.m.host(), loaded.optimiser.v.host()),
            (trainer.optimiser.m.host(), trainer.optimiser.v.host())
        );
        assert_eq!(loaded.optimiser.steps, 17);
        // Equal contents, equal bytes; and the model in it is readable as a model.
        let first = std::fs::read(&path).unwrap();
        save_checkpoint(&path, &loaded_info, &loaded).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), first);
        assert_eq!(load_model(&path).unwrap().2.values(), trainer.params.values());
    }

    #[test]
    fn damaged_and_foreign_files_are_refused_with_a_reason() {
        let dir = tempfile::tempdir().unwrap();
        let (path, (info, mut trainer)) = (dir.path().join("m.safetensors"), tiny());
        let refused = |word: &str| {
            let message = match load_model(&path) {
                Err(e @ Error::Model { .. }) => e.to_string(),
                other => panic!("expected a refusal naming {word:?}, got {:?}", other.map(|o| o.0)),
            };
            assert!(message.contains(word), "{message:?} should name {word:?}");
        };
        save_model(&path, &info, &trainer.params).unwrap();
        assert!(load_checkpoint(&path).err().unwrap().to_string().contains("not a checkpoint"));
        let good = std::fs::read(&path).unwrap();
        for cut in [0, 5, 100, good.len() / 2, good.len() - 1] {
            std::fs::write(&path, &good[..cut]).unwrap();
            refused("damaged");
        }
        save_model(&path, &ModelInfo { format: FORMAT + 1, ..info.clone() }, &trainer.params).unwrap();
        refused("format");
        let wider = HeadConfig { expansion: 5, ..info.head.clone() };
        save_model(&path, &ModelInfo { head: wider, ..info.clone() }, &trainer.params).unwrap();
        refused("expected F32");
        let huge = HeadConfig { blocks: 900, expansion: 100, ..info.head.clone() };
        save_model(&path, &ModelInfo { head: huge, ..info.clone() }, &trainer.params).unwrap();
        refused("too short");
        // A checkpoint is long enough for another block, but does not hold it.
        let deeper = HeadConfig { blocks: 2, ..info.head.clone() };
        save_checkpoint(&path, &ModelInfo { head: deeper, ..info.clone() }, &trainer).unwrap();
        refused("missing");
        let id = trainer.params.find("recover.weight").unwrap();
        trainer.params.get_mut(id)[3] = f32::NAN;
        save_model(&path, &info, &trainer.params).unwrap();
        refused("recover.weight");
        let view = TensorView::new(Dtype::F32, vec![1], &[0; 4]).unwrap();
        std::fs::write(&path, safetensors::serialize([("x", view)], None).unwrap()).unwrap();
        refused("another kind");
    }

    /// Bytes changed at random, most of them in the header: an error or a model, never a panic, never a huge allocation.
    #[test]
    fn random_damage_never_panics() {
        let dir = tempfile::tempdir().unwrap();
        let (path, (info, trainer)) = (dir.path().join("m.safetensors"), tiny());
        save_checkpoint(&path, &info, &trainer).unwrap();
        let good = std::fs::read(&path).unwrap();
        let header = 8 + u64::from_le_bytes(good[..8].try_into().unwrap()) as usize;
        let mut rng = crate::rng::Rng::new(5, 0);
        let mut refused = 0;
        for round in 0..600 {
            let mut bytes = good.clone();
            for _ in 0..=rng.below(4) {
                let at = rng.below(if round % 4 == 0 { bytes.len() } else { header });
                // Digits become other digits as often as not: sizes that still parse are the dangerous ones.
                bytes[at] = match bytes[at] {
                    b'0'..=b'9' if round % 2 == 0 => b'0' + rng.below(10) as u8,
                    _ => rng.next_u32() as u8,
                };
            }
            std::fs::write(&path, &bytes).unwrap();
            refused += usize::from(load_checkpoint(&path).is_err());
        }
        assert!(refused > 300, "{refused} of 600 damaged files were refused");
    }
}
