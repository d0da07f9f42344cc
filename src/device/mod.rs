//! What computes: the CPU, or a CUDA device (or its emulation).

pub mod cpu;
pub mod cuda;

use cuda::{Gpu, Precision};

use crate::error::Result;
use crate::storage::Storage;

/// Where tensors lie and ops run.
#[derive(Clone, Debug, Default)]
pub enum Device {
    /// Host memory, all threads of the pool.
    #[default]
    Cpu,
    /// A CUDA device, real or emulated.
    Gpu(Gpu),
}

impl Device {
    /// The CUDA device, if it is one.
    pub fn gpu(&self) -> Option<&Gpu> {
        match self {
            Device::Cpu => None,
            Device::Gpu(gpu) => Some(gpu),
        }
    }

    /// How products are computed here. On the CPU that is a matter of the threads: see [`mod@cpu::products`].
    pub fn precision(&self) -> Precision {
        self.gpu().map_or_else(|| cpu::products::products().precision(), Gpu::precision)
    }

    /// Whether an array lies here.
    pub fn holds(&self, storage: &Storage) -> bool {
        match (self, storage.gpu()) {
            (Device::Cpu, None) => true,
            (Device::Gpu(gpu), Some(other)) => gpu.is(other),
            _ => false,
        }
    }

    /// A copy of an array here; between two devices, by way of the host.
    ///
    /// # Errors
    /// What a device refuses.
    pub fn copy_of(&self, storage: &Storage) -> Result<Storage> {
        let host = storage.read(0, storage.len())?;
        match self {
            Device::Cpu => Ok(Storage::Host(host)),
            Device::Gpu(gpu) => Storage::upload(gpu, storage.is_f32(), &host),
        }
    }
}
