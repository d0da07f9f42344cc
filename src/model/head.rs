//! The head: rebuilds features from two pairs of coordinates, or from what a discrete memory holds (`branch.rs`).
//!
//! ```text
//! local:   v_l = tanh(W2 tanh(W1 x_p + b1) + b2) [+ jitter]     [N, H, W, 2]   f_l = local_grid(v_l)     [N, H, W, C]
//! global:  v_g = tanh(U2 tanh(U1 mean(x) + c1) + c2)            [N, 2]         f_g = global_grid(v_g)    [N, H, W, C]
//! fusion:  f = recover(blocks(concat(f_g, f_l)))                                                         [N, H, W, C]
//! gate:    x̂ = refinement_gate(f, x)                            loss = mean (x̂ − x)²     score_p = ‖x̂_p − x_p‖₂
//! ```
//! Source: arXiv 2402.18293 (v1: `grad`; v3, ECCV 2024: `crad`). The features x are constants: nothing flows into them.

use super::branch::{Branch, CodebookTerm};
use super::config::{HeadConfig, ModelKind};
use crate::error::Result;
use crate::nn::{BasicBlock, Builder, Context, MobileBottleneck, Params, Pointwise};
use crate::op::List;
use crate::ops::{Concat, GlobalAvgPool, MseLoss, RefinementGate, ScoreMap};
use crate::tensor::Tensor;

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
        let local = config.local.then(|| Branch::local(&mut b, &config));
        let global = config.global.then(|| Branch::global(&mut b, &config));
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
    /// `jitter` `[N, H, W, 2]` is added to the local coordinates, if there are any.
    ///
    /// # Errors
    /// When x is not `[N, height, width, channels]` of this head.
    pub fn forward(&self, cx: &Context, x: &Tensor, jitter: Option<&Tensor>) -> Result<Tensor> {
        self.rebuild(cx, x, jitter, &mut List::new())
    }

    /// [`Self::forward`], with the terms of the loss that train codebooks.
    fn rebuild(
        &self,
        cx: &Context,
        x: &Tensor,
        jitter: Option<&Tensor>,
        codebook: &mut List<CodebookTerm>,
    ) -> Result<Tensor> {
        let mut reads = List::new();
        if let Some(global) = &self.global {
            let pooled = cx.tape.apply(GlobalAvgPool {}, &[x])?;
            reads.push(global.read(cx, &pooled, None, codebook)?);
        }
        if let Some(local) = &self.local {
            reads.push(local.read(cx, x, jitter, codebook)?);
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
            t = cx.stage(format_args!("block{i}"), t);
        }
        t = cx.stage("reconstruction", self.recover.forward(cx, &t)?);
        if self.config.refine {
            let HeadConfig { mse_coef, mse_weight, cos_weight, .. } = self.config;
            t = cx.tape.apply(RefinementGate { mse_coef, mse_weight, cos_weight }, &[&t, x])?;
        }
        Ok(cx.stage("refined", t))
    }

    /// `mean (x̂ − x)²`, and the losses of codebooks if there are any, `[1]`.
    ///
    /// # Errors
    /// As [`Self::forward`].
    pub fn loss(&self, cx: &Context, x: &Tensor, jitter: Option<&Tensor>) -> Result<Tensor> {
        let mut codebook = List::new();
        let refined = self.rebuild(cx, x, jitter, &mut codebook)?;
        let loss = cx.tape.apply(MseLoss {}, &[&refined, x])?;
        codebook.iter().try_fold(loss, |loss, term| cx.tape.apply(MseLoss {}, &[&term.chosen, &term.queries, &loss]))
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
    use crate::model::MemoryKind;
    use crate::nn::Role;

    /// What a file of a discrete memory must hold, counted by hand for 28 x 28 x 216 features.
    #[test]
    fn memories_have_as_many_entries_as_grids_have_cells() {
        let grids = HeadConfig::published(ModelKind::CradS, [28, 28, 216], 0.05);
        let coordinates = 2 * (216 * 216 + 216 + 2 * 216 + 2);
        for memory in [MemoryKind::Vq, MemoryKind::Attention] {
            let config = grids.clone().with_memory(memory);
            let keys = 16 * 216;
            assert_eq!(config.parameters(), grids.parameters() - coordinates + keys, "{memory:?}");
            let (_, params) = Head::new(config.clone(), Some(1));
            assert_eq!(params.trained_values() as u128, config.parameters());
            for (name, std) in
                [("local_memory", 0.012_000_4), ("global_memory", 8.591_50e-4), ("global_keys", 0.024_000_8)]
            {
                let id = params.find(name).unwrap();
                assert_eq!(params.entry(id).role, Role::Grid, "{name}");
                let t = params.tensor(id);
                let n = t.data().len() as f64;
                let found = (t.data().iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / n).sqrt();
                assert!((found / std - 1.0).abs() <= 5.0 / (2.0 * n).sqrt(), "{name} {found} {std}");
            }
        }
    }

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
