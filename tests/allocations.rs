//! A training step on the CPU asks the system for no memory for values: activations, gradients, partial sums and packed
//! operands lie in memory that earlier steps gave back. What is still allocated is the record of the step: shapes, lists
//! of arguments, nodes of the tape, a few hundred bytes for each op, freed with it.
//!
//! One test, in an executable of its own: the counter sees everything. On one thread: which of several needs its first
//! scratch memory in which step is up to chance, and from outside its pool rayon allocates its queue of jobs in blocks.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use grad::bench::StepBench;
use grad::device::Device;
use grad::model::{Head, HeadConfig, ModelKind};

struct Counting;

static COUNT: AtomicUsize = AtomicUsize::new(0);
static BYTES: AtomicUsize = AtomicUsize::new(0);
static LARGEST: AtomicUsize = AtomicUsize::new(0);

fn count(bytes: usize) {
    COUNT.fetch_add(1, Relaxed);
    BYTES.fetch_add(bytes, Relaxed);
    LARGEST.fetch_max(bytes, Relaxed);
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

const IMAGES: usize = 8;
const FEATURES: [usize; 3] = [28, 28, 16];

#[test]
fn a_step_allocates_no_memory_for_values() {
    rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap().install(judge);
}

fn judge() {
    for kind in ModelKind::ALL {
        let (_, params) = Head::new(HeadConfig::published(kind, FEATURES, 0.05), None);
        let parameters = params.entries().len();
        let mut bench = StepBench::new(kind, FEATURES, IMAGES, &Device::Cpu).unwrap();
        for step in 1..=5 {
            [&COUNT, &BYTES, &LARGEST].iter().for_each(|counter| counter.store(0, Relaxed));
            bench.run().unwrap();
            let [count, bytes, largest] = [&COUNT, &BYTES, &LARGEST].map(|counter| counter.load(Relaxed));
            println!("{} step {step}: {count} allocations, {bytes} bytes, the largest {largest}", kind.name());
            if step < 3 {
                continue;
            }
            // The smallest activation of a position is its pair of coordinates.
            let activation = IMAGES * FEATURES[0] * FEATURES[1] * 2 * size_of::<f32>();
            assert!(
                largest < activation,
                "{kind:?}, step {step}: {largest} bytes at once are as much as an activation"
            );
            // Every parameter enters one op. An op makes at most 36 lists and boxes, half of them in backward.
            assert!(count <= 36 * parameters, "{kind:?}, step {step}: {count} allocations for {parameters} parameters");
        }
    }
}
