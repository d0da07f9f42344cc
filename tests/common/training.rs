//! What the tests of training share, on any device: the trajectories of PyTorch, drawn features, small trainers.

use grad::buffer::Buffer;
use grad::checkpoint::{self, ModelInfo};
use grad::device::Device;
use grad::device::cpu::{ConvChoice, products};
use grad::model::{Head, HeadConfig, MemoryKind, ModelKind};
use grad::optim::AdamW;
use grad::rng::Rng;
use grad::score::Protocol;
use grad::tensor::Tensor;
use grad::train::{FeatureSource, Progress, TrainConfig, Trainer};

use crate::common::{Fixture, difference, largest, wide};

/// Rounding differences grow along a trajectory; PyTorch's own single precision tells how fast.
const SLACK: f64 = 8.0;

/// Trains each head of the fixtures `steps` steps on `device` and compares with PyTorch, final values after all ten.
pub fn follow_pytorch(device: &Device, steps: usize) {
    let on_cpu = || products().coarseness().max(ConvChoice::of_process().coarseness());
    let coarseness = device.gpu().map_or_else(on_cpu, |gpu| gpu.precision().coarseness());
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
        let trainer = Trainer::resume(head, params, optimiser, train, Progress::default());
        let mut trainer = trainer.to(device).unwrap();
        let part = |name: &str, i: usize| {
            let t = file.get(name);
            let values = t.shape().numel() / t.shape()[0];
            Tensor::from_slice(grad::shape::Shape::new(&t.shape()[1..]), &t.data()[i * values..(i + 1) * values])
        };
        let (mut losses, mut norms) = (vec![], vec![]);
        for step in 0..steps {
            let epoch = file.metadata("epochs")[step].as_u64().unwrap() as usize;
            let size = trainer.config.step_size(epoch);
            let rates = &file.get("learning_rates").data()[2 * step..2 * step + 2];
            assert_eq!([size.network as f32, size.grids as f32], rates, "step {step}");
            let on_device = |t: Tensor| device.gpu().map_or(t.clone(), |gpu| t.to_gpu(gpu, false).unwrap());
            let noise = on_device(part("noise", step));
            let (loss, norm) =
                trainer.update(&on_device(part("batches", step % 3)), Some(&noise), groups, size).unwrap();
            losses.push(loss);
            norms.push(norm);
        }
        let judge = |name: &str, found: Vec<f64>| {
            let expected = &file.get(name).data()[..found.len()];
            let float32 = file.metadata("float32_error")[name].as_f64().unwrap();
            let allowed = SLACK * coarseness * (float32 + f64::from(f32::EPSILON) * largest(expected));
            let err = difference(found, expected);
            assert!(err <= allowed, "{model}: {name} is off by {err:.1e}, allowed {allowed:.1e}");
        };
        judge("losses", losses);
        judge("gradient_norms", norms);
        if steps == 10 {
            let trainer = trainer.to(&Device::Cpu).unwrap();
            for (id, e) in &entries {
                judge(&format!("final.{}", e.name), wide(trainer.params.tensor(*id).data()).collect());
            }
        }
    }
}

/// Features drawn from a seed, two kinds of picture.
pub struct Drawn(pub Vec<Buffer>);

impl Drawn {
    pub fn new(images: usize, values: usize) -> Self {
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

/// A network, and what its branches read.
pub type Kind = (ModelKind, MemoryKind);

/// Every network with its grids, and the smallest with every other memory.
pub const KINDS: [Kind; 5] = [
    (ModelKind::CradS, MemoryKind::Grid),
    (ModelKind::Crad, MemoryKind::Grid),
    (ModelKind::Grad, MemoryKind::Grid),
    (ModelKind::CradS, MemoryKind::Vq),
    (ModelKind::CradS, MemoryKind::Attention),
];

/// A small head whose last batch of an epoch is ragged.
pub fn trainer((kind, memory): Kind, epochs: usize) -> Trainer {
    let head = HeadConfig { blocks: 2, ..HeadConfig::published(kind, [5, 4, 12], 0.5) }.with_memory(memory);
    // Three pictures a group: the last batch of each epoch is ragged, and so is one of its groups.
    let config = TrainConfig { epochs, batch: 5, bn_group: 3, seed: 11, ..TrainConfig::published(kind) };
    Trainer::new(head, config).unwrap()
}

/// At most `steps` steps: their losses.
pub fn run(trainer: &mut Trainer, features: &Drawn, steps: usize) -> Vec<f64> {
    let left = |t: &Trainer| !t.finished();
    (0..steps).map_while(|_| left(trainer).then(|| trainer.step(features).unwrap().loss)).collect()
}

/// Everything that training changes.
pub fn bits(trainer: &Trainer) -> Vec<u32> {
    let o = &trainer.optimiser;
    let parts = [trainer.params.storage(), &o.m, &o.v].map(|s| s.on_host().unwrap());
    parts.iter().flat_map(|part| part.iter().map(|v| v.to_bits())).collect()
}

/// What a checkpoint says of a run that had no pictures.
pub fn info(trainer: &Trainer) -> ModelInfo {
    ModelInfo {
        format: checkpoint::FORMAT,
        version: "test".into(),
        head: trainer.head.config().clone(),
        backbone: "none".into(),
        backbone_digest: String::new(),
        image_size: 40,
        classes: vec![],
        protocol: Protocol::official(),
        score_scale: None,
        train: trainer.config.clone(),
        record: vec![],
        images: 12,
        data: vec![],
        hold_out: 0.0,
        trained_on: vec![],
        calibration: None,
        golden: vec![],
    }
}
