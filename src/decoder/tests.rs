//! Small decoders: that they learn, keep the promises about bits, and that no file brings them down.

use safetensors::Dtype;
use safetensors::tensor::TensorView;

use super::*;
use crate::checkpoint;
use crate::data::Picture;
#[cfg(feature = "emulator")]
use crate::device::Device;
use crate::error::Error;
use crate::rng::Rng;
use crate::train::FeatureSource;

const SIDE: usize = 4;
const CHANNELS: usize = 5;

/// Two colours, whose border moves from picture to picture.
fn pictures(count: usize) -> Vec<Picture> {
    let side = ENLARGED * SIDE;
    let pixel = |i: usize, x: usize, y: usize| if x + i < y + side / 3 { [200, 90, 40] } else { [30, 60, 140] };
    let rgb = |i| (0..side * side).flat_map(|p| pixel(i, p % side, p / side)).collect();
    (0..count).map(|i| Picture { width: side, height: side, rgb: rgb(i) }).collect()
}

/// Mean colour of each cell, and two channels that say nothing.
struct Features(Vec<Vec<f32>>);

impl Features {
    fn of(pictures: &[Picture]) -> Self {
        let values = |(i, picture): (usize, &Picture)| {
            let mut x = vec![0.0; SIDE * SIDE * CHANNELS];
            Rng::new(i as u64, 5).fill_normal(&mut x, 1.0);
            for (p, cell) in x.chunks_exact_mut(CHANNELS).enumerate() {
                for (channel, value) in cell[..3].iter_mut().enumerate() {
                    let pixel = |j: usize| {
                        let [row, column] = [p / SIDE * ENLARGED + j / ENLARGED, p % SIDE * ENLARGED + j % ENLARGED];
                        f32::from(picture.rgb[(row * picture.width + column) * 3 + channel])
                    };
                    let sum: f32 = (0..ENLARGED * ENLARGED).map(pixel).sum();
                    *value = sum / (ENLARGED * ENLARGED) as f32 / 128.0 - 1.0;
                }
            }
            x
        };
        Features(pictures.iter().enumerate().map(values).collect())
    }
}

impl FeatureSource for Features {
    fn len(&self) -> usize {
        self.0.len()
    }
    fn get(&self, i: usize) -> &[f32] {
        &self.0[i]
    }
}

const IMAGES: usize = 6;

fn inputs() -> (Features, Targets) {
    let pictures = pictures(IMAGES);
    (Features::of(&pictures), Targets::new(pictures, [0.5; 3], [0.25; 3]))
}

fn config() -> DecoderConfig {
    DecoderConfig { height: SIDE, width: SIDE, channels: CHANNELS, hidden: 16, blocks: 1 }
}

/// Two steps an epoch, the second on fewer pictures.
fn trainer(epochs: usize) -> DecoderTrainer {
    let training = DecoderTraining { batch: 4, ..DecoderTraining::standard(epochs, 3) };
    DecoderTrainer::new(config(), training).unwrap()
}

/// At most so many steps; the losses of the epochs that they end.
fn run(trainer: &mut DecoderTrainer, steps: usize) -> Vec<f64> {
    let (features, targets) = inputs();
    let mut losses = vec![];
    for _ in 0..steps {
        if !trainer.finished() {
            losses.extend(trainer.step(&features, &targets).unwrap().map(|(loss, _)| loss));
        }
    }
    losses
}

fn bits(trainer: &DecoderTrainer) -> Vec<u32> {
    let parts = [trainer.params.values(), trainer.optimiser.m.host(), trainer.optimiser.v.host()];
    parts.iter().flat_map(|part| part.iter().map(|v| v.to_bits())).collect()
}

fn info(trainer: &DecoderTrainer, losses: Vec<f64>) -> DecoderInfo {
    DecoderInfo {
        format: file::FORMAT,
        version: "0".into(),
        decoder: trainer.decoder.config().clone(),
        backbone: "lite0".into(),
        backbone_digest: "00".into(),
        images: IMAGES,
        pictures: "11".into(),
        training: trainer.training.clone(),
        losses,
    }
}

#[test]
fn it_has_as_many_parameters_as_were_counted() {
    for (hidden, blocks) in [(4, 0), (8, 1), (64, 2), (9, 3)] {
        let config = DecoderConfig { hidden, blocks, ..config() };
        assert_eq!(config.fault(), None);
        assert_eq!(Decoder::new(config.clone(), Some(0)).1.trained_values() as u128, config.parameters(), "{config:?}");
    }
}

