//! The head: rebuilds features from two pairs of coordinates.
//!
//! ```text
//! local:   v_l = tanh(W2 tanh(W1 x_p + b1) + b2) [+ jitter]     [N, H, W, 2]   f_l = local_grid(v_l)     [N, H, W, C]
//! global:  v_g = tanh(U2 tanh(U1 mean(x) + c1) + c2)            [N, 2]         f_g = global_grid(v_g)    [N, H, W, C]
//! fusion:  f = recover(blocks(concat(f_g, f_l)))                                                         [N, H, W, C]
//! gate:    x̂ = refinement_gate(f, x)                            loss = mean (x̂ − x)²     score_p = ‖x̂_p − x_p‖₂
//! ```
//! Source: arXiv 2402.18293 (v1: `grad`; v3, ECCV 2024: `crad`). The features x are constants: nothing flows into them.

use super::config::{HeadConfig, ModelKind};
use crate::error::Result;
use crate::nn::{BasicBlock, Builder, Context, Id, Init, MobileBottleneck, Params, Pointwise, Role};
use crate::ops::{Add, Concat, GlobalAvgPool, GridSample, Kind, MseLoss, RefinementGate, ScoreMap};
use crate::shape::Shape;
use crate::tensor::Tensor;

/// One branch: a network that finds coordinates, and the grid they are read from.
#[derive(Clone, Copy, Debug)]
struct Branch {
    coord: [Pointwise; 2],
    grid: Id,
}

impl Branch {
    /// `NAME_coord.{0,1}` and `NAME_grid [R, R, cell..]`, which starts as Xavier's rule has it for a kernel
    /// `[1, K, R, R]` of K values a cell.
    fn new(b: &mut Builder, name: &str, channels: usize, resolution: usize, cell: &[usize]) -> Self {
        let values: usize = cell.iter().product();
        let std = (2.0 / ((values + 1) as f64 * (resolution * resolution) as f64)).sqrt();
        let shape = Shape::new(&[&[resolution; 2], cell].concat());
        let grid = b.declare(format!("{name}_grid"), shape, Role::Grid, Init::Normal(std));
        let coord = [(0, channels), (1, 2)];
        let coord =
            coord.map(|(i, to)| Pointwise::with_bias(b, &format!("{name}_coord.{i}"), channels, to, Kind::Tanh));
        Branch { coord, grid }
    }

    fn coordinates(&self, cx: &Context, x: &Tensor) -> Result<Tensor> {
        self.coord[1].forward(cx, &self.coord[0].forward(cx, x)?)
    }

    fn read(&self, cx: &Context, coord: &Tensor) -> Result<Tensor> {
        cx.tape.apply(GridSample {}, &[cx.param(self.grid), coord])
    }
}

/// A fusion block of either kind.
#[derive(Clone, Copy, Debug)]
enum Block {
    Basic(BasicBlock),
    Mobile(MobileBottleneck),
}

/// A head's layers. Their values live in [`Params`].
#[derive(Clone, Debug)]
pub struct Head {
    config: HeadConfig,
    local: Option<Branch>,
    global: Option<Branch>,
    blocks: Vec<Block>,
    recover: Pointwise,
}

impl Head {
    /// A head and its parameters, freshly drawn, or zero where they are about to be read from a file (no seed). The
    /// configuration must be free of faults.
    pub fn new(config: HeadConfig, seed: Option<u64>) -> (Head, Params) {
        let (mut b, c) = (Builder::default(), config.channels);
        let local = config.local.then(|| Branch::new(&mut b, "local", c, config.local_resolution, &[c]));
        let map = [config.height, config.width, c];
        let global = config.global.then(|| Branch::new(&mut b, "global", c, config.global_resolution, &map));
        let width = config.fused_channels();
        let mut block = |name: &str| match config.kind {
            ModelKind::Grad => Block::Basic(BasicBlock::new(&mut b, name, width)),
            _ => Block::Mobile(MobileBottleneck::new(&mut b, name, width, config.expansion)),
        };
        let blocks = (0..config.blocks).map(|i| block(&format!("blocks.{i}"))).collect();
        let recover = Pointwise::new(&mut b, "recover", width, c);
        (Head { config, local, global, blocks, recover }, b.build(seed))
    }

