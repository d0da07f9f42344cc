//! Checkpoints of the official GRAD and CRAD programs, read as ours: weights, constants, moments of AdamW.
//!
//! Every name of theirs stands below `module.reconstruction.`; K = C·H·W, index `(c·H + h)·W + w`:
//!
//! | theirs | shape | ours |
//! |---|---|---|
//! | `query.0` | `[1, C, R, R]` | `local_grid` `[R, R, C]` |
//! | `query.1` | `[1, K, R, R]` | `global_grid` `[R, R, H, W, C]` |
//! | `coord.{0,2}` | `[to, from, 1, 1]`, bias | `local_coord.{0,1}` `[from, to]`, bias |
//! | `coord_.{0,2}` | `[to, from]`, bias | `global_coord.{0,1}` `[from, to]`, bias |
//! | `layer.I.conv.{0,3,7}` | `[O, I, KH, KW]` | `blocks.I.{expand,depthwise,project}`, inputs before outputs |
//! | `layer.I.conv.5.fc.{0,2}` | `[O, I]` | `blocks.I.{se_reduce,se_expand}` `[I, O]` |
//! | `layer.I.conv.{1,4,8}` | `[C]` | `blocks.I.{bn1,bn2,bn3}` |
//! | `layer.0.I.{conv1,bn1,conv2,bn2}` | | `blocks.I.{conv1,bn1,conv2,bn2}` (GRAD) |
//! | `recover` | `[C, 2C, 1, 1]` | `recover` `[2C, C]` |
//!
//! Sizes are inferred from the shapes. The optimiser counts its parameters in the order of the network, the frozen backbone
//! first, the two grids in a group of their own after all others. Source: the published code, as facts; specification 9.

use std::collections::HashMap;
use std::path::Path;

use crate::checkpoint::{FORMAT, ModelInfo};
use crate::error::{Error, Result};
use crate::model::{Head, HeadConfig, ModelKind};
use crate::nn::{Entry, Params, Role};
use crate::optim::AdamW;
use crate::score::Protocol;
use crate::torch_file::{Item, TorchFile};
use crate::train::TrainConfig;

/// Pixels of a picture to a position of the features.
const STRIDE: usize = 8;
const HELP: &str = "give a ckpt.pth.tar or ckpt_best.pth.tar of the official program; `grad weights inspect FILE` says what \
                    a file holds";

/// A checkpoint of the official program.
pub struct Official {
    /// Its layers.
    pub head: Head,
    /// Their values.
    pub params: Params,
    /// Moments and steps, or why there are none.
    pub optimiser: Result<AdamW, String>,
    /// Epochs it was trained for, if it says so.
    pub epochs: Option<usize>,
}

/// A tensor of theirs that becomes one of ours: name, shape without axes of one, and for each axis of ours the axis of
/// `view`, which is their shape with the cells of a grid apart.
struct Counterpart {
    name: String,
    view: Vec<usize>,
    axes: &'static [usize],
}

impl Official {
    /// Reads the bytes of a file; `path` is for messages.
    ///
    /// # Errors
    /// [`Error::Model`] when it is no such checkpoint, lacks a tensor, or has one of another shape or not finite.
    pub fn parse(path: &Path, bytes: &[u8]) -> Result<Self> {
        if !TorchFile::is(bytes) {
            return Err(Error::model(path, "is not a PyTorch file", HELP));
        }
        let file = TorchFile::parse(path, bytes)?;
        Self::read(file.root(), bytes.len()).map_err(|what| Error::model(path, what, HELP))
    }

