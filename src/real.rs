//! The numbers an op is defined over: `f32` as it runs, `f64` as it is judged.

use std::fmt::Debug;
use std::iter::Sum;
use std::ops::{AddAssign, MulAssign};

use num_traits::Float;

/// `f32` or `f64`.
pub trait Real: Float + AddAssign + MulAssign + Sum + Default + Debug + Send + Sync + 'static {
    /// The nearest number to `x`.
    fn of(x: f64) -> Self;
    /// This number in double precision, exactly.
    fn f64(self) -> f64;
}

impl Real for f32 {
    fn of(x: f64) -> f32 {
        x as f32
    }
    fn f64(self) -> f64 {
        self.into()
    }
}

impl Real for f64 {
    fn of(x: f64) -> f64 {
        x
    }
    fn f64(self) -> f64 {
        self
    }
}
