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
use grad::error::Error;
use grad::rng::Rng;
use grad::train::{Kept, StepReport, Trainer};
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
        let mut graphs = on(&Device::Gpu(gpu.clone()), kind, 1);
        graphs.keep_features(&features).unwrap();
        assert_eq!(found, losses(graphs.advance(&features).unwrap()), "{precision:?} {kind:?}: steps that are graphs");
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

fn losses(reports: &[StepReport]) -> Vec<f64> {
    reports.iter().map(|report| report.loss).collect()
}

/// Where batches come from, whether steps are graphs, and where a run was stopped, changes no bit.
fn keeps_its_promises_about_bits(gpu: Gpu) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("checkpoint.safetensors");
    let (features, device) = (Drawn::new(12, 5 * 4 * 12), Device::Gpu(gpu));
    let kept = |mut t: Trainer, graphs: bool| {
        t.graphs = graphs;
        assert!(matches!(t.keep_features(&features).unwrap(), Kept::OnDevice(_)));
        t
    };
    for kind in [KINDS[0], KINDS[3], KINDS[4]] {
        let fresh = || on(&device, kind, 2);
        let mut streamed = fresh();
        let summaries: Vec<_> =
            (0..6).filter_map(|_| streamed.step(&features).unwrap().epoch).map(|e| e.summary).collect();
        assert!(matches!(streamed.kept(), Kept::Streamed(_)));
        let mut at_once = fresh();
        for summary in &summaries {
            let reports = at_once.advance(&features).unwrap();
            assert_eq!(reports.len(), 3, "{kind:?}: an epoch at once, each batch uploaded beside the step before it");
            assert_eq!(&reports[2].epoch.as_ref().unwrap().summary, summary);
        }
        assert_eq!(bits(&at_once), bits(&streamed), "{kind:?}: uploaded step by step, or an epoch at once");
        let mut pieces = fresh();
        pieces.graphs = false;
        run(&mut pieces, &features, 6);
        assert_eq!(bits(&pieces), bits(&streamed), "{kind:?}: uploaded, graphs or launched piece by piece");
        let mut pieces = kept(fresh(), false);
        run(&mut pieces, &features, 6);
        assert_eq!(bits(&pieces), bits(&streamed), "{kind:?}: features kept on the device, or uploaded");
        // The last batch of an epoch has fewer pictures, and so a graph of its own.
        let mut whole = kept(fresh(), true);
        for summary in &summaries {
            let reports = whole.advance(&features).unwrap();
            assert_eq!(reports.len(), 3, "{kind:?}: an epoch at once");
            assert_eq!(&reports[2].epoch.as_ref().unwrap().summary, summary);
        }
        assert_eq!(bits(&whole), bits(&streamed), "{kind:?}: graphs, or launched piece by piece");
        // Stopped in the middle of an epoch.
        let mut first = kept(fresh(), true);
        run(&mut first, &features, 4);
        checkpoint::save_checkpoint(&path, &info(&first), &first).unwrap();
        run(&mut first, &features, 2);
        assert_eq!(bits(&first), bits(&streamed), "{kind:?}: step by step, or an epoch at once");
        let mut resumed = kept(checkpoint::load_checkpoint(&path).unwrap().1.to(&device).unwrap(), true);
        assert_eq!(resumed.advance(&features).unwrap().len(), 2);
        assert!(resumed.finished());
        assert_eq!(bits(&resumed), bits(&streamed), "{kind:?}: stopped after 4 steps, or never");
    }
}

/// What a step draws and how far it goes is no part of its graph, the settings it was recorded with are.
fn a_graph_is_recorded_again_when_a_setting_changes(gpu: Gpu) {
    let (features, device) = (Drawn::new(10, 5 * 4 * 12), Device::Gpu(gpu));
    let change = |graphs: bool| {
        let mut t = on(&device, KINDS[0], 5);
        t.graphs = graphs;
        t.keep_features(&features).unwrap();
        run(&mut t, &features, 2);
        let before = t.launches();
        (t.config.jitter, t.config.clip) = (false, 1e-3);
        run(&mut t, &features, 2);
        t.config.schedule = vec![(0, 0.5)];
        run(&mut t, &features, 2);
        (bits(&t), before, t.launches())
    };
    let ((graphs, before, after), (pieces, none, _)) = (change(true), change(false));
    assert_eq!(graphs, pieces);
    assert_eq!(none, None);
    // The jitter, its sum with the coordinates, and the gradient through that sum.
    assert_eq!(after.unwrap() + 3, before.unwrap());
}

