//! The judges of an op's kernels, on the device they are given: real or emulated, in any precision.

use std::path::Path;

use half::bf16;

use super::rounded::Rounding;
use super::{Outputs, draw, named, to_f32, upstream};
use crate::device::cuda::{ElementKind, Gpu, GpuArg, GpuOut, Precision, Values};
use crate::op::Op;
use crate::shape::Shape;
use crate::storage::Storage;

/// How this precision rounds on a device.
fn rounding(precision: Precision) -> Rounding<impl Fn(f32, bool) -> f32, impl Fn(f32) -> f32> {
    let factor = move |v: f32| match precision {
        Precision::F32 => v,
        // The nearest number with 10 bits after the point, ties away from zero.
        Precision::Tf32 => f32::from_bits((v.to_bits() + 0x1000) & 0xffff_e000),
        Precision::Bf16 => bf16::from_f32(v).to_f32(),
    };
    let stored = move |v: f32, in_f32: bool| if precision == Precision::Bf16 && !in_f32 { factor(v) } else { v };
    Rounding { stored, factor, coarseness: precision.coarseness() }
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

/// See [`super::Entry::device_truth`].
pub(super) fn truth<O: Op>(gpu: &Gpu) -> f64 {
    rounding(gpu.precision()).truth(|op: &O, shapes, x, dy| run(gpu, op, shapes, x, dy))
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
    rounding(gpu.precision()).fixture(folder, |op: &O, shapes, x, dy| run(gpu, op, shapes, x, dy))
}
