//! Training on a device: what stays there, and steps that need no word from the host.
//!
//! ```text
//! host, once for many steps      order of the pictures, streams of the jitter, a row of AdamW for each step -> fixed buffers
//! device, step after step        gather, jitter, forward, backward, clip, AdamW: each reads its entry at a counter
//! host, once for many steps      losses and gradient norms
//! ```
//! All features stay on the device, in the precision of the run, where they fit, and a step gathers its batch. Where they
//! do not fit, each batch is uploaded beside the step before it ([`Feed`]) and put in a fixed place. Either way a step is a
//! graph, recorded once for each number of pictures that a batch can have; what differs from step to step lies in the
//! buffers, everything else about it is the same in every replay. Both ways give the same bits.

use super::feed::Feed;
use super::{FeatureSource, JITTER_STREAM, TrainConfig, Trainer};
use crate::buffer::Buffer;
use crate::device::cuda::{DeviceVec, ElementKind, Gpu, Graph, Grid, Real, launch};
use crate::error::{Error, Result};
use crate::nn::{Params, shared};
use crate::optim::{StepSize, Steps};
use crate::storage::{Shared, Storage};
use crate::tensor::Tensor;

/// At most so many steps are done before the host looks at them: a few seconds of a device at work.
pub(super) const AT_ONCE: usize = 1024;
/// The same where batches are uploaded: the host may have to wait for a disk before each.
pub(super) const STREAMED_AT_ONCE: usize = 64;
/// Pictures of a lot on their way to where they are kept.
const LOT: usize = 16;
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
    /// They need this many bytes, more than the device has to spare: every batch is uploaded beside the step before it.
    Streamed(usize),
}

/// A step that was recorded, and all that it would not be the same without.
struct Recorded {
    images: usize,
    config: TrainConfig,
    places: [u64; 3],
    graph: Graph,
}

/// Where batches arrive that are not kept.
struct Stream {
    feed: Feed,
    /// The batch of the step under way; graphs know the place.
    x: Shared,
}

