//! The judges. Each runs every case of an op; tests, benchmarks and `doctor` call the same ones.
//!
//! * **refusals**: `infer` accepts every case and refuses every bad input with a message that names the fault;
//! * **gradcheck**: analytic gradients of the f64 definition against central differences, every element;
//! * **truth**: the fast path against the f64 definition, forward and backward, outputs poisoned with NaN. It may be
//!   wrong by [`SLACK`] times what the definition in f32 is wrong, plus a few roundings of the largest value, times
//!   [`ConvChoice::coarseness`] where another algorithm is forced on small convolutions;
//! * **repeat**: one thread and several give the same bits;
//! * **fixture**: the definition in f64 and the fast path against what PyTorch computed;
//! * **coarser than f32** (`check/rounded.rs`): truth and fixture with products in every precision of the CPU;
//! * **on a device** (`check/device.rs`): truth, fixture and repeat for the kernels of a GPU, real or emulated.

mod device;
mod device_bench;
mod rounded;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

pub use device_bench::{DeviceTime, Effort};
use safetensors::SafeTensors;

use crate::device::cpu::{self, ConvChoice, Products};
use crate::device::cuda::Gpu;
use crate::error::Result;
use crate::op::{Arg, Case, Op};
use crate::rng::Rng;
use crate::shape::Shape;

/// The folder that holds `fixtures/`: the source tree, or what `GRAD_ROOT` names, for executables that run elsewhere.
pub fn root() -> PathBuf {
    std::env::var_os("GRAD_ROOT").map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from)
}

/// How many times worse than the plain f32 definition a fast path may be.
pub const SLACK: f64 = 4.0;

/// Every kind of judge, over all cases of one op.
pub struct Entry {
    /// Name of the op.
    pub name: &'static str,
    /// Shapes: see the head of the file.
    pub refusals: fn(),
    /// Largest error found.
    pub gradcheck: fn() -> f64,
    /// Largest error found, as a fraction of what is allowed.
    pub truth: fn() -> f64,
    /// Panics unless the bits agree.
    pub repeat: fn(Products),
    /// Number of cases in the fixture file, all passed.
    pub fixture: fn(&Path) -> usize,
    /// [`Self::truth`] with products so, for their precision.
    pub products_truth: fn(Products) -> f64,
    /// [`Self::fixture`] with products so.
    pub products_fixture: fn(Products, &Path) -> usize,
    /// [`Self::truth`] on a device, for the precision it was opened with.
    pub device_truth: fn(&Gpu) -> f64,
    /// [`Self::repeat`] on a device.
    pub device_repeat: fn(&Gpu),
    /// [`Self::fixture`] on a device.
    pub device_fixture: fn(&Gpu, &Path) -> usize,
    /// Times of the benchmark's cases on a device.
    pub device_bench: fn(&Gpu, Effort) -> Result<Vec<DeviceTime>>,
    /// For the benchmark: a name, floating-point operations, bytes, and closures that run forward and backward once.
    pub bench: fn() -> Vec<Bench>,
}

/// One case of the benchmark, ready to run.
pub struct Bench {
    /// Attributes and shapes.
    pub name: String,
    /// Floating-point operations of a forward pass; 0 where memory is what counts.
    pub flops: u64,
    /// Bytes read and written by a forward pass.
    pub bytes: u64,
    /// Runs forward once.
    pub forward: Box<dyn FnMut()>,
    /// Runs backward once, for every differentiable input.
    pub backward: Box<dyn FnMut()>,
}

impl Entry {
    /// The judges of op `O`.
    pub const fn of<O: Op>() -> Self {
        Entry {
            name: O::NAME,
            refusals: refusals::<O>,
            gradcheck: gradcheck::<O>,
            truth: truth::<O>,
            repeat: repeat::<O>,
            fixture: fixture::<O>,
            products_truth: rounded::truth::<O>,
            products_fixture: rounded::fixture::<O>,
            device_truth: device::truth::<O>,
            device_repeat: device::repeat::<O>,
            device_fixture: device::fixture::<O>,
            device_bench: device_bench::bench::<O>,
            bench: bench::<O>,
        }
    }
}

