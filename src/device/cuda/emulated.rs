//! The emulated device: kernels compiled for the host, every load and store checked (`kernels/emulator/`).
//!
//! Memory is never recycled, so that what is freed stays poisoned; outputs start as NaN; the order in which blocks and
//! threads run is drawn from a seed, `GRAD_EMULATOR_SEED` or one that counts up, which every report names.

use std::ffi::{CString, c_char, c_int, c_void};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use super::Precision;
use super::driver::{Driver, Facts};
use super::launch::{Blocks, Kernel};
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
}

impl Emulated {
    pub fn new() -> Self {
        let seed = std::env::var("GRAD_EMULATOR_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(1);
        Emulated { seed: AtomicU64::new(seed) }
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

    fn launch(&self, kernel: &'static Kernel, precision: Precision, blocks: Blocks, arguments: &[u64]) -> Result<()> {
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

    fn synchronize(&self) -> Result<()> {
        Ok(())
    }

    /// Wall-clock time: says how long the emulation took, and nothing about a GPU.
    fn time(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<f64> {
        let started = Instant::now();
        work()?;
        Ok(started.elapsed().as_secs_f64())
    }
}
