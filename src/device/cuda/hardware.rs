//! A real device, through the CUDA driver library, which is looked for when the program runs.
//!
//! The primary context, one stream of our own, kernels loaded when they are first launched. What can be missing is looked
//! for in the order in which a user can do something about it: library, driver, device, kernels.

mod tensor;

use std::collections::HashMap;
use std::ffi::{CString, c_int, c_uint, c_void};
use std::sync::Mutex;

use cudarc::driver::result::{self, DriverError, device, event, graph, stream};
use cudarc::driver::sys;

use super::driver::{Command, Driver, Facts, Lane};
use super::launch::{Blocks, Kernel, MODULES};
use super::tensor_map::{MapWords, Walk};
use super::{ARCHITECTURES, NEED_LESS, Precision, lock};
use crate::error::{Error, Result};
use tensor::launch_in_clusters;

/// More dynamic shared memory than this must be asked for.
const SHARED_BY_DEFAULT: usize = 48 << 10;

const USE_CPU: &str = "use --device cpu, or auto";

/// Every function of the library that is called here. The binding looks each up at its first call and panics if it is not
/// there, as in a very old driver.
const NEEDED: [&str; 40] = [
    "cuCtxSetCurrent",
    "cuDeviceGet",
    "cuDeviceGetAttribute",
    "cuDeviceGetCount",
    "cuDeviceGetName",
    "cuDevicePrimaryCtxRelease_v2",
    "cuDevicePrimaryCtxRetain",
    "cuDeviceTotalMem_v2",
    "cuDriverGetVersion",
    "cuEventCreate",
    "cuEventDestroy_v2",
    "cuEventElapsedTime",
    "cuEventRecord",
    "cuEventSynchronize",
    "cuFuncSetAttribute",
    "cuGetErrorString",
    "cuGraphDestroy",
    "cuGraphExecDestroy",
    "cuGraphInstantiateWithFlags",
    "cuGraphLaunch",
    "cuInit",
    "cuLaunchKernel",
    "cuMemAlloc_v2",
    "cuMemFreeHost",
    "cuMemFree_v2",
    "cuMemGetInfo_v2",
    "cuMemHostAlloc",
    "cuMemcpyDtoDAsync_v2",
    "cuMemcpyDtoHAsync_v2",
    "cuMemcpyHtoDAsync_v2",
    "cuMemsetD8Async",
    "cuModuleGetFunction",
    "cuModuleLoadData",
    "cuModuleUnload",
    "cuStreamBeginCapture_v2",
    "cuStreamCreate",
    "cuStreamDestroy_v2",
    "cuStreamEndCapture",
    "cuStreamSynchronize",
    "cuStreamWaitEvent",
];

/// What a build with the emulator loads where it holds no image: no driver takes it but the stand-in of the tests, which
/// can so be brought as far as on a machine with nvcc.
const NO_IMAGE: Option<&[u8]> = if cfg!(feature = "emulator") { Some(b"// no image\0") } else { None };

#[derive(Default)]
struct Loaded {
    /// By module and flavour.
    modules: HashMap<(usize, usize), usize>,
    /// By kernel and flavour.
    functions: HashMap<(usize, usize), usize>,
}

pub(super) struct Hardware {
    device: sys::CUdevice,
    context: sys::CUcontext,
    stream: sys::CUstream,
    /// Of copies that go on beside the work.
    copies: sys::CUstream,
    /// Handles as numbers: they belong to the context, not to a thread.
    loaded: Mutex<Loaded>,
}

// SAFETY: contexts, streams, modules and functions of the driver may be used from any thread; every call here makes the
// context current on its thread first.
unsafe impl Send for Hardware {}
// SAFETY: as above; the driver serialises what needs it, and the tables are behind a lock.
unsafe impl Sync for Hardware {}