/// Inputs of a case, exactly representable in f32, the same on every machine.
fn draw<O>(case: &Case<O>, seed: u64) -> Vec<Vec<f64>> {
    let mut rng = Rng::new(seed, 0);
    let value = |rng: &mut Rng, low: f64, high: f64| f64::from((low + (high - low) * f64::from(rng.uniform())) as f32);
    case.inputs.iter().map(|(s, low, high)| (0..s.numel()).map(|_| value(&mut rng, *low, *high)).collect()).collect()
}

/// An upstream gradient: random, never all ones.
fn upstream(len: usize) -> Vec<f64> {
    let mut rng = Rng::new(7, 1);
    (0..len).map(|_| f64::from(rng.uniform_in(-1.0, 1.0))).collect()
}

fn args<'a, T>(shapes: &[Shape], x: &'a [Vec<T>]) -> Vec<Arg<'a, T>> {
    shapes.iter().zip(x).map(|(&shape, data)| Arg { shape, data }).collect()
}

fn to_f32(x: &[Vec<f64>]) -> Vec<Vec<f32>> {
    x.iter().map(|x| x.iter().map(|&v| v as f32).collect()).collect()
}

fn to_f64(x: &[Vec<f32>]) -> Vec<Vec<f64>> {
    x.iter().map(|x| x.iter().map(|&v| v.into()).collect()).collect()
}

type Outputs<T> = (Vec<Vec<T>>, Vec<Option<Vec<T>>>);

/// Forward and backward of a case by `forward` and `backward`, with every output full of `poison` beforehand and
/// everything the op says it does not read withheld.
fn run<O: Op, T: Copy>(
    op: &O,
    shapes: &[Shape],
    x: &[Vec<T>],
    dy: &[T],
    poison: T,
    forward: impl Fn(&[Arg<T>], &mut [&mut [T]]),
    backward: impl Fn(&[Arg<T>], &[&[T]], &[T], &mut [Option<&mut [T]>]),
) -> Outputs<T> {
    let outputs = op.infer(shapes).expect("a case must be accepted");
    let mut y: Vec<Vec<T>> = outputs.iter().map(|s| vec![poison; s.numel()]).collect();
    let all = args(shapes, x);
    forward(&all, &mut y.iter_mut().map(|y| &mut y[..]).collect::<Vec<_>>());
    let mut dx: Vec<Option<Vec<T>>> =
        shapes.iter().enumerate().map(|(i, s)| op.differentiable(i).then(|| vec![poison; s.numel()])).collect();
    let kept: Vec<Arg<T>> =
        all.iter().enumerate().map(|(i, a)| Arg { data: if op.reads_input(i) { a.data } else { &[] }, ..*a }).collect();
    let kept_y: Vec<&[T]> = y.iter().enumerate().map(|(i, y)| if op.reads_output(i) { &y[..] } else { &[] }).collect();
    backward(&kept, &kept_y, dy, &mut dx.iter_mut().map(Option::as_deref_mut).collect::<Vec<_>>());
    (y, dx)
}

fn run_definition<O: Op, T: crate::real::Real>(op: &O, shapes: &[Shape], x: &[Vec<T>], dy: &[T]) -> Outputs<T> {
    let backward =
        |x: &[Arg<T>], y: &[&[T]], dy: &[T], dx: &mut [Option<&mut [T]>]| op.reference_backward(x, y, dy, dx);
    run(op, shapes, x, dy, T::nan(), |x, y| op.reference_forward(x, y), backward)
}

fn run_fast<O: Op>(op: &O, shapes: &[Shape], x: &[Vec<f32>], dy: &[f32]) -> Outputs<f32> {
    run(op, shapes, x, dy, f32::NAN, |x, y| op.cpu_forward(x, y), |x, y, dy, dx| op.cpu_backward(x, y, dy, dx))
}

/// Largest difference between `a` and the truth `t`; NaN if either holds one.
fn difference(a: &[f64], t: &[f64]) -> f64 {
    assert_eq!(a.len(), t.len());
    a.iter().zip(t).map(|(a, t)| (a - t).abs()).fold(0.0, |worst, d| if d <= worst { worst } else { d })
}

fn largest(t: &[f64]) -> f64 {
    t.iter().fold(0.0, |m, v| v.abs().max(m))
}