/// What a trainer has on a device besides its values.
pub(super) struct OnDevice {
    gpu: Gpu,
    /// All pictures, where they are kept.
    features: Option<DeviceVec<Real>>,
    /// The way of batches, where they are not.
    stream: Option<Stream>,
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
            stream: None,
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
        (self.features, self.stream) = (None, None);
        let image = if source.is_empty() { 0 } else { source.get(0).len() };
        let values = source.len() * image;
        let bytes = values * ElementKind::Real.size(self.gpu.precision());
        self.kept = Kept::Streamed(bytes);
        // A step's activations are of the order of its parameters and batch; half of what is free is left to them.
        let spare = self.gpu.free_memory()?.saturating_sub(4 * params.storage().len());
        if values == 0 || bytes > spare / 2 {
            return Ok(self.kept);
        }
        match self.uploaded(source, image) {
            Err(Error::DeviceMemory { .. }) => return Ok(self.kept),
            features => self.features = Some(features?),
        }
        self.kept = Kept::OnDevice(bytes);
        Ok(self.kept)
    }

    /// All pictures, of `image` values each.
    fn uploaded(&self, source: &dyn FeatureSource, image: usize) -> Result<DeviceVec<Real>> {
        let mut features = self.gpu.scratch::<Real>(source.len() * image)?;
        let all: Vec<usize> = (0..source.len()).collect();
        let mut feed = Feed::new(&self.gpu, LOT.min(all.len()), image)?;
        let places = all.chunks(LOT).map(|lot| lot[0] * image..(lot[0] + lot.len()) * image);
        for (lot, place) in all.chunks(LOT).zip(places) {
            feed.feed(source, lot)?;
            feed.take(&mut features.slice_mut().range_mut(place))?;
        }
        Ok(features)
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
        // A batch that is uploaded is also copied to its place.
        let arrival = usize::from(self.features.is_none());
        let step = self.graphs.iter().find(|r| r.images == images);
        step.map(|r| r.graph.launches() + r.graph.transfers() + arrival)
    }

    /// Prepares the steps on the pictures of `order`, the first of which is number `number` of the optimiser.
    fn begin(&mut self, order: &[usize], config: &TrainConfig, number: u64, size: StepSize) -> Result<()> {
        let count = order.len().div_ceil(config.batch);
        self.steps.begin(number, count, size)?;
        if let Some(stream) = &mut self.stream {
            stream.feed.begin();
        }
        if self.features.is_some() {
            if self.order.len() < count * config.batch {
                // Recorded steps know the buffer that is replaced.
                self.graphs.clear();
                self.order = self.gpu.scratch(AT_ONCE.min(count.next_power_of_two()) * config.batch)?;
            }
            let order: Vec<u32> = order.iter().map(|&i| i as u32).collect();
            self.gpu.write(&order, &mut self.order.slice_mut().range_mut(0..order.len()))?;
        }
        // The steps of a run are counted from 0 for the jitter, and from 1 for AdamW.
        let streams = (JITTER_STREAM + number - 1..).take(count);
        let streams: Vec<u32> = streams.flat_map(|stream| [stream as u32, (stream >> 32) as u32]).collect();
        self.gpu.write(&streams, &mut self.streams.slice_mut().range_mut(0..streams.len()))
    }

    /// Brings a batch to the place of batches that are not kept. `[batch, values]` is the most that one can have.
    fn receive(&mut self, features: &dyn FeatureSource, pictures: &[usize], [batch, values]: [usize; 2]) -> Result<()> {
        if self.stream.as_ref().is_none_or(|stream| !stream.feed.is_for(batch, values)) {
            // Recorded steps know the place of another.
            self.graphs.clear();
            self.stream = None;
            let x = Shared::new(Storage::Reals(self.gpu.scratch(batch * values)?));
            self.stream = Some(Stream { feed: Feed::new(&self.gpu, batch, values)?, x });
        }
        let Some(Stream { feed, x }) = &mut self.stream else { return Ok(()) };
        if feed.is_empty() {
            feed.feed(features, pictures)?;
        }
        let x = x.get_mut().ok_or_else(shared)?;
        feed.take(&mut x.values_mut().reals().range_mut(0..pictures.len() * values))
    }

    /// Starts the upload of the batch after the one under way, if batches are not kept.
    fn feed(&mut self, features: &dyn FeatureSource, pictures: &[usize]) -> Result<()> {
        self.stream.as_mut().map_or(Ok(()), |stream| stream.feed.feed(features, pictures))
    }

    /// The pictures of the step that comes next, as `shape`: those that were received, or of those that are kept.
    fn batch(&self, shape: [usize; 4], batch: usize) -> Result<Tensor> {
        let Some(features) = &self.features else {
            let stream = self.stream.as_ref().expect("a batch was received");
            return Ok(Tensor::window(shape, stream.x.clone(), 0));
        };
        let (images, values) = (shape[0], shape[1..].iter().product::<usize>());
        let mut x = self.gpu.scratch::<Real>(images * values)?;
        let grid = Grid::threads(images * values.div_ceil(SPAN) * WARP);
        let (features, order, at) = (features.slice(), self.order.slice(), self.steps.at());
        launch::gather_pictures(&self.gpu, grid, features, order, at, &mut x.slice_mut(), batch, images, values)?;
        Ok(Tensor::stored(shape, Storage::Reals(x)))
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
    /// The next `count` steps of the epoch: their losses and gradient norms, for which it waits once. `clock` is given the
    /// seconds that the device took for them, by its own clock.
    pub(super) fn steps_on(
        &mut self,
        device: &mut OnDevice,
        features: &dyn FeatureSource,
        count: usize,
        clock: Option<&mut f64>,
    ) -> Result<Vec<[f64; 2]>> {
        let gpu = device.gpu.clone();
        let (batch, first) = (self.config.batch, self.progress.step * self.config.batch);
        let places = first..(first + count * batch).min(features.len());
        self.shuffle(features.len());
        let order = self.order[places].to_vec();
        let size = self.config.step_size(self.progress.epoch);
        device.begin(&order, &self.config, self.optimiser.steps + 1, size)?;
        let batches: Vec<&[usize]> = order.chunks(batch).collect();
        let mut launch = || self.launch_steps(device, features, &batches);
        match clock {
            None => launch()?,
            Some(seconds) => *seconds = gpu.time(&mut launch)?,
        }
        self.optimiser.steps += count as u64;
        device.steps.found(count)
    }

    /// Launches these steps, of which [`OnDevice::begin`] was told.
    fn launch_steps(
        &mut self,
        device: &mut OnDevice,
        features: &dyn FeatureSource,
        batches: &[&[usize]],
    ) -> Result<()> {
        for (k, pictures) in batches.iter().enumerate() {
            match self.step_on(device, features, pictures) {
                // All memory is asked for before anything is changed: the step can be done another way.
                Err(Error::DeviceMemory { .. }) if device.features.is_some() => {
                    device.let_go();
                    self.step_on(device, features, pictures)?;
                }
                done => done?,
            }
            if let Some(next) = batches.get(k + 1) {
                device.feed(features, next)?;
            }
        }
        Ok(())
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

    /// Launches the step that comes next, on these pictures: by its graph, unless it is to be piece by piece.
    fn step_on(&mut self, device: &mut OnDevice, features: &dyn FeatureSource, pictures: &[usize]) -> Result<()> {
        let (shape, batch) = (self.batch_shape(pictures.len()), self.config.batch);
        if device.features.is_none() {
            device.receive(features, pictures, [batch, shape[1..].iter().product()])?;
        }
        if !self.graphs {
            let x = device.batch(shape, batch)?;
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
            let x = device.batch(shape, batch)?;
            self.launch_step(device, &x)
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