/// What the driver's refusal means for a user.
fn explain(doing: &str, error: DriverError) -> Error {
    use sys::CUresult as R;
    let text = error.error_string().ok().map_or_else(|| format!("{:?}", error.0), |s| s.to_string_lossy().into_owned());
    let what = format!("CUDA: {doing}: {text}");
    let help = match error.0 {
        R::CUDA_ERROR_OUT_OF_MEMORY => return Error::DeviceMemory { what, help: NEED_LESS.into() },
        R::CUDA_ERROR_NO_DEVICE | R::CUDA_ERROR_INVALID_DEVICE => {
            "see whether `nvidia-smi` lists a GPU, and whether CUDA_VISIBLE_DEVICES hides it; or use --device cpu"
        }
        R::CUDA_ERROR_STUB_LIBRARY => {
            "the libcuda that was found is the stub of a CUDA toolkit: take its folder out of LD_LIBRARY_PATH; or use \
             --device cpu"
        }
        R::CUDA_ERROR_SYSTEM_DRIVER_MISMATCH | R::CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE => {
            "the driver's parts do not fit together: restart the machine or install the NVIDIA driver again; or use \
             --device cpu"
        }
        R::CUDA_ERROR_DEVICE_UNAVAILABLE => {
            "another program has the device to itself: wait for it; or use --device cpu"
        }
        R::CUDA_ERROR_NO_BINARY_FOR_GPU
        | R::CUDA_ERROR_INVALID_PTX
        | R::CUDA_ERROR_UNSUPPORTED_PTX_VERSION
        | R::CUDA_ERROR_INVALID_IMAGE
        | R::CUDA_ERROR_JIT_COMPILER_NOT_FOUND => {
            "this program holds no kernel for this GPU: compute capability 8.0 or later is needed, and a newer driver may \
             help; or build with GRAD_CUDA_ARCH set for it, or use --device cpu"
        }
        R::CUDA_ERROR_ILLEGAL_ADDRESS
        | R::CUDA_ERROR_ILLEGAL_INSTRUCTION
        | R::CUDA_ERROR_MISALIGNED_ADDRESS
        | R::CUDA_ERROR_LAUNCH_FAILED
        | R::CUDA_ERROR_LAUNCH_TIMEOUT
        | R::CUDA_ERROR_ECC_UNCORRECTABLE
        | R::CUDA_ERROR_NVLINK_UNCORRECTABLE
        | R::CUDA_ERROR_HARDWARE_STACK_ERROR => {
            "the device was lost; nothing written before was harmed. Run again, with --resume for a training; if it \
             happens again, look at `dmesg` and report it, or use --device cpu"
        }
        _ => "see whether `nvidia-smi` works and the driver is recent; or use --device cpu",
    };
    Error::Device { what, help: help.into() }
}

/// [`Result`] of a driver call, with what was being done.
trait Explained<T> {
    fn when(self, doing: &str) -> Result<T>;
}

impl<T> Explained<T> for std::result::Result<T, DriverError> {
    fn when(self, doing: &str) -> Result<T> {
        self.map_err(|e| explain(doing, e))
    }
}

impl Hardware {
    /// A device whose kernels this build holds.
    ///
    /// # Errors
    /// [`Error::Device`] when the library, the device or its kernels are missing.
    pub fn open(ordinal: usize) -> Result<Self> {
        let opened = Self::attach(ordinal)?;
        if ARCHITECTURES.is_empty() && NO_IMAGE.is_none() {
            return Err(Error::Device {
                what: "this build holds no CUDA kernels: no nvcc was found when it was compiled".into(),
                help: "build it again with NVCC, CUDA_HOME or GRAD_CUDA_PYTHON set, or use --device cpu".into(),
            });
        }
        // A device without a kernel should say so now, and not after the features are there.
        opened.module(0, Precision::F32 as usize)?;
        Ok(opened)
    }

