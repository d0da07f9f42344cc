//! Inference wholly on a device, on the emulated one always and on a real one where there is one: the folded head against
//! PyTorch, maps and scores against the host's, batches of any size against pictures alone.

mod common;
#[path = "common/device.rs"]
mod device;

use std::sync::Arc;

use common::{Fixture, difference, largest, wide};
use grad::backbone::Backbone;
use grad::calibrate::GoodScore;
use grad::device::Device;
use grad::device::cuda::{Gpu, Precision};
use grad::inference::{Inference, Input};
use grad::model::{FoldedHead, Head, HeadConfig, MemoryKind, ModelKind};
use grad::nn::{Context, Params, Role};
use grad::rng::Rng;
use grad::score::{Pool, Protocol, Scored, Smooth};
use grad::tensor::Tensor;

/// As of the judges of heads: how much worse than PyTorch in single precision a fast path may be.
const SLACK: f64 = 4.0;

fn each(open: impl Fn(Precision) -> Option<Gpu>, test: impl Fn(Gpu)) {
    Precision::ALL.into_iter().filter_map(open).for_each(test);
}

/// The scores of each head of the fixtures, folded, against PyTorch's.
fn folded_heads_agree(device: &Device) {
    let coarseness = device.gpu().map_or(1.0, |gpu| gpu.precision().coarseness());
    for name in ["head_crad", "head_crad-s", "head_grad"] {
        let file = Fixture::read(name);
        let config: HeadConfig = serde_json::from_value(file.metadata("config").clone()).unwrap();
        let (_, mut params) = Head::new(config.clone(), None);
        let entries: Vec<_> = params.entries().map(|(id, e)| (id, e.name.clone())).collect();
        for (id, name) in entries {
            params.get_mut(id).copy_from_slice(file.get(&format!("param.{name}")).data());
        }
        let head = FoldedHead::new(&config, &params, device).unwrap();
        let x = device.gpu().map_or(file.get("x").clone(), |gpu| file.get("x").to_gpu(gpu, false).unwrap());
        let found = head.score(&x).unwrap().to_host().unwrap();
        let expected = file.get("eval.score").data();
        let float32 = file.metadata("float32_error")["eval.score"].as_f64().unwrap();
        let allowed = SLACK * coarseness * (float32 + f64::from(f32::EPSILON) * largest(expected));
        let err = difference(wide(found.data()), expected);
        println!("{name} {device:?}: {err:.1e} of {allowed:.1e}");
        assert!(err <= allowed, "{name}, {device:?}: a score is off by {err:.1e}, allowed {allowed:.1e}");
    }
}

#[test]
fn a_folded_head_agrees_with_pytorch() {
    folded_heads_agree(&Device::Cpu);
}

/// Raw maps as a head gives them: positive, some with a peak.
fn raw_maps(n: usize, [h, w]: [usize; 2]) -> Vec<f32> {
    let mut rng = Rng::new(17, 0);
    let mut maps: Vec<f32> = (0..n * h * w).map(|_| rng.uniform_in(0.5, 4.0)).collect();
    maps.iter_mut().step_by(h * w + 1).for_each(|v| *v *= 20.0);
    maps
}

/// Maps and scores of the kernels against those of the host: two values of f32 are rounded on the way, the enlarged one and
/// the mean, and 3e-11 are what running sums in f64 may gather.
fn scores_as_the_host_does(gpu: Gpu) {
    let odd = Protocol { smooth: Smooth::Mean(5), pool: Pool::LargestMean(7), ..Protocol::official() };
    for (protocol, n, [h, w], size) in
        [(Protocol::official(), 3, [4, 5], 48), (odd, 2, [3, 2], 19), (Protocol::official(), 1, [2, 2], 16)]
    {
        let scorer = protocol.on_device(size).unwrap();
        let mut raw = raw_maps(n, [h, w]);
        for with_nan in [false, true] {
            if with_nan {
                raw[h * w / 2] = f32::NAN;
            }
            let there = gpu.upload::<f32>(&raw).unwrap();
            let scores = scorer.score(&gpu, there.slice(), [h, w]).unwrap();
            let (maps, found) = (gpu.read(scores.maps.slice()).unwrap(), gpu.read(scores.found.slice()).unwrap());
            for (i, raw) in raw.chunks_exact(h * w).enumerate() {
                let host = protocol.score(raw, h, w, size, size).unwrap();
                let found = &found[2 * i..2 * i + 2];
                if with_nan && i == 0 {
                    assert!(found.iter().all(|v| v.is_nan()) && host.image_score.is_nan());
                    continue;
                }
                let map = &maps[i * size * size..(i + 1) * size * size];
                let allowed = largest(&host.map) * (2.0 * f64::from(f32::EPSILON) + 3e-11);
                let err = difference(wide(map), &host.map);
                assert!(err <= allowed, "{}: a map is off by {err:.1e}, allowed {allowed:.1e}", protocol.name);
                let err = difference(wide(found), &[host.image_score, host.peak()]);
                assert!(err <= allowed, "{}: scores {found:?}, off by {err:.1e} of {allowed:.1e}", protocol.name);
                assert_eq!(found[1], map.iter().copied().fold(f32::MIN, f32::max));
            }
        }
    }
    for protocol in [Protocol::dinomaly(), Protocol::ader()] {
        assert_eq!(protocol.on_device(32), None, "{} is scored by the host", protocol.name);
    }
}

