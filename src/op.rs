//! The contract of an operation, on one page.
//!
//! One op is one file in `ops/`: formula, shape rule, definition over [`Real`], fast CPU path, gradients, test cases and
//! the inputs it refuses. No method that computes has a default body, so a forgotten half is a compile error.

use std::fmt::Debug;

use serde::de::DeserializeOwned;

use crate::buffer::Buffer;
use crate::error::{Error, Result};
use crate::real::Real;
use crate::shape::Shape;
use crate::tensor::Tensor;

/// One input of an op: a shape and its values, contiguous, channels last.
#[derive(Clone, Copy, Debug)]
pub struct Arg<'a, T> {
    /// Sizes, outermost first.
    pub shape: Shape,
    /// The values; empty in a backward pass that said it does not read them.
    pub data: &'a [T],
}

/// A differentiable operation. Its fields are its attributes.
///
/// The first output is the result. Further outputs are statistics: backward may read them, nothing flows back into them.
pub trait Op: Clone + Debug + DeserializeOwned + Send + Sync + 'static {
    /// File stem of the op, of its kernel and of its fixture.
    const NAME: &'static str;

    /// Shapes of the outputs. Every shape error of the op is raised here and nowhere else.
    fn infer(&self, x: &[Shape]) -> Result<Vec<Shape>>;

    /// Whether a gradient flows into input `i`.
    fn differentiable(&self, i: usize) -> bool;

    /// Whether backward reads the values of input `i`; the tape drops the others.
    fn reads_input(&self, i: usize) -> bool;

    /// Whether backward reads the values of output `i`.
    fn reads_output(&self, i: usize) -> bool;

    /// The definition, in plain loops.
    fn reference_forward<T: Real>(&self, x: &[Arg<T>], y: &mut [&mut [T]]);

    /// The definition of the gradients: overwrites every `dx` that is asked for.
    fn reference_backward<T: Real>(&self, x: &[Arg<T>], y: &[&[T]], dy: &[T], dx: &mut [Option<&mut [T]>]);

    /// The fast CPU path of [`Self::reference_forward`]: overwrites all of `y`, which may hold NaN.
    fn cpu_forward(&self, x: &[Arg<f32>], y: &mut [&mut [f32]]);

    /// The fast CPU path of [`Self::reference_backward`].
    fn cpu_backward(&self, x: &[Arg<f32>], y: &[&[f32]], dy: &[f32], dx: &mut [Option<&mut [f32]>]);

    /// Floating-point operations of one forward pass, for the benchmark; 0 where memory is what counts.
    fn flops(&self, x: &[Shape]) -> u64;

    /// Small, odd cases: every judge runs them all.
    fn cases() -> Vec<Case<Self>>;

    /// Shapes as the networks use them, for the benchmark.
    fn bench_cases() -> Vec<Case<Self>>;

    /// Inputs that must be refused, with a word the message must contain.
    fn refused() -> Vec<(Self, Vec<Shape>, &'static str)>;
}

/// One point at which an op is judged.
#[derive(Clone, Debug)]
pub struct Case<O> {
    /// The op with its attributes.
    pub op: O,
    /// Shape of each input, and the range its values are drawn from.
    pub inputs: Vec<(Shape, f64, f64)>,
}

impl<O> Case<O> {
    /// A case whose inputs are all drawn from [-1, 1].
    pub fn new<S: Into<Shape> + Clone>(op: O, shapes: &[S]) -> Self {
        Case { op, inputs: shapes.iter().map(|s| (s.clone().into(), -1.0, 1.0)).collect() }
    }

    /// Draws input `i` from another range.
    pub fn range(mut self, i: usize, low: f64, high: f64) -> Self {
        (self.inputs[i].1, self.inputs[i].2) = (low, high);
        self
    }

    /// Shapes of the inputs.
    pub fn shapes(&self) -> Vec<Shape> {
        self.inputs.iter().map(|i| i.0).collect()
    }
}

/// Runs an op forward. The one place that chooses a device.
pub(crate) fn forward<O: Op>(op: &O, x: &[&Tensor]) -> Result<Vec<Tensor>> {
    let shapes: Vec<Shape> = x.iter().map(|t| t.shape()).collect();
    let outputs = op.infer(&shapes)?;
    let args: Vec<Arg<f32>> = x.iter().map(|t| Arg { shape: t.shape(), data: t.data() }).collect();
    let mut buffers: Vec<Buffer> = outputs.iter().map(|s| Buffer::scratch(s.numel())).collect();
    op.cpu_forward(&args, &mut buffers.iter_mut().map(|b| &mut b[..]).collect::<Vec<_>>());
    Ok(outputs.into_iter().zip(buffers).map(|(s, b)| Tensor::new(s, b)).collect())
}

/// An [`Op`] as the tape keeps it, its type forgotten: the fast backward pass, and the definition for a replay.
pub(crate) trait RecordedOp: Send + Sync {
    fn backward(&self, x: &[Arg<f32>], y: &[&[f32]], dy: &[f32], dx: &mut [Option<&mut [f32]>]);
    fn define_forward(&self, x: &[Arg<f64>], y: &mut [&mut [f64]]);
    fn define_backward(&self, x: &[Arg<f64>], y: &[&[f64]], dy: &[f64], dx: &mut [Option<&mut [f64]>]);
}

impl<O: Op> RecordedOp for O {
    fn backward(&self, x: &[Arg<f32>], y: &[&[f32]], dy: &[f32], dx: &mut [Option<&mut [f32]>]) {
        self.cpu_backward(x, y, dy, dx);
    }
    fn define_forward(&self, x: &[Arg<f64>], y: &mut [&mut [f64]]) {
        self.reference_forward(x, y);
    }
    fn define_backward(&self, x: &[Arg<f64>], y: &[&[f64]], dy: &[f64], dx: &mut [Option<&mut [f64]>]) {
        self.reference_backward(x, y, dy, dx);
    }
}

/// A shape error of op `O`.
pub(crate) fn refuse<O: Op, R>(what: impl Into<String>) -> Result<R> {
    Err(Error::Shape { op: O::NAME, what: what.into() })
}

/// The number of inputs, checked: `counts` are the ones allowed.
pub(crate) fn expect_inputs<O: Op>(x: &[Shape], counts: &[usize]) -> Result<()> {
    if counts.contains(&x.len()) {
        return Ok(());
    }
    refuse::<O, ()>(format!("expected {counts:?} inputs, got {}", x.len()))
}

/// Input `x`, called `name` in messages, as an activation `(n, h, w, c)`.
pub(crate) fn expect_nhwc<O: Op>(name: &str, x: Shape) -> Result<(usize, usize, usize, usize)> {
    match x.nhwc() {
        Some(s) => Ok(s),
        None => refuse::<O, _>(format!("{name} must be [N, H, W, C], got {x}")),
    }
}

/// Input `x`, called `name` in messages, must have exactly this shape.
pub(crate) fn expect_shape<O: Op>(name: &str, x: Shape, expected: impl Into<Shape>) -> Result<()> {
    let expected = expected.into();
    if x == expected {
        return Ok(());
    }
    refuse::<O, ()>(format!("{name} must be {expected}, got {x}"))
}
