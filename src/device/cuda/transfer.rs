//! Copies that go on beside the work of a device, through host memory that it reads and writes by itself (pinned).
//!
//! ```text
//! host      fill i+1 ..............          fill i+2
//! copies               send i+1 ......                  send i+2
//! work      compute i ................ use i+1: compute i+1 ......
//! ```
//! An [`Upload`] is a buffer on either side and two marks: what was filled is not overwritten before it has been sent, what
//! was sent is not used before it is there, and what is used is not overwritten before the work that reads it is done. Two
//! of them, taken in turn, keep host, bus and device busy at once. A [`Download`] is the way back.

use super::driver::Lane;
use super::{DeviceVec, Element, Gpu, Slice};
use crate::error::Result;

/// Pinned host memory.
struct Pinned {
    gpu: Gpu,
    address: usize,
    bytes: usize,
}

impl Pinned {
    fn new(gpu: &Gpu, bytes: usize) -> Result<Self> {
        let address = gpu.checked(|d| d.pin(bytes))?;
        Ok(Pinned { gpu: gpu.clone(), address, bytes })
    }

    fn bytes(&self) -> &[u8] {
        // SAFETY: it is that long, was zeroed, and is owned; who calls has waited for the device to be done with it.
        unsafe { std::slice::from_raw_parts(std::ptr::with_exposed_provenance(self.address), self.bytes) }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and borrowed alone.
        unsafe { std::slice::from_raw_parts_mut(std::ptr::with_exposed_provenance_mut(self.address), self.bytes) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        self.gpu.0.driver.unpin(self.address, self.bytes);
    }
}

/// A place in a lane of work.
struct Mark {
    gpu: Gpu,
    handle: u64,
}

impl Mark {
    fn new(gpu: &Gpu) -> Result<Self> {
        Ok(Mark { gpu: gpu.clone(), handle: gpu.checked(|d| d.mark())? })
    }

    fn set(&self, lane: Lane) -> Result<()> {
        self.gpu.checked(|d| d.set(self.handle, lane))
    }

    fn hold(&self, lane: Lane) -> Result<()> {
        self.gpu.checked(|d| d.hold(lane, self.handle))
    }

    fn wait(&self) -> Result<()> {
        self.gpu.checked(|d| d.await_mark(self.handle))
    }
}

impl Drop for Mark {
    fn drop(&mut self) {
        self.gpu.0.driver.drop_mark(self.handle);
    }
}

/// A way for values to a device.
pub struct Upload<T: Element> {
    host: Pinned,
    device: DeviceVec<T>,
    sent: Mark,
    used: Mark,
}

impl<T: Element> Upload<T> {
    /// For `len` values.
    ///
    /// # Errors
    /// As [`Gpu::scratch`].
    pub fn new(gpu: &Gpu, len: usize) -> Result<Self> {
        let host = Pinned::new(gpu, len * T::KIND.size(gpu.precision()))?;
        Ok(Upload { host, device: gpu.scratch(len)?, sent: Mark::new(gpu)?, used: Mark::new(gpu)? })
    }

    /// The bytes to be filled, as the device stores the values; waits until those of last time have been sent.
    ///
    /// # Errors
    /// [`crate::Error::Device`] when the device, or anything launched before, failed.
    pub fn fill(&mut self) -> Result<&mut [u8]> {
        self.sent.wait()?;
        Ok(self.host.bytes_mut())
    }

    /// Starts the copy, beside what the device is doing. To be followed by [`Self::used`] before it is filled again.
    ///
    /// # Errors
    /// As [`Self::fill`].
    pub fn send(&mut self) -> Result<()> {
        let gpu = self.device.gpu();
        self.used.hold(Lane::Copies)?;
        gpu.checked(|d| d.send(self.device.slice().address(), self.host.address, self.host.bytes))?;
        self.sent.set(Lane::Copies)
    }

    /// Launches work on the values that were sent; it begins when they are there.
    ///
    /// # Errors
    /// What `work` meets, and as [`Self::fill`].
    pub fn used(&mut self, work: impl FnOnce(Slice<T>) -> Result<()>) -> Result<()> {
        self.sent.hold(Lane::Work)?;
        work(self.device.slice())?;
        self.used.set(Lane::Work)
    }
}

impl<T: Element> Drop for Upload<T> {
    fn drop(&mut self) {
        // The device may still be copying; what cannot be waited for has failed and copies nothing.
        let _ = self.sent.wait();
        let _ = self.used.wait();
    }
}

/// A way for `f32` values from a device.
pub struct Download {
    host: Pinned,
    done: Mark,
    len: usize,
}

impl Download {
    /// For up to `len` values.
    ///
    /// # Errors
    /// As [`Gpu::scratch`].
    pub fn new(gpu: &Gpu, len: usize) -> Result<Self> {
        Ok(Download { host: Pinned::new(gpu, 4 * len)?, done: Mark::new(gpu)?, len: 0 })
    }

    /// Starts a copy behind all work launched before.
    ///
    /// # Errors
    /// [`crate::Error::Device`] when the device, or anything launched before, failed.
    ///
    /// # Panics
    /// If there are more values than it was made for.
    pub fn fetch(&mut self, from: Slice<f32>) -> Result<()> {
        assert!(4 * from.len() <= self.host.bytes, "{} values are too many", from.len());
        self.done.wait()?;
        let gpu = self.done.gpu.clone();
        gpu.checked(|d| d.fetch(self.host.address, from.address(), 4 * from.len()))?;
        self.len = from.len();
        self.done.set(Lane::Work)
    }

    /// What was fetched last; waits for it.
    ///
    /// # Errors
    /// As [`Self::fetch`].
    pub fn values(&self) -> Result<&[f32]> {
        self.done.wait()?;
        Ok(bytemuck::cast_slice(&self.host.bytes()[..4 * self.len]))
    }
}

impl Drop for Download {
    fn drop(&mut self) {
        // As for an upload.
        let _ = self.done.wait();
    }
}

#[cfg(all(test, feature = "emulator"))]
mod tests {
    use super::*;
    use crate::device::cuda::Precision;

    #[test]
    fn values_go_there_and_back() {
        let gpu = Gpu::emulated(Precision::F32).unwrap();
        let (mut up, mut down) = (Upload::<f32>::new(&gpu, 5).unwrap(), Download::new(&gpu, 5).unwrap());
        assert!(up.fill().unwrap().iter().all(|&b| b == 0));
        for round in 0..3 {
            let values: Vec<f32> = (0..5).map(|i| (i * 7 + round) as f32).collect();
            up.fill().unwrap().copy_from_slice(bytemuck::cast_slice(&values));
            up.send().unwrap();
            up.used(|there| down.fetch(there.range(1..5))).unwrap();
            assert_eq!(down.values().unwrap(), &values[1..]);
        }
    }
}
