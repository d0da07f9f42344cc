//! The judges of an op's kernels, on the device they are given: real or emulated, in any precision.
//!
//! Truth is the f64 definition on the inputs as the device stores them. What the kernels may be wrong by is derived: a small
//! multiple of what the plain definition is wrong once its factors are rounded as the precision rounds them, plus a few
//! of its roundings of the largest value.

use std::path::Path;

use half::bf16;

use super::{
    Outputs, SLACK, difference, draw, expected, fixture_rounding, largest, named, run_definition, to_f32, to_f64,
    upstream,
};
use crate::device::cuda::{ElementKind, Gpu, GpuArg, GpuOut, Precision, Values};
use crate::op::Op;
use crate::shape::Shape;
use crate::storage::Storage;

/// `v` as a factor of a product in this precision.
fn rounded(v: f32, precision: Precision) -> f32 {
    match precision {
        Precision::F32 => v,
        // The nearest number with 10 bits after the point, ties away from zero.
        Precision::Tf32 => f32::from_bits((v.to_bits() + 0x1000) & 0xffff_e000),
        Precision::Bf16 => bf16::from_f32(v).to_f32(),
    }
}

/// A value as the device stores it.
fn stored(v: f32, in_f32: bool, precision: Precision) -> f32 {
    if precision == Precision::Bf16 && !in_f32 { rounded(v, precision) } else { v }
}

/// What one rounding costs, relative to the largest value.
fn epsilon(precision: Precision) -> f64 {
    f64::from(f32::EPSILON) * precision.coarseness()
}

/// Forward and backward by the kernels: outputs full of NaN beforehand, withheld what the op says it does not read.
fn run<O: Op>(gpu: &Gpu, op: &O, shapes: &[Shape], x: &[Vec<f32>], dy: &[f32]) -> Outputs<f32> {
    const FAILS: &str = "the device works";
    let outputs = op.infer(shapes).expect("a case must be accepted");
    let upload = |in_f32: bool, values: &[f32]| Storage::upload(gpu, in_f32, values).expect(FAILS);
    let poisoned = |in_f32: bool, s: &Shape| upload(in_f32, &vec![f32::NAN; s.numel()]);
    let read = |s: &Storage| s.read(0, s.len()).expect(FAILS).to_vec();
    let x: Vec<Storage> = x.iter().enumerate().map(|(i, x)| upload(op.input_in_f32(i), x)).collect();
    let mut y: Vec<Storage> = outputs.iter().enumerate().map(|(i, s)| poisoned(op.output_in_f32(i), s)).collect();
    let all: Vec<GpuArg> =
        shapes.iter().zip(&x).map(|(&shape, x)| GpuArg { shape, data: x.values(0, x.len()) }).collect();
    let mut out: Vec<GpuOut> = y.iter_mut().map(Storage::values_mut).collect();
    op.cuda_forward(gpu, &all, &mut out).unwrap_or_else(|e| panic!("{op:?} {shapes:?}: forward: {e}"));
    let none = Values::none(ElementKind::F32);
    let dy = upload(op.output_in_f32(0), dy);
    let wanted = |(i, s): (usize, &Shape)| op.differentiable(i).then(|| poisoned(op.input_in_f32(i), s));
    let mut dx: Vec<Option<Storage>> = shapes.iter().enumerate().map(wanted).collect();
    let kept: Vec<GpuArg> = all
        .iter()
        .enumerate()
        .map(|(i, a)| GpuArg { data: if op.reads_input(i) { a.data } else { none }, ..*a })
        .collect();
    let kept_y: Vec<Values> =
        y.iter().enumerate().map(|(i, y)| if op.reads_output(i) { y.values(0, y.len()) } else { none }).collect();
    let mut out: Vec<Option<GpuOut>> = dx.iter_mut().map(|d| d.as_mut().map(Storage::values_mut)).collect();
    op.cuda_backward(gpu, &kept, &kept_y, dy.values(0, dy.len()), &mut out)
        .unwrap_or_else(|e| panic!("{op:?} {shapes:?}: backward: {e}"));
    (y.iter().map(read).collect(), dx.iter().map(|d| d.as_ref().map(read)).collect())
}

