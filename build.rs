//! Compiles the CUDA kernels and writes their Rust half.
//!
//! * `kernels/NAME.cu` -> a fatbin per flavour (f32, tf32, bf16), embedded, where nvcc is found;
//! * `kernels/hopper/NAME.cu` likewise, for sm_90a alone and in bf16;
//! * every `extern "C" __global__` signature -> a typed launch function, with or without nvcc;
//! * feature `emulator`: the same files by the host's C++ compiler, behind `kernels/emulator/`.
//!
//! Nothing here asks a GPU or the network, and a machine without nvcc gets a build that runs on the CPU.

#[path = "build/cache.rs"]
mod cache;
#[path = "build/emulated.rs"]
mod emulated;
#[path = "build/launches.rs"]
mod launches;
#[path = "build/nvcc.rs"]
mod nvcc;
#[path = "build/source.rs"]
mod source;

use std::path::{Path, PathBuf};

fn main() {
    println!("cargo:rerun-if-changed=kernels");
    println!("cargo:rerun-if-changed=build");
    if let Err(fault) = build() {
        println!("cargo::error={}", fault.replace('\n', "\ncargo::error="));
    }
}

fn build() -> Result<(), String> {
    let out = PathBuf::from(std::env::var_os("OUT_DIR").ok_or("OUT_DIR is not set: run this through cargo")?);
    let emulator = std::env::var_os("CARGO_FEATURE_EMULATOR").is_some();
    let mut modules = source::modules(Path::new("kernels"))?;
    modules.extend(source::hopper(Path::new("kernels/hopper"))?);
    let images = nvcc::compile_all(&modules, &out)?;
    if emulator {
        // The kernels that the emulator is tested with never run on a device.
        modules.extend(source::modules(Path::new("kernels/emulator"))?);
        emulated::compile_all(&modules, &out)?;
    }
    let text = launches::generate(&modules, &images);
    std::fs::write(out.join("launches.rs"), text).map_err(|e| format!("launches.rs cannot be written: {e}"))
}
