//! What computes: the device, in which precision, and the threads beside it.

use super::ui::{Ui, count};
use crate::config::{Config, DeviceChoice};
use crate::device::Device;
use crate::device::cpu::simd::Simd;
use crate::device::cpu::{self, ConvChoice, Products};
use crate::device::cuda::{ARCHITECTURES, Gpu, Precision};
use crate::error::{Error, Result};

/// The device that was settled on.
pub struct Machine {
    pub device: Device,
    /// The precision that it computes in.
    pub precision: Precision,
    /// How the threads beside it compute products.
    pub products: Products,
    /// Which it is, and why.
    pub description: String,
}

impl Machine {
    /// Opens the device that the configuration asks for. Without a precision there, a model is used in the one it was
    /// trained in; where there is none either, a GPU takes f32 and a CPU what [`Products::preferred`] says.
    ///
    /// # Errors
    /// [`Error::Device`] and [`Error::DeviceMemory`] for a device that was asked for by name and cannot be had;
    /// [`Error::Config`] for a wrong `GRAD_SIMD`, `GRAD_CONV` or `GRAD_PRODUCTS`.
    pub fn open(config: &Config, model: Option<Precision>) -> Result<Self> {
        let asked = config.precision.or(model);
        let (device, why) = open(config.device, asked.unwrap_or_default())?;
        Simd::requested()?;
        ConvChoice::requested()?;
        let precision = match (asked, device.gpu()) {
            (Some(asked), _) => asked,
            (None, Some(gpu)) => gpu.precision(),
            (None, None) => Products::preferred()?,
        };
        let on_cpu = if device.gpu().is_some() { Precision::F32 } else { precision };
        let (products, threads) = (Products::requested(on_cpu)?, count(threads(config), "thread"));
        let description = match (&device, config.device) {
            (Device::Cpu, _) => format!("cpu, {threads}, {} ({why})", products.describe()),
            (Device::Gpu(gpu), choice) => {
                let place = match choice {
                    DeviceChoice::Auto => DeviceChoice::Cuda(0),
                    named => named,
                };
                format!("{place}, {}, {}, {threads} ({why})", gpu.facts().name, precision.name())
            }
        };
        Ok(Machine { device, precision, products, description })
    }

    /// Does `work` on it.
    ///
    /// # Errors
    /// [`Error::Config`] when the threads cannot be started, and what `work` refuses.
    pub fn run<T: Send>(&self, ui: &Ui, config: &Config, work: impl FnOnce(&Device) -> Result<T> + Send) -> Result<T> {
        ui.note("device", &self.description);
        on_pool(config, self.products, || work(&self.device))
    }
}

/// The device, and why it is that one.
fn open(choice: DeviceChoice, precision: Precision) -> Result<(Device, String)> {
    let asked_for = |gpu: Result<Gpu>| Ok((Device::Gpu(gpu?), "as asked for".to_owned()));
    match choice {
        DeviceChoice::Cpu => Ok((Device::Cpu, "as asked for".into())),
        DeviceChoice::Cuda(ordinal) => asked_for(Gpu::open(ordinal, precision)),
        #[cfg(feature = "emulator")]
        DeviceChoice::Emulated => asked_for(Gpu::emulated(precision)),
        DeviceChoice::Auto if ARCHITECTURES.is_empty() => {
            Ok((Device::Cpu, "auto: this build holds no CUDA kernels".into()))
        }
        DeviceChoice::Auto => Ok(match Gpu::open(0, precision) {
            Ok(gpu) => (Device::Gpu(gpu), "auto: the first CUDA device".into()),
            // A variable that is set wrongly is no reason to pass over the device.
            Err(wrong @ Error::Config { .. }) => return Err(wrong),
            Err(refusal) => (Device::Cpu, format!("auto: {}", reason(&refusal))),
        }),
    }
}

/// What is wrong, without what to do about it.
pub fn reason(error: &Error) -> String {
    error.to_string().lines().next().unwrap_or_default().into()
}

/// As many as the configuration says, or one per core.
pub fn threads(config: &Config) -> usize {
    config.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from))
}

/// Does `work` on the device that the configuration asks for; `model` is the precision of the model that is used, if any.
///
/// # Errors
/// What [`Machine::open`] and [`Machine::run`] refuse.
pub fn on_device<T: Send>(
    ui: &Ui,
    config: &Config,
    model: Option<Precision>,
    work: impl FnOnce(&Device) -> Result<T> + Send,
) -> Result<T> {
    Machine::open(config, model)?.run(ui, config, work)
}

/// Does `work` that needs no device on a pool of as many threads as the configuration says.
///
/// # Errors
/// [`Error::Config`] when they cannot be started, and what `work` refuses.
pub fn on_threads<T: Send>(config: &Config, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    on_pool(config, cpu::products(), work)
}

fn on_pool<T: Send>(config: &Config, products: Products, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let threads = threads(config);
    let pool = cpu::products::threads(threads, products)
        .map_err(|e| Error::config(format!("{threads} threads cannot be started: {e}"), "use fewer --threads"))?;
    pool.install(work)
}
