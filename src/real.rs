//! The numbers an op is defined over: `f32` as it runs, `f64` as it is judged.

use std::fmt::Debug;
use std::iter::Sum;
use std::ops::{AddAssign, DerefMut, MulAssign};

use num_traits::Float;

use crate::buffer::{Buffer, Doubles};

/// `f32` or `f64`.
pub trait Real: Float + AddAssign + MulAssign + Sum + Default + Debug + Send + Sync + 'static {
    /// Recycled memory for many of them.
    type Array: DerefMut<Target = [Self]> + Send + Sync;
    /// The nearest number to `x`.
    fn of(x: f64) -> Self;
    /// An array of unspecified values.
    fn array(len: usize) -> Self::Array;
    /// This number in double precision, exactly.
    fn f64(self) -> f64;
}

impl Real for f32 {
    type Array = Buffer;
    fn of(x: f64) -> f32 {
        x as f32
    }
    fn array(len: usize) -> Buffer {
        Buffer::scratch(len)
    }
    fn f64(self) -> f64 {
        self.into()
    }
}

impl Real for f64 {
    type Array = Doubles;
    fn of(x: f64) -> f64 {
        x
    }
    fn array(len: usize) -> Doubles {
        Doubles::scratch(len)
    }
    fn f64(self) -> f64 {
        self
    }
}
