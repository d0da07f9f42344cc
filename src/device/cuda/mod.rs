//! A CUDA device, real or emulated: memory, launches, transfers. All work goes on one stream, in order.
//!
//! ```text
//! op -> launch::NAME (generated from the kernel's signature) -> Gpu -> Driver -> hardware (cudarc) | emulated (host C++)
//! ```
//! The two drivers take the same launches with the same arguments, so what is tested without a GPU is what runs on one. The
//! exception are second implementations of a few kernels (`wgmma`), taken only where a device has judged them (`chosen`).

mod chosen;
mod driver;
#[cfg(feature = "emulator")]
mod emulated;
mod graph;
mod hardware;
pub mod launch;
mod memory;
mod precision;
mod tensor_map;
mod transfer;
pub(crate) mod wgmma;

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub use chosen::Hopper;
pub use driver::Facts;
use driver::{Command, Driver};
pub use graph::Graph;
use graph::Recording;
pub use launch::Grid;
use launch::Kernel;
use memory::Pool;
pub use memory::{DeviceVec, Element, ElementKind, Slice, SliceMut, Values, ValuesMut};
pub use precision::Precision;
pub use precision::Real;
use tensor_map::TensorMap;
pub use transfer::{Download, Upload};

use crate::error::{Error, Result};
use crate::shape::Shape;

/// What the kernels of this build are compiled for, such as `sm_80 sm_90, PTX of sm_80`; empty in a build without kernels.
pub const ARCHITECTURES: &str = env!("GRAD_CUDA_ARCHITECTURES");

/// What to do when a device's memory is full.
const NEED_LESS: &str = "use a smaller --batch, stop other programs on the device, or use --device cpu";

/// One input of an op on a device: its shape and its values, which are empty where backward does not read them.
#[derive(Clone, Copy, Debug)]
pub struct GpuArg<'a> {
    /// Sizes, outermost first.
    pub shape: Shape,
    /// The values.
    pub data: Values<'a>,
}

/// One output of an op on a device.
pub type GpuOut<'a> = ValuesMut<'a>;

struct Inner {
    driver: Box<dyn Driver>,
    facts: Facts,
    precision: Precision,
    hopper: Hopper,
    /// Launches of `kernels/hopper/`.
    mapped: AtomicUsize,
    pool: Mutex<Pool>,
    /// The graph that is recorded at present.
    recording: Mutex<Option<Recording>>,
    /// What went wrong where nothing could be returned: while memory was given back.
    fault: Mutex<Option<Error>>,
}

/// A device, opened for a precision. Cloning shares it.
#[derive(Clone)]
pub struct Gpu(Arc<Inner>);

impl Gpu {
    /// CUDA device `ordinal`, counted from 0.
    ///
    /// # Errors
    /// [`Error::Device`] when there is no driver, no such device, or no kernel for its architecture, [`Error::Config`] for a
    /// wrong `GRAD_HOPPER`.
    pub fn open(ordinal: usize, precision: Precision) -> Result<Self> {
        Self::open_with(ordinal, precision, Hopper::from_environment()?)
    }

