//! Training: ten steps against PyTorch, and the promises about bits.

mod common;

use common::{Fixture, difference, largest, wide};
use grad::buffer::Buffer;
use grad::checkpoint::{self, ModelInfo};
use grad::model::{Head, HeadConfig, ModelKind};
use grad::optim::AdamW;
use grad::rng::Rng;
use grad::score::Protocol;
use grad::tensor::Tensor;
use grad::train::{FeatureSource, Progress, TrainConfig, Trainer};

/// Rounding differences grow along a trajectory; PyTorch's own single precision tells how fast.
const SLACK: f64 = 8.0;

#[test]
fn ten_steps_follow_pytorch() {
    for model in ["crad", "crad-s", "grad"] {
        let file = Fixture::read(&format!("trajectory_{model}"));
        let config: HeadConfig = serde_json::from_value(file.metadata("config").clone()).unwrap();
        let groups = file.metadata("config")["groups"].as_u64().unwrap() as usize;
        let train = TrainConfig::published(config.kind);
        let (head, mut params) = Head::new(config, None);
        let entries: Vec<_> = params.entries().map(|(id, e)| (id, e.clone())).collect();
        for (id, e) in &entries {
            params.get_mut(*id).copy_from_slice(file.get(&format!("param.{}", e.name)).data());
        }
        let optimiser = AdamW::new(&params);
        let mut trainer = Trainer::resume(head, params, optimiser, train, Progress::default());
        let part = |name: &str, i: usize| {
            let t = file.get(name);
            let values = t.shape().numel() / t.shape()[0];
            Tensor::from_slice(grad::shape::Shape::new(&t.shape()[1..]), &t.data()[i * values..(i + 1) * values])
        };
        let (mut losses, mut norms) = (vec![], vec![]);
        for step in 0..10 {
            let epoch = file.metadata("epochs")[step].as_u64().unwrap() as usize;
            let size = trainer.config.step_size(epoch);
            let rates = &file.get("learning_rates").data()[2 * step..2 * step + 2];
            assert_eq!([size.network as f32, size.grids as f32], rates, "step {step}");
            let noise = part("noise", step);
            let (loss, norm) = trainer.update(&part("batches", step % 3), Some(&noise), groups, size).unwrap();
            losses.push(loss);
            norms.push(norm);
        }
        let judge = |name: &str, found: Vec<f64>| {
            let expected = file.get(name).data();
            let float32 = file.metadata("float32_error")[name].as_f64().unwrap();
            let allowed = SLACK * (float32 + f64::from(f32::EPSILON) * largest(expected));
            let err = difference(found, expected);
            assert!(err <= allowed, "{model}: {name} is off by {err:.1e}, allowed {allowed:.1e}");
        };
        judge("losses", losses);
        judge("gradient_norms", norms);
        for (id, e) in &entries {
            judge(&format!("final.{}", e.name), wide(trainer.params.tensor(*id).data()).collect());
        }
    }
}

/// Features drawn from a seed, two kinds of picture.
struct Drawn(Vec<Buffer>);

impl Drawn {
    fn new(images: usize, values: usize) -> Self {
        let draw = |i: usize| {
            let mut b = Buffer::filled(values, 0.0);
            Rng::new(i as u64, 99).fill_normal(&mut b, 1.0);
            b.iter_mut().for_each(|v| *v += (i % 2) as f32);
            b
        };
        Drawn((0..images).map(draw).collect())
    }
}

impl FeatureSource for Drawn {
    fn len(&self) -> usize {
        self.0.len()
    }
    fn get(&self, i: usize) -> &[f32] {
        &self.0[i]
    }
}

fn trainer(kind: ModelKind, epochs: usize) -> Trainer {
    let head = HeadConfig { blocks: 2, ..HeadConfig::published(kind, [5, 4, 12], 0.5) };
    // Three pictures a group: the last batch of each epoch is ragged, and so is one of its groups.
    let config = TrainConfig { epochs, batch: 5, bn_group: 3, seed: 11, ..TrainConfig::published(kind) };
    Trainer::new(head, config).unwrap()
}

fn run(trainer: &mut Trainer, features: &Drawn, steps: usize) {
    for _ in 0..steps {
        if !trainer.finished() {
            trainer.step(features).unwrap();
        }
    }
}

fn bits(trainer: &Trainer) -> Vec<u32> {
    let o = &trainer.optimiser;
    [trainer.params.values(), o.m.host(), o.v.host()].concat().iter().map(|v| v.to_bits()).collect()
}

#[test]
fn a_resumed_run_ends_in_the_same_bits_wherever_it_was_stopped() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("checkpoint.safetensors");
    for kind in ModelKind::ALL {
        let (features, mut whole) = (Drawn::new(12, 5 * 4 * 12), trainer(kind, 6));
        let steps = 6 * whole.steps_per_epoch(12);
        run(&mut whole, &features, steps);
        // In the middle of an epoch, and between two.
        for stop in [7, 9] {
            let mut first = trainer(kind, 6);
            run(&mut first, &features, stop);
            let info = ModelInfo {
                format: checkpoint::FORMAT,
                version: "test".into(),
                head: first.head.config().clone(),
                backbone: "none".into(),
                backbone_digest: String::new(),
                image_size: 40,
                classes: vec![],
                protocol: Protocol::official(),
                score_scale: None,
                train: first.config.clone(),
                record: vec![],
                images: 12,
                data: vec![],
            };
            checkpoint::save_checkpoint(&path, &info, &first).unwrap();
            let (_, mut second) = checkpoint::load_checkpoint(&path).unwrap();
            run(&mut second, &features, steps);
            assert!(second.finished());
            assert_eq!(bits(&second), bits(&whole), "{kind:?} stopped after {stop} steps");
        }
    }
}

#[test]
fn the_same_seed_gives_the_same_bits_on_any_number_of_threads() {
    for kind in ModelKind::ALL {
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
    let (mut features, mut t) = (Drawn::new(12, 5 * 4 * 12), trainer(ModelKind::CradS, 40));
    let mut losses = vec![];
    while !t.finished() {
        losses.extend(t.step(&features).unwrap().epoch.map(|e| e.summary.loss));
    }
    assert_eq!(losses.len(), 40);
    assert!(losses[39] < 0.8 * losses[0], "{} to {}", losses[0], losses[39]);
    features.0[3][0] = f32::INFINITY;
    let mut t = trainer(ModelKind::CradS, 1);
    let message = (0..3).find_map(|_| t.step(&features).err()).expect("an infinite feature must stop it").to_string();
    assert!(message.contains("diverged"), "{message}");
}
