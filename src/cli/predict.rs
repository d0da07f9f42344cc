//! `grad predict`: score, threshold, p-value and verdict of each picture, and a heat map. As many rows come out as pictures
//! went in: one that cannot be read is a row that says so.

mod jobs;
mod row;

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use image::RgbImage;
use npyz::WriterBuilder;
use rayon::prelude::*;

use super::model_args::ModelArgs;
use super::ui::{OutputArgs, Ui, count};
use crate::atomic::write_atomic;
use crate::calibrate::Rule;
use crate::config::{SourceArgs, suggest};
use crate::data::{Picture, decode_file};
use crate::detector::{Detector, Painting};
use crate::error::{Error, Result};
use crate::heatmap::{Legend, overlay, regions, write_png};
use crate::score::Scored;
use jobs::{Job, collect};
use row::{Judged, Row};

/// Pictures that are held at a time; rows appear as each lot is done. On a device a lot is two batches, so that one is read
/// while the other is scored.
const LOT: usize = 16;
const LOT_ON_A_DEVICE: usize = 64;

const MORE: &str = "\
A picture is anomalous if its score is above the threshold, which comes from
good pictures that were held out: `grad calibrate`. The p-value is the share of
good pictures that would score as high. The model needs no class; with --class
it uses the threshold of that class. Heat maps are painted above the threshold
alone, all on one scale. A picture that cannot be read gets a row that says so;
the exit code is then 3, after all others are done.

Examples:
  grad predict runs/parts photo.jpg
  grad predict runs/parts belt/ --class bolt --out belt_maps --csv belt.csv
  grad predict runs/parts 'belt/*.png' --json --fail-on-anomaly > rows.jsonl";

/// Judge pictures, and paint a heat map of each
#[derive(clap::Args)]
#[command(after_help = MORE)]
pub struct PredictArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// Pictures, folders of pictures, and patterns like 'belt/*.png'
    #[arg(value_name = "PATH", required = true, help_heading = Option::<&str>::None)]
    paths: Vec<PathBuf>,
    /// What they show [default: any class]
    #[arg(long, value_name = "NAME", help_heading = "Verdict")]
    class: Option<String>,
    /// Share of good parts that may be rejected [default: the model's]
    #[arg(long, value_name = "X", help_heading = "Verdict")]
    target_frr: Option<f64>,
    /// Exit with 1 if any picture is anomalous
    #[arg(long, help_heading = "Verdict")]
    fail_on_anomaly: bool,
    /// Folder for the heat maps, or none
    #[arg(long, value_name = "DIR|none", default_value = "heatmaps", help_heading = "Output")]
    out: PathBuf,
    /// Folder for the maps as numbers, .npy
    #[arg(long, value_name = "DIR", help_heading = "Output")]
    maps: Option<PathBuf>,
    /// All rows as a CSV file
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    csv: Option<PathBuf>,
    #[command(flatten)]
    output: OutputArgs,
}

pub fn run(args: PredictArgs) -> Result<()> {
    let PredictArgs { model, paths, class, target_frr, fail_on_anomaly, out, maps, csv, output } = args;
    let ui = Ui::new(output);
    let file = model.file();
    model.with_detector(&ui, SourceArgs::default(), |_, detector| {
        let rule = rule(&detector, &file, class.as_deref(), target_frr)?;
        if rule.is_none() && fail_on_anomaly {
            let help = "set one: `grad calibrate MODEL --good DIR`";
            return Err(Error::model(file, "holds no threshold, so nothing can be called anomalous", help));
        }
        match &rule {
            Some(rule) => ui.note("threshold", format_args!("{:.4}: {}", rule.threshold(), rule.promise())),
            None => ui.warn("the model holds no threshold, so there are no verdicts: `grad calibrate` sets one"),
        }
        let painting = detector.painting(rule.as_ref());
        let out = Some(out.as_path()).filter(|out| out.as_os_str() != "none");
        if out.is_some() && painting.is_none() {
            ui.warn("the model file holds no scale for heat maps, so none are painted");
        }
        let heatmaps = painting.zip(out);
        let jobs = collect(&paths, heatmaps.map(|(_, out)| out))?;
        let rows = Prediction { detector: &detector, rule, heatmaps, maps: maps.as_deref() }.all(&ui, &jobs)?;
        if let Some(file) = &csv {
            row::write_csv(file, &rows)?;
        }
        if let Some((_, out)) = heatmaps {
            ui.note(
                "heatmaps",
                format_args!("{} in {}", rows.iter().filter(|r| r.heatmap.is_some()).count(), out.display()),
            );
        }
        conclude(&paths, &rows, fail_on_anomaly)
    })
}

