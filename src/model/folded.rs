//! A trained head for inference: BatchNorm with its running statistics folded into the convolution before it.
//!
//! ```text
//! γ (w ∗ x − μ) / √(σ² + ε) + β  =  (s w) ∗ x + (β − s μ),   s = γ / √(σ² + ε),   ε = 1e-5
//!
//! bottleneck   t = hswish(conv1x1'(x));  t = depthwise'(t);  t = hswish(t ⊙ gate(t));  y = x + conv1x1'(t)
//! basic block  y = relu(conv3x3'(relu(conv3x3'(x))) + x)
//! score        d_p = |1 − S_p| ‖f_p − x_p‖₂     S: what the refinement gate trusts x by
//! ```
//! A dash marks what was folded: in f64, rounded once to f32. The squeeze-excite gate sits between the second BatchNorm and
//! its activation, so that BatchNorm is folded all the same and the gate keeps the activation.
//!
//! The score is that of `refinement_gate` and `score_map`, for `x̂ − x = (1 − S)(f − x)`. On a device it is computed in that
//! form: x̂ is close to x where a picture is good, and stored as bf16 it would lose what tells them apart.
//! Values are found by the names they have in a model file.

use super::config::{HeadConfig, MemoryKind, ModelKind};
use crate::device::Device;
use crate::device::cuda::{Gpu, Grid, launch};
use crate::error::Result;
use crate::nn::frozen::{Frozen, FrozenGate};
use crate::nn::{EPS, Params};
use crate::op::Op;
use crate::ops::{
    AttentionMemory, Concat, Conv2d, DepthwiseConv2d, EntryRead, GlobalAvgPool, GridSample, Kind, NearestEntry,
    RefinementGate, ScoreMap,
};
use crate::storage::Storage;
use crate::tape::Tape;
use crate::tensor::Tensor;

/// The 3x3 convolutions of both kinds of block.
const PAD: [usize; 4] = [1; 4];

/// What a branch reads: see `branch.rs`.
enum Branch {
    Grid { coord: Box<[Frozen; 2]>, grid: Tensor },
    Vq { keys: Tensor, values: Tensor },
    Attention { keys: Tensor, values: Tensor },
}

/// A fusion block of either kind.
enum Block {
    Basic(Box<[Frozen; 2]>),
    Mobile(Box<Mobile>),
}

/// The layers of a bottleneck.
struct Mobile {
    expand: Frozen,
    depthwise: Frozen,
    gate: FrozenGate,
    project: Frozen,
}

/// A head without BatchNorm, with values of its own: later changes of the parameters it was made of do not reach it.
pub struct FoldedHead {
    config: HeadConfig,
    local: Option<Branch>,
    global: Option<Branch>,
    blocks: Vec<Block>,
    recover: Frozen,
}

/// Parameters by name.
struct Values<'a>(&'a Params);

