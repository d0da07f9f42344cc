//! What only Hopper GPUs have: tensor maps, and launches in clusters. Drivers for CUDA 11 lack the functions, so they are
//! looked for here, and not where the device is opened.

use std::ffi::{c_uint, c_void};

use cudarc::driver::sys;

use super::super::launch::{Blocks, Kernel};
use super::super::tensor_map::{MapWords, Pattern, ROW, Walk};
use super::{Explained, Hardware};
use crate::error::{Error, Result};

/// Finds a function, which the binding would panic without.
fn need(name: &str) -> Result<()> {
    // SAFETY: the library is there, for a device is open; the function is looked up but not called.
    if unsafe { sys::culib().get::<*const c_void>(name.as_bytes()) }.is_ok() {
        return Ok(());
    }
    Err(Error::Device {
        what: format!("the CUDA driver library (libcuda) has no function {name}: the driver is too old"),
        help: "install a driver for CUDA 12 or later, set GRAD_HOPPER=off, or use --device cpu".into(),
    })
}

impl Hardware {
    /// See [`super::super::driver::Driver::tensor_map`].
    pub(super) fn encode(&self, address: u64, walk: &Walk) -> Result<MapWords> {
        use sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 as BF16;
        use sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE as ZEROS;
        use sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE as PLAIN;
        use sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B as PROMOTION;
        use sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B as SWIZZLE;
        self.bind()?;
        let mut map = MapWords([0; 16]);
        let to = std::ptr::from_mut(&mut map).cast::<sys::CUtensorMap>();
        let from = address as *mut c_void;
        let sizes: Vec<u64> = walk.sizes.iter().map(|&s| s as u64).collect();
        let bytes: Vec<u64> = walk.strides.iter().map(|&s| 2 * s as u64).collect();
        let (rank, steps) = (sizes.len() as u32, vec![1; sizes.len()]);
        let (sizes, bytes, steps) = (sizes.as_ptr(), bytes.as_ptr(), steps.as_ptr());
        let made = match &walk.pattern {
            Pattern::Boxes { lines } => {
                need("cuTensorMapEncodeTiled")?;
                let extent: Vec<u32> =
                    (0..walk.sizes.len()).map(|i| [ROW as u32, *lines as u32].get(i).copied().unwrap_or(1)).collect();
                let extent = extent.as_ptr();
                // SAFETY: `to` is 128 bytes aligned to 128; all lists are as long as the rank says, or one shorter for the
                // strides, and outlive the call; the driver reads nothing at `from`.
                unsafe {
                    sys::cuTensorMapEncodeTiled(
                        to, BF16, rank, from, sizes, bytes, extent, steps, PLAIN, SWIZZLE, PROMOTION, ZEROS,
                    )
                }
            }
            Pattern::Patches { lower, upper, pixels } => {
                need("cuTensorMapEncodeIm2col")?;
                let (lower, upper, row, pixels) = (lower.as_ptr(), upper.as_ptr(), ROW as u32, *pixels as u32);
                // SAFETY: as above; the corners have two numbers each, as a rank of 4 needs.
                unsafe {
                    sys::cuTensorMapEncodeIm2col(
                        to, BF16, rank, from, sizes, bytes, lower, upper, row, pixels, steps, PLAIN, SWIZZLE,
                        PROMOTION, ZEROS,
                    )
                }
            }
        };
        made.result().when("making a tensor map")?;
        Ok(map)
    }
}

/// Launches a kernel whose first parameters are tensor maps, in clusters of blocks.
pub(super) fn launch_in_clusters(
    stream: sys::CUstream,
    function: sys::CUfunction,
    kernel: &'static Kernel,
    blocks: Blocks,
    maps: &[MapWords],
    arguments: &[u64],
) -> Result<()> {
    need("cuLaunchKernelEx")?;
    let mut words = arguments.to_vec();
    let maps = maps.iter().map(|m| std::ptr::from_ref(m).cast_mut().cast());
    let mut pointers: Vec<*mut c_void> = maps.chain(words.iter_mut().map(|w| std::ptr::from_mut(w).cast())).collect();
    let [x, y, z] = blocks.blocks.map(|b| c_uint::try_from(b).unwrap_or(c_uint::MAX));
    let mut cluster = sys::CUlaunchAttribute {
        id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION,
        pad: [0; 4],
        value: sys::CUlaunchAttributeValue {
            clusterDim: sys::CUlaunchAttributeValue_union__bindgen_ty_1 { x: blocks.cluster as c_uint, y: 1, z: 1 },
        },
    };
    let config = sys::CUlaunchConfig {
        gridDimX: x,
        gridDimY: y,
        gridDimZ: z,
        blockDimX: kernel.block as c_uint,
        blockDimY: 1,
        blockDimZ: 1,
        sharedMemBytes: blocks.shared as c_uint,
        hStream: stream,
        attrs: &raw mut cluster,
        numAttrs: 1,
    };
    // SAFETY: as for a plain launch; the maps come first in the kernel's signature, are 128 bytes each, and are copied by
    // the driver before it returns, and so are the configuration and its one attribute.
    let launched =
        unsafe { sys::cuLaunchKernelEx(&raw const config, function, pointers.as_mut_ptr(), std::ptr::null_mut()) };
    launched.result().when(&format!("launching {}", kernel.name))
}