    /// A device, whether or not this build has kernels for it.
    ///
    /// # Errors
    /// [`Error::Device`] when the library or the device is missing.
    pub fn attach(ordinal: usize) -> Result<Self> {
        let missing = |what: String, help: &str| Err(Error::Device { what, help: help.into() });
        // SAFETY: loads the library and nothing else.
        if !unsafe { sys::is_culib_present() } {
            return missing(
                "the CUDA driver library (libcuda) is not on this machine".into(),
                "install the NVIDIA driver, or use --device cpu",
            );
        }
        // SAFETY: the library is there, and the functions are looked up but not called.
        let lacks = |name: &&&str| unsafe { sys::culib().get::<*const c_void>(name.as_bytes()).is_err() };
        if let Some(name) = NEEDED.iter().find(lacks) {
            return missing(
                format!("the CUDA driver library (libcuda) has no function {name}: the driver is too old"),
                "install a recent NVIDIA driver, or use --device cpu",
            );
        }
        result::init().when("starting the driver")?;
        let count = device::get_count().when("counting devices")?;
        let wanted = c_int::try_from(ordinal).ok().filter(|&n| n < count);
        let Some(wanted) = wanted else {
            let help = match count {
                0 => USE_CPU.to_string(),
                1 => "the only one is cuda:0; or use --device cpu".to_string(),
                _ => format!("they are cuda:0 to cuda:{}; or use --device cpu", count - 1),
            };
            return Err(Error::Device { what: format!("there is no CUDA device {ordinal} ({count} found)"), help });
        };
        let device = device::get(wanted).when("opening the device")?;
        // SAFETY: `device` is a device of this driver; the context is released when this value is dropped.
        let context = unsafe { result::primary_ctx::retain(device) }.when("opening the device")?;
        let (stream, loaded) = (stream::null(), Mutex::new(Loaded::default()));
        let mut opened = Hardware { device, context, stream, copies: stream, loaded };
        opened.bind()?;
        opened.stream = stream::create(stream::StreamKind::NonBlocking).when("making a stream")?;
        opened.copies = stream::create(stream::StreamKind::NonBlocking).when("making a stream")?;
        Ok(opened)
    }

    fn lane(&self, lane: Lane) -> sys::CUstream {
        if lane == Lane::Work { self.stream } else { self.copies }
    }

    fn bind(&self) -> Result<()> {
        // SAFETY: the context lives as long as `self`.
        unsafe { result::ctx::set_current(self.context) }.when("using the device")
    }

    fn attribute(&self, which: sys::CUdevice_attribute) -> Result<usize> {
        // SAFETY: the device is one of this driver's.
        let value = unsafe { device::get_attribute(self.device, which) }.when("asking for a property")?;
        Ok(usize::try_from(value).unwrap_or(0))
    }

    fn module(&self, module: usize, flavour: usize) -> Result<sys::CUmodule> {
        let mut loaded = lock(&self.loaded);
        if let Some(&handle) = loaded.modules.get(&(module, flavour)) {
            return Ok(handle as sys::CUmodule);
        }
        let m = &MODULES[module];
        let Some(image) = m.images[flavour].as_ref().map(|image| &image.0.0).or(NO_IMAGE) else {
            let what = format!("this build holds no CUDA image of kernels/{}.cu", m.name);
            return Err(Error::Device { what, help: USE_CPU.into() });
        };
        // SAFETY: the image is a whole fatbin, made by nvcc, or a text that ends in a zero; it lives as long as the program.
        let handle = unsafe { result::module::load_data(image.as_ptr().cast()) };
        let handle = handle.when(&format!("loading the kernels of {}", m.name))?;
        loaded.modules.insert((module, flavour), handle as usize);
        Ok(handle)
    }

    fn function(&self, kernel: &'static Kernel, flavour: usize) -> Result<sys::CUfunction> {
        let key = (std::ptr::from_ref(kernel) as usize, flavour);
        if let Some(&handle) = lock(&self.loaded).functions.get(&key) {
            return Ok(handle as sys::CUfunction);
        }
        let module = self.module(kernel.module, flavour)?;
        let name = CString::new(kernel.name).expect("a C name holds no zero byte");
        // SAFETY: the module is loaded and stays so.
        let handle = unsafe { result::module::get_function(module, name) };
        let handle = handle.when(&format!("looking for the kernel {}", kernel.name))?;
        lock(&self.loaded).functions.insert(key, handle as usize);
        Ok(handle)
    }
}

impl Hardware {
    /// A kernel, loaded and allowed the shared memory that it needs.
    fn prepare(&self, kernel: &'static Kernel, precision: Precision, blocks: Blocks) -> Result<sys::CUfunction> {
        let function = self.function(kernel, kernel.flavour(precision))?;
        if blocks.shared > SHARED_BY_DEFAULT {
            let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            let bytes = c_int::try_from(blocks.shared).unwrap_or(c_int::MAX);
            // SAFETY: the function belongs to a loaded module.
            let set = unsafe { result::function::set_function_attribute(function, attribute, bytes) };
            set.when(&format!("launching {}", kernel.name))?;
        }
        Ok(function)
    }

