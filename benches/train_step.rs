//! One training step of each head on features of 28 x 28 x 216: `cargo bench --bench train_step`.
//!
//! Forward, backward, clip and AdamW on random features. Throughput is images per second. Two questions are asked:
//!
//! * `threads`: every head at 16 images on 1, 2, 4, .. threads, up to one for each core;
//! * `batch`: `crad-s` at 1, 4, 16 and 64 images on all cores.
//!
//! Products are those of `f32`. `benches/peer` runs the same step beside PyTorch, in every precision.

use std::time::Duration;

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, BenchmarkId, Criterion, SamplingMode, Throughput, criterion_group, criterion_main};
use grad::bench::StepBench;
use grad::device::Device;
use grad::device::cpu::Products;
use grad::device::cpu::products::threads;
use grad::device::cuda::Precision;
use grad::model::ModelKind;

/// A step takes seconds: few samples, of one step each where that fills the time.
fn group<'c>(c: &'c mut Criterion, name: &str) -> BenchmarkGroup<'c, WallTime> {
    let mut group = c.benchmark_group(format!("train_step/{name}"));
    group.sample_size(10).sampling_mode(SamplingMode::Flat);
    group.warm_up_time(Duration::from_secs(1)).measurement_time(Duration::from_secs(3));
    group
}

/// Steps of `kind` with `images` a batch on a pool of `count` threads.
fn time(group: &mut BenchmarkGroup<WallTime>, kind: ModelKind, images: usize, count: usize, id: BenchmarkId) {
    let products = Products::requested(Precision::F32).expect("GRAD_PRODUCTS names what this machine has");
    group.throughput(Throughput::Elements(images as u64));
    let pool = threads(count, products).expect("threads can be started");
    let published = || StepBench::new(kind, [28, 28, 216], images, &Device::Cpu).expect("the published head is sound");
    let mut step = pool.install(published);
    group.bench_function(id, |b| b.iter(|| pool.install(|| step.run(1).expect("the CPU refuses nothing"))));
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

fn by_threads(c: &mut Criterion) {
    let mut group = group(c, "threads");
    let counts = std::iter::successors(Some(1), |n| Some(2 * n)).take_while(|&n| n < cores()).chain([cores()]);
    for count in counts {
        for kind in [ModelKind::CradS, ModelKind::Crad, ModelKind::Grad] {
            time(&mut group, kind, 16, count, BenchmarkId::new(kind.name(), count));
        }
    }
}

fn by_batch(c: &mut Criterion) {
    let mut group = group(c, "batch");
    for images in [1, 4, 16, 64] {
        time(&mut group, ModelKind::CradS, images, cores(), BenchmarkId::new(ModelKind::CradS.name(), images));
    }
}

criterion_group!(benches, by_threads, by_batch);
criterion_main!(benches);
