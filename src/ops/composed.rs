//! Ops that are chains of other ops: the links by definition or by their fast paths, so that a chain is written once.

use crate::op::{Arg, Op};
use crate::real::Real;

/// Which half of its links a chain runs.
pub(super) trait Links<T> {
    fn forward<O: Op>(op: &O, x: &[Arg<T>], y: &mut [&mut [T]]);
    fn backward<O: Op>(op: &O, x: &[Arg<T>], y: &[&[T]], dy: &[T], dx: &mut [Option<&mut [T]>]);
}

/// By definition.
pub(super) struct Defined;

impl<T: Real> Links<T> for Defined {
    fn forward<O: Op>(op: &O, x: &[Arg<T>], y: &mut [&mut [T]]) {
        op.reference_forward(x, y);
    }

    fn backward<O: Op>(op: &O, x: &[Arg<T>], y: &[&[T]], dy: &[T], dx: &mut [Option<&mut [T]>]) {
        op.reference_backward(x, y, dy, dx);
    }
}

/// By the fast CPU paths.
pub(super) struct Fast;

impl Links<f32> for Fast {
    fn forward<O: Op>(op: &O, x: &[Arg<f32>], y: &mut [&mut [f32]]) {
        op.cpu_forward(x, y);
    }

    fn backward<O: Op>(op: &O, x: &[Arg<f32>], y: &[&[f32]], dy: &[f32], dx: &mut [Option<&mut [f32]>]) {
        op.cpu_backward(x, y, dy, dx);
    }
}

/// An array for what a link leaves to the next, full of NaN.
pub(super) fn between<T: Real>(len: usize) -> T::Array {
    let mut array = T::array(len);
    array.fill(T::nan());
    array
}
