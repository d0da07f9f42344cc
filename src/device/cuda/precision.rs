//! How a run stores and multiplies values on a device.
//!
//! | precision | activations | products | relative rounding of a product's factors |
//! | --- | --- | --- | --- |
//! | `f32` | f32 | three TF32 products for each | 2⁻²⁴, as f32 |
//! | `tf32` | f32 | TF32 | 2⁻¹¹ |
//! | `bf16` | bf16 | bf16 | 2⁻⁸ |
//!
//! Parameters, their gradients, statistics, losses and every sum are f32 or wider in all of them. What the CPU makes of each:
//! [`mod@crate::device::cpu::products`].

use serde::{Deserialize, Serialize};

/// See the head of this file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)] // the table above says it
pub enum Precision {
    #[default]
    F32,
    Tf32,
    Bf16,
}

impl Precision {
    /// Every precision, the most accurate first.
    pub const ALL: [Precision; 3] = [Precision::F32, Precision::Tf32, Precision::Bf16];

    /// Name on the command line and in model files.
    pub fn name(self) -> &'static str {
        ["f32", "tf32", "bf16"][self as usize]
    }

    /// How many times coarser than f32 the factors of a product are rounded.
    pub fn coarseness(self) -> f64 {
        [1.0, 8192.0, 65536.0][self as usize]
    }
}

/// The element type in which activations are stored: f32 or bf16, as the run's precision has it.
#[derive(Clone, Copy, Debug)]
pub struct Real;