/// The error of an epoch that was done at once is that of its first step that failed.
fn a_loss_that_is_no_number_stops_an_epoch(gpu: Gpu) {
    let (mut features, device) = (Drawn::new(12, 5 * 4 * 12), Device::Gpu(gpu));
    features.0[3][0] = f32::INFINITY;
    let stopped = |keep: bool| {
        let mut t = on(&device, KINDS[0], 1);
        if keep {
            t.keep_features(&features).unwrap();
        }
        let refusal = (0..3).find_map(|_| t.advance(&features).err()).expect("an infinite feature must stop it");
        refusal.to_string().split(':').next().unwrap().to_owned()
    };
    let at = stopped(true);
    assert!(at.starts_with("training diverged at epoch 1, step "), "{at}");
    assert_eq!(at, stopped(false));
}

/// A step that does not fit beside the features takes their room, before anything is changed: in the first step, where all
/// batches are of one size, or in the middle of an epoch, when the first of another size comes.
#[test]
fn features_are_let_go_where_a_step_does_not_fit_beside_them() {
    let open = |bytes: usize| Gpu::emulated_with_memory(Precision::F32, bytes).unwrap();
    for (images, before) in [(40, 0), (42, 8)] {
        let features = Drawn::new(images, 5 * 4 * 12);
        let roomy = open(1 << 30);
        let mut streamed = on(&Device::Gpu(roomy.clone()), KINDS[0], 2);
        let reports: Vec<_> = (0..2).flat_map(|_| streamed.advance(&features).unwrap().to_vec()).collect();
        // What training needs at the least, and less than the features more.
        let needed = roomy.facts().memory - roomy.free_memory().unwrap();
        let short = open(needed + 4096);
        let mut t = on(&Device::Gpu(short), KINDS[0], 2);
        let kept = t.keep_features(&features).unwrap();
        assert_eq!(kept, Kept::OnDevice(images * 5 * 4 * 12 * 4));
        let mut found = vec![];
        for _ in 0..before {
            found.push(t.step(&features).unwrap());
            assert_eq!(t.kept(), kept, "{images} pictures, step {}", found.len());
        }
        found.push(t.step(&features).unwrap());
        assert_eq!(t.kept(), Kept::Streamed(images * 5 * 4 * 12 * 4), "{images} pictures");
        while !t.finished() {
            found.extend_from_slice(t.advance(&features).unwrap());
        }
        assert_eq!(losses(&found), losses(&reports));
        assert_eq!(bits(&t), bits(&streamed), "{images} pictures");
        // What fits in no way is an error.
        let mut none = on(&Device::Gpu(open(needed - 4096)), KINDS[0], 2);
        let refusal = (0..2).find_map(|_| none.advance(&features).err());
        assert!(matches!(refusal, Some(Error::DeviceMemory { .. })), "{refusal:?}");
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

    #[test]
    fn a_graph_is_recorded_again_when_a_setting_changes() {
        each(device::emulated, super::a_graph_is_recorded_again_when_a_setting_changes);
    }

    #[test]
    fn a_loss_that_is_no_number_stops_an_epoch() {
        each(device::emulated, super::a_loss_that_is_no_number_stops_an_epoch);
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

    #[test]
    fn a_graph_is_recorded_again_when_a_setting_changes() {
        each(device::hardware, super::a_graph_is_recorded_again_when_a_setting_changes);
    }

    #[test]
    fn a_loss_that_is_no_number_stops_an_epoch() {
        each(device::hardware, super::a_loss_that_is_no_number_stops_an_epoch);
    }
}