    fn read(root: Item, size: usize) -> Result<Self, String> {
        let state = root.get("state_dict").unwrap_or(root);
        let tensors: HashMap<&str, Item> = state.entries().filter_map(|(k, v)| Some((k.text()?, v))).collect();
        let prefixes: Vec<&str> = tensors.keys().filter_map(|k| k.strip_suffix("reconstruction.query.0")).collect();
        let [before] = prefixes[..] else {
            return Err(format!(
                "holds {} heads of GRAD or CRAD (\"reconstruction.query.0\"), not one",
                prefixes.len()
            ));
        };
        let prefix = format!("{before}reconstruction.");
        let mut config = infer(&prefix, &tensors)?;
        constants(root, &mut config);
        if let Some(fault) = config.fault() {
            return Err(format!("cannot be a head: {fault}"));
        }
        if config.parameters() * 4 > size as u128 {
            return Err("is too short for the head that its shapes describe".into());
        }
        let (head, mut params) = Head::new(config.clone(), None);
        let entries: Vec<Entry> = params.entries().map(|(_, entry)| entry.clone()).collect();
        let values = params.values_mut();
        for entry in &entries {
            let theirs = counterpart(&config, entry);
            let name = format!("{prefix}{}", theirs.name);
            let tensor = *tensors.get(&*name).ok_or_else(|| format!("lacks the tensor {name:?}"))?;
            values[entry.range.clone()].copy_from_slice(&theirs.values(tensor).map_err(|e| format!("{name:?} {e}"))?);
        }
        let variance = |e: &&Entry| e.name.ends_with("running_var") && values[e.range.clone()].iter().any(|v| *v < 0.0);
        if let Some(entry) = entries.iter().find(variance) {
            return Err(format!("{:?} is negative", counterpart(&config, entry).name));
        }
        let optimiser = moments(root, state, &prefix, &config, &entries, AdamW::new(&params));
        let epochs = root.get("epoch").and_then(Item::integer).and_then(|epoch| epoch.try_into().ok());
        Ok(Official { head, params, optimiser, epochs })
    }

    /// What our model file says of it, with the backbone `b4` of this digest.
    pub fn info(&self, backbone_digest: String) -> ModelInfo {
        let head = self.head.config().clone();
        let kind = head.kind;
        ModelInfo {
            format: FORMAT,
            version: env!("CARGO_PKG_VERSION").into(),
            backbone: "b4".into(),
            backbone_digest,
            image_size: head.height * STRIDE,
            head,
            classes: vec![],
            protocol: Protocol::official(),
            score_scale: None,
            train: TrainConfig::published(kind),
            record: vec![],
            images: 0,
            data: vec![],
            hold_out: 0.0,
            trained_on: vec![],
            calibration: None,
            golden: vec![],
        }
    }
}

/// The head that the shapes of its tensors describe.
fn infer(prefix: &str, tensors: &HashMap<&str, Item>) -> Result<HeadConfig, String> {
    let shape = |name: &str| {
        let tensor = tensors.get(&*format!("{prefix}{name}")).and_then(|item| item.tensor());
        tensor.map(|tensor| &tensor.shape[..])
    };
    let grid = |name: &str| match shape(name) {
        Some(&[1, values, rows, columns]) if rows == columns && values > 0 => Ok((values, rows)),
        other => Err(format!("\"{prefix}{name}\" has shape {other:?}, not that of a square grid")),
    };
    let ((channels, local_resolution), (map, global_resolution)) = (grid("query.0")?, grid("query.1")?);
    let side = (map / channels).isqrt();
    if side * side * channels != map {
        return Err(format!("its global grid of {map} values is no square map of {channels} channels"));
    }
    let blocks = |name: &dyn Fn(usize) -> String| (0..).take_while(|&i| shape(&name(i)).is_some()).count();
    let bottlenecks = blocks(&|i| format!("layer.{i}.conv.0.weight"));
    let (kind, blocks, expansion) = match shape("layer.0.conv.0.weight") {
        Some(&[expansion, ..]) if expansion == channels => (ModelKind::CradS, bottlenecks, expansion),
        Some(&[expansion, ..]) => (ModelKind::Crad, bottlenecks, expansion),
        _ => (ModelKind::Grad, blocks(&|i| format!("layer.0.{i}.conv1.weight")), 0),
    };
    if blocks == 0 {
        return Err("has no fusion blocks under the names of GRAD or of CRAD".into());
    }
    let published = HeadConfig::published(kind, [side, side, channels], 0.05);
    Ok(HeadConfig { blocks, expansion, local_resolution, global_resolution, ..published })
}

