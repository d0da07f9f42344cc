//! Pictures as bytes, on a device: a quarter of what crosses the bus as f32. Kernel: `kernels/prepare_pictures.cu`.

use super::Backbone;
use crate::data::normalisation;
use crate::device::cuda::{DeviceVec, Gpu, Grid, Slice, launch};
use crate::error::Result;
use crate::storage::Storage;

/// What turns bytes `[N, S, S, 3]` into the input of a backbone, `(v/255 − mean) / std`: the same values as on the CPU to the
/// bit.
pub(crate) struct ByteInput {
    /// What each byte of each colour becomes, `[3, 256]`.
    table: DeviceVec<f32>,
}

impl ByteInput {
    /// For this backbone.
    pub fn new(gpu: &Gpu, backbone: &Backbone) -> Result<Self> {
        Ok(ByteInput { table: gpu.upload(normalisation(backbone.mean(), backbone.std()).as_flattened())? })
    }

    /// Bytes, four to a word, become x.
    pub fn prepare(&self, bytes: Slice<u32>, x: &mut Storage) -> Result<()> {
        let (gpu, words) = (self.table.gpu(), bytes.len());
        launch::prepare_pictures(
            gpu,
            Grid::threads(words),
            bytes,
            self.table.slice(),
            &mut x.values_mut().reals(),
            words,
        )
    }
}
