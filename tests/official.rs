//! Checkpoints in the format of the official programs (`fixtures/reference/official.py`): what they hold, what their heads
//! compute, and the step that follows.

mod common;

use std::path::Path;

use common::{Fixture, difference, largest, wide};
use grad::Error;
use grad::checkpoint::{load_start, save_checkpoint};
use grad::model::HeadConfig;
use grad::nn::{Context, Params, Role};
use grad::official::Official;
use grad::optim::StepSize;
use grad::train::{Progress, TrainConfig, Trainer};
use sha2::{Digest, Sha256};

/// How much worse than PyTorch in single precision we may be: as in `tests/network.rs`.
const SLACK: f64 = 4.0;
const MODELS: [&str; 3] = ["crad", "crad-s", "grad"];

fn bytes(model: &str) -> Vec<u8> {
    std::fs::read(grad::check::root().join(format!("fixtures/official_{model}.pth.tar"))).unwrap()
}

fn parse(bytes: &[u8]) -> grad::Result<Official> {
    Official::parse(Path::new("ckpt.pth.tar"), bytes)
}

/// What a value of `name` may be off by: the middle error of single precision among tensors of its kind, or its own.
fn allowed(fixture: &Fixture, name: &str) -> f64 {
    let errors = fixture.metadata("float32_error").as_object().unwrap();
    let relative = |name: &str| {
        let scale = largest(fixture.get(name).data()).max(f64::MIN_POSITIVE);
        errors[name].as_f64().unwrap() / scale
    };
    let kind = name.split('.').next();
    let mut of_kind: Vec<f64> = errors.keys().filter(|n| n.split('.').next() == kind).map(|n| relative(n)).collect();
    of_kind.sort_by(f64::total_cmp);
    let error = relative(name).max(of_kind[of_kind.len() / 2]) + f64::from(f32::EPSILON);
    SLACK * error * largest(fixture.get(name).data())
}

fn near(fixture: &Fixture, name: &str, got: &[f32]) {
    let (err, allowed) = (difference(wide(got), fixture.get(name).data()), allowed(fixture, name));
    assert!(err <= allowed, "{name} is off by {err:.1e}, allowed {allowed:.1e}");
}

/// Calls `f` with the name and values of every parameter.
fn each(params: &Params, mut f: impl FnMut(&str, &[f32])) {
    params.entries().for_each(|(_, e)| f(&e.name, &params.values()[e.range.clone()]));
}

#[test]
fn weights_constants_and_moments_are_those_of_the_file() {
    for model in MODELS {
        let fixture = Fixture::read(&format!("official_{model}"));
        // The manifest lists this fixture, and the fixture its checkpoint.
        let digest: String = Sha256::digest(bytes(model)).iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(*fixture.metadata("checkpoint_sha256"), digest);
        let official = parse(&bytes(model)).unwrap();
        let config: HeadConfig = serde_json::from_value(fixture.metadata("config").clone()).unwrap();
        assert_eq!(*official.head.config(), config);
        each(&official.params, |name, values| {
            assert_eq!(values, fixture.get(&format!("param.{name}")).data(), "{model}: {name}");
        });
        let optimiser = official.optimiser.unwrap();
        assert_eq!((optimiser.steps, official.epochs), (3, Some(3)));
        for (_, e) in official.params.entries().filter(|(_, e)| e.role != Role::Statistic) {
            for (key, moment) in [("m", &optimiser.m), ("v", &optimiser.v)] {
                let want = fixture.get(&format!("{key}.{}", e.name));
                assert_eq!(want.shape(), e.shape);
                assert_eq!(&moment.host()[e.range.clone()], want.data(), "{model}: {key} of {}", e.name);
            }
        }
    }
}

#[test]
fn the_head_and_its_next_step_agree_with_pytorch() {
    let dir = tempfile::tempdir().unwrap();
    for model in MODELS {
        let fixture = Fixture::read(&format!("official_{model}"));
        let official = parse(&bytes(model)).unwrap();
        let x = fixture.get("x");
        let cx = Context::eval(&official.params);
        near(&fixture, "refined", official.head.forward(&cx, x, None).unwrap().data());
        near(&fixture, "score", official.head.score(&cx, x).unwrap().data());
        drop(cx);

        // Through our own file, as an import goes.
        let path = dir.path().join(format!("{model}.safetensors"));
        let (info, config) = (official.info("00".into()), TrainConfig::published(official.head.config().kind));
        let optimiser = official.optimiser.unwrap();
        let trainer = Trainer::resume(official.head, official.params, optimiser, config, Progress::default());
        save_checkpoint(&path, &info, &trainer).unwrap();
        let (read, head, params, optimiser) = load_start(&path).unwrap();
        assert_eq!((read.image_size, &*read.backbone, read.classes.len()), (32, "b4", 0));
        let mut trainer = Trainer::resume(head, params, optimiser.unwrap(), info.train, Progress::default());
        let size = StepSize { grids: 0.1, network: 0.001, decay: 0.01, clip: 0.1 };
        let (loss, norm) = trainer.update(x, None, 1, size).unwrap();
        near(&fixture, "loss", &[loss as f32]);
        near(&fixture, "gradient_norm", &[norm as f32]);
        each(&trainer.params, |name, values| near(&fixture, &format!("after.{name}"), values));
    }
}

#[test]
fn what_is_no_such_checkpoint_is_refused() {
    let refused = |bytes: &[u8], word: &str| {
        let error = parse(bytes).err().expect("refused");
        assert!(matches!(error, Error::Model { .. }), "{error:?}");
        assert!(error.to_string().contains(word), "{error} should name {word}");
    };
    refused(b"{}", "not a PyTorch file");
    let other = std::fs::read(grad::check::root().join("fixtures/torch_zip.pth")).unwrap();
    refused(&other, "holds 0 heads");
    // A stream file is not checksummed, so names in it can be changed.
    let good = bytes("grad");
    let renamed = |from: &str, to: &str| {
        let mut bytes = good.clone();
        let at = bytes.windows(from.len()).position(|w| w == from.as_bytes()).unwrap();
        bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
        bytes
    };
    refused(&renamed("recover.weight", "Recover.weight"), "lacks the tensor \"module.reconstruction.recover.weight\"");
    refused(&renamed("layer.0.0.conv1", "layer.0.9.conv1"), "no fusion blocks");
    // Without a memory of the optimiser that fits, the weights are still good.
    for (from, to, word) in [
        ("exp_avg_sq", "exp_bvg_sq", "exp_avg_sq"),
        ("param_groups", "param_troops", "other groups"),
        ("optimizer", "optimixer", "no optimiser"),
    ] {
        let official = parse(&renamed(from, to)).unwrap();
        assert!(official.optimiser.as_ref().is_err_and(|why| why.contains(word)), "{:?}", official.optimiser);
    }
}

/// Bytes changed at random: a checkpoint or an error, never a panic.
#[test]
fn random_damage_never_panics() {
    let (good, mut rng, mut refused) = (bytes("grad"), grad::rng::Rng::new(3, 0), 0);
    // Its pickle, where names and shapes are; the values come after.
    let pickle = good.len() / 5;
    for round in 0..300 {
        let mut damaged = good.clone();
        for _ in 0..=rng.below(3) {
            let at = rng.below(if round % 4 == 0 { good.len() } else { pickle });
            damaged[at] = rng.next_u32() as u8;
        }
        refused += usize::from(parse(&damaged).is_err());
    }
    assert!(refused > 50, "{refused} of 300 damaged files were refused");
}