const SIZE: usize = 32;

/// A small head on features of Lite0, with statistics that BatchNorm does not leave as they are.
fn head(kind: ModelKind, memory: MemoryKind) -> (Head, Params) {
    let config = HeadConfig { blocks: 1, ..HeadConfig::published(kind, [SIZE / 8, SIZE / 8, 152], 0.05) };
    let (head, mut params) = Head::new(config.with_memory(memory), Some(5));
    let entries: Vec<_> = params.entries().map(|(id, e)| (id, e.clone())).collect();
    for (id, e) in entries {
        let mut rng = Rng::new(23, id_of(&e.name));
        let norm = e.name.contains(".bn") && e.name.ends_with(".weight");
        for v in params.get_mut(id) {
            match e.role {
                Role::Statistic if e.name.ends_with("var") => *v = rng.uniform_in(0.3, 2.0),
                Role::Statistic => *v = rng.uniform_in(-0.5, 0.5),
                _ if norm => *v = rng.uniform_in(0.5, 1.5),
                _ => *v *= 8.0,
            }
        }
    }
    (head, params)
}

fn id_of(name: &str) -> u64 {
    name.bytes().fold(7, |h, b| (h * 31 + u64::from(b)) & 0xFFFF_FFFF)
}

fn features(n: usize) -> Vec<Vec<f32>> {
    let draw = |i: u64| {
        let mut x = vec![0.0; SIZE / 8 * (SIZE / 8) * 152];
        Rng::new(3, i).fill_normal(&mut x, 1.0);
        x
    };
    (0..n as u64).map(draw).collect()
}

/// Moves every value by up to one rounding of the precision.
fn nudged(values: &[f32], precision: Precision, seed: u64) -> Vec<f32> {
    let (mut rng, step) = (Rng::new(seed, 0), f32::EPSILON / 2.0 * precision.coarseness() as f32);
    values.iter().map(|v| v * (1.0 + step * rng.uniform_in(-1.0, 1.0))).collect()
}

/// Score and peak on the CPU, by the head as it was trained.
fn on_cpu(head: &Head, params: &Params, x: &[f32]) -> [f64; 2] {
    let side = SIZE / 8;
    let raw = head.score(&Context::eval(params), &Tensor::from_slice([1, side, side, 152], x)).unwrap();
    let scored = Protocol::official().score(raw.data(), side, side, SIZE, SIZE).unwrap();
    [scored.image_score.into(), scored.peak().into()]
}

fn inference(gpu: &Gpu, head: &Head, params: &Params) -> Inference {
    let backbone = Backbone::lite0().unwrap().to(&Device::Gpu(gpu.clone())).unwrap();
    Inference::new(Arc::new(backbone), head.config(), params, SIZE).unwrap()
}

