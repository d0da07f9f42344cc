//! The stages of a batch of pictures one by one, each with nothing else on the device, for measuring.

use std::time::Instant;

use super::{Inference, Plan, Ways};
use crate::device::cuda::DeviceVec;
use crate::error::Result;
use crate::nn::shared;
use crate::score::Protocol;
use crate::tensor::Tensor;

/// The stages of a run: name and seconds of each, in order.
pub type Laps = Vec<(&'static str, f64)>;

/// A batch and its stages.
pub struct Stages<'a> {
    on: &'a Inference,
    plan: Plan,
}

impl Inference {
    /// The stages of a batch of `n` pictures.
    ///
    /// # Errors
    /// What the device refuses.
    pub fn stages(&self, n: usize, protocol: &Protocol) -> Result<Stages<'_>> {
        Ok(Stages { on: self, plan: Plan::new(self, true, n, protocol.on_device(self.size))? })
    }
}

impl Stages<'_> {
    /// Kernels, and copies and zeroings, of the graph of this batch, if it is one; normalising the bytes is one kernel more.
    pub fn launches(&self) -> [usize; 2] {
        self.plan.work.graph().map_or([0; 2], |graph| [graph.launches(), graph.transfers()])
    }

    /// Runs every stage once on the pictures that `write` gives as bytes `[S, S, 3]`: names and seconds, in order. Copies are
    /// timed by the host, with the wait for them; work is timed by the device. The work of `backbone`, `head` and `score` is
    /// launched kernel by kernel; `graph` is the same work in one launch.
    ///
    /// # Errors
    /// What the device refuses.
    pub fn run(&mut self, write: &dyn Fn(usize, &mut [u8])) -> Result<Laps> {
        let Stages { on, plan } = self;
        let (gpu, shape) = (&on.gpu, on.shape(true, plan.batch));
        gpu.synchronize()?;
        let mut started = Instant::now();
        plan.feed(0, |bytes, item| {
            bytes.chunks_exact_mut(item).enumerate().for_each(|(i, to)| write(i, to));
            started = Instant::now();
            Ok(())
        })?;
        let Ways::Pictures(ways) = &mut plan.ways else { unreachable!("a plan for pictures") };
        ways[0].fill()?;
        let mut seconds = vec![("upload", started.elapsed().as_secs_f64())];
        let x = plan.x.get_mut().ok_or_else(shared)?;
        let mut prepare = || ways[0].used(|bytes| on.input.prepare(bytes, x));
        seconds.push(("prepare", gpu.time(&mut prepare)?));
        let x = Tensor::window(shape, plan.x.clone(), 0);
        let (mut features, mut raw) = (None, None);
        let backbone = gpu.time(|| {
            features = Some(on.backbone.forward(&x)?);
            Ok(())
        })?;
        let features = features.expect("it was computed");
        let head = gpu.time(|| {
            raw = Some(on.head.score(&features)?);
            Ok(())
        })?;
        seconds.extend([("backbone", backbone), ("head", head)]);
        if let (Some(protocol), Some(raw)) = (plan.protocol, raw) {
            let size = [on.head.config().height, on.head.config().width];
            let mut found: Option<DeviceVec<f32>> = None;
            let score = gpu.time(|| {
                found = Some(protocol.score(gpu, raw.values().floats(), size)?.found);
                Ok(())
            })?;
            seconds.push(("score", score));
        }
        if let Some(graph) = plan.work.graph() {
            seconds.push(("graph", gpu.time(|| graph.replay())?));
        }
        let started = Instant::now();
        plan.found[0].fetch(plan.work.left().found.values().floats())?;
        plan.found[0].values()?;
        seconds.push(("download", started.elapsed().as_secs_f64()));
        Ok(seconds)
    }
}