/// The constants of the gate, where the checkpoint's own configuration names them.
fn constants(root: Item, config: &mut HeadConfig) {
    let Some(networks) = root.get("arch") else { return };
    let named = |network: &Item| network.get("name").and_then(Item::text) == Some("reconstruction");
    let Some(arguments) = networks.items().find(named).and_then(|network| network.get("kwargs")) else { return };
    let constants = [
        ("mse_coef", &mut config.mse_coef),
        ("mse_lamb", &mut config.mse_weight),
        ("cos_lamb", &mut config.cos_weight),
    ];
    for (name, to) in constants {
        if let Some(value) = arguments.get(name).and_then(Item::number) {
            *to = value;
        }
    }
}

fn counterpart(config: &HeadConfig, entry: &Entry) -> Counterpart {
    let (part, rest) = entry.name.split_once('.').unwrap_or((&entry.name, ""));
    let (layer, kind) = rest.rsplit_once('.').unwrap_or(("", rest));
    let name = match (part, layer) {
        ("local_grid", _) => "query.0".into(),
        ("global_grid", _) => "query.1".into(),
        ("local_coord", layer) => format!("coord.{}.{kind}", if layer == "0" { 0 } else { 2 }),
        ("global_coord", layer) => format!("coord_.{}.{kind}", if layer == "0" { 0 } else { 2 }),
        ("recover", _) => "recover.weight".into(),
        (_, layer) => {
            let (block, layer) = layer.split_once('.').unwrap_or((layer, ""));
            let place = match layer {
                "conv1" | "conv2" => return with_order(format!("layer.0.{block}.{layer}.{kind}"), config, entry),
                "bn1" | "bn2" if config.kind == ModelKind::Grad => {
                    return with_order(format!("layer.0.{block}.{layer}.{kind}"), config, entry);
                }
                "expand" => "0",
                "bn1" => "1",
                "depthwise" => "3",
                "bn2" => "4",
                "se_reduce" => "5.fc.0",
                "se_expand" => "5.fc.2",
                "project" => "7",
                _ => "8",
            };
            format!("layer.{block}.conv.{place}.{kind}")
        }
    };
    with_order(name, config, entry)
}

/// The order of the axes follows from how many of them ours has.
fn with_order(name: String, config: &HeadConfig, entry: &Entry) -> Counterpart {
    let &HeadConfig { channels, height, width, .. } = config;
    let ours = entry.shape.to_vec();
    let (view, axes): (Vec<usize>, &[usize]) = match ours[..] {
        [r, s, _, _, _] => (vec![channels, height, width, r, s], &[3, 4, 1, 2, 0]),
        [kh, kw, i, o] => (vec![o, i, kh, kw], &[2, 3, 1, 0]),
        [r, s, c] => (vec![c, r, s], &[1, 2, 0]),
        [from, to] => (vec![to, from], &[1, 0]),
        _ => (ours.clone(), &[0]),
    };
    Counterpart { name, view, axes }
}

impl Counterpart {
    /// The values of their tensor in our order.
    fn values(&self, tensor: Item) -> Result<Vec<f32>, String> {
        let found = &tensor.tensor().ok_or("is no tensor")?.shape;
        let count = |shape: &[usize]| shape.iter().try_fold(1usize, |n, &size| n.checked_mul(size));
        let plain = |shape: &[usize]| shape.iter().copied().filter(|&size| size != 1).collect::<Vec<_>>();
        // A grid has its cells on one axis; axes of one come and go with the kind of layer.
        let apart = self.view.len() == 5;
        if count(found) != count(&self.view) || !apart && plain(found) != plain(&self.view) {
            return Err(format!("has shape {found:?}, expected {:?}", self.view));
        }
        let theirs = tensor.values()?;
        if let Some(at) = theirs.iter().position(|v| !v.is_finite()) {
            return Err(format!("holds {} at position {at}", theirs[at]));
        }
        let stride = |axis: usize| self.view[axis + 1..].iter().product::<usize>();
        let ours: Vec<(usize, usize)> = self.axes.iter().map(|&axis| (self.view[axis], stride(axis))).collect();
        let value = |mut at: usize| {
            let place = ours.iter().rev().fold(0, |place, &(size, stride)| {
                let index = at % size;
                at /= size;
                place + index * stride
            });
            theirs[place]
        };
        Ok((0..theirs.len()).map(value).collect())
    }
}

