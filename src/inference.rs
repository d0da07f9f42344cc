//! Inference wholly on a device: pictures or features go there, scores come back.
//!
//! ```text
//! bytes [N, S, S, 3] -> normalised -> backbone -> x [N, H, W, C] -> folded head -> raw maps [N, H, W]
//!                                                  -> smoothed maps [N, S, S] -> score and peak [N, 2]
//! ```
//! What a batch costs the host is one launch: everything behind the input is a graph, recorded once for each size of batch.
//! While the device computes a batch, threads fill the next one into memory that the device reads by itself, and the copy
//! goes on beside the work. Eight bytes a picture come back, and maps where they are asked for. Protocols without kernels
//! ([`crate::score::device`]) get raw maps back, and are scored by the threads.
//!
//! A batch that is not full is padded to a power of two, so that few graphs are recorded. Nothing on the device looks at the
//! pictures beside one, so a score does not depend on the batch, nor on its size.

mod stages;

use std::sync::{Arc, Mutex, PoisonError};

use rayon::prelude::*;

use crate::backbone::{Backbone, ByteInput};
use crate::calibrate::GoodScore;
use crate::device::Device;
use crate::device::cuda::{DeviceVec, Download, Gpu, Precision, Real, Repeated, Upload};
use crate::error::{Error, Result};
use crate::model::{FoldedHead, HeadConfig};
use crate::nn::{Params, shared};
use crate::score::device::DeviceProtocol;
use crate::score::{Protocol, Scored};
use crate::storage::{Shared, Storage};
use crate::tensor::Tensor;

pub use stages::{Laps, Stages};

/// Pictures of `size` by `size` pixels that go through the networks at once: enough to fill a large device, few enough to
/// fit into a small one.
pub fn batch(size: usize) -> usize {
    const PIXELS: usize = 32 * 224 * 224;
    (PIXELS / (size * size).max(1)).clamp(1, 32)
}

/// What is scored.
#[derive(Clone, Copy)]
pub enum Input<'a> {
    /// So many pictures; each is written by this function as bytes `[S, S, 3]`, from any thread.
    Pictures(usize, &'a (dyn Fn(usize, &mut [u8]) -> Result<()> + Sync)),
    /// Features, each `[H, W, C]`.
    Features(&'a [&'a [f32]]),
}

impl Input<'_> {
    fn len(&self) -> usize {
        match self {
            Input::Pictures(count, _) => *count,
            Input::Features(all) => all.len(),
        }
    }

    /// Writes item `i` as the device reads it.
    fn write(&self, i: usize, precision: Precision, to: &mut [u8]) -> Result<()> {
        match self {
            Input::Pictures(_, write) => write(i, to)?,
            Input::Features(all) => Real::pack_into(all[i], precision, to),
        }
        Ok(())
    }
}

/// A backbone and a head on a device, for pictures of one size.
pub struct Inference {
    gpu: Gpu,
    backbone: Arc<Backbone>,
    head: FoldedHead,
    size: usize,
    /// Pictures of a full batch.
    full: usize,
    input: ByteInput,
    /// One batch is on the device at a time.
    plans: Mutex<Vec<Plan>>,
}

impl Inference {
    /// For pictures of `size` by `size` pixels. The parameters of the head may lie anywhere; later changes of them are not
    /// seen.
    ///
    /// # Errors
    /// [`Error::Config`] when the backbone lies in host memory; what the device refuses.
    ///
    /// # Panics
    /// If the parameters are those of another configuration.
    pub fn new(backbone: Arc<Backbone>, config: &HeadConfig, params: &Params, size: usize) -> Result<Self> {
        backbone.check_size(size)?;
        let Some(gpu) = backbone.gpu().cloned() else {
            return Err(Error::config("the backbone lies in host memory", "move it to the device first"));
        };
        let head = FoldedHead::new(config, params, &Device::Gpu(gpu.clone()))?;
        let input = ByteInput::new(&gpu, &backbone)?;
        Ok(Inference { gpu, backbone, head, size, full: batch(size), input, plans: Mutex::default() })
    }

    /// The same with `n` items in a full batch, in place of [`batch`]: for measuring. At least 1.
    pub fn in_batches_of(&mut self, n: usize) {
        self.full = n.max(1);
    }

