//! Ops on a device, timed by the device's own clock with a cold cache.
//!
//! A case gets several sets of inputs and outputs. A sample clears a buffer larger than any cache, and while the device is
//! busy with that, all calls on all sets are launched: each set is touched once, nothing of it is in a cache, and the host
//! is ahead of the device. What a sample took is divided by the number of sets.

use super::{draw, to_f32, upstream};
use crate::device::cuda::{ElementKind, Gpu, GpuArg, GpuOut, Values};
use crate::error::Result;
use crate::op::{Case, Op};
use crate::shape::Shape;
use crate::storage::Storage;

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Small cases, as the judges have them, instead of those of the networks.
    pub small: bool,
    /// Samples of each direction.
    pub samples: usize,
    /// Bytes that the sets of a case should have together.
    pub rotated: usize,
    /// Bytes that are cleared before a sample.
    pub cleared: usize,
}

impl Effort {
    /// For a real device: three times the largest cache there is, and cleared for longer than the launches take.
    pub const FULL: Effort = Effort { small: false, samples: 15, rotated: 180_000_000, cleared: 1 << 30 };
    /// For the emulated device: whether everything runs, and no more.
    pub const DRY: Effort = Effort { small: true, samples: 2, rotated: 0, cleared: 1 << 10 };
}

/// Sets of one case: at least two, and no more than launches can be queued for.
const SETS: [usize; 2] = [2, 32];

/// One direction of one case, timed.
#[derive(Clone, Debug)]
pub struct DeviceTime {
    /// Attributes and shapes.
    pub case: String,
    /// `forward` or `backward`.
    pub direction: &'static str,
    /// Floating-point operations; 0 where memory is what counts.
    pub flops: u64,
    /// The fewest bytes that can be moved: every array that is read or written, once.
    pub bytes: u64,
    /// Seconds of one call, by sample, shortest first.
    pub seconds: Vec<f64>,
}

impl DeviceTime {
    /// The median.
    pub fn median(&self) -> f64 {
        self.seconds[self.seconds.len() / 2]
    }
}

/// Everything that one call reads and writes.
struct Set {
    x: Vec<Storage>,
    y: Vec<Storage>,
    dy: Storage,
    dx: Vec<Option<Storage>>,
}

/// An op at a point, and what its calls need besides a set.
struct Timed<'a, O> {
    gpu: &'a Gpu,
    op: O,
    shapes: Vec<Shape>,
}