    fn launch_on(
        &self,
        stream: sys::CUstream,
        kernel: &'static Kernel,
        precision: Precision,
        blocks: Blocks,
        maps: &[MapWords],
        arguments: &[u64],
    ) -> Result<()> {
        let function = self.prepare(kernel, precision, blocks)?;
        if !maps.is_empty() {
            return launch_in_clusters(stream, function, kernel, blocks, maps, arguments);
        }
        let mut words = arguments.to_vec();
        let mut pointers: Vec<*mut c_void> = words.iter_mut().map(|w| std::ptr::from_mut(w).cast()).collect();
        let [x, y, z] = blocks.blocks.map(|b| c_uint::try_from(b).unwrap_or(c_uint::MAX));
        let block = kernel.block as c_uint;
        // SAFETY: the number and types of the arguments were generated from the kernel's own signature, each pointer is to a
        // word that holds the argument in its low bytes, and the driver copies them before it returns. Arrays are windows of
        // live device memory, and memory is reused only by work that comes later on the same stream.
        let launched = unsafe {
            let shared = blocks.shared as c_uint;
            result::launch_kernel(function, (x, y, z), (block, 1, 1), shared, stream, &mut pointers)
        };
        launched.when(&format!("launching {}", kernel.name))
    }

    /// Puts a piece of work on a stream.
    fn put(&self, stream: sys::CUstream, command: &Command) -> Result<()> {
        self.bind()?;
        match *command {
            Command::Launch { kernel, precision, blocks, ref maps, ref arguments } => {
                self.launch_on(stream, kernel, precision, blocks, maps, arguments)
            }
            // SAFETY: both are windows of at least that length.
            Command::Copy { to, from, bytes } => {
                unsafe { result::memcpy_dtod_async(to, from, bytes, stream) }.when("copying on the device")
            }
            // SAFETY: `at` is a window of at least that length.
            Command::Zero { at, bytes } => {
                unsafe { result::memset_d8_async(at, 0, bytes, stream) }.when("clearing memory")
            }
            Command::Fresh { .. } => Ok(()),
        }
    }
}