/// Inputs and upstream gradient as the device stores them, and the same as factors of products.
fn prepared<O: Op>(op: &O, x: &[Vec<f32>], dy: &[f32], p: Precision) -> [(Vec<Vec<f32>>, Vec<f32>); 2] {
    let all = |values: &[f32], f: &dyn Fn(f32) -> f32| values.iter().map(|&v| f(v)).collect::<Vec<f32>>();
    let inputs: Vec<Vec<f32>> =
        x.iter().enumerate().map(|(i, x)| all(x, &|v| stored(v, op.input_in_f32(i), p))).collect();
    let dy = all(dy, &|v| stored(v, op.output_in_f32(0), p));
    let coarse = inputs.iter().map(|x| all(x, &|v| rounded(v, p))).collect();
    let coarse_dy = all(&dy, &|v| rounded(v, p));
    [(inputs, dy), (coarse, coarse_dy)]
}

/// See [`super::Entry::device_truth`].
pub(super) fn truth<O: Op>(gpu: &Gpu) -> f64 {
    let precision = gpu.precision();
    let mut worst = 0.0f64;
    for case in O::cases() {
        let (op, shapes) = (&case.op, case.shapes());
        let mut errors: Vec<(String, f64, f64)> = vec![];
        for seed in 0..4 {
            let x = to_f32(&draw(&case, seed));
            let dy = to_f32(&[upstream(op.infer(&shapes).expect("a case must be accepted")[0].numel())]).remove(0);
            let [(x, dy), (coarse, coarse_dy)] = prepared(op, &x, &dy, precision);
            let wide_dy = to_f64(std::slice::from_ref(&dy)).remove(0);
            let truth = named(&run_definition(op, &shapes, &to_f64(&x), &wide_dy));
            let plain = named(&run_definition(op, &shapes, &coarse, &coarse_dy));
            let fast = named(&run(gpu, op, &shapes, &x, &dy));
            errors.resize(truth.len(), (String::new(), 0.0, 0.0));
            for (i, (name, truth)) in truth.into_iter().enumerate() {
                let relative = |a: &[f64]| difference(a, &truth) / largest(&truth).max(f64::MIN_POSITIVE);
                let (plain, fast) = (relative(&plain[i].1), relative(&fast[i].1));
                assert!(fast.is_finite(), "{op:?} {shapes:?}: {name} holds a value that is not a number");
                errors[i] = (name, errors[i].1.max(plain), errors[i].2.max(fast));
            }
        }
        for (name, plain, fast) in errors {
            let allowed = SLACK * (plain + epsilon(precision));
            assert!(fast <= allowed, "{op:?} {shapes:?}: {name} is off by {fast:.2e}, allowed {allowed:.2e}");
            worst = worst.max(fast / allowed);
        }
    }
    worst
}

/// See [`super::Entry::device_repeat`]. The emulated device runs blocks and threads in another order each time.
pub(super) fn repeat<O: Op>(gpu: &Gpu) {
    for case in O::cases() {
        let (op, shapes, x) = (&case.op, case.shapes(), to_f32(&draw(&case, 3)));
        let dy = to_f32(&[upstream(op.infer(&shapes).expect("a case must be accepted")[0].numel())]).remove(0);
        let bits = || -> Vec<(String, Vec<u64>)> {
            let outputs = named(&run(gpu, op, &shapes, &x, &dy));
            outputs.into_iter().map(|(n, v)| (n, v.iter().map(|v| v.to_bits()).collect())).collect()
        };
        assert_eq!(bits(), bits(), "{op:?} {shapes:?}: bits depend on the order of blocks and threads");
    }
}

/// See [`super::Entry::device_fixture`].
pub(super) fn fixture<O: Op>(gpu: &Gpu, folder: &Path) -> usize {
    let (precision, cases) = (gpu.precision(), expected::<O>(folder));
    for e in &cases {
        let [(x, dy), (coarse, coarse_dy)] = prepared(&e.op, &e.x, &e.dy, precision);
        let plain = named(&run_definition(&e.op, &e.shapes, &coarse, &coarse_dy));
        let fast = named(&run(gpu, &e.op, &e.shapes, &x, &dy));
        for ((name, plain), (_, fast)) in plain.iter().zip(&fast) {
            let Some(expected) = e.values.get(name) else { continue };
            let rounding = fixture_rounding(expected) + epsilon(precision) * largest(expected);
            let (err, allowed) = (difference(fast, expected), SLACK * (difference(plain, expected) + rounding));
            let key = format!("{}: {}.{name}", O::NAME, e.case);
            assert!(err <= allowed, "{key}: the kernels are off by {err:.2e}, allowed {allowed:.2e}");
        }
    }
    cases.len()
}