    /// The device.
    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// Score and peak of every item, in order.
    ///
    /// # Errors
    /// What writing an item meets, what the device refuses, and as [`Protocol::score`].
    pub fn scores(&self, input: Input, protocol: &Protocol) -> Result<Vec<GoodScore>> {
        self.run(
            input,
            protocol,
            false,
            |found, _| GoodScore { image: found[0], peak: found[1] },
            |s| GoodScore::of(&s),
        )
    }

    /// Scores of every item with their maps, in order.
    ///
    /// # Errors
    /// As [`Self::scores`].
    pub fn maps(&self, input: Input, protocol: &Protocol) -> Result<Vec<Scored>> {
        let side = protocol.side(self.size);
        let scored =
            |found: &[f32], map: &[f32]| Scored { map: map.to_vec(), height: side, width: side, image_score: found[0] };
        self.run(input, protocol, true, scored, |scored| scored)
    }

    /// Runs all items through the device, batch by batch, and makes of each what `found` makes of its score, peak and map,
    /// or, where the host scores, what `scored` makes of that.
    fn run<R: Send>(
        &self,
        input: Input,
        protocol: &Protocol,
        maps: bool,
        found: impl Fn(&[f32], &[f32]) -> R + Sync,
        scored: impl Fn(Scored) -> R + Sync,
    ) -> Result<Vec<R>> {
        let (size, HeadConfig { height, width, .. }) = (self.size, self.head.config());
        let on_device = protocol.on_device(size);
        let finish = |count: usize, plan: &Plan, slot: usize| -> Result<Vec<R>> {
            let [values, map] = plan.fetched(slot, maps)?;
            match on_device {
                Some(DeviceProtocol { side, .. }) => {
                    let map = |i: usize| map.get(i * side * side..(i + 1) * side * side).unwrap_or_default();
                    Ok((0..count).into_par_iter().map(|i| found(&values[2 * i..2 * i + 2], map(i))).collect())
                }
                None => {
                    let raw = values.par_chunks_exact(height * width).take(count);
                    raw.map(|raw| protocol.score(raw, *height, *width, size, size).map(&scored)).collect()
                }
            }
        };
        let mut plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        let mut all = Vec::with_capacity(input.len());
        let full = self.full;
        // The full batches, then the rest; in each the last batch is finished while the next one computes.
        let whole = input.len() / full * full;
        for part in [0..whole, whole..input.len()].into_iter().filter(|part| !part.is_empty()) {
            let n = full.min(part.len().next_power_of_two());
            let at = self.plan(&mut plans, input, n, on_device)?;
            let plan = &mut plans[at];
            let starts: Vec<usize> = part.clone().step_by(n).collect();
            for (k, &first) in starts.iter().enumerate() {
                let items = first..(first + n).min(part.end);
                plan.feed(k % 2, |bytes, item| {
                    let to = bytes.par_chunks_exact_mut(item).zip(items);
                    to.try_for_each(|(to, i)| input.write(i, self.gpu.precision(), to))
                })?;
                plan.compute(self, k % 2, maps)?;
                if k > 0 {
                    all.extend(finish(n, plan, 1 - k % 2)?);
                }
            }
            let last = starts.len() - 1;
            all.extend(finish(part.end - starts[last], plan, last % 2)?);
        }
        Ok(all)
    }

    /// Where the plan for this input, batch and protocol lies among `plans`, made where there is none.
    fn plan(&self, plans: &mut Vec<Plan>, input: Input, n: usize, protocol: Option<DeviceProtocol>) -> Result<usize> {
        let pictures = matches!(input, Input::Pictures(..));
        if let Some(at) = plans.iter().position(|p| (p.pictures, p.batch, p.protocol) == (pictures, n, protocol)) {
            return Ok(at);
        }
        plans.push(Plan::new(self, pictures, n, protocol)?);
        Ok(plans.len() - 1)
    }

    /// `[n, H, W, C]` of the input of a batch.
    fn shape(&self, pictures: bool, n: usize) -> [usize; 4] {
        let HeadConfig { height, width, channels, .. } = *self.head.config();
        if pictures { [n, self.size, self.size, 3] } else { [n, height, width, channels] }
    }

    /// Everything behind the input.
    fn work(&self, pictures: bool, x: &Tensor, protocol: Option<DeviceProtocol>) -> Result<Outputs> {
        let features = if pictures { self.backbone.forward(x)? } else { x.clone() };
        let raw = self.head.score(&features)?;
        let HeadConfig { height, width, .. } = *self.head.config();
        Ok(match protocol {
            Some(protocol) => {
                let scores = protocol.score(&self.gpu, raw.values().floats(), [height, width])?;
                Outputs {
                    found: Tensor::stored([raw.shape()[0], 2], Storage::Floats(scores.found)),
                    maps: Some(scores.maps),
                }
            }
            None => Outputs { found: raw, maps: None },
        })
    }
}

