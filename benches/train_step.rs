//! One training step of each head on 16 images of 28 x 28 x 216 features: `cargo bench --bench train_step`.
//!
//! Forward, backward, clip and AdamW on random features. Throughput is images per second. `benches/peer` runs the same
//! step beside PyTorch.

use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use grad::bench::StepBench;
use grad::device::Device;
use grad::model::ModelKind;

fn train_step(c: &mut Criterion) {
    let mut group = c.benchmark_group("train_step");
    group.sample_size(10).warm_up_time(Duration::from_secs(1));
    for kind in [ModelKind::CradS, ModelKind::Crad, ModelKind::Grad] {
        let mut step = StepBench::new(kind, [28, 28, 216], 16, &Device::Cpu).expect("the published head is sound");
        group.throughput(Throughput::Elements(16));
        group.bench_function(kind.name(), |b| b.iter(|| step.run(1).expect("the CPU refuses nothing")));
    }
}

criterion_group!(benches, train_step);
criterion_main!(benches);
