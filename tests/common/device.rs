//! The devices that tests run on: the emulated one always, a real one where there is one.

use grad::device::cuda::{Gpu, Precision};

/// The emulated device.
pub fn emulated(precision: Precision) -> Option<Gpu> {
    Some(Gpu::emulated(precision).unwrap())
}

/// The first CUDA device. `GRAD_REQUIRE_CUDA=1` makes its absence a failure; otherwise it is said.
pub fn hardware(precision: Precision) -> Option<Gpu> {
    match Gpu::open(0, precision) {
        Ok(gpu) => Some(gpu),
        Err(e) if std::env::var_os("GRAD_REQUIRE_CUDA").is_some() => panic!("a CUDA device is required: {e}"),
        Err(e) => {
            println!("skipped: no CUDA device: {e}");
            None
        }
    }
}