/// Scores of features on a device and on the CPU: no further apart than the CPU is from itself when parameters and features
/// are moved by roundings of the precision.
fn scores_as_the_cpu_does(gpu: Gpu) {
    let precision = gpu.precision();
    let grids = ModelKind::ALL.map(|kind| (kind, MemoryKind::Grid));
    let discrete = [MemoryKind::Vq, MemoryKind::Attention].map(|memory| (ModelKind::CradS, memory));
    for kind in grids.into_iter().chain(discrete) {
        let ((head, params), features) = (head(kind.0, kind.1), features(3));
        let inputs: Vec<&[f32]> = features.iter().map(|x| &x[..]).collect();
        let found = inference(&gpu, &head, &params).scores(Input::Features(&inputs), &Protocol::official()).unwrap();
        for (x, found) in inputs.iter().zip(found) {
            let cpu = on_cpu(&head, &params, x);
            let apart = |other: [f64; 2]| (0..2).map(|i| (other[i] - cpu[i]).abs() / cpu[i]).fold(0.0, f64::max);
            let moved = |seed| {
                let mut params = params.clone();
                let values = nudged(params.values(), precision, seed);
                params.values_mut().copy_from_slice(&values);
                apart(on_cpu(&head, &params, &nudged(x, precision, seed + 100)))
            };
            let rounding = f64::from(f32::EPSILON) * precision.coarseness();
            let allowed = 2.0 * SLACK * ((0..4).map(moved).fold(0.0, f64::max) + rounding);
            let err = apart([found.image.into(), found.peak.into()]);
            println!("{precision:?} {kind:?}: {err:.1e} of {allowed:.1e}");
            assert!(err <= allowed, "{precision:?} {kind:?}: {found:?} for {cpu:?}: off by {err:.1e} of {allowed:.1e}");
        }
    }
}

/// Bytes of a prepared picture.
fn picture(i: usize) -> Vec<u8> {
    let mut rng = Rng::new(i as u64, 31);
    (0..SIZE * SIZE * 3).map(|_| rng.below(256) as u8).collect()
}

/// A picture scores the same to the bit alone, in a batch, beside padding, as its features do, and with a map or without.
fn a_score_depends_on_its_own_picture_alone(gpu: Gpu) {
    let (head, params) = head(ModelKind::CradS, MemoryKind::Grid);
    let (on, protocol) = (inference(&gpu, &head, &params), Protocol::official());
    let score = |which: &[usize]| -> Vec<GoodScore> {
        let write = |i: usize, to: &mut [u8]| {
            to.copy_from_slice(&picture(which[i]));
            Ok(())
        };
        on.scores(Input::Pictures(which.len(), &write), &protocol).unwrap()
    };
    let together = score(&[0, 1, 2]);
    assert!(together.iter().all(|s| s.image.is_finite() && s.peak >= s.image) && together[0] != together[1]);
    assert_eq!([score(&[2]), score(&[1])].concat(), [together[2], together[1]]);
    let write = |i: usize, to: &mut [u8]| {
        to.copy_from_slice(&picture(i));
        Ok(())
    };
    let maps: Vec<Scored> = on.maps(Input::Pictures(1, &write), &protocol).unwrap();
    assert_eq!(GoodScore::of(&maps[0]), together[0]);
    assert_eq!(maps[0].map.len(), SIZE * SIZE);
    // By the stages, one after the other; the features are stored as the device stores them.
    let backbone = Backbone::lite0().unwrap().to(&Device::Gpu(gpu.clone())).unwrap();
    let bytes = picture(0);
    let normal = grad::data::normalisation(backbone.mean(), backbone.std());
    let prepared: Vec<f32> = bytes.iter().enumerate().map(|(i, &v)| normal[i % 3][usize::from(v)]).collect();
    let x = backbone.forward(&backbone.input(SIZE, &[&prepared]).unwrap()).unwrap().to_host().unwrap();
    assert_eq!(on.scores(Input::Features(&[x.data()]), &protocol).unwrap()[0], together[0]);
    // A protocol that the host scores by.
    let host = on.maps(Input::Features(&[x.data(), x.data(), x.data()]), &Protocol::dinomaly()).unwrap();
    assert!(host.iter().all(|s| *s == host[0]) && host[0].map.len() == 256 * 256);
    // What cannot be read ends the call, and the next one is none the worse.
    let broken = |_: usize, _: &mut [u8]| Err(grad::Error::config("not today", "try again"));
    assert!(on.scores(Input::Pictures(2, &broken), &protocol).is_err());
    assert_eq!(score(&[1, 0])[0], together[1]);
}

/// The same tests on one kind of device.
macro_rules! on {
    ($kind:ident) => {
        mod $kind {
            use super::*;

            #[test]
            fn a_folded_head_agrees_with_pytorch() {
                each(device::$kind, |gpu| folded_heads_agree(&Device::Gpu(gpu)));
            }

            #[test]
            fn maps_and_scores_are_those_of_the_host() {
                each(device::$kind, scores_as_the_host_does);
            }

            #[test]
            fn a_device_scores_as_the_cpu_does() {
                each(device::$kind, scores_as_the_cpu_does);
            }

            #[test]
            fn a_score_depends_on_its_own_picture_alone() {
                each(device::$kind, super::a_score_depends_on_its_own_picture_alone);
            }
        }
    };
}
on!(emulated);
on!(hardware);
