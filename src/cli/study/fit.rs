//! A run of a baseline: fitted to the cached features of good pictures, one model for all classes or one for each, and
//! measured as trained models are. It is never stored: fitting again takes less time than it would to read most of them.

use std::collections::BTreeMap;

use super::super::interrupt;
use super::super::train::inputs::Inputs;
use super::super::ui::Ui;
use crate::baseline::{ImageScore, Method, Progress, Scoring};
use crate::config::Config;
use crate::data::Split;
use crate::error::{Error, Result};
use crate::evaluate::evaluate;
use crate::metrics::Metrics;
use crate::score::Protocol;
use crate::study::Run;

/// Fits and measures.
///
/// # Errors
/// What the method and the pictures refuse; [`Error::Interrupted`] when the user asks to stop.
pub fn measured(ui: &Ui, config: &Config, inputs: &Inputs, method: Method, seed: u64, go_on: &str) -> Result<Run> {
    let classes = &inputs.pictures.dataset.classes;
    let parts: Vec<Inputs> =
        if config.separate { classes.iter().map(|c| inputs.of_class(c)).collect() } else { vec![] };
    let parts: Vec<&Inputs> = if config.separate { parts.iter().collect() } else { vec![inputs] };
    let (mut all, mut seconds): (Vec<Metrics>, f64) = (vec![], 0.0);
    for part in parts {
        let (cached, dataset) = (part.cached(), &part.pictures.dataset);
        let shape = cached.features.shape();
        let fitted = {
            let bar = ui.bar("fit", 1);
            let watch = |progress: Progress| {
                bar.message(format!("{} {} of {}", progress.stage, progress.done, progress.total));
                match interrupt::requested() {
                    false => Ok(()),
                    true => Err(Error::Interrupted(format!("all finished runs are kept\n  go on with: {go_on}"))),
                }
            };
            method.fit(&cached.select(Split::Train), shape, seed, &watch)?
        };
        seconds += fitted.seconds;
        ui.note("fitted", format_args!("{:.1} s, {}", fitted.seconds, fitted.baseline.describe()));
        let protocol = Protocol::official();
        let scoring = Scoring {
            baseline: &*fitted.baseline,
            size: [shape[0], shape[1]],
            protocol: &protocol,
            image_size: config.image_size,
            // As published for the method, where it has a score of its own.
            image: ImageScore::Own,
        };
        let test = cached.select(Split::Test);
        let bar = ui.bar("evaluate", test.items().len());
        all.push(evaluate(&scoring, dataset, &test.items(), &test, &|n| bar.advance(n))?);
    }
    let metrics = Metrics::joined(all).expect("there is at least one class");
    // A baseline reconstructs nothing.
    Ok(Run { seed, seconds, metrics, survival: BTreeMap::new() })
}