    /// Structure and constants.
    pub fn config(&self) -> &HeadConfig {
        &self.config
    }

    /// Refined reconstruction x̂ `[N, H, W, C]` of the features x.
    ///
    /// `jitter` `[N, H, W, 2]` is added to the local coordinates, if there is a local branch.
    ///
    /// # Errors
    /// When x is not `[N, height, width, channels]` of this head.
    pub fn forward(&self, cx: &Context, x: &Tensor, jitter: Option<&Tensor>) -> Result<Tensor> {
        let mut reads = vec![];
        if let Some(global) = &self.global {
            let pooled = cx.tape.apply(GlobalAvgPool {}, &[x])?;
            let coord = cx.stage("global_coord", global.coordinates(cx, &pooled)?);
            reads.push(cx.stage("global_read", global.read(cx, &coord)?));
        }
        if let Some(local) = &self.local {
            let mut coord = local.coordinates(cx, x)?;
            if let Some(jitter) = jitter {
                coord = cx.tape.apply(Add {}, &[&coord, jitter])?;
            }
            let coord = cx.stage("local_coord", coord);
            reads.push(cx.stage("local_read", local.read(cx, &coord)?));
        }
        let mut t = match &reads[..] {
            [global, local] => cx.tape.apply(Concat {}, &[global, local])?,
            _ => reads.swap_remove(0),
        };
        drop(reads);
        t = cx.stage("q", t);
        for (i, block) in self.blocks.iter().enumerate() {
            t = match block {
                Block::Basic(block) => block.forward(cx, &t)?,
                Block::Mobile(block) => block.forward(cx, &t)?,
            };
            t = cx.stage(&format!("block{i}"), t);
        }
        t = cx.stage("reconstruction", self.recover.forward(cx, &t)?);
        if self.config.refine {
            let HeadConfig { mse_coef, mse_weight, cos_weight, .. } = self.config;
            t = cx.tape.apply(RefinementGate { mse_coef, mse_weight, cos_weight }, &[&t, x])?;
        }
        Ok(cx.stage("refined", t))
    }

    /// `mean (x̂ − x)²`, `[1]`.
    ///
    /// # Errors
    /// As [`Self::forward`].
    pub fn loss(&self, cx: &Context, x: &Tensor, jitter: Option<&Tensor>) -> Result<Tensor> {
        let refined = self.forward(cx, x, jitter)?;
        cx.tape.apply(MseLoss {}, &[&refined, x])
    }

    /// Raw anomaly scores `[N, H, W, 1]` of the features x.
    ///
    /// # Errors
    /// As [`Self::forward`].
    pub fn score(&self, cx: &Context, x: &Tensor) -> Result<Tensor> {
        let refined = self.forward(cx, x, None)?;
        cx.tape.apply(ScoreMap {}, &[&refined, x])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Counts and standard deviations of the published networks on 28 x 28 x 216 features.
    #[test]
    fn published_heads_have_their_published_sizes_and_starts() {
        for (kind, trained) in
            [(ModelKind::Grad, 26_437_972), (ModelKind::Crad, 15_361_492), (ModelKind::CradS, 5_261_116)]
        {
            let config = HeadConfig::published(kind, [28, 28, 216], 0.05);
            assert_eq!(config.parameters(), trained as u128, "{kind:?}");
            let (_, params) = Head::new(config, Some(1));
            assert_eq!(params.trained_values(), trained, "{kind:?}");
            for (name, std) in [("local_grid", 0.012_000_4), ("global_grid", 8.591_50e-4), ("recover.weight", 0.01)] {
                let t = params.tensor(params.find(name).unwrap());
                let n = t.data().len() as f64;
                let found = (t.data().iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / n).sqrt();
                // Five standard errors of a standard deviation.
                assert!((found / std - 1.0).abs() <= 5.0 / (2.0 * n).sqrt(), "{name} {found} {std}");
            }
        }
    }
}
