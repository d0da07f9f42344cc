//! The emulated device: kernels compiled for the host, every load and store checked (`kernels/emulator/`).
//!
//! Memory is never recycled, so that what is freed stays poisoned; outputs start as NaN; the order in which blocks and
//! threads run is drawn from a seed, `GRAD_EMULATOR_SEED` or one that counts up, which every report names.

use std::collections::HashMap;
use std::ffi::{CString, c_char, c_int, c_void};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use super::driver::{Command, Driver, Facts, Lane};
use super::launch::{Blocks, Kernel};
use super::tensor_map::{MapWords, Walk};
use super::{Precision, lock};
use crate::error::{Error, Result};

unsafe extern "C" {
    fn grad_emulator_launch(
        name: *const c_char,
        kernel: unsafe extern "C" fn(*mut *mut c_void),
        arguments: *mut *mut c_void,
        grid: *const u32,
        block: *const u32,
        shared_bytes: u32,
        seed: u64,
        message: *mut c_char,
        message_size: usize,
    ) -> c_int;
    fn grad_emulator_allocate(bytes: usize) -> u64;
    fn grad_emulator_free(address: u64, message: *mut c_char, message_size: usize) -> c_int;
    fn grad_emulator_write(to: u64, from: *const c_void, bytes: usize, message: *mut c_char, size: usize) -> c_int;
    fn grad_emulator_read(to: *mut c_void, from: u64, bytes: usize, message: *mut c_char, size: usize) -> c_int;
    fn grad_emulator_copy(to: u64, from: u64, bytes: usize, message: *mut c_char, size: usize) -> c_int;
    fn grad_emulator_fill(to: u64, value: u8, bytes: usize, message: *mut c_char, size: usize) -> c_int;
    fn grad_emulator_live() -> usize;
}

/// What the emulated device claims to have.
const MEMORY: usize = 8 << 30;

pub(super) struct Emulated {
    seed: AtomicU64,
    graphs: Mutex<HashMap<u64, Arc<[Command]>>>,
    next_graph: AtomicU64,
}

impl Emulated {
    pub fn new() -> Self {
        let seed = std::env::var("GRAD_EMULATOR_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(1);
        Emulated { seed: AtomicU64::new(seed), graphs: Mutex::default(), next_graph: AtomicU64::new(1) }
    }
}

/// Calls the emulator; an answer other than 0 comes with a message.
fn call(f: impl FnOnce(*mut c_char, usize) -> c_int) -> Result<()> {
    let mut message = [0u8; 2048];
    if f(message.as_mut_ptr().cast(), message.len()) == 0 {
        return Ok(());
    }
    let text = message.split(|&b| b == 0).next().unwrap_or_default();
    Err(Error::Device {
        what: format!("emulated device: {}", String::from_utf8_lossy(text)),
        help: "this is a fault of a kernel: please report it".into(),
    })
}

/// What is asked of a device that has none of what `kernels/hopper/` needs.
fn no_copy_engine<R>(asked: &str) -> Result<R> {
    Err(Error::Device {
        what: format!("{asked}: the emulated device has no copy engine and no warpgroup products"),
        help: "this is a fault of the program, which should have chosen other kernels: please report it".into(),
    })
}

impl Driver for Emulated {
    fn facts(&self) -> Result<Facts> {
        let name = "emulated device".into();
        Ok(Facts { name, architecture: [8, 0], multiprocessors: 4, memory: MEMORY, driver: [0, 0] })
    }

    fn free_memory(&self) -> Result<usize> {
        // SAFETY: takes and returns plain numbers.
        Ok(MEMORY.saturating_sub(unsafe { grad_emulator_live() }))
    }

    fn allocate(&self, bytes: usize) -> Result<Option<u64>> {
        // SAFETY: takes and returns plain numbers.
        let address = unsafe { grad_emulator_allocate(bytes) };
        Ok((address != 0).then_some(address))
    }

    fn free(&self, address: u64) -> Result<()> {
        // SAFETY: the emulator checks the address; the message buffer outlives the call.
        call(|message, size| unsafe { grad_emulator_free(address, message, size) })
    }

    fn recycles(&self) -> bool {
        false
    }

    fn upload(&self, to: u64, bytes: &[u8]) -> Result<()> {
        // SAFETY: `bytes` is readable for its length; the emulator checks the device address.
        call(|message, size| unsafe { grad_emulator_write(to, bytes.as_ptr().cast(), bytes.len(), message, size) })
    }

    fn download(&self, bytes: &mut [u8], from: u64) -> Result<()> {
        // SAFETY: `bytes` is writable for its length; the emulator checks the device address.
        call(|message, size| unsafe { grad_emulator_read(bytes.as_mut_ptr().cast(), from, bytes.len(), message, size) })
    }

    fn copy(&self, to: u64, from: u64, bytes: usize) -> Result<()> {
        // SAFETY: the emulator checks both addresses.
        call(|message, size| unsafe { grad_emulator_copy(to, from, bytes, message, size) })
    }

