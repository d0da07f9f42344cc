//! `grad calibrate`: thresholds from good pictures that the model was not trained on.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};

use super::model_args::ModelArgs;
use super::pictures::NAMED;
use super::thresholds;
use super::ui::{OutputArgs, Ui, count};
use crate::calibrate::{Calibration, DEFAULT_TARGET, GoodScore};
use crate::checkpoint::save_model;
use crate::config::{Cache, Config, SourceArgs, suggest};
use crate::data::finding::brief;
use crate::data::{Dataset, Item, fingerprint};
use crate::detector::Detector;
use crate::error::{Error, Result};
use crate::features::Features;
use crate::golden;

const MORE: &str = "\
Without --good, from the pictures that training held out. A picture is called
anomalous if it scores above the threshold, which rejects as many good parts as
you allow, as far as the number of pictures can promise that. The thresholds are
written into the model file.

Examples:
  grad calibrate runs/parts --target-frr 0.005
  grad calibrate runs/parts --good more_good_parts
  grad calibrate runs/parts --good belt/bolts --class bolt";

/// Set thresholds from good pictures, for a share of false rejects
#[derive(clap::Args)]
#[command(after_help = MORE)]
pub struct CalibrateArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// Good pictures it was not trained on; may be repeated
    #[arg(long, value_name = "DIR", help_heading = "Pictures")]
    good: Vec<PathBuf>,
    /// What they show [default: by folder]
    #[arg(long, value_name = "NAME", requires = "good", help_heading = "Pictures")]
    class: Option<String>,
    /// Keeps features here [default: .grad/cache]
    #[arg(long, env = "GRAD_CACHE", value_name = "DIR|none", help_heading = "Pictures")]
    cache: Option<Cache>,
    /// Share of good parts that may be rejected [default: 0.01]
    #[arg(long, value_name = "X", help_heading = "Thresholds")]
    target_frr: Option<f64>,
    #[command(flatten)]
    output: OutputArgs,
}

pub fn run(args: CalibrateArgs) -> Result<()> {
    let CalibrateArgs { model, good, class, cache, target_frr, output } = args;
    let ui = Ui::new(output);
    let file = model.file();
    let source = SourceArgs { cache, ..Default::default() };
    model.with_detector(&ui, source, |config, mut detector| {
        let before = detector.info.calibration.take();
        let target = target_frr.or(before.as_ref().map(Calibration::target)).unwrap_or(DEFAULT_TARGET);
        let calibration = match before {
            _ if !good.is_empty() => from_pictures(&ui, &config, &mut detector, &good, class.as_deref(), target)?,
            Some(calibration) => calibration.with_target(target)?,
            None => {
                let help = "give good pictures it was not trained on by --good, or train with --hold-out 0.1";
                return Err(Error::model(&file, "nothing was held out when it was trained", help));
            }
        };
        detector.info.calibration = Some(calibration.clone());
        save_model(&file, &detector.info, &detector.params)?;
        ui.note("written", file.display());
        ui.result(&thresholds::json(&calibration), thresholds::table(&calibration))
    })
}

/// Scores the good pictures of some folders. A model that was imported also gets the scale of its heat maps and golden
/// pictures from them.
fn from_pictures(
    ui: &Ui,
    config: &Config,
    detector: &mut Detector,
    folders: &[PathBuf],
    class: Option<&str>,
    target: f64,
) -> Result<Calibration> {
    let dataset = Dataset::open(folders)?;
    brief(&dataset.findings, NAMED).iter().for_each(|finding| ui.warn(finding));
    let known = &detector.info.classes;
    if let Some(unknown) = class.filter(|name| !known.is_empty() && !known.iter().any(|k| k == name)) {
        let what = format!("the model was not trained on a class `{unknown}`");
        return Err(Error::config(what, suggest(unknown, known)));
    }
    let items = unseen(ui, &dataset, &detector.info.trained_on, &folders[0])?;
    let paths: Vec<&Path> = items.iter().map(|item| item.path.as_path()).collect();
    let features = {
        let bar = ui.bar("features", paths.len());
        let cache = config.cache.folder();
        Features::open_or_compute(cache, &detector.backbone, config.image_size, &paths, &|done, _| bar.at(done))?
    };
    let scored = detector.good_scores(&features)?;
    let mut scores: BTreeMap<String, Vec<GoodScore>> = BTreeMap::new();
    for (item, score) in items.iter().zip(scored) {
        let folder = dataset.class_of(item);
        // A folder of pictures of the only class there is need not have its name.
        let name = match (class, &known[..]) {
            (Some(name), _) => name,
            (None, [only]) => only,
            (None, _) => folder,
        };
        scores.entry(name.to_owned()).or_default().push(score);
    }
    for unknown in scores.keys().filter(|name| !known.is_empty() && !known.contains(name)) {
        ui.warn(format_args!("{unknown}: the model was not trained on this class; --class says which one it is"));
    }
    if detector.info.score_scale.is_none() {
        detector.info.score_scale = detector.measure_scale(&features)?;
    }
    if detector.info.golden.is_empty() {
        let step = items.len().div_ceil(golden::COUNT);
        let chosen: Vec<&Item> = items.iter().step_by(step).copied().collect();
        detector.info.golden = golden::of_items(detector, &dataset, &chosen)?;
    }
    Calibration::new(target, &scores)
}

/// The good pictures that the model was not trained on.
fn unseen<'a>(ui: &Ui, dataset: &'a Dataset, trained_on: &[u64], folder: &Path) -> Result<Vec<&'a Item>> {
    let trained_on: HashSet<u64> = trained_on.iter().copied().collect();
    let good: Vec<&Item> = dataset.items.iter().filter(|item| item.label.is_good()).collect();
    let mut unseen = vec![];
    for &item in &good {
        if !trained_on.contains(&fingerprint(&item.path)?) {
            unseen.push(item);
        }
    }
    let seen = good.len() - unseen.len();
    if unseen.is_empty() {
        let what = match seen {
            0 => "holds no picture of a good part".to_owned(),
            _ => format!("holds no good picture but the {} that the model was trained on", count(seen, "picture")),
        };
        return Err(Error::data(folder, what, "give pictures of good parts that were not used for training"));
    }
    if seen > 0 {
        ui.warn(format_args!("left out {} that the model was trained on", count(seen, "picture")));
    }
    if trained_on.is_empty() {
        ui.warn("the model does not say what it was trained on: make sure that it was none of these pictures");
    }
    let defects = dataset.items.len() - good.len();
    let left_out =
        if defects == 0 { String::new() } else { format!("; {} left out", count(defects, "defective picture")) };
    ui.note("data", format_args!("{} of good parts{left_out}", count(unseen.len(), "picture")));
    Ok(unseen)
}
