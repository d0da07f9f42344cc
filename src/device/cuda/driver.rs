//! What a device must be able to do. Two implementations: the hardware, and its emulation.

use super::Precision;
use super::launch::{Blocks, Kernel};
use super::tensor_map::{TensorMap, Walk};
use crate::error::Result;

/// What a device says of itself.
#[derive(Clone, Debug)]
pub struct Facts {
    /// Its name.
    pub name: String,
    /// Compute capability, such as `[9, 0]`.
    pub architecture: [usize; 2],
    /// Multiprocessors.
    pub multiprocessors: usize,
    /// Bytes of memory.
    pub memory: usize,
    /// CUDA version of its driver, such as `[13, 0]`.
    pub driver: [usize; 2],
}

/// A device with one stream of work. Addresses are the device's own.
pub(super) trait Driver: Send + Sync {
    fn facts(&self) -> Result<Facts>;

    /// Bytes that can still be allocated.
    fn free_memory(&self) -> Result<usize>;

    /// An address aligned to 256 bytes, or `None` when there is no room.
    fn allocate(&self, bytes: usize) -> Result<Option<u64>>;

    fn free(&self, address: u64) -> Result<()>;

    /// Whether freed memory may be handed out again without asking the device.
    fn recycles(&self) -> bool;

    fn upload(&self, to: u64, bytes: &[u8]) -> Result<()>;

    /// Waits for all work before it.
    fn download(&self, bytes: &mut [u8], from: u64) -> Result<()>;

    fn copy(&self, to: u64, from: u64, bytes: usize) -> Result<()>;

    fn zero(&self, to: u64, bytes: usize) -> Result<()>;

    /// `arguments` are the bits of the kernel's parameters, one word each, low bytes first.
    fn launch(&self, kernel: &'static Kernel, precision: Precision, blocks: Blocks, arguments: &[u64]) -> Result<()>;

    /// Makes a tensor map of the array at `address`.
    fn tensor_map(&self, address: u64, walk: &Walk) -> Result<[u64; 16]>;

    /// As [`Self::launch`], with tensor maps as the first parameters, in clusters of blocks.
    fn launch_mapped(
        &self,
        kernel: &'static Kernel,
        precision: Precision,
        blocks: Blocks,
        maps: &[&TensorMap],
        arguments: &[u64],
    ) -> Result<()>;

    fn synchronize(&self) -> Result<()>;

    /// Seconds that the device takes for what `work` launches; waits for it.
    fn time(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<f64>;
}
