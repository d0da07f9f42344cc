//! Thresholds as people read them: per class and for any class, with what they promise.

use serde_json::{Value, json};

use crate::calibrate::{Calibration, Rule};

/// How the rule for pictures of unknown class is called.
const ANY: &str = "any class";

/// Every rule by name, the one for any class last.
fn rules(calibration: &Calibration) -> impl Iterator<Item = (&str, Rule)> {
    let classes = calibration.classes().map(Some).chain([None]);
    classes.filter_map(|class| Some((class.unwrap_or(ANY), calibration.rule(class)?)))
}

/// One row per class and one for any class.
pub fn table(calibration: &Calibration) -> String {
    let rows: Vec<_> = rules(calibration).collect();
    let wide = rows.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    let mut text = format!("{:<wide$}  threshold  map above  good parts rejected in 1000\n", "class");
    for (name, rule) in &rows {
        let [low, high] = rule.interval().map(|share| 1000.0 * share);
        let expected = 1000.0 * rule.expected();
        let few = if rule.keeps_target() { "" } else { "  too few pictures" };
        text += &format!(
            "{name:<wide$}  {:>9.4}  {:>9.4}  {expected:>4.0} ({low:.0} to {high:.0}), {} held out{few}\n",
            rule.threshold(),
            rule.pixel_threshold(),
            rule.held_out(),
        );
    }
    text
}

/// What the table says, in words, about pictures of any class.
pub fn promise(calibration: &Calibration) -> String {
    let rule = calibration.rule(None).expect("a calibration holds scores");
    format!("{:.4}: {}", rule.threshold(), rule.promise())
}

/// The same for machines.
pub fn json(calibration: &Calibration) -> Value {
    let of = |rule: &Rule| {
        json!({
            "threshold": rule.threshold(),
            "pixel_threshold": rule.pixel_threshold(),
            "held_out": rule.held_out(),
            "expected_frr": rule.expected(),
            "frr_interval": rule.interval(),
            "keeps_target": rule.keeps_target(),
            "promise": rule.promise(),
        })
    };
    let classes = calibration.classes().filter_map(|name| Some((name.to_owned(), of(&calibration.rule(Some(name))?))));
    json!({
        "target_frr": calibration.target(),
        "classes": classes.collect::<serde_json::Map<_, _>>(),
        "any": calibration.rule(None).as_ref().map(of),
    })
}
