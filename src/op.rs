//! The contract of an operation, on one page.
//!
//! One op is one file in `ops/`: formula, shape rule, definition over [`Real`], fast CPU path, CUDA launches, gradients,
//! test cases and the inputs it refuses; its kernels are `kernels/NAME.cu`. No method that computes has a default body, so a forgotten half is a compile error.

use std::fmt::Debug;

use arrayvec::ArrayVec;
use serde::de::DeserializeOwned;

use crate::buffer::Buffer;
use crate::device::cuda::{ElementKind, Gpu, GpuArg, GpuOut, Values};
use crate::error::{Error, Result};
use crate::ops::AnyOp;
use crate::real::Real;
use crate::shape::Shape;
use crate::storage::Storage;
use crate::tensor::Tensor;

/// No op has more inputs, or more outputs.
pub const MAX_ARGS: usize = 12;

/// Something for each input or output of an op. It lies where it is held: running an op asks for no memory but its outputs.
pub type List<T> = ArrayVec<T, MAX_ARGS>;

/// These, as a [`List`].
///
/// # Panics
/// If they are more than [`MAX_ARGS`].
pub(crate) fn list<T, const N: usize>(items: [T; N]) -> List<T> {
    items.into_iter().collect()
}

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
pub trait Op: Clone + Debug + DeserializeOwned + Into<AnyOp> + Send + Sync + 'static {
    /// File stem of the op, of its kernel and of its fixture.
    const NAME: &'static str;

    /// Shapes of the outputs. Every shape error of the op is raised here and nowhere else.
    fn infer(&self, x: &[Shape]) -> Result<List<Shape>>;

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

    /// Whether input `i` is f32 on a device in every precision: parameters and running statistics are, activations are
    /// stored as the run's precision has it. The gradient is stored as its input.
    fn input_in_f32(&self, i: usize) -> bool;

    /// Whether output `i` is f32 on a device in every precision: losses, scores and statistics are.
    fn output_in_f32(&self, i: usize) -> bool;

    /// [`Self::cpu_forward`] on a device.
    ///
    /// # Errors
    /// What the device refuses.
    fn cuda_forward(&self, gpu: &Gpu, x: &[GpuArg], y: &mut [GpuOut]) -> Result<()>;

    /// [`Self::cpu_backward`] on a device.
    ///
    /// # Errors
    /// What the device refuses.
    fn cuda_backward(&self, gpu: &Gpu, x: &[GpuArg], y: &[Values], dy: Values, dx: &mut [Option<GpuOut>])
    -> Result<()>;

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

/// Runs an op forward, where its inputs lie.
pub(crate) fn forward<O: Op>(op: &O, x: &[&Tensor]) -> Result<List<Tensor>> {
    let shapes: List<Shape> = x.iter().map(|t| t.shape()).collect();
    let outputs = op.infer(&shapes)?;
    let storages: List<Storage> = match device::<O>(x.iter().copied())? {
        None => {
            let args: List<Arg<f32>> = x.iter().map(|t| Arg { shape: t.shape(), data: t.data() }).collect();
            let mut y: List<Buffer> = outputs.iter().map(|s| Buffer::scratch(s.numel())).collect();
            op.cpu_forward(&args, &mut y.iter_mut().map(|b| &mut b[..]).collect::<List<_>>());
            y.into_iter().map(Storage::Host).collect()
        }
        Some(gpu) => {
            if let Some(i) = (0..x.len()).find(|&i| x[i].is_f32() != op.input_in_f32(i)) {
                return refuse::<O, _>(format!("input {i} is stored in the wrong precision"));
            }
            let args: List<GpuArg> = x.iter().map(|t| GpuArg { shape: t.shape(), data: t.values() }).collect();
            let scratch = |(i, s): (usize, &Shape)| Storage::scratch(gpu, op.output_in_f32(i), s.numel());
            let mut y = outputs.iter().enumerate().map(scratch).collect::<Result<List<_>>>()?;
            op.cuda_forward(gpu, &args, &mut y.iter_mut().map(Storage::values_mut).collect::<List<_>>())?;
            y
        }
    };
    Ok(outputs.into_iter().zip(storages).map(|(shape, s)| Tensor::stored(shape, s)).collect())
}

