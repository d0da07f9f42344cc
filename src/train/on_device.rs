//! Training on a device: what stays there, and steps that need no word from the host.
//!
//! ```text
//! host, once for many steps      order of the pictures, streams of the jitter, a row of AdamW for each step -> fixed buffers
//! device, step after step        gather, jitter, forward, backward, clip, AdamW: each reads its entry at a counter
//! host, once for many steps      losses and gradient norms
//! ```
//! All features stay on the device, in the precision of the run, where they fit. Then a step is a graph, recorded once for
//! each number of pictures that a batch can have; what differs from step to step lies in the buffers, everything else
//! about it is the same in every replay. Where they do not fit, a batch is uploaded before each step, which is launched
//! piece by piece. Both ways give the same bits.

use super::{FeatureSource, JITTER_STREAM, TrainConfig, Trainer};
use crate::buffer::Buffer;
use crate::device::cuda::{DeviceVec, ElementKind, Gpu, Graph, Grid, Real, launch};
use crate::error::{Error, Result};
use crate::nn::{Params, shared};
use crate::optim::{StepSize, Steps};
use crate::storage::Storage;
use crate::tensor::Tensor;

/// At most so many steps are done before the host looks at them: a few seconds of a device at work.
pub(super) const AT_ONCE: usize = 1024;
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

/// A step that was recorded, and all that it would not be the same without.
struct Recorded {
    images: usize,
    config: TrainConfig,
    places: [u64; 3],
    graph: Graph,
}

/// What a trainer has on a device besides its values.
pub(super) struct OnDevice {
    gpu: Gpu,
    /// All pictures, where they are kept.
    features: Option<DeviceVec<Real>>,
    kept: Kept,
    steps: Steps,
    /// Pictures of the steps to come.
    order: DeviceVec<u32>,
    /// Streams of the jitter of the steps to come, two words each.
    streams: DeviceVec<u32>,
    graphs: Vec<Recorded>,
}

impl OnDevice {
    pub fn new(gpu: &Gpu, params: &Params) -> Result<Self> {
        Ok(OnDevice {
            gpu: gpu.clone(),
            features: None,
            kept: Kept::Streamed(0),
            steps: Steps::new(gpu, params, AT_ONCE)?,
            order: gpu.scratch(0)?,
            streams: gpu.scratch(2 * AT_ONCE)?,
            graphs: vec![],
        })
    }

    /// Keeps all features, unless too little memory is left beside what training needs.
    pub fn keep(&mut self, source: &dyn FeatureSource, params: &Params) -> Result<Kept> {
        self.graphs.clear();
        self.features = None;
        let gpu = &self.gpu;
        let image = if source.is_empty() { 0 } else { source.get(0).len() };
        let values = source.len() * image;
        let bytes = values * ElementKind::Real.size(gpu.precision());
        self.kept = Kept::Streamed(bytes);
        // A step's activations are of the order of its parameters and batch; half of what is free is left to them.
        let spare = gpu.free_memory()?.saturating_sub(4 * params.storage().len());
        if values == 0 || bytes > spare / 2 {
            return Ok(self.kept);
        }
        let mut features = match gpu.scratch::<Real>(values) {
            Err(Error::DeviceMemory { .. }) => return Ok(self.kept),
            features => features?,
        };
        for i in 0..source.len() {
            gpu.write(source.get(i), &mut features.slice_mut().range_mut(i * image..(i + 1) * image))?;
        }
        self.features = Some(features);
        self.kept = Kept::OnDevice(bytes);
        Ok(self.kept)
    }

    pub fn kept(&self) -> Kept {
        self.kept
    }

    /// Gives the room of the features to the steps, which did not fit beside them.
    fn let_go(&mut self) {
        self.graphs.clear();
        self.features = None;
        if let Kept::OnDevice(bytes) = self.kept {
            self.kept = Kept::Streamed(bytes);
        }
    }