#[test]
fn it_learns_more_than_a_colour() {
    let mut t = trainer(100);
    let losses = run(&mut t, 200);
    assert_eq!((losses.len(), t.finished()), (100, true));
    // What the best picture of one colour would lose.
    let targets: Vec<f64> = pictures(IMAGES)
        .iter()
        .flat_map(|p| p.rgb.iter().map(|&v| (f64::from(v) / 255.0 - 0.5) / 0.25).collect::<Vec<_>>())
        .collect();
    let variance: f64 = (0..3)
        .map(|channel| {
            let of: Vec<f64> = targets.iter().skip(channel).step_by(3).copied().collect();
            let mean = of.iter().sum::<f64>() / of.len() as f64;
            of.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / of.len() as f64
        })
        .sum::<f64>()
        / 3.0;
    assert!(losses[99] < 0.5 * variance, "{losses:?}, a colour: {variance}");
}

#[test]
fn the_bits_do_not_depend_on_the_number_of_threads() {
    let on = |threads: usize, seed: u64| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let training = DecoderTraining { seed, ..trainer(3).training };
            let mut t = DecoderTrainer::new(config(), training).unwrap();
            run(&mut t, 6);
            bits(&t)
        })
    };
    let one = on(1, 3);
    assert_eq!(one, on(2, 3));
    assert_eq!(one, on(3, 3));
    assert_ne!(one, on(1, 4), "another seed must give another decoder");
}

#[test]
fn a_stopped_training_goes_on_to_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let mut whole = trainer(3);
    let losses = run(&mut whole, 6);
    save(&path("whole"), &info(&whole, losses), &whole).unwrap();
    // In the middle of an epoch, and between two.
    for stop in [0, 3, 4] {
        let mut first = trainer(3);
        let losses = run(&mut first, stop);
        save(&path("cut"), &info(&first, losses), &first).unwrap();
        let (mut loaded, second) = load_unfinished(&path("cut")).unwrap();
        let mut second = second.expect("it is not finished");
        assert_eq!(bits(&second), bits(&first));
        loaded.losses.extend(run(&mut second, 6));
        assert_eq!(bits(&second), bits(&whole), "stopped after {stop} steps");
        save(&path("cut"), &loaded, &second).unwrap();
        assert_eq!(std::fs::read(path("cut")).unwrap(), std::fs::read(path("whole")).unwrap());
    }
    let (finished, nothing) = load_unfinished(&path("whole")).unwrap();
    assert!(nothing.is_none() && finished.losses.len() == 3);
}

#[test]
fn what_does_not_fit_is_refused_before_it_is_trained() {
    let (features, targets) = inputs();
    let mut t = trainer(1);
    let fewer = Targets::new(pictures(IMAGES - 1), [0.5; 3], [0.25; 3]);
    assert!(t.step(&features, &fewer).unwrap_err().to_string().contains("5 to paint"));
    assert!(t.step(&Features(vec![]), &Targets::new(vec![], [0.5; 3], [0.25; 3])).is_err());
    t.progress.step = 2;
    assert!(t.step(&features, &targets).unwrap_err().to_string().contains("8 are done"));
    let wide = Features(vec![vec![0.0; SIDE * SIDE * (CHANNELS + 1)]; IMAGES]);
    assert!(trainer(1).step(&wide, &targets).unwrap_err().to_string().contains("4x4x5"));
    let small = Targets::new(vec![Picture { width: 8, height: 8, rgb: vec![0; 192] }; IMAGES], [0.5; 3], [0.25; 3]);
    assert!(trainer(1).step(&features, &small).is_err());
    let infinite = Features(vec![vec![f32::INFINITY; SIDE * SIDE * CHANNELS]; IMAGES]);
    let diverged = trainer(1).step(&infinite, &targets).unwrap_err().to_string();
    assert!(diverged.contains("diverged at epoch 1, step 1"), "{diverged}");
    for training in [
        DecoderTraining { epochs: 0, ..t.training.clone() },
        DecoderTraining { batch: 0, ..t.training.clone() },
        DecoderTraining { rate: f64::NAN, ..t.training.clone() },
        DecoderTraining { epochs: usize::MAX, ..t.training.clone() },
    ] {
        assert!(DecoderTrainer::new(config(), training).is_err());
    }
    for faulty in [
        DecoderConfig { height: 0, ..config() },
        DecoderConfig { hidden: 3, ..config() },
        DecoderConfig { blocks: usize::MAX, ..config() },
        DecoderConfig { hidden: 1 << 14, ..config() },
    ] {
        assert!(DecoderTrainer::new(faulty, t.training.clone()).is_err());
    }
}

