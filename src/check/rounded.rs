//! The judges of arithmetic that is coarser than f32, on a device or on the CPU.
//!
//! Truth is the f64 definition on the inputs as they are stored. What a fast path may be wrong by is derived: a small
//! multiple of what the plain definition is wrong once its factors are rounded as the precision rounds them, plus a few
//! of its roundings of the largest value.

use std::path::Path;

use super::{
    Errors, Outputs, SLACK, difference, draw, expected, fixture_rounding, largest, named, pools, run_definition,
    run_fast, to_f32, to_f64, upstream,
};
use crate::device::cpu::Products;
use crate::op::Op;
use crate::shape::Shape;

/// How values are rounded.
pub(super) struct Rounding<S, F> {
    /// A value as it is stored; the second argument says whether it is one that is f32 in every precision.
    pub stored: S,
    /// A value as a factor of a product.
    pub factor: F,
    /// How many times coarser than f32 factors are rounded.
    pub coarseness: f64,
}

/// Inputs and upstream gradient.
type Given = (Vec<Vec<f32>>, Vec<f32>);

impl<S: Fn(f32, bool) -> f32, F: Fn(f32) -> f32> Rounding<S, F> {
    /// Inputs and upstream gradient as they are stored, and the same as factors of products.
    fn prepared<O: Op>(&self, op: &O, x: &[Vec<f32>], dy: &[f32]) -> [Given; 2] {
        let all = |values: &[f32], f: &dyn Fn(f32) -> f32| values.iter().map(|&v| f(v)).collect::<Vec<f32>>();
        let inputs: Vec<Vec<f32>> =
            x.iter().enumerate().map(|(i, x)| all(x, &|v| (self.stored)(v, op.input_in_f32(i)))).collect();
        let dy = all(dy, &|v| (self.stored)(v, op.output_in_f32(0)));
        let coarse = inputs.iter().map(|x| all(x, &self.factor)).collect();
        let coarse_dy = all(&dy, &self.factor);
        [(inputs, dy), (coarse, coarse_dy)]
    }

    /// What one rounding costs, relative to the largest value.
    fn epsilon(&self) -> f64 {
        f64::from(f32::EPSILON) * self.coarseness
    }

    /// Largest error of `run` over all cases of an op, as a fraction of what is allowed.
    pub fn truth<O: Op>(&self, run: impl Fn(&O, &[Shape], &[Vec<f32>], &[f32]) -> Outputs<f32>) -> f64 {
        let mut worst = 0.0f64;
        for case in O::cases() {
            let (op, shapes) = (&case.op, case.shapes());
            let mut errors = Errors::default();
            for seed in 0..4 {
                let x = to_f32(&draw(&case, seed));
                let dy = to_f32(&[upstream(op.infer(&shapes).expect("a case must be accepted")[0].numel())]).remove(0);
                let [(x, dy), (coarse, coarse_dy)] = self.prepared(op, &x, &dy);
                let wide_dy = to_f64(std::slice::from_ref(&dy)).remove(0);
                let truth = named(&run_definition(op, &shapes, &to_f64(&x), &wide_dy));
                let plain = named(&run_definition(op, &shapes, &coarse, &coarse_dy));
                let fast = named(&run(op, &shapes, &x, &dy));
                errors.add(truth, &plain, &fast, &format!("{op:?} {shapes:?}"));
            }
            for (name, plain, fast) in errors.0 {
                let allowed = SLACK * (plain + self.epsilon());
                assert!(fast <= allowed, "{op:?} {shapes:?}: {name} is off by {fast:.2e}, allowed {allowed:.2e}");
                worst = worst.max(fast / allowed);
            }
        }
        worst
    }

    /// Number of cases in an op's fixture file, all passed.
    pub fn fixture<O: Op>(
        &self,
        folder: &Path,
        run: impl Fn(&O, &[Shape], &[Vec<f32>], &[f32]) -> Outputs<f32>,
    ) -> usize {
        let cases = expected::<O>(folder);
        for e in &cases {
            let [(x, dy), (coarse, coarse_dy)] = self.prepared(&e.op, &e.x, &e.dy);
            let plain = named(&run_definition(&e.op, &e.shapes, &coarse, &coarse_dy));
            let fast = named(&run(&e.op, &e.shapes, &x, &dy));
            for ((name, plain), (_, fast)) in plain.iter().zip(&fast) {
                let Some(expected) = e.values.get(name) else { continue };
                let rounding = fixture_rounding(expected) + self.epsilon() * largest(expected);
                let (err, allowed) = (difference(fast, expected), SLACK * (difference(plain, expected) + rounding));
                let key = format!("{}: {}.{name}", O::NAME, e.case);
                assert!(err <= allowed, "{key}: off by {err:.2e}, allowed {allowed:.2e}");
            }
        }
        cases.len()
    }
}

/// How products on the CPU round: nothing that is stored.
fn rounding(products: Products) -> Rounding<impl Fn(f32, bool) -> f32, impl Fn(f32) -> f32> {
    Rounding { stored: |v, _| v, factor: move |v| products.factor(v), coarseness: products.coarseness() }
}

/// See [`super::Entry::products_truth`].
pub(super) fn truth<O: Op>(products: Products) -> f64 {
    let [_, pool, _] = pools(products);
    rounding(products).truth(|op: &O, shapes, x, dy| pool.install(|| run_fast(op, shapes, x, dy)))
}

/// See [`super::Entry::products_fixture`].
pub(super) fn fixture<O: Op>(products: Products, folder: &Path) -> usize {
    let [_, pool, _] = pools(products);
    rounding(products).fixture(folder, |op: &O, shapes, x, dy| pool.install(|| run_fast(op, shapes, x, dy)))
}
