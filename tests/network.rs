//! The heads, stage by stage, against PyTorch and against their own definition in double precision.

mod common;

use std::cell::RefCell;
use std::collections::BTreeMap;

use common::{Fixture, difference, largest, wide};
use grad::buffer::Buffer;
use grad::model::{Head, HeadConfig};
use grad::nn::{Context, Params, Role};
use grad::replay::Replay;
use grad::storage::Storage;
use grad::tensor::Tensor;
use serde_json::Value;

/// How much worse than PyTorch in single precision a fast path may be: it rounds in other places, not more often.
const SLACK: f64 = 4.0;

/// One head of a fixture file: its sizes, its tensors below a prefix, and what single precision costs.
struct Case<'a> {
    file: &'a Fixture,
    prefix: String,
    config: Value,
    float32_error: Value,
}

impl Case<'_> {
    fn get(&self, name: &str) -> &Tensor {
        self.file.get(&format!("{}{name}", self.prefix))
    }

    /// The head with the fixture's parameters.
    fn head(&self) -> (Head, Params) {
        let config: HeadConfig = serde_json::from_value(self.config.clone()).unwrap();
        let (head, mut params) = Head::new(config, None);
        let entries: Vec<_> = params.entries().map(|(id, e)| (id, e.clone())).collect();
        let below = format!("{}param.", self.prefix);
        let stored = self.file.tensors.keys().filter(|k| k.starts_with(&below)).count();
        assert_eq!(stored, entries.len(), "parameters of the fixture and of the head");
        for (id, e) in entries {
            let t = self.get(&format!("param.{}", e.name));
            assert_eq!(t.shape(), e.shape, "{}", e.name);
            params.get_mut(id).copy_from_slice(t.data());
        }
        (head, params)
    }

    /// The jitter of the train pass; a head without a local branch has none.
    fn noise(&self) -> Option<&Tensor> {
        self.file.tensors.get(&format!("{}noise", self.prefix))
    }

    fn groups(&self) -> usize {
        self.config["groups"].as_u64().unwrap() as usize
    }

    /// Relative error of single precision in PyTorch, and the largest value it is relative to.
    fn relative_error(&self, name: &str) -> (f64, f64) {
        let error = self.float32_error[name].as_f64().unwrap_or_else(|| panic!("no float32_error of {name}"));
        let scale = largest(self.get(name).data());
        (error / scale.max(f64::MIN_POSITIVE), scale)
    }

    /// What a value of the fast path may be off by. One draw of a tensor of two values may round luckily; the middle one
    /// of all tensors of its kind (`grad`, `train`, …) may not.
    fn allowed(&self, name: &str) -> f64 {
        let kind = name.split('.').next();
        let names = self.float32_error.as_object().unwrap().keys();
        let mut of_kind: Vec<f64> =
            names.filter(|n| n.split('.').next() == kind).map(|n| self.relative_error(n).0).collect();
        of_kind.sort_by(f64::total_cmp);
        let (error, scale) = self.relative_error(name);
        SLACK * scale * (error.max(of_kind[of_kind.len() / 2]) + f64::from(f32::EPSILON))
    }

    /// What a value of the definition may be off by: the fixture's one rounding, and the last bits of double precision.
    fn rounding(&self, name: &str) -> f64 {
        f64::from(f32::EPSILON) * largest(self.get(name).data()) + 1e-10
    }
}

/// Calls `f` on every head of every fixture.
fn each(f: impl Fn(&Case)) {
    for name in ["head_crad", "head_crad-s", "head_grad"] {
        let file = Fixture::read(name);
        let (config, float32_error) = (file.metadata("config").clone(), file.metadata("float32_error").clone());
        f(&Case { file: &file, prefix: String::new(), config, float32_error });
    }
    for name in ["head_switches", "head_memories"] {
        let file = Fixture::read(name);
        for (case, config) in file.metadata("cases").as_object().unwrap() {
            let (config, float32_error) = (config.clone(), file.metadata("float32_error")[case].clone());
            f(&Case { file: &file, prefix: format!("{case}."), config, float32_error });
        }
    }
}

