//! AdamW on a device, many steps ahead of the host.
//!
//! What differs from step to step is computed on the host, for many steps at once, and read by the kernels at a counter
//! that they move on themselves: launches with the same arguments do one step after the other, so that a step can be a
//! graph. What the steps found waits on the device until it is read, for all of them at once. Layout: `kernels/adamw.cu`.

use super::{AdamW, Constants, StepSize};
use crate::device::cuda::{DeviceVec, Gpu, Grid, Slice, launch};
use crate::error::{Error, Result};
use crate::nn::{Params, shared};
use crate::storage::Storage;
use crate::tensor::Tensor;

/// Values whose squares one block of `kernels/adamw.cu` adds.
const CHUNK: usize = 16_384;
/// Values of a row: keep and rate of the grids, those of the network, the correction.
const ROW: usize = 5;

/// What a run of steps needs from the host, and what it found.
pub struct Steps {
    /// The step that comes next, counted from the last [`Self::begin`].
    at: DeviceVec<u32>,
    /// `[steps, 5]`
    rows: DeviceVec<f32>,
    /// `[steps, 2]`: loss and gradient norm before clipping.
    found: DeviceVec<f64>,
    /// Of the step under way: the factor of the gradients, then its row.
    current: DeviceVec<f32>,
    /// Sums of squares.
    partial: DeviceVec<f64>,
}

impl Steps {
    /// Room for `capacity` steps on `params`.
    ///
    /// # Errors
    /// As [`Gpu::scratch`].
    pub fn new(gpu: &Gpu, params: &Params, capacity: usize) -> Result<Self> {
        Ok(Steps {
            at: gpu.upload(&[0])?,
            rows: gpu.scratch(capacity * ROW)?,
            found: gpu.scratch(capacity * 2)?,
            current: gpu.scratch(1 + ROW)?,
            partial: gpu.scratch(params.trained_range().len().div_ceil(CHUNK))?,
        })
    }

    /// Prepares `count` steps of this size, of which the first is number `number` of the optimiser, counted from 1.
    ///
    /// # Errors
    /// [`Error::Shape`] when there is no room for so many, [`Error::Device`] when the device fails.
    pub fn begin(&mut self, number: u64, count: usize, size: StepSize) -> Result<()> {
        if count * ROW > self.rows.len() {
            let what = format!("{count} steps, but room for {}", self.rows.len() / ROW);
            return Err(Error::Shape { op: "optimiser", what });
        }
        let row = |t: u64| {
            let [grids, network] = Constants::of(t, size);
            [grids.keep, grids.rate, network.keep, network.rate, network.correction]
        };
        let rows: Vec<f32> = (number..).take(count).flat_map(row).collect();
        let gpu = self.at.gpu().clone();
        gpu.write(&rows, &mut self.rows.slice_mut().range_mut(0..rows.len()))?;
        gpu.write(&[0], &mut self.at.slice_mut())
    }

    /// The step that comes next, on the device: `[1]`.
    pub fn at(&self) -> Slice<'_, u32> {
        self.at.slice()
    }

    /// Loss and gradient norm before clipping of the first `count` steps. Waits for them.
    ///
    /// # Errors
    /// [`Error::Device`] when the device, or anything launched before, failed.
    pub fn found(&self, count: usize) -> Result<Vec<[f64; 2]>> {
        Ok(self.at.gpu().read(self.found.slice().range(0..2 * count))?.as_chunks::<2>().0.to_vec())
    }
}

impl AdamW {
    /// Launches the step that comes next in `steps`: along `grads`, laid out as the trained part of the arena, which gave
    /// `loss` `[1]`. All lie on one device. [`AdamW::steps`] stays as it is: what is launched may be recorded.
    ///
    /// # Errors
    /// [`Error::Shape`] when tensors share the parameters, [`Error::Device`] when the device fails.
    pub fn launch(
        &mut self,
        params: &mut Params,
        grads: &Storage,
        loss: &Tensor,
        clip: f64,
        steps: &mut Steps,
    ) -> Result<()> {
        let (grids, n) = (params.grid_range().end, params.trained_range().end);
        let g = grads.values(0, n).floats();
        let Steps { at, rows, found, current, partial } = steps;
        let gpu = at.gpu().clone();
        let chunks = partial.len();
        launch::adamw_squares(&gpu, Grid::blocks(chunks), g, &mut partial.slice_mut(), n)?;
        launch::adamw_norm(
            &gpu,
            Grid::blocks(1),
            partial.slice(),
            loss.values().floats(),
            rows.slice(),
            &mut at.slice_mut(),
            &mut found.slice_mut(),
            &mut current.slice_mut(),
            clip,
            chunks,
        )?;
        let mut arena = params.storage_mut().ok_or_else(shared)?.values_mut();
        let (mut m, mut v) = (self.m.values_mut(), self.v.values_mut());
        launch::adamw_update(
            &gpu,
            Grid::threads(n.div_ceil(4)),
            &mut arena.floats().range_mut(0..n),
            g,
            &mut m.floats(),
            &mut v.floats(),
            current.slice(),
            grids,
            n,
        )
    }
}
