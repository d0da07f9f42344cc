//! How long a picture takes, stage by stage: one picture after the other, from its file to its score.

use std::path::Path;
use std::time::Instant;

use crate::data::{decode_file, preprocess};
use crate::detector::Detector;
use crate::error::Result;
use crate::report::{Speed, Timing};

/// Pictures that are timed, at most.
const TIMED: usize = 100;
/// Pictures that go first and are not timed: caches fill, threads start, clocks rise.
const WARM_UP: usize = 3;

const STAGES: [&str; 4] = ["read and decode", "resize and normalise", "backbone", "head and score"];

/// Times pictures that can be read; `None` if there are none.
///
/// # Errors
/// What decoding and the device refuse.
pub fn measure(detector: &Detector, paths: &[&Path], device: &str) -> Result<Option<Speed>> {
    let timed = paths.len().min(TIMED);
    let mut durations: [Vec<f64>; STAGES.len()] = Default::default();
    let (size, backbone) = (detector.info.image_size, &detector.backbone);
    for i in 0..if timed == 0 { 0 } else { timed + WARM_UP } {
        let mut last = Instant::now();
        let mut lap = || std::mem::replace(&mut last, Instant::now()).elapsed().as_secs_f64() * 1e3;
        // Evenly spread over all of them.
        let path = paths[i.saturating_sub(WARM_UP) * paths.len() / timed];
        let picture = decode_file(path)?;
        let decode = lap();
        let prepared = preprocess(&picture, size, backbone.mean(), backbone.std());
        let prepare = lap();
        let features = backbone.forward(&backbone.input(size, &[&prepared])?)?;
        // Also what ends the work of a device.
        let features = features.to_host()?;
        let extract = lap();
        detector.score_features(&[features.data()])?;
        let score = lap();
        if i >= WARM_UP {
            durations.iter_mut().zip([decode, prepare, extract, score]).for_each(|(all, one)| all.push(one));
        }
    }
    if timed == 0 {
        return Ok(None);
    }
    let totals = (0..timed).map(|i| durations.iter().map(|stage| stage[i]).sum()).collect();
    let conditions = format!("{device}; one picture at a time, after {WARM_UP} that were not timed");
    let stages = STAGES.into_iter().zip(durations).map(|(name, all)| timing(name, all)).collect();
    Ok(Some(Speed { conditions, total: timing("from file to score", totals), stages }))
}

/// Median and 99 % quantile, each the smallest time that is not exceeded by that share of them.
fn timing(name: &str, mut all: Vec<f64>) -> Timing {
    all.sort_by(f64::total_cmp);
    let quantile = |q: f64| all[((all.len() as f64 * q).ceil() as usize).clamp(1, all.len()) - 1];
    Timing { name: name.into(), p50_ms: quantile(0.5), p99_ms: quantile(0.99), n: all.len() }
}