    /// Kernels that a step on `images` pictures launches; `None` before it was recorded.
    pub fn launches(&self, images: usize) -> Option<usize> {
        self.graphs.iter().find(|r| r.images == images).map(|r| r.graph.launches() + r.graph.transfers())
    }

    /// Prepares the steps on the pictures of `order`, the first of which is number `number` of the optimiser.
    fn begin(&mut self, order: &[usize], config: &TrainConfig, number: u64, size: StepSize) -> Result<()> {
        let count = order.len().div_ceil(config.batch);
        self.steps.begin(number, count, size)?;
        if self.order.len() < count * config.batch {
            // Recorded steps know the buffer that is replaced.
            self.graphs.clear();
            self.order = self.gpu.scratch(AT_ONCE.min(count.next_power_of_two()) * config.batch)?;
        }
        let order: Vec<u32> = order.iter().map(|&i| i as u32).collect();
        self.gpu.write(&order, &mut self.order.slice_mut().range_mut(0..order.len()))?;
        // The steps of a run are counted from 0 for the jitter, and from 1 for AdamW.
        let streams = (JITTER_STREAM + number - 1..).take(count);
        let streams: Vec<u32> = streams.flat_map(|stream| [stream as u32, (stream >> 32) as u32]).collect();
        self.gpu.write(&streams, &mut self.streams.slice_mut().range_mut(0..streams.len()))
    }

    /// The pictures of the step that comes next, as `shape`, if they are kept.
    fn gather(&self, shape: [usize; 4], batch: usize) -> Result<Option<Tensor>> {
        let Some(features) = &self.features else { return Ok(None) };
        let (images, values) = (shape[0], shape[1..].iter().product::<usize>());
        let mut x = self.gpu.scratch::<Real>(images * values)?;
        let grid = Grid::threads(images * values.div_ceil(SPAN) * WARP);
        let (features, order, at) = (features.slice(), self.order.slice(), self.steps.at());
        launch::gather_pictures(&self.gpu, grid, features, order, at, &mut x.slice_mut(), batch, images, values)?;
        Ok(Some(Tensor::stored(shape, Storage::Reals(x))))
    }

    /// Noise for the local coordinates of the step that comes next, `[N, H, W, 2]`, the same as [`crate::rng::Rng`] draws
    /// from its stream.
    fn jitter(&self, shape: [usize; 4], groups: usize, config: &TrainConfig) -> Result<Tensor> {
        let (images, values) = (shape[0], shape[1..].iter().product::<usize>());
        let mut noise = self.gpu.scratch::<Real>(images * values)?;
        let [seed_low, seed_high] = [config.seed, config.seed >> 32].map(|word| (word & 0xffff_ffff) as usize);
        launch::jitter(
            &self.gpu,
            Grid::threads(images * values),
            &mut noise.slice_mut(),
            self.steps.at(),
            self.streams.slice(),
            images,
            groups,
            values,
            seed_low,
            seed_high,
            config.jitter_probability,
            config.jitter_std as f32,
        )?;
        Ok(Tensor::stored(shape, Storage::Reals(noise)))
    }
}

impl Trainer {
    /// The next `count` steps of the epoch: their losses and gradient norms, for which it waits once.
    pub(super) fn steps_on(
        &mut self,
        device: &mut OnDevice,
        features: &dyn FeatureSource,
        count: usize,
    ) -> Result<Vec<[f64; 2]>> {
        let (batch, first) = (self.config.batch, self.progress.step * self.config.batch);
        let places = first..(first + count * batch).min(features.len());
        let order = self.order(features.len())[places].to_vec();
        let size = self.config.step_size(self.progress.epoch);
        device.begin(&order, &self.config, self.optimiser.steps + 1, size)?;
        for pictures in order.chunks(batch) {
            match self.step_on(device, features, pictures) {
                // All memory is asked for before anything is changed: the step can be done another way.
                Err(Error::DeviceMemory { .. }) if device.features.is_some() => {
                    device.let_go();
                    self.step_on(device, features, pictures)?;
                }
                done => done?,
            }
        }
        self.optimiser.steps += count as u64;
        device.steps.found(count)
    }