    fn zero(&self, to: u64, bytes: usize) -> Result<()> {
        // SAFETY: the emulator checks the address.
        call(|message, size| unsafe { grad_emulator_fill(to, 0, bytes, message, size) })
    }

    fn launch(
        &self,
        kernel: &'static Kernel,
        precision: Precision,
        blocks: Blocks,
        maps: &[MapWords],
        arguments: &[u64],
    ) -> Result<()> {
        if !maps.is_empty() {
            return no_copy_engine(kernel.name);
        }
        let run = kernel.emulated[kernel.flavour(precision)].expect("a kernel exists in the flavours it lists");
        let name = CString::new(kernel.name).expect("a C name holds no zero byte");
        let mut words = arguments.to_vec();
        let mut pointers: Vec<*mut c_void> = words.iter_mut().map(|w| std::ptr::from_mut(w).cast()).collect();
        let grid = blocks.blocks.map(|b| u32::try_from(b).unwrap_or(u32::MAX));
        let block = [kernel.block as u32, 1, 1];
        let shared = u32::try_from(blocks.shared).unwrap_or(u32::MAX);
        let seed = self.seed.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the function and the number and types of its arguments were generated from one signature; each pointer
        // is to a word that holds the argument in its low bytes. What the kernel does with addresses is checked.
        call(|message, size| unsafe {
            let pointers = pointers.as_mut_ptr();
            let (grid, block) = (grid.as_ptr(), block.as_ptr());
            grad_emulator_launch(name.as_ptr(), run, pointers, grid, block, shared, seed, message, size)
        })
    }

    fn build_graph(&self, commands: Vec<Command>) -> Result<u64> {
        let graph = self.next_graph.fetch_add(1, Ordering::Relaxed);
        lock(&self.graphs).insert(graph, commands.into());
        Ok(graph)
    }

    /// Every command with all its checks; what starts without content is NaN again, so that nothing flows from a replay
    /// into the next but by memory from outside.
    fn replay(&self, graph: u64) -> Result<()> {
        let commands = lock(&self.graphs)[&graph].clone();
        commands.iter().try_for_each(|command| match *command {
            // SAFETY: the emulator checks the address.
            Command::Fresh { at, bytes } => {
                call(|message, size| unsafe { grad_emulator_fill(at, 0xFF, bytes, message, size) })
            }
            _ => command.issue(self),
        })
    }

    fn drop_graph(&self, graph: u64) {
        lock(&self.graphs).remove(&graph);
    }

    fn tensor_map(&self, _: u64, _: &Walk) -> Result<MapWords> {
        no_copy_engine("a tensor map")
    }

    fn synchronize(&self) -> Result<()> {
        Ok(())
    }

    /// Wall-clock time: says how long the emulation took, and nothing about a GPU.
    fn time(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<f64> {
        let started = Instant::now();
        work()?;
        Ok(started.elapsed().as_secs_f64())
    }

    fn pin(&self, bytes: usize) -> Result<usize> {
        Ok(Box::into_raw(vec![0u64; bytes.div_ceil(8)].into_boxed_slice()).cast::<u64>().expose_provenance())
    }

    fn unpin(&self, memory: usize, bytes: usize) {
        let memory = std::ptr::slice_from_raw_parts_mut(pinned(memory).cast::<u64>(), bytes.div_ceil(8));
        // SAFETY: it is the box that `pin` let go, of this length, and its only owner gives it up.
        drop(unsafe { Box::from_raw(memory) });
    }

    fn send(&self, to: u64, from: usize, bytes: usize) -> Result<()> {
        // SAFETY: pinned memory of at least that length; the emulator checks the device address.
        call(|message, size| unsafe { grad_emulator_write(to, pinned(from).cast(), bytes, message, size) })
    }

    fn fetch(&self, to: usize, from: u64, bytes: usize) -> Result<()> {
        // SAFETY: pinned memory of at least that length; the emulator checks the device address.
        call(|message, size| unsafe { grad_emulator_read(pinned(to).cast(), from, bytes, message, size) })
    }

    // All work is done when it is given: a mark is always reached.

    fn mark(&self) -> Result<u64> {
        Ok(0)
    }

    fn drop_mark(&self, _: u64) {}

    fn set(&self, _: u64, _: Lane) -> Result<()> {
        Ok(())
    }

    fn hold(&self, _: Lane, _: u64) -> Result<()> {
        Ok(())
    }

    fn await_mark(&self, _: u64) -> Result<()> {
        Ok(())
    }
}

/// Pinned memory as a pointer.
fn pinned(memory: usize) -> *mut u8 {
    std::ptr::with_exposed_provenance_mut(memory)
}

/// What the safe half of this module cannot express: addresses that are wrong, memory that the host has spoilt.
#[cfg(test)]
mod tests {
    use super::super::{Gpu, Grid};
    use super::*;

    /// An allocation of 64 bytes.
    fn allocate(device: &Emulated) -> u64 {
        device.allocate(64).unwrap().unwrap()
    }

