//! BatchNorm's parameters, and its running statistics: `running ← 0.9 · running + 0.1 · batch`, the variance unbiased,
//! taken from the first ghost group.

use super::{Builder, Context, Id, Init, Mode, Params, Role};
use crate::device::cuda::{Grid, launch};
use crate::error::{Error, Result};
use crate::op::{List, list};
use crate::ops::{BatchNorm, BatchNormSqueezeExcite, Kind, Statistics, ghost_group};
use crate::tensor::Tensor;

/// Added to the variance in every head.
pub(crate) const EPS: f64 = 1e-5;
/// Share of the batch in an updated running statistic.
const MOMENTUM: f64 = 0.1;

/// The scale, shift and running statistics of a BatchNorm, each `[channels]`.
#[derive(Clone, Copy, Debug)]
pub struct Norm {
    gamma: Id,
    beta: Id,
    mean: Id,
    var: Id,
}

/// Statistics `[G, C]` of the batch, on their way into the running ones.
pub(super) struct RunningUpdate {
    norm: Norm,
    mean: Tensor,
    var: Tensor,
    /// Values that those of the first ghost group were taken over.
    count: usize,
}

impl RunningUpdate {
    pub(super) fn apply(&self, params: &mut Params) -> Result<()> {
        let unbiased = self.count as f64 / (self.count.max(2) - 1) as f64;
        for (id, batch, scale) in [(self.norm.mean, &self.mean, 1.0), (self.norm.var, &self.var, unbiased)] {
            let (keep, share) = (1.0 - MOMENTUM, MOMENTUM * scale);
            let Some(gpu) = batch.gpu() else {
                for (running, &b) in params.get_mut(id).iter_mut().zip(batch.data()) {
                    *running = (keep * f64::from(*running) + share * f64::from(b)) as f32;
                }
                continue;
            };
            let range = params.entry(id).range.clone();
            let n = range.len();
            let arena = params.storage_mut().ok_or_else(shared)?;
            let mut all = arena.values_mut();
            let mut all = all.floats();
            let first = batch.values().floats().range(0..n);
            launch::running_statistics(gpu, Grid::threads(n), &mut all.range_mut(range), first, keep, share, n)?;
        }
        Ok(())
    }
}

/// The arena cannot be changed on a device while tensors share it: a bug of the caller.
pub(crate) fn shared() -> Error {
    Error::Shape { op: "parameters", what: "they are shared while they are changed".into() }
}

impl Norm {
    /// `NAME.weight`, `NAME.bias`, `NAME.running_mean`, `NAME.running_var`.
    pub fn new(b: &mut Builder, name: &str, channels: usize) -> Self {
        let mut declare =
            |key: &str, role, start| b.declare(format!("{name}.{key}"), [channels], role, Init::Constant(start));
        Norm {
            gamma: declare("weight", Role::Network, 1.0),
            beta: declare("bias", Role::Network, 0.0),
            mean: declare("running_mean", Role::Statistic, 0.0),
            var: declare("running_var", Role::Statistic, 1.0),
        }
    }

    /// `act(BN(x) [+ residual])`. All `[N, H, W, channels]`.
    ///
    /// # Errors
    /// When the shapes do not fit, or a batch has fewer images than ghost groups.
    pub fn forward(&self, cx: &Context, x: &Tensor, act: Kind, residual: Option<&Tensor>) -> Result<Tensor> {
        let (groups, statistics) = statistics(cx);
        let op = BatchNorm { eps: EPS, groups, statistics, act, residual: residual.is_some() };
        let y = cx.tape.apply_all(op, &self.inputs(cx, x, &[], residual.as_slice()))?;
        Ok(self.keep_statistics(cx, x, y))
    }

    /// `hswish(BN(x) ⊙ gate)` with the squeeze-excite gate of the weights v1 and v2.
    ///
    /// # Errors
    /// As [`Self::forward`].
    pub fn squeeze_excite(&self, cx: &Context, x: &Tensor, v1: Id, v2: Id) -> Result<Tensor> {
        let (groups, statistics) = statistics(cx);
        let op = BatchNormSqueezeExcite { eps: EPS, groups, statistics };
        let y = cx.tape.apply_all(op, &self.inputs(cx, x, &[cx.param(v1), cx.param(v2)], &[]))?;
        Ok(self.keep_statistics(cx, x, y))
    }

    /// `x, gamma, beta, between.., [mean, var,] last..`
    fn inputs<'t>(
        &self,
        cx: &'t Context,
        x: &'t Tensor,
        between: &[&'t Tensor],
        last: &[&'t Tensor],
    ) -> List<&'t Tensor> {
        let mut inputs = list([x, cx.param(self.gamma), cx.param(self.beta)]);
        inputs.extend(between.iter().copied());
        if cx.mode == Mode::Eval {
            inputs.extend([cx.param(self.mean), cx.param(self.var)]);
        }
        inputs.extend(last.iter().copied());
        inputs
    }

    /// The result out of an op's outputs; its statistics wait for the end of the pass.
    fn keep_statistics(self, cx: &Context, x: &Tensor, mut y: List<Tensor>) -> Tensor {
        if let [_, mean, var, ..] = &y[..] {
            self.keep(cx, x, [mean, var]);
        }
        y.swap_remove(0)
    }

    /// Mean and variance `[G, channels]` of a training batch, taken over all positions of x, wait for the end of the pass.
    pub(super) fn keep(self, cx: &Context, x: &Tensor, [mean, var]: [&Tensor; 2]) {
        if let Mode::Train { groups } = cx.mode {
            let n = x.shape()[0];
            let count = ghost_group(n, groups, 0).len() * x.shape().rows() / n;
            cx.updates.borrow_mut().push(RunningUpdate { norm: self, mean: mean.clone(), var: var.clone(), count });
        }
    }

    /// gamma and beta, for an op that has the BatchNorm in it.
    pub(super) fn scale_and_shift<'c>(&self, cx: &'c Context) -> [&'c Tensor; 2] {
        [self.gamma, self.beta].map(|id| cx.param(id))
    }
}

/// Ghost groups and source of the statistics in this mode.
fn statistics(cx: &Context) -> (usize, Statistics) {
    match cx.mode {
        Mode::Train { groups } => (groups, Statistics::Batch),
        Mode::Eval => (1, Statistics::Running),
    }
}
