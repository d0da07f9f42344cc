//! Every kernel before every judge: on the emulated device always, on a real one where there is one.
//!
//! `GRAD_REQUIRE_CUDA=1` makes the absence of a real device a failure; `GRAD_OPS=add,concat` limits the ops.

#[path = "common/device.rs"]
mod device;

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
    let folder = grad::check::root().join("fixtures");
    format!("{} cases", (entry.device_fixture)(gpu, &folder))
}

/// The same tests on one kind of device.
macro_rules! on {
    ($kind:ident) => {
        mod $kind {
            use super::*;

            #[test]
            fn kernels_agree_with_the_definition() {
                each(device::$kind, truth);
            }

            #[test]
            fn bits_do_not_depend_on_the_order_of_threads() {
                each(device::$kind, repeat);
            }

            #[test]
            fn pytorch_agrees() {
                each(device::$kind, fixture);
            }
        }
    };
}
on!(emulated);
on!(hardware);
