//! Blocks that a device trains in one op, at sizes that fill its large tiles: against the chain of single ops on the same
//! device. Both are compared with the chain on the CPU; the one op may be wrong by a small multiple of what the chain is.
//!
//! The judges of the ops see the tilings that suit their small cases.

#[path = "common/device.rs"]
mod device;

use grad::check::SLACK;
use grad::device::cuda::{Gpu, Precision};
use grad::op::Op;
use grad::ops::{
    BasicBlock, BatchNorm, BatchNormSqueezeExcite, Conv2d, DepthwiseConv2d, Kind, MobileBottleneck, MseLoss,
    PointwiseConv, Statistics,
};
use grad::rng::Rng;
use grad::shape::Shape;
use grad::tape::Tape;
use grad::tensor::Tensor;

const EPS: f64 = 1e-5;
const GROUPS: usize = 2;

fn batch_norm(act: Kind, residual: bool) -> BatchNorm {
    BatchNorm { eps: EPS, groups: GROUPS, statistics: Statistics::Batch, act, residual }
}

/// The chain that `mobile_bottleneck` is.
fn bottleneck_by_links(tape: &Tape, x: &[Tensor]) -> Tensor {
    let conv = PointwiseConv { act: Kind::Identity };
    let t = tape.apply(conv.clone(), &[&x[0], &x[1]]).unwrap();
    let t = tape.apply(batch_norm(Kind::HardSwish, false), &[&t, &x[2], &x[3]]).unwrap();
    let depthwise = DepthwiseConv2d { stride: 1, pad: [1; 4], act: Kind::Identity };
    let t = tape.apply(depthwise, &[&t, &x[4]]).unwrap();
    let gated = BatchNormSqueezeExcite { eps: EPS, groups: GROUPS, statistics: Statistics::Batch };
    let t = tape.apply(gated, &[&t, &x[5], &x[6], &x[7], &x[8]]).unwrap();
    let t = tape.apply(conv, &[&t, &x[9]]).unwrap();
    tape.apply(batch_norm(Kind::Identity, true), &[&t, &x[10], &x[11], &x[0]]).unwrap()
}

/// The chain that `basic_block` is.
fn basic_block_by_links(tape: &Tape, x: &[Tensor]) -> Tensor {
    let conv = Conv2d { stride: 1, pad: [1; 4], act: Kind::Identity };
    let t = tape.apply(conv.clone(), &[&x[0], &x[1]]).unwrap();
    let t = tape.apply(batch_norm(Kind::Relu, false), &[&t, &x[2], &x[3]]).unwrap();
    let t = tape.apply(conv, &[&t, &x[4]]).unwrap();
    tape.apply(batch_norm(Kind::Relu, true), &[&t, &x[5], &x[6], &x[0]]).unwrap()
}

fn in_one<O: Op>(op: O) -> impl Fn(&Tape, &[Tensor]) -> Tensor {
    move |tape, x| tape.apply(op.clone(), &x.iter().collect::<Vec<_>>()).unwrap()
}

/// y and the gradients of all inputs, where y is pulled towards a target.
fn run(gpu: Option<&Gpu>, x: &[Tensor], target: &Tensor, block: impl Fn(&Tape, &[Tensor]) -> Tensor) -> Vec<Vec<f32>> {
    let there = |t: &Tensor, in_f32| gpu.map_or_else(|| t.clone(), |gpu| t.to_gpu(gpu, in_f32).unwrap());
    let tape = Tape::recording();
    let leaves: Vec<Tensor> = x.iter().enumerate().map(|(i, t)| tape.leaf(&there(t, i > 0))).collect();
    let y = block(&tape, &leaves);
    let loss = tape.apply(MseLoss {}, &[&y, &there(target, false)]).unwrap();
    let found = tape.backward(&loss).unwrap();
    let gradients = leaves.iter().map(|leaf| found.of(leaf).unwrap().on_host().unwrap().to_vec());
    std::iter::once(y.to_host().unwrap().data().to_vec()).chain(gradients).collect()
}

