//! Every kernel before every judge: on the emulated device always, on a real one where there is one.
//!
//! `GRAD_REQUIRE_CUDA=1` makes the absence of a real device a failure; `GRAD_OPS=add,concat` limits the ops.

use std::path::Path;

use grad::check::Entry;
use grad::device::cuda::{Gpu, Precision};
use grad::ops::REGISTRY;

/// Runs `judge` on every op in every precision and reports all that fail, not the first.
fn each(open: impl Fn(Precision) -> Option<Gpu>, judge: impl Fn(&Entry, &Gpu) -> String) {
    let wanted = std::env::var("GRAD_OPS").ok();
    let chosen = |e: &&Entry| wanted.as_ref().is_none_or(|w| w.split(',').any(|name| name == e.name));
    let mut failed = vec![];
    for precision in Precision::ALL {
        let Some(gpu) = open(precision) else { return };
        for entry in REGISTRY.iter().filter(chosen) {
            let judged = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| judge(entry, &gpu)));
            println!("{:5} {:26} {}", precision.name(), entry.name, judged.as_deref().map_or("FAILED", |s| s));
            if judged.is_err() {
                failed.push(format!("{} ({})", entry.name, precision.name()));
            }
        }
    }
    assert!(failed.is_empty(), "failed: {failed:?}");
}

fn truth(entry: &Entry, gpu: &Gpu) -> String {
    format!("{:.0} % of what is allowed", 100.0 * (entry.device_truth)(gpu))
}

fn repeat(entry: &Entry, gpu: &Gpu) -> String {
    (entry.device_repeat)(gpu);
    "ok".into()
}

fn fixture(entry: &Entry, gpu: &Gpu) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures");
    format!("{} cases", (entry.device_fixture)(gpu, &folder))
}

mod emulated {
    use super::*;

    fn device(precision: Precision) -> Option<Gpu> {
        Some(Gpu::emulated(precision).unwrap())
    }

    #[test]
    fn kernels_agree_with_the_definition() {
        each(device, truth);
    }

    #[test]
    fn bits_do_not_depend_on_the_order_of_threads() {
        each(device, repeat);
    }

    #[test]
    fn pytorch_agrees() {
        each(device, fixture);
    }
}

mod hardware {
    use super::*;

    fn device(precision: Precision) -> Option<Gpu> {
        match Gpu::open(0, precision) {
            Ok(gpu) => Some(gpu),
            Err(e) if std::env::var_os("GRAD_REQUIRE_CUDA").is_some() => panic!("a CUDA device is required: {e}"),
            Err(e) => {
                println!("skipped: no CUDA device: {e}");
                None
            }
        }
    }

    #[test]
    fn kernels_agree_with_the_definition() {
        each(device, truth);
    }

    #[test]
    fn bits_do_not_depend_on_the_order_of_blocks() {
        each(device, repeat);
    }

    #[test]
    fn pytorch_agrees() {
        each(device, fixture);
    }
}