/// Every output and gradient in one list, with names for messages.
fn named<T: Copy + Into<f64>>((y, dx): &Outputs<T>) -> Vec<(String, Vec<f64>)> {
    let wide = |v: &Vec<T>| v.iter().map(|&v| v.into()).collect();
    let y = y.iter().enumerate().map(|(i, y)| (format!("y{i}"), wide(y)));
    let dx = dx.iter().enumerate().filter_map(|(i, d)| d.as_ref().map(|d| (format!("dx{i}"), wide(d))));
    y.chain(dx).collect()
}

fn refusals<O: Op>() {
    for case in O::cases().iter().chain(&O::bench_cases()) {
        case.op.infer(&case.shapes()).unwrap_or_else(|e| panic!("{case:?} is refused: {e}"));
    }
    for (op, shapes, word) in O::refused() {
        match op.infer(&shapes) {
            Ok(y) => panic!("{op:?} accepts {shapes:?} and promises {y:?}"),
            Err(e) => {
                let message = e.to_string();
                assert!(message.contains(word) && message.contains(O::NAME), "{message:?} should name {word:?}");
            }
        }
    }
}

fn gradcheck<O: Op>() -> f64 {
    const STEP: f64 = 1e-6;
    const TOLERANCE: f64 = 1e-6;
    let mut worst = 0.0f64;
    for case in O::cases() {
        let (op, shapes, mut x) = (&case.op, case.shapes(), draw(&case, 42));
        let dy = upstream(op.infer(&shapes).expect("a case must be accepted")[0].numel());
        let (_, dx) = run_definition(op, &shapes, &x, &dy);
        let loss = |x: &[Vec<f64>]| {
            let mut y: Vec<Vec<f64>> = op.infer(&shapes).unwrap().iter().map(|s| vec![f64::NAN; s.numel()]).collect();
            op.reference_forward(&args(&shapes, x), &mut y.iter_mut().map(|y| &mut y[..]).collect::<Vec<_>>());
            y[0].iter().zip(&dy).map(|(y, d)| y * d).sum::<f64>()
        };
        for (i, dx) in dx.iter().enumerate() {
            let Some(dx) = dx else { continue };
            // Of a very long input only some elements are tried, spread evenly.
            for j in (0..dx.len()).step_by(dx.len().div_ceil(2000)) {
                let at = x[i][j];
                x[i][j] = at + STEP;
                let above = loss(&x);
                x[i][j] = at - STEP;
                let below = loss(&x);
                x[i][j] = at;
                let slope = (above - below) / (2.0 * STEP);
                let err = (slope - dx[j]).abs() / (1.0 + slope.abs());
                assert!(
                    err <= TOLERANCE,
                    "{op:?} {shapes:?}: dx{i}[{j}] is {}, central differences say {slope}",
                    dx[j]
                );
                worst = worst.max(err);
            }
        }
    }
    worst
}

/// Of each output of an op: the worst relative error of its plain and of its fast path, over several draws.
#[derive(Default)]
struct Errors(Vec<(String, f64, f64)>);

impl Errors {
    /// One more draw of `what`.
    fn add(
        &mut self,
        truth: Vec<(String, Vec<f64>)>,
        plain: &[(String, Vec<f64>)],
        fast: &[(String, Vec<f64>)],
        what: &str,
    ) {
        self.0.resize(truth.len(), (String::new(), 0.0, 0.0));
        for (i, (name, truth)) in truth.into_iter().enumerate() {
            let relative = |a: &[f64]| difference(a, &truth) / largest(&truth).max(f64::MIN_POSITIVE);
            let (plain, fast) = (relative(&plain[i].1), relative(&fast[i].1));
            assert!(fast.is_finite(), "{what}: {name} holds a value that is not a number");
            self.0[i] = (name, self.0[i].1.max(plain), self.0[i].2.max(fast));
        }
    }
}

fn truth<O: Op>() -> f64 {
    O::cases().iter().map(truth_of).fold(0.0, f64::max)
}