impl Values<'_> {
    fn get(&self, name: &str) -> Tensor {
        let id = self.0.find(name).unwrap_or_else(|| panic!("a head of this configuration has no {name}"));
        self.0.tensor(id)
    }

    /// A convolution `NAME.weight` with `NAME.bias`, or with zeros.
    fn plain(&self, name: &str) -> Frozen {
        let weight = self.get(&format!("{name}.weight"));
        let bias = self.0.find(&format!("{name}.bias")).map(|id| self.0.tensor(id));
        let zeros = || Tensor::from_slice([weight.shape().channels()], &vec![0.0; weight.shape().channels()]);
        Frozen::new(weight.clone(), bias.unwrap_or_else(zeros))
    }

    /// The convolution `CONV.weight` without bias, followed by the BatchNorm `NORM`. Output channels are innermost in every
    /// kind of weight.
    fn folded(&self, conv: &str, norm: &str) -> Frozen {
        let weight = self.get(&format!("{conv}.weight"));
        let [gamma, beta, mean, var] =
            ["weight", "bias", "running_mean", "running_var"].map(|part| self.get(&format!("{norm}.{part}")));
        let scale = |c: usize| f64::from(gamma.data()[c]) / (f64::from(var.data()[c]) + EPS).sqrt();
        let scales: Vec<f64> = (0..gamma.data().len()).map(scale).collect();
        let bias: Vec<f32> = (beta.data().iter().zip(mean.data()).zip(&scales))
            .map(|((&b, &m), s)| (f64::from(b) - f64::from(m) * s) as f32)
            .collect();
        let rows = weight.data().chunks_exact(scales.len());
        let scaled: Vec<f32> =
            rows.flat_map(|row| row.iter().zip(&scales).map(|(&w, s)| (f64::from(w) * s) as f32)).collect();
        Frozen::new(Tensor::from_slice(weight.shape(), &scaled), Tensor::from_slice([bias.len()], &bias))
    }

    fn branch(&self, memory: MemoryKind, name: &str) -> Branch {
        if memory == MemoryKind::Grid {
            let coord = [0, 1].map(|i| self.plain(&format!("{name}_coord.{i}")));
            return Branch::Grid { coord: Box::new(coord), grid: self.get(&format!("{name}_grid")) };
        }
        let values = self.get(&format!("{name}_memory"));
        // The entries of a local memory are their own keys.
        let keys = self.0.find(&format!("{name}_keys")).map_or(values.clone(), |id| self.0.tensor(id));
        if memory == MemoryKind::Vq { Branch::Vq { keys, values } } else { Branch::Attention { keys, values } }
    }

    fn block(&self, kind: ModelKind, name: &str) -> Block {
        let folded = |conv: &str, norm: &str| self.folded(&format!("{name}.{conv}"), &format!("{name}.{norm}"));
        let plain = |conv: &str| self.plain(&format!("{name}.{conv}"));
        if kind == ModelKind::Grad {
            return Block::Basic(Box::new([folded("conv1", "bn1"), folded("conv2", "bn2")]));
        }
        let layers = [(plain("se_reduce"), Kind::Relu), (plain("se_expand"), Kind::HardSigmoid)];
        Block::Mobile(Box::new(Mobile {
            expand: folded("expand", "bn1"),
            depthwise: folded("depthwise", "bn2"),
            gate: FrozenGate { layers, act: Kind::HardSwish },
            project: folded("project", "bn3"),
        }))
    }
}

impl Branch {
    fn to(&self, device: &Device) -> Result<Self> {
        let copy = |t: &Tensor| device.gpu().map_or(Ok(t.clone()), |gpu| t.to_gpu(gpu, true));
        Ok(match self {
            Branch::Grid { coord, grid } => {
                let coord = Box::new([coord[0].to(device)?, coord[1].to(device)?]);
                Branch::Grid { coord, grid: copy(grid)? }
            }
            Branch::Vq { keys, values } => Branch::Vq { keys: copy(keys)?, values: copy(values)? },
            Branch::Attention { keys, values } => Branch::Attention { keys: copy(keys)?, values: copy(values)? },
        })
    }

    /// What is held for the queries `[.., C]`.
    fn read(&self, tape: &Tape, queries: &Tensor) -> Result<Tensor> {
        match self {
            Branch::Grid { coord, grid } => {
                let hidden = coord[0].pointwise(queries, Kind::Tanh, None)?;
                tape.apply(GridSample {}, &[grid, &coord[1].pointwise(&hidden, Kind::Tanh, None)?])
            }
            Branch::Vq { keys, values } => {
                let entry = tape.apply(NearestEntry {}, &[queries, keys])?;
                tape.apply(EntryRead {}, &[values, &entry])
            }
            Branch::Attention { keys, values } => tape.apply(AttentionMemory {}, &[queries, keys, values]),
        }
    }
}

