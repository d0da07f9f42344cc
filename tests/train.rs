//! Training: ten steps against PyTorch, and the promises about bits.

mod common;
#[path = "common/training.rs"]
mod training;

use grad::checkpoint;
use grad::device::Device;
use grad::device::cpu::products::threads;
use grad::device::cpu::{ConvChoice, Products};
use grad::device::cuda::Precision;
use grad::train::{TrainConfig, Trainer};
use training::{Drawn, KINDS, bits, follow_pytorch, info, run, trainer};

/// How many steps of PyTorch are followed. In a network of 8 channels a rounding soon decides on which side of a kink a value
/// lies, and after that no factor bounds what follows: where Winograd's algorithm is forced on it, that is after five steps.
fn steps() -> usize {
    if ConvChoice::of_process() == ConvChoice::Winograd { 4 } else { 10 }
}

#[test]
fn steps_follow_pytorch() {
    follow_pytorch(&Device::Cpu, steps());
}

#[test]
fn steps_with_coarse_products_follow_pytorch() {
    for products in [Precision::Tf32, Precision::Bf16].into_iter().flat_map(Products::available) {
        println!("{}", products.describe());
        threads(2, products).unwrap().install(|| follow_pytorch(&Device::Cpu, steps()));
    }
}

#[test]
fn a_resumed_run_ends_in_the_same_bits_wherever_it_was_stopped() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("checkpoint.safetensors");
    for kind in KINDS {
        let (features, mut whole) = (Drawn::new(12, 5 * 4 * 12), trainer(kind, 6));
        let steps = 6 * whole.steps_per_epoch(12);
        run(&mut whole, &features, steps);
        // In the middle of an epoch, and between two.
        for stop in [7, 9] {
            let mut first = trainer(kind, 6);
            run(&mut first, &features, stop);
            checkpoint::save_checkpoint(&path, &info(&first), &first).unwrap();
            let (_, mut second) = checkpoint::load_checkpoint(&path).unwrap();
            run(&mut second, &features, steps);
            assert!(second.finished());
            assert_eq!(bits(&second), bits(&whole), "{kind:?} stopped after {stop} steps");
        }
    }
}

#[test]
fn the_same_seed_gives_the_same_bits_on_any_number_of_threads() {
    for kind in KINDS {
        let features = Drawn::new(12, 5 * 4 * 12);
        let on = |threads: usize, seed: u64| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let mut t = trainer(kind, 2);
                if seed != 11 {
                    t = Trainer::new(t.head.config().clone(), TrainConfig { seed, ..t.config }).unwrap();
                }
                run(&mut t, &features, 6);
                bits(&t)
            })
        };
        let first = on(1, 11);
        assert_eq!(first, on(1, 11), "{kind:?}: the same seed twice");
        assert_eq!(first, on(2, 11), "{kind:?}: one thread and two");
        assert_eq!(first, on(3, 11), "{kind:?}: one thread and three");
        assert_ne!(first, on(1, 12), "{kind:?}: another seed must give another model");
    }
}

#[test]
fn training_learns_and_a_loss_that_is_no_number_stops_it() {
    let (mut features, mut t) = (Drawn::new(12, 5 * 4 * 12), trainer(KINDS[0], 40));
    let mut losses = vec![];
    while !t.finished() {
        losses.extend(t.step(&features).unwrap().epoch.map(|e| e.summary.loss));
    }
    assert_eq!(losses.len(), 40);
    assert!(losses[39] < 0.8 * losses[0], "{} to {}", losses[0], losses[39]);
    features.0[3][0] = f32::INFINITY;
    let mut t = trainer(KINDS[0], 1);
    let message = (0..3).find_map(|_| t.step(&features).err()).expect("an infinite feature must stop it").to_string();
    assert!(message.contains("diverged"), "{message}");
}
