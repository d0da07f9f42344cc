//! The CPU: vector kernels chosen at run time, spread over rayon's threads in a fixed order.
//!
//! Everything here works on slices; tensors, shapes and gradients belong to the layers above. Activations are
//! channels last, `[n, h, w, c]`, contiguous.
//!
//! | file | holds |
//! |---|---|
//! | [`mod@simd`] | which instructions this machine has, and the macro that compiles a loop for each of them |
//! | [`mod@math`] | `exp`, `tanh`, `sigmoid` that the compiler can vectorise |
//! | [`mod@rows`] | row-wise loops over threads, sums over columns |
//! | [`mod@products`] | in which precision products are computed, and by which instructions |
//! | [`mod@gemm`] | matrix product: blocking and threads (`pack`: gathering of operands, `panel`: how they are stored, `bf16`: rounded, `fetch`: before they are needed, `microkernel`: the register tile, `amx`: that of AMX) |
//! | [`mod@conv`] | dense convolution as matrix products over patches that are never written to memory |
//! | [`mod@winograd`] | 3x3 convolution of wide layers with a quarter of the multiplications |
//! | [`mod@depthwise`] | convolution of each channel by itself |
//!
//! Two promises hold for every function:
//!
//! * **The bits do not depend on the number of threads.** Work is cut by shape alone and partial sums are added in a
//!   fixed order. Another SIMD level may round differently.
//! * **Outputs are overwritten**, never read first: they may hold NaN on entry.
//!
//! Three variables force what is otherwise chosen, so that all of it can be tested on one machine; a value that this
//! machine cannot honour is an error of the program, and `grad doctor` says what is taken.
//!
//! | variable | values | forces |
//! |---|---|---|
//! | `GRAD_SIMD` | `avx512`, `avx2`, `portable` | the vector level of every kernel ([`mod@simd`]) |
//! | `GRAD_PRODUCTS` | `fma`, `avx512bf16`, `amx`; in tests `amx-model` | what multiplies coarser factors than f32 ([`mod@products`]) |
//! | `GRAD_CONV` | `direct`, `winograd` | how dense convolutions are computed ([`ConvChoice`]) |
//!
//! CI runs the numerical tests under each. The unit tests of the kernels run every variant that the machine has, whatever
//! is forced, on tables of shapes and on drawn ones; `PROPTEST_CASES` asks for more of those, `PROPTEST_RNG_SEED` for others.
//!
//! Slices of a length that does not fit the given sizes are a bug of the caller and panic.

mod amx;
mod bf16;
pub mod conv;
pub mod depthwise;
mod fetch;
pub mod gemm;
pub mod math;
mod microkernel;
mod pack;
mod panel;
pub mod products;
pub mod rows;
pub mod simd;
#[cfg(test)]
pub(crate) mod testing;
pub mod winograd;

pub use conv::{ConvGeometry, conv2d_backward_input, conv2d_backward_weight, conv2d_forward};
pub use depthwise::{DepthwiseGeometry, depthwise_backward_input, depthwise_backward_weight, depthwise_forward};
pub(crate) use fetch::fetch_share;
pub use gemm::{Matrix, gemm, gemm_f32, no_epilogue, row_block};
pub use math::{exp_f32, sigmoid_f32, tanh_f32};
pub(crate) use pack::{MAX_DEPTH, interleave};
pub use pack::{PackA, PackB};
pub use products::{Products, products};
pub use rows::{CHUNK, add_assign, blocked_sums, column_sums, par_rows};
pub use simd::{Simd, simd};
pub(crate) use simd::{mul_add, simd_fn};
pub use winograd::ConvChoice;