    /// The same, with a say in when the kernels of `kernels/hopper/` are taken.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_with(ordinal: usize, precision: Precision, hopper: Hopper) -> Result<Self> {
        Self::new(Box::new(hardware::Hardware::open(ordinal)?), precision, hopper)
    }

    /// What CUDA device `ordinal` says of itself, whether or not this build has kernels for it.
    ///
    /// # Errors
    /// [`Error::Device`] when there is no driver or no such device.
    pub fn probe(ordinal: usize) -> Result<Facts> {
        hardware::Hardware::attach(ordinal)?.facts()
    }

    /// The emulated device: every kernel on the CPU, every access checked. Slow; for tests.
    ///
    /// # Errors
    /// None.
    #[cfg(feature = "emulator")]
    pub fn emulated(precision: Precision) -> Result<Self> {
        Self::new(Box::new(emulated::Emulated::new()), precision, Hopper::Off)
    }

    fn new(driver: Box<dyn Driver>, precision: Precision, hopper: Hopper) -> Result<Self> {
        let facts = driver.facts()?;
        Ok(Gpu(Arc::new(Inner {
            driver,
            facts,
            precision,
            hopper,
            mapped: AtomicUsize::new(0),
            pool: Mutex::default(),
            recording: Mutex::default(),
            fault: Mutex::default(),
        })))
    }

    /// Name, architecture, size.
    pub fn facts(&self) -> &Facts {
        &self.0.facts
    }

    /// How values are stored and multiplied.
    pub fn precision(&self) -> Precision {
        self.0.precision
    }

    /// Number of multiprocessors: how many blocks it takes to fill the device.
    pub fn multiprocessors(&self) -> usize {
        self.0.facts.multiprocessors
    }

    /// Bytes that nobody uses, idle memory of the pool included.
    ///
    /// # Errors
    /// [`Error::Device`] when the device does not answer.
    pub fn free_memory(&self) -> Result<usize> {
        Ok(self.0.driver.free_memory()? + lock(&self.0.pool).idle_bytes())
    }

    /// Whether both are the same device, opened once.
    pub fn is(&self, other: &Gpu) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Memory for `len` values of unspecified content.
    ///
    /// # Errors
    /// [`Error::DeviceMemory`] when there is no room, [`Error::Device`] when the device fails.
    pub fn scratch<T: Element>(&self, len: usize) -> Result<DeviceVec<T>> {
        DeviceVec::new(self, len)
    }

    /// Memory for a copy of host values; `f32` values become the storage type of the run where `T` is [`Real`].
    ///
    /// # Errors
    /// As [`Self::scratch`].
    pub fn upload<T: Element>(&self, values: &[T::Host]) -> Result<DeviceVec<T>> {
        let mut to = self.scratch(values.len())?;
        self.write(values, &mut to.slice_mut())?;
        Ok(to)
    }

    /// Copies host values to the device.
    ///
    /// # Errors
    /// [`Error::Device`] when the device fails.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn write<T: Element>(&self, values: &[T::Host], to: &mut SliceMut<T>) -> Result<()> {
        assert_eq!(values.len(), to.len(), "a copy between lengths");
        self.outside(&format!("a copy of {} values from the host", values.len()))?;
        self.checked(|d| d.upload(to.address(), &T::pack(values, self.precision())))
    }

    /// Waits for everything launched before, and copies values to the host.
    ///
    /// # Errors
    /// [`Error::Device`] when the device, or anything launched before, failed.
    pub fn read<T: Element>(&self, from: Slice<T>) -> Result<Vec<T::Host>> {
        self.outside(&format!("a read of {} values by the host", from.len()))?;
        let mut bytes = vec![0; from.len() * T::KIND.size(self.precision())];
        self.checked(|d| d.download(&mut bytes, from.address()))?;
        Ok(T::unpack(&bytes, self.precision()))
    }

    /// Copies values on the device.
    ///
    /// # Errors
    /// [`Error::Device`] when the device fails.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn copy<T: Element>(&self, from: Slice<T>, to: &mut SliceMut<T>) -> Result<()> {
        assert_eq!(from.len(), to.len(), "a copy between lengths");
        let bytes = from.len() * T::KIND.size(self.precision());
        self.submit(Command::Copy { to: to.address(), from: from.address(), bytes })
    }

    /// Sets values to zero.
    ///
    /// # Errors
    /// [`Error::Device`] when the device fails.
    pub fn zero<T: Element>(&self, to: &mut SliceMut<T>) -> Result<()> {
        let bytes = to.len() * T::KIND.size(self.precision());
        self.submit(Command::Zero { at: to.address(), bytes })
    }

    /// Waits for everything launched before.
    ///
    /// # Errors
    /// [`Error::Device`] when any of it failed.
    pub fn synchronize(&self) -> Result<()> {
        self.outside("a wait of the host")?;
        self.checked(|d| d.synchronize())
    }

    /// Seconds that the device takes for what `work` launches, by its own clock; waits for it.
    ///
    /// # Errors
    /// What `work` meets, and [`Error::Device`] when the device fails.
    pub fn time(&self, mut work: impl FnMut() -> Result<()>) -> Result<f64> {
        self.outside("a measurement of time")?;
        self.checked(|d| d.time(&mut work))
    }

    /// Gives idle memory of the pool back to the device.
    ///
    /// # Errors
    /// [`Error::Device`] when the device fails.
    pub fn trim(&self) -> Result<()> {
        for address in lock(&self.0.pool).drain() {
            self.0.driver.free(address)?;
        }
        Ok(())
    }

    /// Launches a kernel; called by the generated functions of [`launch`] alone.
    pub(crate) fn launch(&self, kernel: &'static Kernel, grid: Grid, arguments: &[u64]) -> Result<()> {
        let blocks = grid.for_block(kernel.block);
        if blocks.blocks.contains(&0) {
            return Ok(());
        }
        self.submit(Command::Launch {
            kernel,
            precision: self.precision(),
            blocks,
            maps: vec![],
            arguments: arguments.to_vec(),
        })
    }

    /// The same for kernels whose first parameters are tensor maps.
    pub(crate) fn launch_mapped(
        &self,
        kernel: &'static Kernel,
        grid: Grid,
        maps: &[&TensorMap],
        arguments: &[u64],
    ) -> Result<()> {
        self.0.mapped.fetch_add(1, Ordering::Relaxed);
        self.submit(Command::Launch {
            kernel,
            precision: self.precision(),
            blocks: grid.for_block(kernel.block),
            maps: maps.iter().map(|map| map.words).collect(),
            arguments: arguments.to_vec(),
        })
    }

    /// How many launches of kernels of `kernels/hopper/` there were.
    pub fn mapped_launches(&self) -> usize {
        self.0.mapped.load(Ordering::Relaxed)
    }

    /// Does `work` unless something failed before without anyone to tell.
    fn checked<R>(&self, work: impl FnOnce(&dyn Driver) -> Result<R>) -> Result<R> {
        if let Some(fault) = lock(&self.0.fault).clone() {
            return Err(fault);
        }
        work(&*self.0.driver)
    }

    /// Memory of at least `bytes` bytes: idle memory of the pool, or new.
    fn allocate_shared(&self, bytes: usize) -> Result<u64> {
        let driver = &self.0.driver;
        let bytes = if driver.recycles() { Pool::rounded(bytes) } else { bytes };
        if let Some(address) = lock(&self.0.pool).take(bytes) {
            return Ok(address);
        }
        let fresh = self.checked(|d| d.allocate(bytes))?;
        if let Some(address) = fresh {
            return Ok(address);
        }
        self.trim()?;
        self.checked(|d| d.allocate(bytes))?.ok_or_else(|| {
            let (name, wanted) = (&self.0.facts.name, bytes.div_ceil(1 << 20));
            let free = driver.free_memory().unwrap_or(0) >> 20;
            Error::DeviceMemory {
                what: format!("{name} has no room for {wanted} MiB more ({free} MiB are free)"),
                help: NEED_LESS.into(),
            }
        })
    }

    /// Takes memory back that belongs to no graph.
    fn release_shared(&self, address: u64, bytes: usize) {
        if self.0.driver.recycles() {
            lock(&self.0.pool).put(address, bytes);
        } else if let Err(fault) = self.0.driver.free(address) {
            lock(&self.0.fault).get_or_insert(fault);
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        for address in lock(&self.pool).drain() {
            // Nobody is left to be told, and the process's end frees it anyway.
            let _ = self.driver.free(address);
        }
    }
}

impl fmt::Debug for Gpu {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "Gpu({}, {})", self.0.facts.name, self.0.precision.name())
    }
}

/// A lock whose content is whole after every statement, so that a panic elsewhere does not spoil it.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