/// [`Entry::truth`] of one case.
pub(crate) fn truth_of<O: Op>(case: &Case<O>) -> f64 {
    let (mut worst, coarseness) = (0.0f64, ConvChoice::of_process().coarseness());
    let (op, shapes) = (&case.op, case.shapes());
    // Per output: the worst relative error of the plain and of the fast path over all draws. One draw of a small
    // case may round luckily; the worst of several may not.
    let mut errors = Errors::default();
    for seed in 0..8 {
        let x = draw(case, seed);
        let dy = upstream(op.infer(&shapes).expect("a case must be accepted")[0].numel());
        let (narrow, narrow_dy) = (to_f32(&x), to_f32(std::slice::from_ref(&dy)).remove(0));
        let truth = named(&run_definition(op, &shapes, &x, &dy));
        let plain = named(&run_definition(op, &shapes, &narrow, &narrow_dy));
        let fast = named(&run_fast(op, &shapes, &narrow, &narrow_dy));
        errors.add(truth, &plain, &fast, &format!("{op:?} {shapes:?}"));
    }
    for (name, plain, fast) in errors.0 {
        let allowed = SLACK * coarseness * (plain + f64::from(f32::EPSILON));
        assert!(fast <= allowed, "{op:?} {shapes:?}: {name} is off by {fast:.2e}, allowed {allowed:.2e}");
        worst = worst.max(fast / allowed);
    }
    worst
}

/// Pools of one thread, two and three that compute products so.
fn pools(products: Products) -> [rayon::ThreadPool; 3] {
    [1, 2, 3].map(|n| cpu::products::threads(n, products).expect("threads can be started"))
}

fn repeat<O: Op>(products: Products) {
    O::cases().iter().for_each(|case| repeat_of(case, products));
}

/// [`Entry::repeat`] of one case.
pub(crate) fn repeat_of<O: Op>(case: &Case<O>, products: Products) {
    let pools = pools(products);
    let (op, shapes, x) = (&case.op, case.shapes(), to_f32(&draw(case, 3)));
    let dy = to_f32(&[upstream(op.infer(&shapes).expect("a case must be accepted")[0].numel())]).remove(0);
    let bits = |pool: &rayon::ThreadPool| -> Vec<(String, Vec<u64>)> {
        let outputs = pool.install(|| named(&run_fast(op, &shapes, &x, &dy)));
        outputs.into_iter().map(|(n, v)| (n, v.iter().map(|v| v.to_bits()).collect())).collect()
    };
    let first = bits(&pools[0]);
    for pool in &pools {
        assert_eq!(first, bits(pool), "{op:?} {shapes:?}: bits depend on the number of threads");
    }
}

/// Tensors of one fixture file by name.
struct Fixture {
    bytes: Vec<u8>,
}

impl Fixture {
    fn get(&self, name: &str) -> Option<(Shape, Vec<f32>)> {
        let file = SafeTensors::deserialize(&self.bytes).expect("a fixture is a safetensors file");
        let t = file.tensor(name).ok()?;
        let values = t.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        Some((Shape::new(t.shape()), values))
    }
}

/// One case of a fixture file: what goes in, and what PyTorch says comes out.
struct Expected<O> {
    case: String,
    op: O,
    shapes: Vec<Shape>,
    x: Vec<Vec<f32>>,
    dy: Vec<f32>,
    /// `y0`, `dx1`, …
    values: BTreeMap<String, Vec<f64>>,
}

/// The cases of an op's fixture file.
fn expected<O: Op>(folder: &Path) -> Vec<Expected<O>> {
    let path = folder.join(format!("{}.safetensors", O::NAME));
    let bytes = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let (_, header) = SafeTensors::read_metadata(&bytes).expect("a fixture is a safetensors file");
    let cases = header.metadata().as_ref().and_then(|m| m.get("cases")).expect("a fixture lists its cases");
    let cases: BTreeMap<String, serde_json::Value> = serde_json::from_str(cases).expect("cases are JSON");
    assert!(!cases.is_empty(), "{} holds no case", path.display());
    let file = Fixture { bytes };
    let read = |(case, attributes): (String, serde_json::Value)| {
        let op: O = serde_json::from_value(attributes.clone()).unwrap_or_else(|e| panic!("{case}: {attributes}: {e}"));
        let inputs: Vec<(Shape, Vec<f32>)> = (0..).map_while(|i| file.get(&format!("{case}.x{i}"))).collect();
        let (shapes, x): (Vec<Shape>, Vec<Vec<f32>>) = inputs.into_iter().unzip();
        let dy = file.get(&format!("{case}.dy")).expect("a fixture has an upstream gradient").1;
        let outputs = op.infer(&shapes).expect("a case must be accepted").len();
        let names = (0..outputs).map(|i| format!("y{i}")).chain((0..shapes.len()).map(|i| format!("dx{i}")));
        let found = names.filter_map(|name| {
            let key = if name == "y0" { "y" } else { &name };
            let (_, values) = file.get(&format!("{case}.{key}"))?;
            Some((name, values.into_iter().map(f64::from).collect()))
        });
        let values: BTreeMap<_, _> = found.collect();
        let needed = (0..shapes.len()).filter(|&i| op.differentiable(i)).map(|i| format!("dx{i}"));
        for name in std::iter::once("y0".to_string()).chain(needed) {
            assert!(values.contains_key(&name), "{}: {case}: the fixture lacks {name}", O::NAME);
        }
        Expected { case, op, shapes, x, dy, values }
    };
    cases.into_iter().map(read).collect()
}

