//! The features of some pictures by a device: bytes go there, features come back.
//!
//! Everything behind the bytes is a graph, recorded once for each size of batch. A batch that is not full is padded to a
//! power of two, so that few are recorded; nothing on the device looks at the pictures beside one.

use std::sync::{Mutex, PoisonError};

use crate::backbone::{Backbone, ByteInput};
use crate::device::cuda::{DeviceVec, Gpu, Real, Repeated, Upload};
use crate::error::Result;
use crate::nn::shared;
use crate::storage::{Shared, Storage};
use crate::tensor::Tensor;

/// A backbone on a device, for pictures of one size.
pub(super) struct Extractor<'a> {
    backbone: &'a Backbone,
    gpu: Gpu,
    size: usize,
    input: ByteInput,
    /// Held while a batch is on the device, so that the memory needed there does not grow with the threads.
    plans: Mutex<Vec<Plan>>,
}

/// All that a batch of one size needs, at fixed places.
struct Plan {
    batch: usize,
    bytes: Upload<u32>,
    x: Shared,
    features: Repeated<Tensor>,
}

impl<'a> Extractor<'a> {
    /// `None` for a backbone in host memory.
    pub fn new(backbone: &'a Backbone, size: usize) -> Result<Option<Self>> {
        let Some(gpu) = backbone.gpu().cloned() else { return Ok(None) };
        let input = ByteInput::new(&gpu, backbone)?;
        Ok(Some(Extractor { backbone, gpu, size, input, plans: Mutex::default() }))
    }

    /// Features of pictures, each as bytes `[S, S, 3]`, in host memory: `[N, H, W, C]` with N at least their number.
    pub fn features(&self, pictures: &[&[u8]]) -> Result<Tensor> {
        let mut plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        let batch = pictures.len().next_power_of_two();
        let at = match plans.iter().position(|plan| plan.batch == batch) {
            Some(at) => at,
            None => {
                plans.push(Plan::new(self, batch)?);
                plans.len() - 1
            }
        };
        plans[at].run(self, pictures)
    }
}

impl Plan {
    fn new(on: &Extractor, batch: usize) -> Result<Self> {
        let (gpu, shape) = (&on.gpu, [batch, on.size, on.size, 3]);
        let values: usize = shape.iter().product();
        let mut x: DeviceVec<Real> = gpu.scratch(values)?;
        gpu.zero(&mut x.slice_mut())?;
        let x = Shared::new(Storage::Reals(x));
        let input = Tensor::window(shape, x.clone(), 0);
        let features = Repeated::new(gpu, || on.backbone.forward(&input))?;
        // Sides are multiples of 16, so that bytes come in whole words.
        Ok(Plan { batch, bytes: Upload::new(gpu, values / 4)?, x, features })
    }

    fn run(&mut self, on: &Extractor, pictures: &[&[u8]]) -> Result<Tensor> {
        let to = self.bytes.fill()?;
        let picture = to.len() / self.batch;
        to.chunks_exact_mut(picture).zip(pictures).for_each(|(to, bytes)| to.copy_from_slice(bytes));
        self.bytes.send()?;
        let x = self.x.get_mut().ok_or_else(shared)?;
        self.bytes.used(|bytes| on.input.prepare(bytes, x))?;
        let input = || Tensor::window([self.batch, on.size, on.size, 3], self.x.clone(), 0);
        self.features.again(|| on.backbone.forward(&input()))?;
        self.features.left().to_host()
    }
}

#[cfg(all(test, feature = "emulator"))]
mod tests {
    use super::*;
    use crate::data::normalised;
    use crate::device::Device;
    use crate::device::cuda::Precision;
    use crate::rng::Rng;

    const SIZE: usize = 32;

    /// Batches of any size, full or not, in any order: the bits of pictures that were prepared on the host.
    #[test]
    fn bytes_give_the_features_that_prepared_pictures_give() {
        let mut rng = Rng::new(5, 0);
        let mut picture = || (0..SIZE * SIZE * 3).map(|_| rng.below(256) as u8).collect();
        let pictures: Vec<Vec<u8>> = (0..3).map(|_| picture()).collect();
        for precision in Precision::ALL {
            let gpu = Gpu::emulated(precision).unwrap();
            let backbone = Backbone::lite0().unwrap().to(&Device::Gpu(gpu)).unwrap();
            let extractor = Extractor::new(&backbone, SIZE).unwrap().unwrap();
            let prepared: Vec<_> = pictures.iter().map(|p| normalised(p, backbone.mean(), backbone.std())).collect();
            let prepared: Vec<&[f32]> = prepared.iter().map(Vec::as_slice).collect();
            let want = backbone.forward(&backbone.input(SIZE, &prepared).unwrap()).unwrap().to_host().unwrap();
            let one = want.data().len() / pictures.len();
            for lot in [0..3, 1..2, 0..2, 2..3] {
                let bytes: Vec<&[u8]> = pictures[lot.clone()].iter().map(Vec::as_slice).collect();
                let got = extractor.features(&bytes).unwrap();
                let want = &want.data()[lot.start * one..lot.end * one];
                assert_eq!(&got.data()[..want.len()], want, "{precision:?}, pictures {lot:?}");
            }
        }
        assert!(Extractor::new(&Backbone::lite0().unwrap(), SIZE).unwrap().is_none());
    }
}