impl Block {
    fn to(&self, device: &Device) -> Result<Self> {
        Ok(match self {
            Block::Basic(convs) => Block::Basic(Box::new([convs[0].to(device)?, convs[1].to(device)?])),
            Block::Mobile(layers) => Block::Mobile(Box::new(Mobile {
                expand: layers.expand.to(device)?,
                depthwise: layers.depthwise.to(device)?,
                gate: layers.gate.to(device)?,
                project: layers.project.to(device)?,
            })),
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Block::Basic(convs) => {
                let [a, b] = &**convs;
                let conv = Conv2d { stride: 1, pad: PAD, act: Kind::Relu };
                b.conv2d(&a.conv2d(x, conv.clone(), None)?, conv, Some(x))
            }
            Block::Mobile(layers) => {
                let Mobile { expand, depthwise, gate, project } = &**layers;
                let t = expand.pointwise(x, Kind::HardSwish, None)?;
                let t = depthwise.depthwise(&t, DepthwiseConv2d { stride: 1, pad: PAD, act: Kind::Identity })?;
                project.pointwise(&gate.forward(&t)?, Kind::Identity, Some(x))
            }
        }
    }
}

impl FoldedHead {
    /// The head of this configuration with these values, on a device.
    ///
    /// # Errors
    /// What a device refuses.
    ///
    /// # Panics
    /// If the parameters are those of another configuration.
    pub fn new(config: &HeadConfig, params: &Params, device: &Device) -> Result<Self> {
        let params = params.to(&Device::Cpu)?;
        let values = Values(&params);
        let branch =
            |exists: bool, name: &str| exists.then(|| values.branch(config.memory, name).to(device)).transpose();
        let block = |i| values.block(config.kind, &format!("blocks.{i}")).to(device);
        Ok(FoldedHead {
            local: branch(config.local, "local")?,
            global: branch(config.global, "global")?,
            blocks: (0..config.blocks).map(block).collect::<Result<_>>()?,
            recover: values.plain("recover").to(device)?,
            config: config.clone(),
        })
    }

    /// Structure and constants.
    pub fn config(&self) -> &HeadConfig {
        &self.config
    }

    /// Raw anomaly scores `[N, H, W, 1]` of the features x `[N, height, width, channels]`, where the head lies. The score of
    /// a picture depends on no other.
    ///
    /// # Errors
    /// When x is of another shape, and what a device refuses.
    pub fn score(&self, x: &Tensor) -> Result<Tensor> {
        let (tape, mut reads) = (Tape::off(), vec![]);
        if let Some(global) = &self.global {
            reads.push(global.read(&tape, &tape.apply(GlobalAvgPool {}, &[x])?)?);
        }
        if let Some(local) = &self.local {
            reads.push(local.read(&tape, x)?);
        }
        let mut t = match &reads[..] {
            [global, local] => tape.apply(Concat {}, &[global, local])?,
            _ => reads.swap_remove(0),
        };
        drop(reads);
        for block in &self.blocks {
            t = block.forward(&t)?;
        }
        let f = self.recover.pointwise(&t, Kind::Identity, None)?;
        let HeadConfig { refine, mse_coef, mse_weight, cos_weight, .. } = self.config;
        match x.gpu() {
            Some(gpu) if refine => self.refined_score(gpu, &f, x),
            _ if refine => {
                let refined = tape.apply(RefinementGate { mse_coef, mse_weight, cos_weight }, &[&f, x])?;
                tape.apply(ScoreMap {}, &[&refined, x])
            }
            _ => tape.apply(ScoreMap {}, &[&f, x]),
        }
    }

    fn refined_score(&self, gpu: &Gpu, f: &Tensor, x: &Tensor) -> Result<Tensor> {
        let shape = ScoreMap {}.infer(&[f.shape(), x.shape()])?[0];
        let (mut d, channels) = (gpu.scratch(shape.numel())?, x.shape().channels());
        let HeadConfig { mse_coef, mse_weight, cos_weight, .. } = self.config;
        launch::refined_score(
            gpu,
            Grid::threads(shape.numel() * 32),
            f.values().reals(),
            x.values().reals(),
            &mut d.slice_mut(),
            shape.numel(),
            channels,
            mse_coef,
            mse_weight,
            cos_weight,
        )?;
        Ok(Tensor::stored(shape, Storage::Floats(d)))
    }
}