/// The fixture was computed in f64 and rounded to f32 once.
fn fixture_rounding(expected: &[f64]) -> f64 {
    f64::from(f32::EPSILON) * largest(expected) + 1e-12
}

fn fixture<O: Op>(folder: &Path) -> usize {
    let cases = expected::<O>(folder);
    for Expected { case, op, shapes, x, dy, values } in &cases {
        let wide_dy = to_f64(std::slice::from_ref(dy)).remove(0);
        let exact = named(&run_definition(op, shapes, &to_f64(x), &wide_dy));
        let plain = named(&run_definition(op, shapes, x, dy));
        let fast = named(&run_fast(op, shapes, x, dy));
        for (((name, exact), (_, plain)), (_, fast)) in exact.iter().zip(&plain).zip(&fast) {
            let Some(expected) = values.get(name) else { continue };
            let (rounding, key) = (fixture_rounding(expected), format!("{}: {case}.{name}", O::NAME));
            let err = difference(exact, expected);
            assert!(err <= rounding, "{key}: the definition is off by {err:.2e}, allowed {rounding:.2e}");
            let allowed = SLACK * ConvChoice::of_process().coarseness() * (difference(plain, exact) + rounding);
            let err = difference(fast, expected);
            assert!(err <= allowed, "{key}: the fast path is off by {err:.2e}, allowed {allowed:.2e}");
        }
    }
    cases.len()
}

fn bench<O: Op>() -> Vec<Bench> {
    O::bench_cases()
        .into_iter()
        .map(|case| {
            let (op, shapes, x) = (case.op.clone(), case.shapes(), to_f32(&draw(&case, 1)));
            let outputs = op.infer(&shapes).expect("a case must be accepted");
            let mut y: Vec<Vec<f32>> = outputs.iter().map(|s| vec![0.0; s.numel()]).collect();
            op.cpu_forward(&args(&shapes, &x), &mut y.iter_mut().map(|y| &mut y[..]).collect::<Vec<_>>());
            let dy = to_f32(&[upstream(outputs[0].numel())]).remove(0);
            let mut dx: Vec<Option<Vec<f32>>> =
                shapes.iter().enumerate().map(|(i, s)| op.differentiable(i).then(|| vec![0.0; s.numel()])).collect();
            let values: usize = shapes.iter().chain(&outputs).map(Shape::numel).sum();
            let (forward_op, forward_shapes, forward_x, mut forward_y) =
                (op.clone(), shapes.clone(), x.clone(), y.clone());
            Bench {
                name: format!("{shapes:?} {op:?}"),
                flops: op.flops(&shapes),
                bytes: 4 * values as u64,
                forward: Box::new(move || {
                    let mut y: Vec<&mut [f32]> = forward_y.iter_mut().map(|y| &mut y[..]).collect();
                    forward_op.cpu_forward(&args(&forward_shapes, &forward_x), &mut y);
                }),
                backward: Box::new(move || {
                    let y: Vec<&[f32]> = y.iter().map(|y| &y[..]).collect();
                    let mut dx: Vec<Option<&mut [f32]>> = dx.iter_mut().map(Option::as_deref_mut).collect();
                    op.cpu_backward(&args(&shapes, &x), &y, &dy, &mut dx);
                }),
            }
        })
        .collect()
}