/// What a graph leaves on the device.
struct Outputs {
    /// Score and peak `[N, 2]`, or raw maps `[N, H, W, 1]`.
    found: Tensor,
    /// Smoothed maps, if the device makes them.
    maps: Option<DeviceVec<f32>>,
}

/// The two ways in: while one is used, the other is filled.
enum Ways {
    Pictures([Upload<u32>; 2]),
    Features([Upload<Real>; 2]),
}

/// All that a batch of one size needs, at fixed places.
struct Plan {
    pictures: bool,
    batch: usize,
    protocol: Option<DeviceProtocol>,
    ways: Ways,
    x: Shared,
    work: Repeated<Outputs>,
    found: [Download; 2],
    /// Made when maps are first asked for.
    maps: Option<[Download; 2]>,
}

impl Plan {
    fn new(on: &Inference, pictures: bool, batch: usize, protocol: Option<DeviceProtocol>) -> Result<Self> {
        let (gpu, shape) = (&on.gpu, on.shape(pictures, batch));
        let values: usize = shape.iter().product();
        let mut x: DeviceVec<Real> = gpu.scratch(values)?;
        gpu.zero(&mut x.slice_mut())?;
        let x = Shared::new(Storage::Reals(x));
        let input = Tensor::window(shape, x.clone(), 0);
        let work = Repeated::new(gpu, || on.work(pictures, &input, protocol))?;
        let found = work.left().found.shape().numel();
        Ok(Plan {
            pictures,
            batch,
            protocol,
            ways: match pictures {
                true => Ways::Pictures([Upload::new(gpu, values / 4)?, Upload::new(gpu, values / 4)?]),
                false => Ways::Features([Upload::new(gpu, values)?, Upload::new(gpu, values)?]),
            },
            x,
            work,
            found: [Download::new(gpu, found)?, Download::new(gpu, found)?],
            maps: None,
        })
    }

    /// Fills one way in, `fill(all bytes, bytes of an item)`, and starts the copy.
    fn feed(&mut self, slot: usize, fill: impl FnOnce(&mut [u8], usize) -> Result<()>) -> Result<()> {
        let batch = self.batch;
        let bytes = match &mut self.ways {
            Ways::Pictures(ways) => ways[slot].fill()?,
            Ways::Features(ways) => ways[slot].fill()?,
        };
        let item = bytes.len() / batch;
        fill(bytes, item)?;
        match &mut self.ways {
            Ways::Pictures(ways) => ways[slot].send(),
            Ways::Features(ways) => ways[slot].send(),
        }
    }

    /// Starts the computation of what was fed, and the copies back.
    fn compute(&mut self, on: &Inference, slot: usize, maps: bool) -> Result<()> {
        let x = self.x.get_mut().ok_or_else(shared)?;
        match &mut self.ways {
            Ways::Pictures(ways) => ways[slot].used(|bytes| on.input.prepare(bytes, x))?,
            Ways::Features(ways) => ways[slot].used(|values| on.gpu.copy(values, &mut x.values_mut().reals()))?,
        }
        let (pictures, protocol) = (self.pictures, self.protocol);
        let input = || Tensor::window(on.shape(pictures, self.batch), self.x.clone(), 0);
        self.work.again(|| on.work(pictures, &input(), protocol))?;
        let outputs = self.work.left();
        self.found[slot].fetch(outputs.found.values().floats())?;
        let Some(smoothed) = outputs.maps.as_ref().filter(|_| maps) else { return Ok(()) };
        let ways = match &mut self.maps {
            Some(ways) => ways,
            none => none.insert([Download::new(&on.gpu, smoothed.len())?, Download::new(&on.gpu, smoothed.len())?]),
        };
        ways[slot].fetch(smoothed.slice())
    }

    /// What came back: score and peak, or raw maps; and the smoothed maps, if they were asked for.
    fn fetched(&self, slot: usize, maps: bool) -> Result<[&[f32]; 2]> {
        let smoothed = self.maps.as_ref().filter(|_| maps).map_or(Ok(&[][..]), |ways| ways[slot].values());
        Ok([self.found[slot].values()?, smoothed?])
    }
}
