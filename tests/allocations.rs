//! A training step on the CPU asks the system for no memory: batch, noise, forward, backward, clip, AdamW, the report of a
//! step and of an epoch. Values lie in memory that earlier steps gave back; the record of a step (nodes of the tape, lists of
//! arguments) in the room of the step before.
//!
//! The first epochs fill the pools. Noise is drawn by coins, and the last batch of an epoch is smaller: what such a step
//! needs beyond the others is asked for when the first of its kind comes.
//!
//! One test, in an executable of its own, for an allocator is that of a process. On one thread: which of several needs its
//! first scratch memory in which step is up to chance, and from outside its pool rayon allocates its queue of jobs in blocks.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use grad::buffer::Buffer;
use grad::model::{HeadConfig, MemoryKind, ModelKind};
use grad::rng::Rng;
use grad::train::{FeatureSource, TrainConfig, Trainer};

/// The allocator of the system, which counts what the thread that trains asks for.
struct Counting;

/// Of a thread: nobody else's allocations are counted.
#[derive(Clone, Copy)]
struct Asked {
    count: usize,
    largest: usize,
}

impl Asked {
    const NOTHING: Asked = Asked { count: 0, largest: 0 };
}

thread_local! {
    static ASKED: Cell<Asked> = const { Cell::new(Asked::NOTHING) };
}

fn count(bytes: usize) {
    let Asked { count, largest } = ASKED.get();
    ASKED.set(Asked { count: count + 1, largest: largest.max(bytes) });
}

// SAFETY: everything is done by the system's allocator, as it was asked.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, start: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(start, layout) }
    }

    unsafe fn realloc(&self, start: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size);
        // SAFETY: the caller's promise.
        unsafe { System.realloc(start, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const FEATURES: [usize; 3] = [28, 28, 16];
/// Two batches of eight and one of four.
const PICTURES: usize = 20;
const BATCH: usize = 8;
/// Epochs that fill the pools, and epochs after them.
const EPOCHS: [usize; 2] = [3, 3];

struct Drawn(Vec<Buffer>);

impl FeatureSource for Drawn {
    fn len(&self) -> usize {
        self.0.len()
    }

    fn get(&self, i: usize) -> &[f32] {
        &self.0[i]
    }
}

#[test]
fn a_step_allocates_nothing() {
    rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap().install(judge);
}

fn judge() {
    let picture = |i: usize| {
        let mut x = Buffer::filled(FEATURES.iter().product(), 0.0);
        Rng::new(i as u64, 0).fill_normal(&mut x, 1.0);
        x
    };
    let features = Drawn((0..PICTURES).map(picture).collect());
    let grids = ModelKind::ALL.map(|kind| (kind, MemoryKind::Grid));
    let discrete = [MemoryKind::Vq, MemoryKind::Attention].map(|memory| (ModelKind::CradS, memory));
    for (kind, memory) in grids.into_iter().chain(discrete) {
        let head = HeadConfig::published(kind, FEATURES, 0.05).with_memory(memory);
        let config = TrainConfig { batch: BATCH, bn_group: 4, ..TrainConfig::published(kind) };
        let mut trainer = Trainer::new(head, config).unwrap();
        for epoch in 1..=EPOCHS.iter().sum() {
            for step in 1..=trainer.steps_per_epoch(PICTURES) {
                ASKED.set(Asked::NOTHING);
                let ended = trainer.advance(&features).unwrap().iter().any(|report| report.epoch.is_some());
                let Asked { count, largest } = ASKED.get();
                let what = format!("{} {memory:?}, epoch {epoch}, step {step}", kind.name());
                println!("{what}: {count} allocations, the largest of {largest} bytes");
                assert_eq!(ended, step * BATCH >= PICTURES, "{what}");
                assert!(count == 0 || epoch <= EPOCHS[0], "{what}: {count} allocations, of up to {largest} bytes");
            }
        }
    }
}
