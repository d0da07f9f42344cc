//! What a device must be able to do. Two implementations: the hardware, and its emulation.

use super::Precision;
use super::launch::{Blocks, Kernel};
use super::tensor_map::{MapWords, Walk};
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

/// Where work waits for its turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lane {
    /// The stream of work.
    Work,
    /// Copies to the device that go on beside it.
    Copies,
}

/// A piece of work on the stream.
#[derive(Clone)]
pub(super) enum Command {
    /// Launches a kernel; tensor maps are its first parameters, if it has any.
    Launch { kernel: &'static Kernel, precision: Precision, blocks: Blocks, maps: Vec<MapWords>, arguments: Vec<u64> },
    /// Copies on the device.
    Copy { to: u64, from: u64, bytes: usize },
    /// Sets to zero.
    Zero { at: u64, bytes: usize },
    /// Memory whose content is unspecified from here on: the emulated device spoils it, the hardware has nothing to do.
    #[cfg_attr(not(feature = "emulator"), allow(dead_code))]
    Fresh { at: u64, bytes: usize },
}

impl Command {
    /// Does it.
    pub fn issue(&self, driver: &dyn Driver) -> Result<()> {
        match *self {
            Command::Launch { kernel, precision, blocks, ref maps, ref arguments } => {
                driver.launch(kernel, precision, blocks, maps, arguments)
            }
            Command::Copy { to, from, bytes } => driver.copy(to, from, bytes),
            Command::Zero { at, bytes } => driver.zero(at, bytes),
            Command::Fresh { .. } => Ok(()),
        }
    }
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

    /// `arguments` are the bits of the kernel's parameters after its tensor maps, one word each, low bytes first. A kernel
    /// with maps runs in clusters of blocks.
    fn launch(
        &self,
        kernel: &'static Kernel,
        precision: Precision,
        blocks: Blocks,
        maps: &[MapWords],
        arguments: &[u64],
    ) -> Result<()>;

    /// Makes a graph of this work, in this order, and does none of it. The answer names it.
    fn build_graph(&self, commands: Vec<Command>) -> Result<u64>;

    fn replay(&self, graph: u64) -> Result<()>;

    /// Forgets a graph; where it runs, it runs to its end.
    fn drop_graph(&self, graph: u64);

    /// Makes a tensor map of the array at `address`.
    fn tensor_map(&self, address: u64, walk: &Walk) -> Result<MapWords>;

    fn synchronize(&self) -> Result<()>;

    /// Seconds that the device takes for what `work` launches; waits for it.
    fn time(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<f64>;

    /// Zeroed host memory that the device reads and writes by itself: its address in this process.
    fn pin(&self, bytes: usize) -> Result<usize>;

    /// Gives up memory of [`Self::pin`] that nothing reads or writes any more.
    fn unpin(&self, memory: usize, bytes: usize);

    /// Copies from pinned memory, on the lane of copies; the memory must stay as it is until a mark after it is reached.
    fn send(&self, to: u64, from: usize, bytes: usize) -> Result<()>;

    /// Copies to pinned memory, on the lane of work; its content is unspecified until a mark after it is reached.
    fn fetch(&self, to: usize, from: u64, bytes: usize) -> Result<()>;

    /// A mark that can be set in a lane, again and again.
    fn mark(&self) -> Result<u64>;

    fn drop_mark(&self, mark: u64);

    /// Sets a mark behind all that a lane was given so far.
    fn set(&self, mark: u64, lane: Lane) -> Result<()>;

    /// Holds back what a lane is given from now on until a mark is reached. A mark that was never set is.
    fn hold(&self, lane: Lane, mark: u64) -> Result<()>;

    /// Waits on the host until a mark is reached.
    fn await_mark(&self, mark: u64) -> Result<()>;
}
