//! The figures of a whole test set, 1725 maps of 224x224 in 15 classes: `cargo bench --bench metrics`.
//!
//! Maps are as a network's are: smooth, and quantised so that about one pixel in three has a twin. Masks have blobs,
//! 3 % of all pixels. Timed is everything after the maps: regions, sorting, AUROC, AP, F1, AUPRO, bootstrap.
//! `python benches/peer/metrics.py` times scikit-learn on one class of the same kind, in the same run.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use grad::metrics::{ClassScores, Metrics};
use grad::rng::Rng;
use grad::score::{Protocol, Scored};

const SIDE: usize = 224;
const CLASSES: usize = 15;
const PICTURES: usize = 115;

/// A map and its mask; every fourth picture is good.
fn picture(stream: u64) -> (Scored, Vec<u8>) {
    let mut rng = Rng::new(9, stream);
    let mut mask = vec![0; SIDE * SIDE];
    if !stream.is_multiple_of(4) {
        for _ in 0..3 {
            let (y, x, r) = (20 + rng.below(184), 20 + rng.below(184), 8 + rng.below(12));
            for (i, pixel) in mask.iter_mut().enumerate() {
                let inside = (i / SIDE).abs_diff(y).pow(2) + (i % SIDE).abs_diff(x).pow(2) < r * r;
                *pixel |= u8::from(inside) * 255;
            }
        }
    }
    let coarse: Vec<f32> = (0..28 * 28).map(|_| rng.normal().abs() + 1.0).collect();
    let mut scored = Protocol::official().score(&coarse, 28, 28, SIDE, SIDE).expect("the sizes fit");
    for (value, &pixel) in scored.map.iter_mut().zip(&mask) {
        let raised = *value + f32::from(pixel) / 600.0 + 0.1 * rng.uniform();
        *value = (raised * 4e6).round() / 4e6;
    }
    (scored, mask)
}

fn metrics(c: &mut Criterion) {
    let pictures: Vec<_> = (0..PICTURES as u64).map(picture).collect();
    let mut group = c.benchmark_group("metrics");
    group.sample_size(10).warm_up_time(Duration::from_secs(1)).measurement_time(Duration::from_secs(20));
    for classes in [1, CLASSES] {
        group.throughput(Throughput::Elements((classes * PICTURES * SIDE * SIDE) as u64));
        group.bench_function(format!("{classes} classes"), |b| {
            b.iter(|| {
                let class = |name: usize| {
                    let mut scores = ClassScores::default();
                    for (scored, mask) in &pictures {
                        let defective = mask.iter().any(|&pixel| pixel != 0);
                        scores.push(scored, Some(mask), defective).expect("the scores are finite");
                    }
                    (name.to_string(), scores.finish().expect("all fits in memory"))
                };
                let classes: BTreeMap<_, _> = (0..classes).map(class).collect();
                black_box(Metrics::new(&Protocol::official(), classes))
            });
        });
    }
    group.finish();
}

criterion_group!(benches, metrics);
criterion_main!(benches);