/// How the pictures are judged; `None` without a calibration.
fn rule(detector: &Detector, file: &Path, class: Option<&str>, target: Option<f64>) -> Result<Option<Rule>> {
    let known = &detector.info.classes;
    if let Some(unknown) = class.filter(|name| !known.is_empty() && !known.iter().any(|k| k == name)) {
        let what = format!("the model was not trained on a class `{unknown}`");
        return Err(Error::config(what, suggest(unknown, known)));
    }
    let Some(calibration) = detector.info.calibration.clone() else {
        return match class.is_some() || target.is_some() {
            false => Ok(None),
            true => {
                let help = "set thresholds: `grad calibrate MODEL --good DIR`";
                Err(Error::model(file, "holds no thresholds, so neither --class nor --target-frr has a meaning", help))
            }
        };
    };
    let calibration = match target {
        Some(target) => calibration.with_target(target)?,
        None => calibration,
    };
    match calibration.rule(class) {
        Some(rule) => Ok(Some(rule)),
        None => {
            let what =
                format!("no picture of class `{}` was held out, so it has no threshold", class.unwrap_or_default());
            let help = "leave --class out, or calibrate with good pictures of it: `grad calibrate MODEL --good DIR --class NAME`";
            Err(Error::model(file, what, help))
        }
    }
}

/// What the exit code says.
fn conclude(paths: &[PathBuf], rows: &[Row], fail_on_anomaly: bool) -> Result<()> {
    let failed = rows.iter().filter(|row| row.error.is_some()).count();
    let anomalous = rows.iter().filter(|row| row.judged.as_ref().is_some_and(Judged::is_anomalous)).count();
    if failed > 0 {
        return Err(Error::data(
            paths.first().map_or(Path::new(""), PathBuf::as_path),
            format!("{failed} of {} could not be scored", count(rows.len(), "picture")),
            "the rows that say `error` name them, and say why",
        ));
    }
    if fail_on_anomaly && anomalous > 0 {
        return Err(Error::Anomalous(format!("{anomalous} of {} anomalous", count(rows.len(), "picture"))));
    }
    Ok(())
}

/// What is done to every picture.
struct Prediction<'a> {
    detector: &'a Detector,
    rule: Option<Rule>,
    heatmaps: Option<(Painting, &'a Path)>,
    maps: Option<&'a Path>,
}