/// The device that all of these lie on; `None` for host memory.
fn device<'t, O: Op>(mut x: impl Iterator<Item = &'t Tensor>) -> Result<Option<&'t Gpu>> {
    let first = x.next().and_then(Tensor::gpu);
    let same = |t: &Tensor| match (first, t.gpu()) {
        (None, None) => true,
        (Some(a), Some(b)) => a.is(b),
        _ => false,
    };
    if x.all(same) { Ok(first) } else { refuse::<O, _>("its inputs must lie on one device") }
}

/// One input of a recorded op: its shape, and its values where they were kept.
pub(crate) type Kept<'a> = (Shape, Option<&'a Tensor>);

/// An [`Op`] as the tape keeps it, its type forgotten: the fast backward pass, and the definition for a replay.
pub(crate) trait RecordedOp: Send + Sync {
    /// Gradients of the inputs that are `wanted`, where dy lies. On a device, those that have a place in `into` are
    /// written there.
    fn backward(
        &self,
        x: &[Kept],
        y: &[Option<&Tensor>],
        dy: &Storage,
        wanted: &[bool],
        into: List<Option<GpuOut>>,
    ) -> Result<List<Option<Storage>>>;
    fn define_forward(&self, x: &[Arg<f64>], y: &mut [&mut [f64]]);
    fn define_backward(&self, x: &[Arg<f64>], y: &[&[f64]], dy: &[f64], dx: &mut [Option<&mut [f64]>]);
}

impl<O: Op> RecordedOp for O {
    fn backward(
        &self,
        x: &[Kept],
        y: &[Option<&Tensor>],
        dy: &Storage,
        wanted: &[bool],
        into: List<Option<GpuOut>>,
    ) -> Result<List<Option<Storage>>> {
        let shapes = x.iter().zip(wanted);
        let Some(gpu) = dy.gpu() else {
            let args: List<Arg<f32>> =
                x.iter().map(|&(shape, t)| Arg { shape, data: t.map_or(&[], Tensor::data) }).collect();
            let y: List<&[f32]> = y.iter().map(|t| t.map_or(&[][..], Tensor::data)).collect();
            let mut dx: List<Option<Buffer>> =
                shapes.map(|((s, _), wanted)| wanted.then(|| Buffer::scratch(s.numel()))).collect();
            self.cpu_backward(&args, &y, dy.host(), &mut dx.iter_mut().map(|d| d.as_deref_mut()).collect::<List<_>>());
            return Ok(dx.into_iter().map(|d| d.map(Storage::Host)).collect());
        };
        let args: List<GpuArg> = x.iter().map(|&(shape, t)| GpuArg { shape, data: values(t) }).collect();
        let y: List<Values> = y.iter().map(|t| values(*t)).collect();
        let scratch = |(i, ((s, _), wanted)): (usize, (&Kept, &bool))| {
            let wanted = *wanted && into[i].is_none();
            wanted.then(|| Storage::scratch(gpu, self.input_in_f32(i), s.numel())).transpose()
        };
        let mut dx = shapes.enumerate().map(scratch).collect::<Result<List<_>>>()?;
        let places = dx.iter_mut().zip(into).map(|(d, place)| place.or_else(|| d.as_mut().map(Storage::values_mut)));
        self.cuda_backward(gpu, &args, &y, dy.values(0, dy.len()), &mut places.collect::<List<_>>())?;
        Ok(dx)
    }
    fn define_forward(&self, x: &[Arg<f64>], y: &mut [&mut [f64]]) {
        self.reference_forward(x, y);
    }
    fn define_backward(&self, x: &[Arg<f64>], y: &[&[f64]], dy: &[f64], dx: &mut [Option<&mut [f64]>]) {
        self.reference_backward(x, y, dy, dx);
    }
}

/// The values of a tensor on a device, none where they were not kept.
fn values(t: Option<&Tensor>) -> Values<'_> {
    t.map_or(Values::none(ElementKind::F32), Tensor::values)
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