#[test]
fn every_stage_agrees_with_pytorch() {
    each(|case| {
        let (head, params) = case.head();
        for mode in ["eval", "train"] {
            let seen = RefCell::new(BTreeMap::new());
            let observe = |name: &str, t: &Tensor| {
                seen.borrow_mut().insert(name.to_string(), t.clone());
            };
            let (cx, noise) = match mode {
                "eval" => (Context::eval(&params), None),
                _ => (Context::train(&params, case.groups()), case.noise()),
            };
            head.forward(&cx.observed(&observe), case.get("x"), noise).unwrap();
            for (name, t) in seen.borrow().iter() {
                let key = format!("{mode}.{name}");
                let (err, allowed) = (difference(wide(t.data()), case.get(&key).data()), case.allowed(&key));
                assert!(err <= allowed, "{}{key} is off by {err:.1e}, allowed {allowed:.1e}", case.prefix);
            }
            let stages = 4 + case.config["blocks"].as_u64().unwrap() as usize;
            assert!(seen.borrow().len() >= stages, "stages seen: {:?}", seen.borrow().keys());
        }
        let score = head.score(&Context::eval(&params), case.get("x")).unwrap();
        let (err, allowed) =
            (difference(wide(score.data()), case.get("eval.score").data()), case.allowed("eval.score"));
        assert!(err <= allowed, "{}score is off by {err:.1e}, allowed {allowed:.1e}", case.prefix);
    });
}

#[test]
fn loss_gradients_and_running_statistics_agree_with_pytorch() {
    each(|case| {
        let (head, mut params) = case.head();
        let cx = Context::train(&params, case.groups());
        let loss = head.loss(&cx, case.get("x"), case.noise()).unwrap();
        let (err, allowed) = (difference(wide(loss.data()), case.get("loss").data()), case.allowed("loss"));
        assert!(err <= allowed, "{}loss is off by {err:.1e}, allowed {allowed:.1e}", case.prefix);
        let mut grads = Storage::Host(Buffer::filled(params.trained_range().len(), f32::NAN));
        cx.finish(&loss, &mut params, &mut grads).unwrap();
        for (_, e) in params.entries() {
            let (key, found) = match e.role {
                Role::Statistic => (format!("after.{}", e.name), &params.values()[e.range.clone()]),
                _ => (format!("grad.{}", e.name), &grads.host()[e.range.clone()]),
            };
            let (err, allowed) = (difference(wide(found), case.get(&key).data()), case.allowed(&key));
            assert!(err <= allowed, "{}{key} is off by {err:.1e}, allowed {allowed:.1e}", case.prefix);
        }
    });
}

/// The graph that each head records, replayed by definition in f64: equal to PyTorch's f64 to the last stored bit, and
/// its gradient equal to central differences for elements of every parameter.
#[test]
fn whole_models_pass_a_gradient_check_in_double_precision() {
    const STEP: f64 = 1e-6;
    each(|case| {
        let (head, params) = case.head();
        let cx = Context::replayable(&params, case.groups());
        let leaves: Vec<(String, Tensor)> = params
            .entries()
            .filter(|(_, e)| e.role != Role::Statistic)
            .map(|(id, e)| (e.name.clone(), cx.param(id).clone()))
            .collect();
        let loss = head.loss(&cx, case.get("x"), case.noise()).unwrap();
        let mut replay = Replay::new(cx.into_tape()).unwrap();
        replay.forward();
        let err = difference(replay.value(&loss).iter().copied(), case.get("loss").data());
        assert!(err <= case.rounding("loss"), "{}: the definition's loss is off by {err:.1e}", case.prefix);
        let tensors: Vec<Tensor> = leaves.iter().map(|(_, t)| t.clone()).collect();
        let grads = replay.backward(&loss, &tensors);
        for ((name, leaf), grad) in leaves.iter().zip(&grads) {
            let key = format!("grad.{name}");
            let err = difference(grad.iter().copied(), case.get(&key).data());
            // No gradient flows into the mean that keys are compared with, so it is a constant of the graph, rounded once:
            // by EPSILON / 2 of the largest value at most, in a gradient of 2 / C times it.
            let queries =
                f64::from(f32::EPSILON) * largest(case.get("x").data()) / case.get("x").shape().channels() as f64;
            let allowed = case.rounding(&key) + if name == "global_keys" { queries } else { 0.0 };
            assert!(err <= allowed, "{}{key}: the definition is off by {err:.1e}, allowed {allowed:.1e}", case.prefix);
            // Elements spread evenly over the parameter; a forward pass is needed for each of two sides.
            for i in (0..grad.len()).step_by(grad.len().div_ceil(5)) {
                let at = replay.value(leaf)[i];
                let mut loss_at = |v: f64| {
                    replay.value_mut(leaf)[i] = v;
                    replay.forward();
                    replay.value(&loss)[0]
                };
                let slope = (loss_at(at + STEP) - loss_at(at - STEP)) / (2.0 * STEP);
                replay.value_mut(leaf)[i] = at;
                let err = (slope - grad[i]).abs() / (1.0 + slope.abs());
                assert!(err <= 1e-6, "{}{name}[{i}]: {} but central differences say {slope}", case.prefix, grad[i]);
            }
        }
    });
}