    #[track_caller]
    fn assert_told<R: std::fmt::Debug>(done: Result<R>, part: &str) {
        match done {
            Err(Error::Device { what, .. }) => assert!(what.contains(part), "no {part:?} in {what}"),
            other => panic!("{part:?} was to be told, not {other:?}"),
        }
    }

    #[test]
    fn only_what_was_allocated_is_freed_and_once() {
        let device = Emulated::new();
        let address = allocate(&device);
        assert_told(device.free(address + 4), "which is not the address of an allocation");
        device.free(address).unwrap();
        assert_told(device.free(address), "0 bytes into an allocation of 64 bytes that was freed");
        assert_told(device.free(0), "which is not the address of an allocation");
    }

    #[test]
    fn transfers_stay_inside_an_allocation() {
        let device = Emulated::new();
        let (a, b) = (allocate(&device), allocate(&device));
        let mut bytes = [1; 65];
        assert_told(device.upload(a, &bytes), "the last 1 of them past the end of an allocation of 64 bytes");
        assert_told(device.download(&mut bytes, a), "read of 65 bytes");
        assert_told(device.copy(a, b, 65), "copy from of 65 bytes");
        assert_told(device.copy(a + 1, b, 64), "copy to of 64 bytes");
        assert_told(device.zero(a + 60, 5), "fill of 5 bytes");
        assert_told(device.upload(a - 4, &[1; 8]), "4 bytes before an allocation of 64 bytes");
        assert_told(device.upload(bytes.as_ptr().addr() as u64, &[1]), "not device memory");
        device.upload(a, &[7; 64]).unwrap();
        device.copy(b + 32, a + 32, 32).unwrap();
        device.zero(a, 64).unwrap();
        let mut halves = [1; 64];
        device.download(&mut halves, b).unwrap();
        assert_eq!((&halves[..32], &halves[32..]), (&[0xFF; 32][..], &[7; 32][..]));
        device.free(b).unwrap();
        assert_told(device.download(&mut halves, b), "that was freed");
        assert_told(device.copy(a, b, 64), "that was freed");
        device.free(a).unwrap();
    }

    /// Overwrites a byte of the emulated device's memory, seen from one of its allocations, behind the emulator's back.
    fn spoil(address: u64, distance: isize) {
        let byte = std::ptr::with_exposed_provenance_mut::<u8>(address as usize).wrapping_offset(distance);
        // SAFETY: the emulated memory is mapped in this process, and the 64 bytes on both sides of an allocation are
        // the emulator's own mark, which nobody reads at the time: this allocation is known to this thread alone.
        unsafe { byte.write(0) };
    }

    #[test]
    fn writes_beside_an_allocation_are_noticed() {
        let device = Emulated::new();
        for (distance, part) in [(-1, "1 bytes before an"), (-64, "64 bytes before an"), (64, "past the end of an")] {
            let address = allocate(&device);
            device.upload(address, &[1; 64]).unwrap();
            spoil(address, distance);
            assert_told(device.download(&mut [0; 4], address), part);
            assert_told(device.free(address), "memory was overwritten");
            assert_told(device.free(address), "that was freed");
        }
    }

    /// Memory is given back where no error can be returned; the next use of the device tells.
    #[test]
    fn a_fault_at_the_end_of_an_array_is_told_later() {
        let gpu = Gpu::emulated(Precision::F32).unwrap();
        let (spoilt, whole) = (gpu.upload::<f32>(&[1.0; 16]).unwrap(), gpu.upload::<f32>(&[2.0; 16]).unwrap());
        spoil(spoilt.slice().address(), 64);
        assert_eq!(gpu.read(whole.slice()).unwrap(), [2.0; 16]);
        drop(spoilt);
        for _ in 0..2 {
            assert_told(gpu.read(whole.slice()), "memory was overwritten");
            assert_told(gpu.synchronize(), "memory was overwritten");
            assert_told(gpu.scratch::<f32>(1), "memory was overwritten");
        }
    }

    unsafe extern "C" {
        fn grad_emulated__planted__f32__planted_host_pointer(arguments: *mut *mut c_void);
    }

    #[test]
    fn kernels_stay_out_of_the_memory_of_the_host() {
        static KERNEL: Kernel = Kernel {
            module: usize::MAX, // of no use to this device
            name: "planted_host_pointer",
            block: 1,
            flavours: [true, false, false],
            emulated: [Some(grad_emulated__planted__f32__planted_host_pointer), None, None],
        };
        let gpu = Gpu::emulated(Precision::F32).unwrap();
        let (on_host, y) = (Box::new(1.0f32), gpu.scratch::<f32>(1).unwrap());
        let (host, device) = (std::ptr::from_ref(&*on_host).expose_provenance() as u64, y.slice().address());
        let run = |x, y| gpu.launch(&KERNEL, Grid::blocks(1), &[x, y]);
        assert_told(run(host, device), "read of 4 bytes at 0x");
        assert_told(run(host, device), "a host pointer?");
        assert_told(run(device, host), "a host pointer?");
        assert_eq!(*on_host, 1.0);
    }
}