/// The memory of the optimiser, if it holds one that fits.
fn moments(
    root: Item,
    state: Item,
    prefix: &str,
    config: &HeadConfig,
    entries: &[Entry],
    mut optimiser: AdamW,
) -> Result<AdamW, String> {
    let saved = root.get("optimizer").ok_or("it holds no optimiser")?;
    let of = saved.get("state").ok_or("its optimiser has no state")?;
    // Their order: that of the state, without what is not trained. The grids' group comes last, and only exists where
    // names have three parts before `query`.
    let untrained = ["running_mean", "running_var", "num_batches_tracked"];
    let trained = |name: &&str| !untrained.iter().any(|ending| name.ends_with(ending));
    let names: Vec<&str> = state.entries().filter_map(|(key, _)| key.text()).filter(trained).collect();
    let is_grid = |name: &&&str| name.split('.').nth(2).is_some_and(|part| part.contains("query"));
    let (grids, others): (Vec<&str>, Vec<&str>) = names.iter().partition(|name| is_grid(name));
    let groups: Vec<Vec<Option<i64>>> = saved
        .get("param_groups")
        .map(|groups| {
            groups.items().filter_map(|g| Some(g.get("params")?.items().map(Item::integer).collect())).collect()
        })
        .unwrap_or_default();
    if groups.iter().map(Vec::len).collect::<Vec<_>>() != [others.len(), grids.len()] {
        return Err("its optimiser has other groups of parameters".into());
    }
    let number: HashMap<&str, Option<i64>> = others.into_iter().chain(grids).zip(groups.concat()).collect();
    let by_number: HashMap<i64, Item> = of.entries().filter_map(|(k, v)| Some((k.integer()?, v))).collect();
    let mut steps = None;
    for entry in entries.iter().filter(|entry| entry.role != Role::Statistic) {
        let theirs = counterpart(config, entry);
        let name = format!("{prefix}{}", theirs.name);
        let held = number.get(&*name).copied().flatten().and_then(|n| by_number.get(&n));
        let held = held.ok_or_else(|| format!("its optimiser knows nothing of {name:?}"))?;
        for (key, to) in [("exp_avg", &mut optimiser.m), ("exp_avg_sq", &mut optimiser.v)] {
            let moment = held.get(key).ok_or_else(|| format!("its optimiser has no {key} of {name:?}"))?;
            let values = theirs.values(moment).map_err(|e| format!("the {key} of {name:?} {e}"))?;
            if key == "exp_avg_sq" && values.iter().any(|v| *v < 0.0) {
                return Err(format!("the {key} of {name:?} is negative"));
            }
            to.host_mut()[entry.range.clone()].copy_from_slice(&values);
        }
        // A number, or a tensor of one.
        let step = held.get("step").and_then(|s| s.number().or_else(|| Some(f64::from(*s.values().ok()?.first()?))));
        let step = step.filter(|s| (1.0..1e15).contains(s)).map(|s| s as u64);
        let step = step.ok_or_else(|| format!("its optimiser has no steps of {name:?}"))?;
        if *steps.get_or_insert(step) != step {
            return Err("its optimiser has taken other steps for some parameters than for others".into());
        }
    }
    optimiser.steps = steps.ok_or("its optimiser is empty")?;
    Ok(optimiser)
}