    /// One step given everything about it: its loss and gradient norm.
    pub(super) fn update_on(
        &mut self,
        device: &mut OnDevice,
        x: &Tensor,
        jitter: Option<&Tensor>,
        groups: usize,
        size: StepSize,
    ) -> Result<[f64; 2]> {
        device.steps.begin(self.optimiser.steps + 1, 1, size)?;
        let loss = self.gradients(x, jitter, groups)?;
        self.optimiser.launch(&mut self.params, &self.grads, &loss, size.clip, &mut device.steps)?;
        self.optimiser.steps += 1;
        Ok(device.steps.found(1)?[0])
    }

    /// Launches the step that comes next, on these pictures: by its graph where the features are kept.
    fn step_on(&mut self, device: &mut OnDevice, features: &dyn FeatureSource, pictures: &[usize]) -> Result<()> {
        if !self.graphs || device.features.is_none() {
            let x = match device.gather(self.batch_shape(pictures.len()), self.config.batch)? {
                Some(x) => x,
                None => self.batch_of(features, pictures).to_gpu(&device.gpu, false)?,
            };
            return self.launch_step(device, &x);
        }
        // A graph changes the parameters behind the back of whoever shares them.
        let params = self.params.storage_mut().ok_or_else(shared)?.values_mut().as_values().place();
        let [m, v] = [&self.optimiser.m, &self.optimiser.v].map(|s| s.values(0, s.len()).place());
        let places = [params, m, v];
        device.graphs.retain(|r| r.config == self.config && r.places == places);
        if let Some(recorded) = device.graphs.iter().find(|r| r.images == pictures.len()) {
            return recorded.graph.replay();
        }
        let (gpu, images, others) = (device.gpu.clone(), pictures.len(), std::mem::take(&mut device.graphs));
        let step = || {
            let x = device.gather(self.batch_shape(images), self.config.batch)?;
            x.map_or(Ok(()), |x| self.launch_step(device, &x))
        };
        let recorded = match others.first() {
            Some(other) => gpu.capture_beside(&other.graph, step),
            None => gpu.capture(step),
        };
        device.graphs = others;
        let (graph, ()) = recorded?;
        graph.replay()?;
        device.graphs.push(Recorded { images, config: self.config.clone(), places, graph });
        Ok(())
    }

    /// Everything after the batch: nothing of it waits for the device, or tells it what differs from step to step.
    fn launch_step(&mut self, device: &mut OnDevice, x: &Tensor) -> Result<()> {
        let (images, head) = (x.shape()[0], self.head.config());
        let groups = images.div_ceil(self.config.bn_group);
        let jitter = if self.config.jitter && head.local && head.memory.has_coordinates() {
            Some(device.jitter([images, head.height, head.width, 2], groups, &self.config)?)
        } else {
            None
        };
        let loss = self.gradients(x, jitter.as_ref(), groups)?;
        self.optimiser.launch(&mut self.params, &self.grads, &loss, self.config.clip, &mut device.steps)
    }

    /// The features of these pictures, in host memory.
    pub(super) fn batch_of(&self, features: &dyn FeatureSource, pictures: &[usize]) -> Tensor {
        let shape = self.batch_shape(pictures.len());
        let image = shape[1..].iter().product();
        let mut x = Buffer::scratch(pictures.len() * image);
        for (to, &i) in x.chunks_exact_mut(image).zip(pictures) {
            to.copy_from_slice(features.get(i));
        }
        Tensor::new(shape, x)
    }

    fn batch_shape(&self, images: usize) -> [usize; 4] {
        let head = self.head.config();
        [images, head.height, head.width, head.channels]
    }
}
