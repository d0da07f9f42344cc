//! Every op of the registry at the shapes of the networks, forward and backward: `cargo bench --bench ops`.
//!
//! Criterion's throughput is GFLOP/s (elements) for ops that multiply matrices and GB/s (bytes) for the others. An op
//! that fails its judges is not timed.

use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use grad::ops::REGISTRY;

fn ops(c: &mut Criterion) {
    for entry in REGISTRY {
        (entry.truth)();
        let mut group = c.benchmark_group(entry.name);
        group.sample_size(10).warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1));
        for mut case in (entry.bench)() {
            for (direction, run, flops) in
                [("forward", &mut case.forward, case.flops), ("backward", &mut case.backward, 2 * case.flops)]
            {
                group.throughput(if flops > 0 { Throughput::Elements(flops) } else { Throughput::Bytes(case.bytes) });
                group.bench_function(format!("{direction} {}", case.name), |b| b.iter(&mut *run));
            }
        }
    }
}

criterion_group!(benches, ops);
criterion_main!(benches);