impl Prediction<'_> {
    /// Judges all pictures, and prints each row as it is done.
    fn all(&self, ui: &Ui, jobs: &[Job]) -> Result<Vec<Row>> {
        let calibrated = self.rule.is_some();
        if !ui.json {
            ui.print(row::header(calibrated))?;
        }
        let bar = ui.bar("predict", jobs.len());
        let mut all = Vec::with_capacity(jobs.len());
        let on_device = self.detector.params.storage().gpu().is_some();
        for lot in jobs.chunks(if on_device { LOT_ON_A_DEVICE } else { LOT }) {
            let rows = self.lot(lot)?;
            let print = |row: &Row| {
                if let Some(error) = row.error.as_ref().filter(|_| !ui.json) {
                    ui.warn(error);
                }
                ui.result(row, row.line(calibrated))
            };
            bar.aside(|| rows.iter().try_for_each(print))?;
            bar.advance(lot.len());
            all.extend(rows);
        }
        assert_eq!(all.len(), jobs.len(), "one row per picture");
        Ok(all)
    }

    /// Judges a lot, in order: read and scored on all threads, or scored on a device while more are read; painted on all
    /// threads.
    fn lot(&self, lot: &[Job]) -> Result<Vec<Row>> {
        let mut read: Vec<OnceLock<Result<Picture>>> = lot.iter().map(|_| OnceLock::new()).collect();
        let read_once = |i: usize| read[i].get_or_init(|| decode_file(&lot[i].picture)).as_ref().ok();
        let scored = self.detector.score_read(lot.len(), &read_once)?;
        let outcomes = read.iter_mut().zip(scored).map(|(read, scored)| {
            let picture = read.take().expect("every picture was asked for")?;
            Ok((picture, scored.expect("what could be read was scored")))
        });
        let outcomes: Vec<(&Job, Result<(Picture, Scored)>)> = lot.iter().zip(outcomes).collect();
        let row = |(job, outcome): (&Job, Result<(Picture, Scored)>)| {
            match outcome.and_then(|(picture, scored)| self.row(job, picture, &scored)) {
                // What is wrong with a picture is that picture's matter; a full disk is everybody's.
                Err(e @ (Error::Io { action: "read", .. } | Error::Data { .. })) => Ok(Row {
                    path: job.picture.display().to_string(),
                    score: None,
                    judged: None,
                    heatmap: None,
                    map: None,
                    error: Some(e.to_string()),
                }),
                row => row,
            }
        };
        outcomes.into_par_iter().map(row).collect()
    }

    /// The verdict of a picture, and where its files were written.
    fn row(&self, job: &Job, picture: Picture, scored: &Scored) -> Result<Row> {
        let score = scored.image_score;
        if !score.is_finite() {
            let help = "the model is damaged, or the picture is like nothing it can handle";
            return Err(Error::data(&job.picture, format!("its score is {score}"), help));
        }
        let judged = self.rule.as_ref().map(|rule| {
            let verdict = rule.judge(score);
            let size = [picture.width, picture.height];
            let above = |level: f32| regions(&scored.map, scored.height, scored.width, level, size);
            let mut found = above(rule.pixel_threshold());
            // A picture may be anomalous all over and nowhere in particular: then where it is more than good ones are.
            if found.is_empty() && verdict.anomalous {
                found = above(verdict.threshold);
            }
            Judged::new(verdict, found)
        });
        let map = self.maps.map(|folder| write_map(&job.file_in(folder, "npy"), scored)).transpose()?;
        let heatmap = self
            .heatmaps
            .map(|(painting, folder)| paint(picture, scored, painting, judged.as_ref(), &job.file_in(folder, "png")));
        let path = job.picture.display().to_string();
        Ok(Row { path, score: Some(score), judged, heatmap: heatmap.transpose()?, map, error: None })
    }
}

fn paint(
    picture: Picture,
    scored: &Scored,
    painting: Painting,
    judged: Option<&Judged>,
    path: &Path,
) -> Result<String> {
    let Picture { width, height, rgb } = picture;
    let picture = RgbImage::from_raw(width as u32, height as u32, rgb).expect("three bytes a pixel");
    let Painting { scale, contour } = painting;
    let painted = overlay(&picture, &scored.map, scored.height, scored.width, scale, Some(contour))?;
    let note = judged.map_or("smoothed map", |judged| judged.verdict);
    let legend = Legend { scale, score: Some(scored.image_score), note };
    create_parent(path)?;
    write_png(path, &legend.below(&painted))?;
    Ok(path.display().to_string())
}

/// The map that was scored, `[height, width]`, f32, neither scaled nor clamped.
fn write_map(path: &Path, scored: &Scored) -> Result<String> {
    create_parent(path)?;
    write_atomic(path, |file| {
        let shape = [scored.height as u64, scored.width as u64];
        let mut npy = npyz::WriteOptions::new().default_dtype().shape(&shape).writer(file).begin_nd()?;
        npy.extend(scored.map.iter().copied())?;
        npy.finish()
    })?;
    Ok(path.display().to_string())
}

fn create_parent(path: &Path) -> Result<()> {
    let Some(folder) = path.parent() else { return Ok(()) };
    std::fs::create_dir_all(folder).map_err(|e| Error::io("create", folder, &e))
}
