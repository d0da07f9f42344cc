//! Training on a device: whole steps of every head, in every precision, on the emulated device always and on a real one
//! where there is one.

mod common;
#[path = "common/device.rs"]
mod device;
#[path = "common/training.rs"]
mod training;

use grad::checkpoint;
use grad::device::Device;
use grad::device::cuda::{Gpu, Precision};
use grad::rng::Rng;
use grad::train::{Kept, Trainer};
use training::{Drawn, KINDS, Kind, bits, follow_pytorch, info, run, trainer};

/// The judges' slack; along a trajectory rounding differences grow, and so does what a nudge shows of them.
const SLACK: f64 = 8.0;

/// A small trainer on a device, in its precision.
fn on(device: &Device, kind: Kind, epochs: usize) -> Trainer {
    let mut t = trainer(kind, epochs);
    t.config.precision = device.gpu().map_or(Precision::F32, Gpu::precision);
    t.to(device).unwrap()
}

/// Moves every value by up to one rounding of the precision.
fn nudge(values: &mut [f32], precision: Precision, seed: u64) {
    let (mut rng, step) = (Rng::new(seed, 0), f32::EPSILON / 2.0 * precision.coarseness() as f32);
    values.iter_mut().for_each(|v| *v *= 1.0 + step * rng.uniform_in(-1.0, 1.0));
}

/// Three losses on the CPU with parameters and features moved by roundings: what a precision may do to them.
fn nudged(kind: Kind, features: &Drawn, precision: Precision, seed: u64) -> Vec<f64> {
    let (mut t, mut moved) = (trainer(kind, 1), Drawn(features.0.clone()));
    nudge(t.params.values_mut(), precision, seed);
    moved.0.iter_mut().zip(0..).for_each(|(b, i)| nudge(b, precision, seed + 100 * i));
    run(&mut t, &moved, 3)
}

/// Three steps on a device and on the CPU, jitter included: no further apart than the CPU is from itself when parameters
/// and features are moved by roundings of the precision.
fn trains_as_the_cpu_does(gpu: Gpu) {
    let (features, precision) = (Drawn::new(12, 5 * 4 * 12), gpu.precision());
    for kind in KINDS {
        let cpu = run(&mut on(&Device::Cpu, kind, 1), &features, 3);
        let moved: Vec<Vec<f64>> = (0..4).map(|seed| nudged(kind, &features, precision, seed)).collect();
        let found = run(&mut on(&Device::Gpu(gpu.clone()), kind, 1), &features, 3);
        assert_eq!(found.len(), 3);
        let rounding = f64::from(f32::EPSILON) * precision.coarseness();
        let apart = |moved: &Vec<f64>| cpu.iter().zip(moved).map(|(a, b)| (a - b).abs() / a).fold(0.0, f64::max);
        let sensitivity = moved.iter().map(apart).fold(0.0, f64::max);
        for (step, (a, b)) in cpu.iter().zip(&found).enumerate() {
            let (err, allowed) = ((a - b).abs() / a, SLACK * (sensitivity + rounding));
            println!("{precision:?} {kind:?} {step}: {err:.1e} of {allowed:.1e}");
            assert!(
                err <= allowed,
                "{precision:?} {kind:?}, step {step}: loss {b} for {a}: off by {err:.1e}, allowed {allowed:.1e}"
            );
        }
    }
}

/// Where batches come from, and where a run was stopped, changes no bit.
fn keeps_its_promises_about_bits(gpu: Gpu) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("checkpoint.safetensors");
    let (features, device) = (Drawn::new(12, 5 * 4 * 12), Device::Gpu(gpu));
    for kind in [KINDS[0], KINDS[3], KINDS[4]] {
        let mut streamed = on(&device, kind, 2);
        run(&mut streamed, &features, 6);
        let mut first = on(&device, kind, 2);
        assert!(matches!(first.keep_features(&features).unwrap(), Kept::OnDevice(_)));
        run(&mut first, &features, 4);
        checkpoint::save_checkpoint(&path, &info(&first), &first).unwrap();
        run(&mut first, &features, 2);
        assert_eq!(bits(&first), bits(&streamed), "{kind:?}: features kept on the device, or not");
        let mut resumed = checkpoint::load_checkpoint(&path).unwrap().1.to(&device).unwrap();
        run(&mut resumed, &features, 6);
        assert!(resumed.finished());
        assert_eq!(bits(&resumed), bits(&streamed), "{kind:?}: stopped after 4 steps, or never");
    }
}

fn each(open: impl Fn(Precision) -> Option<Gpu>, test: impl Fn(Gpu)) {
    Precision::ALL.into_iter().filter_map(open).for_each(test);
}

mod emulated {
    use super::*;

    #[test]
    fn three_steps_follow_pytorch() {
        each(device::emulated, |gpu| follow_pytorch(&Device::Gpu(gpu), 3));
    }

    #[test]
    fn a_device_trains_as_the_cpu_does() {
        each(device::emulated, trains_as_the_cpu_does);
    }

    #[test]
    fn a_device_keeps_its_promises_about_bits() {
        each(device::emulated, keeps_its_promises_about_bits);
    }
}

mod hardware {
    use super::*;

    #[test]
    fn ten_steps_follow_pytorch() {
        each(device::hardware, |gpu| follow_pytorch(&Device::Gpu(gpu), 10));
    }

    #[test]
    fn a_device_trains_as_the_cpu_does() {
        each(device::hardware, trains_as_the_cpu_does);
    }

    #[test]
    fn a_device_keeps_its_promises_about_bits() {
        each(device::hardware, keeps_its_promises_about_bits);
    }
}