impl<O: Op> Timed<'_, O> {
    fn set(&self, x: &[Vec<f32>], dy: &[f32], outputs: &[Shape]) -> Result<Set> {
        let (gpu, op) = (self.gpu, &self.op);
        let inputs = x.iter().enumerate().map(|(i, x)| Storage::upload(gpu, op.input_in_f32(i), x));
        let output = |(i, s): (usize, &Shape)| Storage::scratch(gpu, op.output_in_f32(i), s.numel());
        let gradient = |(i, s): (usize, &Shape)| {
            op.differentiable(i).then(|| Storage::scratch(gpu, op.input_in_f32(i), s.numel())).transpose()
        };
        Ok(Set {
            x: inputs.collect::<Result<_>>()?,
            y: outputs.iter().enumerate().map(output).collect::<Result<_>>()?,
            dy: Storage::upload(gpu, op.output_in_f32(0), dy)?,
            dx: self.shapes.iter().enumerate().map(gradient).collect::<Result<_>>()?,
        })
    }

    fn forward(&self, set: &mut Set) -> Result<()> {
        let x: Vec<GpuArg> = self.shapes.iter().zip(&set.x).map(|(&shape, x)| GpuArg { shape, data: all(x) }).collect();
        let mut y: Vec<GpuOut> = set.y.iter_mut().map(Storage::values_mut).collect();
        self.op.cuda_forward(self.gpu, &x, &mut y)
    }

    fn backward(&self, set: &mut Set) -> Result<()> {
        let none = Values::none(ElementKind::F32);
        let kept = |read: bool, s| if read { all(s) } else { none };
        let x = self.shapes.iter().zip(&set.x).enumerate();
        let x: Vec<GpuArg> =
            x.map(|(i, (&shape, x))| GpuArg { shape, data: kept(self.op.reads_input(i), x) }).collect();
        let y: Vec<Values> = set.y.iter().enumerate().map(|(i, y)| kept(self.op.reads_output(i), y)).collect();
        let mut dx: Vec<Option<GpuOut>> = set.dx.iter_mut().map(|d| d.as_mut().map(Storage::values_mut)).collect();
        self.op.cuda_backward(self.gpu, &x, &y, all(&set.dy), &mut dx)
    }

    /// Bytes that forward and backward must move.
    fn bytes(&self, set: &Set) -> [usize; 2] {
        let of = |s: &Storage| s.len() * all(s).kind().size(self.gpu.precision());
        let kept_x = set.x.iter().enumerate().filter(|(i, _)| self.op.reads_input(*i)).map(|(_, s)| of(s));
        let kept_y = set.y.iter().enumerate().filter(|(i, _)| self.op.reads_output(*i)).map(|(_, s)| of(s));
        let forward = set.x.iter().chain(&set.y).map(of).sum();
        [forward, kept_x.chain(kept_y).sum::<usize>() + of(&set.dy) + set.dx.iter().flatten().map(of).sum::<usize>()]
    }

    /// Seconds of one call, by sample, sorted.
    fn samples(&self, effort: Effort, sets: &mut [Set], call: fn(&Self, &mut Set) -> Result<()>) -> Result<Vec<f64>> {
        let mut cleared = self.gpu.scratch::<f32>(effort.cleared / 4)?;
        let mut seconds = vec![];
        // The first round loads the kernels and fills the memory pool.
        for round in 0..=effort.samples {
            self.gpu.zero(&mut cleared.slice_mut())?;
            let taken = self.gpu.time(|| sets.iter_mut().try_for_each(|set| call(self, set)))?;
            if round > 0 {
                seconds.push(taken / sets.len() as f64);
            }
        }
        seconds.sort_by(f64::total_cmp);
        Ok(seconds)
    }
}

fn all(s: &Storage) -> Values<'_> {
    s.values(0, s.len())
}

/// See [`super::Entry::device_bench`].
pub(super) fn bench<O: Op>(gpu: &Gpu, effort: Effort) -> Result<Vec<DeviceTime>> {
    let cases = if effort.small { O::cases().into_iter().take(1).collect() } else { O::bench_cases() };
    let mut found = vec![];
    for case in cases {
        found.extend(bench_case(gpu, effort, &case)?);
        gpu.trim()?;
    }
    Ok(found)
}

fn bench_case<O: Op>(gpu: &Gpu, effort: Effort, case: &Case<O>) -> Result<Vec<DeviceTime>> {
    let timed = Timed { gpu, op: case.op.clone(), shapes: case.shapes() };
    let outputs = timed.op.infer(&timed.shapes)?;
    let (x, dy) = (to_f32(&draw(case, 1)), to_f32(&[upstream(outputs[0].numel())]).remove(0));
    let mut sets = vec![timed.set(&x, &dy, &outputs)?];
    let bytes = timed.bytes(&sets[0]);
    let count = (effort.rotated / bytes[0].max(1)).clamp(SETS[0], SETS[1]);
    while sets.len() < count {
        sets.push(timed.set(&x, &dy, &outputs)?);
    }
    let flops = timed.op.flops(&timed.shapes);
    let name = format!("{:?} {:?}", timed.shapes, timed.op);
    let forward = timed.samples(effort, &mut sets, Timed::forward)?;
    let mut found =
        vec![DeviceTime { case: name.clone(), direction: "forward", flops, bytes: bytes[0] as u64, seconds: forward }];
    if sets[0].dx.iter().any(Option::is_some) {
        let seconds = timed.samples(effort, &mut sets, Timed::backward)?;
        let (flops, bytes) = (2 * flops, bytes[1] as u64);
        found.push(DeviceTime { case: name, direction: "backward", flops, bytes, seconds });
    }
    Ok(found)
}