#[test]
fn damaged_and_foreign_files_are_refused_with_a_reason() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("d.safetensors");
    let refused = |word: &str| {
        let message = match load_unfinished(&path) {
            Err(e @ Error::Model { .. }) => e.to_string(),
            other => panic!("expected a refusal naming {word:?}, got {:?}", other.map(|o| o.0)),
        };
        assert!(message.contains(word) && message.contains("help: "), "{message:?} should name {word:?}");
    };
    refused("cannot be read");
    let mut t = trainer(2);
    let losses = run(&mut t, 3);
    let good = info(&t, losses);
    save(&path, &good, &t).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    for cut in [0, 5, 100, bytes.len() / 2, bytes.len() - 1] {
        std::fs::write(&path, &bytes[..cut]).unwrap();
        refused("damaged");
    }
    // Neither kind of file is taken for the other.
    std::fs::write(&path, &bytes).unwrap();
    assert!(checkpoint::load_model(&path).err().unwrap().to_string().contains("another kind"));
    let view = TensorView::new(Dtype::F32, vec![1], &[0; 4]).unwrap();
    std::fs::write(&path, safetensors::serialize([("x", view)], None).unwrap()).unwrap();
    refused("another kind");
    for (changed, word) in [
        (DecoderInfo { format: file::FORMAT + 1, ..good.clone() }, "of format 2"),
        (DecoderInfo { losses: vec![], ..good.clone() }, "0 losses of 1 epochs"),
        (DecoderInfo { images: 4, ..good.clone() }, "on 4 pictures"),
        (DecoderInfo { decoder: DecoderConfig { width: 0, ..config() }, ..good.clone() }, "cannot be built"),
        (DecoderInfo { decoder: DecoderConfig { channels: 6, ..config() }, ..good.clone() }, "expected F32"),
        (DecoderInfo { decoder: DecoderConfig { blocks: 2, ..config() }, ..good.clone() }, "missing"),
        (DecoderInfo { decoder: DecoderConfig { hidden: 512, ..config() }, ..good.clone() }, "too short"),
        (
            DecoderInfo { training: DecoderTraining { batch: 0, ..t.training.clone() }, ..good.clone() },
            "cannot be trained",
        ),
    ] {
        save(&path, &changed, &t).unwrap();
        refused(word);
    }
    let id = t.params.find("paint.bias").unwrap();
    t.params.get_mut(id)[1] = f32::NAN;
    save(&path, &good, &t).unwrap();
    refused("paint.bias");
}

/// Bytes changed at random, most of them in the header: an error, or a decoder that can be trained on or refuses to, but
/// never a panic and never a huge allocation.
#[test]
fn random_damage_never_panics() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("d.safetensors");
    let ((features, targets), mut t) = (inputs(), trainer(3));
    let losses = run(&mut t, 3);
    save(&path, &info(&t, losses), &t).unwrap();
    let good = std::fs::read(&path).unwrap();
    let header = 8 + u64::from_le_bytes(good[..8].try_into().unwrap()) as usize;
    let mut rng = Rng::new(5, 0);
    let mut refused = 0;
    for round in 0..400 {
        let mut bytes = good.clone();
        for _ in 0..=rng.below(4) {
            let at = rng.below(if round % 4 == 0 { bytes.len() } else { header });
            // Digits become other digits as often as not: sizes that still parse are the dangerous ones.
            bytes[at] = match bytes[at] {
                b'0'..=b'9' if round % 2 == 0 => b'0' + rng.below(10) as u8,
                _ => rng.next_u32() as u8,
            };
        }
        std::fs::write(&path, &bytes).unwrap();
        match load_unfinished(&path) {
            Err(_) => refused += 1,
            Ok((_, Some(mut t))) => drop(t.step(&features, &targets)),
            Ok((_, None)) => {}
        }
    }
    assert!(refused > 150, "{refused} of 400 damaged files were refused");
}

/// Two steps there and on the CPU: no further apart than the CPU is from itself when features and parameters are moved by
/// roundings.
#[cfg(feature = "emulator")]
#[test]
fn a_device_trains_as_the_cpu_does() {
    use crate::device::cuda::{Gpu, Precision};

    let device = Device::Gpu(Gpu::emulated(Precision::F32).unwrap());
    let (features, targets) = inputs();
    let two = |mut t: DecoderTrainer, features: &Features| -> [f64; 2] {
        let first = t.step(features, &targets).unwrap();
        assert!(first.is_none());
        let first = t.progress.loss / 4.0;
        // The epoch's mean is over four pictures, then two.
        [first, (t.step(features, &targets).unwrap().unwrap().0 * 6.0 - first * 4.0) / 2.0]
    };
    let cpu = two(trainer(2), &features);
    let apart = |other: [f64; 2]| (0..2).map(|i| (cpu[i] - other[i]).abs() / cpu[i]).fold(0.0, f64::max);
    let nudged = |seed: u64| {
        let mut rng = Rng::new(seed, 0);
        let mut moved = |v: &mut f32| *v *= 1.0 + f32::EPSILON / 2.0 * rng.uniform_in(-1.0, 1.0);
        let (mut t, mut x) = (trainer(2), Features(features.0.clone()));
        t.params.values_mut().iter_mut().for_each(&mut moved);
        x.0.iter_mut().flatten().for_each(&mut moved);
        apart(two(t, &x))
    };
    let sensitivity = (0..4).map(nudged).fold(0.0, f64::max);
    let (err, allowed) =
        (apart(two(trainer(2).to(&device).unwrap(), &features)), 8.0 * (sensitivity + f64::from(f32::EPSILON)));
    assert!(err <= allowed, "off by {err:.1e}, allowed {allowed:.1e}");
}