impl Driver for Hardware {
    fn facts(&self) -> Result<Facts> {
        use sys::CUdevice_attribute as A;
        self.bind()?;
        let mut version: c_int = 0;
        // SAFETY: `version` outlives the call.
        unsafe { sys::cuDriverGetVersion(&raw mut version) }.result().when("asking for the driver's version")?;
        let version = usize::try_from(version).unwrap_or(0);
        Ok(Facts {
            name: device::get_name(self.device).when("asking for a name")?,
            architecture: [
                self.attribute(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
                self.attribute(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
            ],
            multiprocessors: self.attribute(A::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
            // SAFETY: the device is one of this driver's.
            memory: unsafe { device::total_mem(self.device) }.when("asking for its memory")?,
            driver: [version / 1000, version % 1000 / 10],
        })
    }

    fn free_memory(&self) -> Result<usize> {
        self.bind()?;
        Ok(result::mem_get_info().when("asking for its free memory")?.0)
    }

    fn allocate(&self, bytes: usize) -> Result<Option<u64>> {
        self.bind()?;
        // SAFETY: the address is only used with this context, and freed once.
        match unsafe { result::malloc_sync(bytes) } {
            Ok(address) => Ok(Some(address)),
            Err(DriverError(sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY)) => Ok(None),
            Err(e) => Err(explain("allocating memory", e)),
        }
    }

    fn free(&self, address: u64) -> Result<()> {
        self.bind()?;
        // SAFETY: the address came from `allocate` and is given up by its only owner; the driver waits for work that uses it.
        unsafe { result::free_sync(address) }.when("freeing memory")
    }

    fn recycles(&self) -> bool {
        true
    }

    fn upload(&self, to: u64, bytes: &[u8]) -> Result<()> {
        self.bind()?;
        // SAFETY: `to` is a window of at least that length; from pageable memory the driver has read all of `bytes` when the
        // call returns.
        unsafe { result::memcpy_htod_async(to, bytes, self.stream) }.when("copying to the device")
    }

    fn download(&self, bytes: &mut [u8], from: u64) -> Result<()> {
        self.bind()?;
        // SAFETY: `from` is a window of at least that length, and `bytes` lives until the stream has been waited for.
        unsafe { result::memcpy_dtoh_async(bytes, from, self.stream) }.when("copying from the device")?;
        self.synchronize()
    }

    fn copy(&self, to: u64, from: u64, bytes: usize) -> Result<()> {
        self.put(self.stream, &Command::Copy { to, from, bytes })
    }

    fn zero(&self, at: u64, bytes: usize) -> Result<()> {
        self.put(self.stream, &Command::Zero { at, bytes })
    }

    fn launch(
        &self,
        kernel: &'static Kernel,
        precision: Precision,
        blocks: Blocks,
        maps: &[MapWords],
        arguments: &[u64],
    ) -> Result<()> {
        self.bind()?;
        self.launch_on(self.stream, kernel, precision, blocks, maps, arguments)
    }

    /// The stream that records is one of its own: other threads may go on working meanwhile.
    fn build_graph(&self, commands: Vec<Command>) -> Result<u64> {
        self.bind()?;
        // Loading a kernel may wait for the device, which must not happen while a stream records.
        for command in &commands {
            if let Command::Launch { kernel, precision, blocks, .. } = command {
                self.prepare(kernel, *precision, *blocks)?;
            }
        }
        let recorder = Stream::new()?;
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
        // SAFETY: the stream is alive, and nothing else is put on it.
        unsafe { stream::begin_capture(recorder.0, mode) }.when("recording a graph")?;
        let put = commands.iter().try_for_each(|command| self.put(recorder.0, command));
        // SAFETY: the stream is alive and records; the recording ends whatever became of it.
        let recorded = unsafe { stream::end_capture(recorder.0) };
        put?;
        let recorded = recorded.when("recording a graph")?;
        // SAFETY: the recorded graph is whole, known to nobody else, and destroyed once.
        let (made, _) =
            unsafe { (graph::instantiate(recorded, sys::CUgraphInstantiate_flags(0)), graph::destroy(recorded)) };
        Ok(made.when("making a graph")? as usize as u64)
    }

    fn replay(&self, graph: u64) -> Result<()> {
        self.bind()?;
        // SAFETY: the handle came from `build_graph`, and its owner has not given it up. The memory it uses is the owner's
        // concern, and is reused only by work that comes later on the same stream.
        unsafe { graph::launch(graph as usize as sys::CUgraphExec, self.stream) }.when("launching a graph")
    }

    fn drop_graph(&self, graph: u64) {
        // SAFETY: the handle came from `build_graph` and is given up by its only owner; the driver lets it run to its end.
        // A failure leaves nothing to be done.
        let _ = self.bind().map(|()| unsafe { graph::exec_destroy(graph as usize as sys::CUgraphExec) });
    }

    fn tensor_map(&self, address: u64, walk: &Walk) -> Result<MapWords> {
        self.encode(address, walk)
    }

    fn synchronize(&self) -> Result<()> {
        self.bind()?;
        // SAFETY: the stream lives as long as `self`.
        unsafe { stream::synchronize(self.stream) }.when("waiting for the device")
    }

    fn time(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<f64> {
        self.bind()?;
        let (start, end) = (Event::new()?, Event::new()?);
        start.record(self.stream)?;
        work()?;
        end.record(self.stream)?;
        self.synchronize()?;
        // SAFETY: both events are alive and were recorded on one stream, which has been waited for.
        let milliseconds = unsafe { event::elapsed(start.0, end.0) }.when("timing")?;
        Ok(f64::from(milliseconds) / 1e3)
    }

    fn pin(&self, bytes: usize) -> Result<usize> {
        self.bind()?;
        // SAFETY: the memory is freed once, by `unpin`.
        let memory = unsafe { result::malloc_host(bytes.max(1), 0) }.when("pinning host memory")?.cast::<u8>();
        // SAFETY: it is that long, and nobody else knows it yet.
        unsafe { memory.write_bytes(0, bytes) };
        Ok(memory.expose_provenance())
    }

    fn unpin(&self, memory: usize, _: usize) {
        // SAFETY: its only owner gives it up, and nothing reads or writes it any more. A failure leaves nothing to be done.
        let _ = self.bind().map(|()| unsafe { result::free_host(std::ptr::with_exposed_provenance_mut(memory)) });
    }

    fn send(&self, to: u64, from: usize, bytes: usize) -> Result<()> {
        self.bind()?;
        // SAFETY: pinned memory and a window on the device, each of at least that length, that stay until the mark that the
        // caller sets behind the copy is reached.
        let sent = unsafe {
            let from = std::slice::from_raw_parts(std::ptr::with_exposed_provenance::<u8>(from), bytes);
            result::memcpy_htod_async(to, from, self.copies)
        };
        sent.when("copying to the device")
    }

    fn fetch(&self, to: usize, from: u64, bytes: usize) -> Result<()> {
        self.bind()?;
        // SAFETY: as in `send`; nobody reads the memory before that mark.
        let fetched = unsafe {
            let to = std::slice::from_raw_parts_mut(std::ptr::with_exposed_provenance_mut::<u8>(to), bytes);
            result::memcpy_dtoh_async(to, from, self.stream)
        };
        fetched.when("copying from the device")
    }

    fn mark(&self) -> Result<u64> {
        self.bind()?;
        // No time is taken at a mark, so that setting it costs nothing.
        let mark = event::create(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING).when("making a mark")?;
        Ok(mark as u64)
    }

    fn drop_mark(&self, mark: u64) {
        // SAFETY: its only owner gives it up; the driver waits where it is still to be reached. A failure leaves nothing to
        // be done.
        let _ = self.bind().map(|()| unsafe { event::destroy(mark as sys::CUevent) });
    }

    fn set(&self, mark: u64, lane: Lane) -> Result<()> {
        self.bind()?;
        // SAFETY: the mark and the stream are alive and belong to one context.
        unsafe { event::record(mark as sys::CUevent, self.lane(lane)) }.when("setting a mark")
    }

    fn hold(&self, lane: Lane, mark: u64) -> Result<()> {
        self.bind()?;
        let flags = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
        // SAFETY: as in `set`.
        unsafe { stream::wait_event(self.lane(lane), mark as sys::CUevent, flags) }.when("holding back a stream")
    }

    fn await_mark(&self, mark: u64) -> Result<()> {
        self.bind()?;
        // SAFETY: the mark is alive.
        unsafe { event::synchronize(mark as sys::CUevent) }.when("waiting for the device")
    }
}

/// A stream beside the one that all work goes on.
struct Stream(sys::CUstream);

impl Stream {
    fn new() -> Result<Self> {
        stream::create(stream::StreamKind::NonBlocking).map(Stream).when("making a stream")
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // SAFETY: nobody else knows the stream. A failure leaves nothing to be done.
        let _ = unsafe { stream::destroy(self.0) };
    }
}

/// A point in the stream of work, with its time.
struct Event(sys::CUevent);

impl Event {
    fn new() -> Result<Self> {
        event::create(sys::CUevent_flags::CU_EVENT_DEFAULT).map(Event).when("timing")
    }

    fn record(&self, stream: sys::CUstream) -> Result<()> {
        // SAFETY: the event and the stream are alive and belong to one context.
        unsafe { event::record(self.0, stream) }.when("timing")
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: nobody else knows the event. A failure leaves nothing to be done.
        let _ = unsafe { event::destroy(self.0) };
    }
}

impl Drop for Hardware {
    fn drop(&mut self) {
        if self.bind().is_err() {
            return;
        }
        // SAFETY: the stream is ours and nothing is launched any more; the modules and the context go with the primary
        // context, which was retained once. A failure here leaves nothing to be done.
        unsafe {
            for stream in [self.stream, self.copies].into_iter().filter(|stream| !stream.is_null()) {
                let _ = stream::destroy(stream);
            }
            for &module in lock(&self.loaded).modules.values() {
                let _ = result::module::unload(module as sys::CUmodule);
            }
            let _ = result::primary_ctx::release(self.device);
        }
    }
}
