//! What computes: the device, its vector instructions, the threads.

use rayon::ThreadPoolBuilder;

use super::ui::{Ui, count};
use crate::config::{Config, Device};
use crate::device::cpu::simd::Simd;
use crate::error::{Error, Result};

/// The device that was settled on, and why.
pub struct Machine {
    pub simd: Simd,
    pub threads: usize,
    pub why: &'static str,
}

impl Machine {
    /// # Errors
    /// [`Error::Device`] for a device this build does not have, [`Error::Config`] for a wrong `GRAD_SIMD`.
    pub fn choose(config: &Config) -> Result<Self> {
        let why = match config.device {
            Device::Auto => "auto: this build has no CUDA",
            Device::Cpu => "as asked for",
            Device::Cuda(_) => {
                return Err(Error::Device {
                    what: format!("device {} is not there: this build has no CUDA", config.device),
                    help: "use --device cpu, or auto".into(),
                });
            }
        };
        let cores = || std::thread::available_parallelism().map_or(1, usize::from);
        Ok(Machine { simd: Simd::requested()?, threads: config.threads.unwrap_or_else(cores), why })
    }

    fn describe(&self) -> String {
        format!("cpu, {}, {} ({})", count(self.threads, "thread"), self.simd.name(), self.why)
    }
}

/// Does `work` on a pool of as many threads as the configuration says.
///
/// # Errors
/// What [`Machine::choose`] and `work` refuse.
pub fn on_threads<T: Send>(ui: &Ui, config: &Config, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let machine = Machine::choose(config)?;
    ui.note("device", machine.describe());
    let pool = ThreadPoolBuilder::new().num_threads(machine.threads).build().map_err(|e| {
        Error::config(format!("{} threads cannot be started: {e}", machine.threads), "use fewer --threads")
    })?;
    pool.install(work)
}
