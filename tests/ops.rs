//! Every op before every judge.

use std::path::Path;

use grad::device::cpu::{Products, products};
use grad::device::cuda::Precision;
use grad::ops::REGISTRY;

/// Runs `judge` on every op and reports all that fail, not the first.
fn each(judge: impl Fn(&grad::check::Entry) -> String + std::panic::RefUnwindSafe) {
    let failed: Vec<&str> = REGISTRY
        .iter()
        .filter(|e| {
            let verdict = std::panic::catch_unwind(|| judge(e));
            println!("{:26} {}", e.name, verdict.as_deref().map_or("FAILED", |s| s));
            verdict.is_err()
        })
        .map(|e| e.name)
        .collect();
    assert!(failed.is_empty(), "failed: {failed:?}");
}

#[test]
fn bad_shapes_are_refused() {
    each(|e| {
        (e.refusals)();
        "ok".into()
    });
}

#[test]
fn gradients_agree_with_central_differences() {
    each(|e| format!("{:.1e}", (e.gradcheck)()));
}

#[test]
fn fast_paths_agree_with_the_definition() {
    each(|e| format!("{:.0} % of what is allowed", 100.0 * (e.truth)()));
}

/// The ways to multiply that are coarser than f32; which of them this machine lacks is said.
fn coarse() -> Vec<Products> {
    let all: Vec<Products> = [Precision::Tf32, Precision::Bf16].into_iter().flat_map(Products::available).collect();
    println!("{}", Products::explain());
    all.into_iter().filter(|products| products.coarseness() > 1.0).collect()
}

#[test]
fn coarse_products_agree_with_the_definition() {
    for products in coarse() {
        println!("{}", products.describe());
        each(|e| format!("{:.0} % of what is allowed", 100.0 * (e.products_truth)(products)));
    }
}

#[test]
fn bits_do_not_depend_on_the_number_of_threads() {
    for products in coarse().into_iter().chain([products()]) {
        println!("{}", products.describe());
        each(|e| {
            (e.repeat)(products);
            "ok".into()
        });
    }
}

#[test]
fn pytorch_agrees() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures");
    each(|e| format!("{} cases", (e.fixture)(&folder)));
}

#[test]
fn pytorch_agrees_with_coarse_products() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures");
    for products in coarse() {
        println!("{}", products.describe());
        each(|e| format!("{} cases", (e.products_fixture)(products, &folder)));
    }
}
