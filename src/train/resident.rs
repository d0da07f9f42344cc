//! What stays on a device through a training: all features, in the precision of the run, and the order of an epoch. A batch
//! is gathered there, and its jitter drawn there, with the same numbers as on the CPU.

use std::ops::Range;

use super::{FeatureSource, TrainConfig};
use crate::device::cuda::{DeviceVec, ElementKind, Gpu, Grid, Real, launch};
use crate::error::{Error, Result};
use crate::nn::Params;
use crate::storage::Storage;
use crate::tensor::Tensor;

/// Values that a warp copies: a kernel's grid covers each image in whole spans.
const SPAN: usize = 128;
const WARP: usize = 32;

/// Where a trainer takes its batches from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    /// It runs on the CPU.
    OnHost,
    /// All features lie on the device, this many bytes.
    OnDevice(usize),
    /// They need this many bytes, more than the device has to spare: every batch is uploaded.
    Streamed(usize),
}

/// All features, on a device.
pub(super) struct Resident {
    features: DeviceVec<Real>,
    /// The epoch and its order.
    order: Option<(usize, DeviceVec<u32>)>,
}

impl Resident {
    /// All features, unless too little memory is left beside what training needs.
    pub fn new(gpu: &Gpu, source: &dyn FeatureSource, params: &Params) -> Result<(Option<Self>, Kept)> {
        let image = if source.is_empty() { 0 } else { source.get(0).len() };
        let values = source.len() * image;
        let bytes = values * ElementKind::Real.size(gpu.precision());
        // A step's activations are of the order of its parameters and batch; half of what is free is left to them.
        let spare = gpu.free_memory()?.saturating_sub(4 * params.storage().len());
        let streamed = Ok((None, Kept::Streamed(bytes)));
        if values == 0 || bytes > spare / 2 {
            return streamed;
        }
        let mut features = match gpu.scratch::<Real>(values) {
            Err(Error::DeviceMemory { .. }) => return streamed,
            features => features?,
        };
        for i in 0..source.len() {
            gpu.write(source.get(i), &mut features.slice_mut().range_mut(i * image..(i + 1) * image))?;
        }
        Ok((Some(Resident { features, order: None }), Kept::OnDevice(bytes)))
    }

    /// The pictures at `places` of the epoch's order, as `shape`.
    pub fn batch(
        &mut self,
        epoch: usize,
        order: impl FnOnce() -> Vec<usize>,
        places: Range<usize>,
        shape: [usize; 4],
    ) -> Result<Tensor> {
        let gpu = self.features.gpu().clone();
        if self.order.as_ref().is_none_or(|(of, _)| *of != epoch) {
            let order: Vec<u32> = order().into_iter().map(|i| i as u32).collect();
            self.order = Some((epoch, gpu.upload(&order)?));
        }
        let (_, order) = self.order.as_ref().expect("set above");
        let (images, values) = (shape[0], shape[1..].iter().product::<usize>());
        let mut x = gpu.scratch::<Real>(images * values)?;
        let grid = Grid::threads(images * values.div_ceil(SPAN) * WARP);
        let (features, order) = (self.features.slice(), order.slice());
        launch::gather_pictures(&gpu, grid, features, order, &mut x.slice_mut(), places.start, images, values)?;
        Ok(Tensor::stored(shape, Storage::Reals(x)))
    }
}

/// Noise for local coordinates `[N, H, W, 2]`, the same as [`crate::rng::Rng`] draws from the stream.
pub(super) fn jitter(gpu: &Gpu, shape: [usize; 4], groups: usize, config: &TrainConfig, stream: u64) -> Result<Tensor> {
    let (images, values) = (shape[0], shape[1..].iter().product::<usize>());
    let mut noise = gpu.scratch::<Real>(images * values)?;
    let [seed_low, seed_high, stream_low, stream_high] =
        [config.seed, config.seed >> 32, stream, stream >> 32].map(|word| (word & 0xffff_ffff) as usize);
    launch::jitter(
        gpu,
        Grid::threads(images * values),
        &mut noise.slice_mut(),
        images,
        groups,
        values,
        seed_low,
        seed_high,
        stream_low,
        stream_high,
        config.jitter_probability,
        config.jitter_std as f32,
    )?;
    Ok(Tensor::stored(shape, Storage::Reals(noise)))
}