/// Largest difference to the truth, as a share of the largest value; NaN if there is one.
fn error(found: &[f32], truth: &[f32]) -> f64 {
    let largest = truth.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    let differences = found.iter().zip(truth).map(|(a, b)| f64::from((a - b).abs() / largest));
    differences.fold(0.0, |worst, d| if d <= worst { worst } else { d })
}

/// Inputs of these shapes: activations from [-1, 1], weights small enough to keep them so, scales near 1.
fn draw(shapes: &[&[usize]]) -> (Vec<Tensor>, Tensor) {
    let mut rng = Rng::new(11, 3);
    let mut tensor = |shape: &[usize], middle: f32, width: f32| {
        let shape = Shape::new(shape);
        let values: Vec<f32> = (0..shape.numel()).map(|_| middle + rng.uniform_in(-width, width)).collect();
        Tensor::from_slice(shape, &values)
    };
    let target = tensor(shapes[0], 0.0, 1.0);
    let x = shapes.iter().enumerate().map(|(i, shape)| match shape.len() {
        1 => tensor(shape, 0.6, 0.3),
        _ if i > 0 => tensor(shape, 0.0, 0.3),
        _ => tensor(shape, 0.0, 1.0),
    });
    (x.collect(), target)
}

fn judge(
    shapes: &[&[usize]],
    links: impl Fn(&Tape, &[Tensor]) -> Tensor,
    one: impl Fn(&Tape, &[Tensor]) -> Tensor,
    open: impl Fn(Precision) -> Option<Gpu>,
) {
    let (x, target) = draw(shapes);
    let truth = run(None, &x, &target, &links);
    for gpu in Precision::ALL.into_iter().filter_map(open) {
        let [chain, one] = [run(Some(&gpu), &x, &target, &links), run(Some(&gpu), &x, &target, &one)];
        let rounding = f64::from(f32::EPSILON) * gpu.precision().coarseness();
        for (i, truth) in truth.iter().enumerate() {
            let what = if i == 0 { "y".into() } else { format!("the gradient of input {}", i - 1) };
            let (err, allowed) = (error(&one[i], truth), SLACK * (error(&chain[i], truth) + rounding));
            println!("{:?} {what}: {err:.1e} of {allowed:.1e}", gpu.precision());
            assert!(err <= allowed, "{:?}: {what} is off by {err:.1e}, allowed {allowed:.1e}", gpu.precision());
        }
    }
}

fn bottleneck(open: impl Fn(Precision) -> Option<Gpu>) {
    let (c, e, s) = (112, 120, 5);
    let shapes: [&[usize]; 12] =
        [&[4, 15, 18, c], &[c, e], &[e], &[e], &[3, 3, e], &[e], &[e], &[e, s], &[s, e], &[e, c], &[c], &[c]];
    judge(&shapes, bottleneck_by_links, in_one(MobileBottleneck { eps: EPS, groups: GROUPS }), open);
}

fn basic_block(open: impl Fn(Precision) -> Option<Gpu>) {
    let c = 112;
    let shapes: [&[usize]; 7] = [&[4, 10, 13, c], &[3, 3, c, c], &[c], &[c], &[3, 3, c, c], &[c], &[c]];
    judge(&shapes, basic_block_by_links, in_one(BasicBlock { eps: EPS, groups: GROUPS }), open);
}

#[test]
fn a_bottleneck_in_one_op_is_its_links_emulated() {
    bottleneck(device::emulated);
}

#[test]
fn a_bottleneck_in_one_op_is_its_links_on_hardware() {
    bottleneck(device::hardware);
}

#[test]
fn a_basic_block_in_one_op_is_its_links_emulated() {
    basic_block(device::emulated);
}

#[test]
fn a_basic_block_in_one_op_is_its_links_on_hardware() {
    basic_block(device::hardware);
}
