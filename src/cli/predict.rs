//! `grad predict`: a score and a heat map for each picture. As many rows come out as pictures went in: one that cannot
//! be read is a row that says so.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use image::RgbImage;
use rayon::prelude::*;
use serde::Serialize;
use walkdir::WalkDir;

use super::machine;
use super::ui::{OutputArgs, Ui, count};
use crate::config::{Config, ExtractorArgs, MachineArgs, Settings};
use crate::data::decode::EXTENSIONS;
use crate::data::{Picture, decode_file};
use crate::detector::Detector;
use crate::error::{Error, Result};
use crate::heatmap::{Legend, Scale, overlay, write_png};
use crate::score::Scored;

/// Pictures that are held at a time; rows appear as each lot is done.
const LOT: usize = 16;

const MORE: &str = "\
The higher a score, the less a picture looks like those of training. One that
cannot be read gets a row that says so; the exit code is then 3, after all
others are done.

Examples:
  grad predict runs/parts photo.jpg
  grad predict runs/parts belt/ --out belt_maps
  grad predict runs/parts belt/ --json > scores.jsonl";

/// Score pictures, and paint a heat map of each
#[derive(clap::Args)]
#[command(after_help = MORE)]
pub struct PredictArgs {
    /// A run's folder, or its model.safetensors
    #[arg(value_name = "MODEL")]
    model: PathBuf,
    /// Pictures, and folders of pictures
    #[arg(value_name = "PATH", required = true)]
    paths: Vec<PathBuf>,
    /// Folder for the heat maps, or none
    #[arg(long, value_name = "DIR|none", default_value = "heatmaps", help_heading = "Output")]
    out: PathBuf,
    #[command(flatten)]
    machine: MachineArgs,
    /// Weights of the backbone [default: built in]
    #[arg(long, env = "GRAD_BACKBONE_WEIGHTS", value_name = "FILE", help_heading = "Machine")]
    backbone_weights: Option<PathBuf>,
    #[command(flatten)]
    output: OutputArgs,
}

/// A picture to be scored, and where its heat map goes.
struct Job {
    picture: PathBuf,
    heatmap: Option<PathBuf>,
}

/// A line of output.
#[derive(Serialize)]
struct Row {
    path: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    score: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    heatmap: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

pub fn run(args: PredictArgs) -> Result<()> {
    let PredictArgs { model, paths, out, machine, backbone_weights, output } = args;
    let ui = Ui::new(output);
    let extractor = ExtractorArgs { backbone_weights, ..Default::default() };
    let config = Config::settle(Settings { machine, extractor, ..Default::default() })?;
    let detector = Detector::load(&model, config.backbone_weights.as_deref())?;
    machine::on_device(&ui, &config, Some(detector.info.train.precision), |device| {
        let detector = detector.to(device)?;
        detector.backbone.doubts().iter().for_each(|doubt| ui.warn(doubt));
        ui.note("model", format_args!("{} on {}", detector.info.head.kind.name(), detector.info.backbone));
        predict(&ui, &detector, &paths, Some(out.as_path()).filter(|out| out.as_os_str() != "none"))
    })
}

fn predict(ui: &Ui, detector: &Detector, paths: &[PathBuf], out: Option<&Path>) -> Result<()> {
    let scale = detector.heat_scale();
    if out.is_some() && scale.is_none() {
        ui.warn("the model file holds no scale for heat maps, so none are painted");
    }
    let maps = scale.zip(out);
    let jobs = collect(paths, maps.map(|(_, out)| out))?;
    if !ui.json {
        ui.print(format_args!("{:>10}  picture\n", "score"))?;
    }
    let mut failed = 0;
    let bar = ui.bar("predict", jobs.len());
    for lot in jobs.chunks(LOT) {
        let rows = score(detector, scale, lot)?;
        failed += rows.iter().filter(|row| row.error.is_some()).count();
        bar.aside(|| rows.iter().try_for_each(|row| print(ui, row)))?;
        bar.advance(lot.len());
    }
    drop(bar);
    if let Some((_, out)) = maps {
        ui.note("heatmaps", format_args!("{} in {}", jobs.len() - failed, out.display()));
    }
    match failed {
        0 => Ok(()),
        _ => Err(Error::data(
            paths.first().map_or(Path::new(""), PathBuf::as_path),
            format!("{failed} of {} could not be scored", count(jobs.len(), "picture")),
            "the rows that say `error` name them, and say why",
        )),
    }
}

fn print(ui: &Ui, row: &Row) -> Result<()> {
    let score = row.score.map_or("error".into(), |score| format!("{score:.4}"));
    if let Some(error) = row.error.as_ref().filter(|_| !ui.json) {
        ui.warn(error);
    }
    ui.result(row, format_args!("{score:>10}  {}\n", row.path))
}

/// Scores a lot, in order: read on all threads, scored together, painted on all threads.
fn score(detector: &Detector, scale: Option<Scale>, lot: &[Job]) -> Result<Vec<Row>> {
    let (mut pictures, mut read) = (vec![], vec![]);
    for picture in lot.par_iter().map(|job| decode_file(&job.picture)).collect::<Vec<_>>() {
        read.push(picture.map(|picture| pictures.push(picture)));
    }
    let scored = detector.score_pictures(&pictures)?;
    let mut each = pictures.into_iter().zip(scored);
    let outcomes = read.into_iter().map(|read| read.map(|()| each.next().expect("every picture was scored")));
    let outcomes: Vec<(&Job, Result<(Picture, Scored)>)> = lot.iter().zip(outcomes).collect();
    let row = |(job, outcome): (&Job, Result<(Picture, Scored)>)| {
        let path = job.picture.display().to_string();
        match outcome.and_then(|(picture, scored)| finish(job, scale, picture, &scored)) {
            Ok((score, heatmap)) => Ok(Row { path, score: Some(score), heatmap, error: None }),
            // What is wrong with a picture is that picture's matter; a full disk is everybody's.
            Err(e @ (Error::Io { action: "read", .. } | Error::Data { .. })) => {
                Ok(Row { path, score: None, heatmap: None, error: Some(e.to_string()) })
            }
            Err(e) => Err(e),
        }
    };
    outcomes.into_par_iter().map(row).collect()
}

/// The score, checked, and where its heat map was written.
fn finish(job: &Job, scale: Option<Scale>, picture: Picture, scored: &Scored) -> Result<(f32, Option<String>)> {
    if !scored.image_score.is_finite() {
        let help = "the model is damaged, or the picture is like nothing it can handle";
        return Err(Error::data(&job.picture, format!("its score is {}", scored.image_score), help));
    }
    let heatmap = match (scale, &job.heatmap) {
        (Some(scale), Some(path)) => Some(paint(picture, scored, scale, path)?),
        _ => None,
    };
    Ok((scored.image_score, heatmap))
}

fn paint(picture: Picture, scored: &Scored, scale: Scale, path: &Path) -> Result<String> {
    let Picture { width, height, rgb } = picture;
    let picture = RgbImage::from_raw(width as u32, height as u32, rgb).expect("three bytes a pixel");
    let painted = overlay(&picture, &scored.map, scored.height, scored.width, scale, true)?;
    let legend = Legend { scale, score: Some(scored.image_score), note: "smoothed map" };
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(|e| Error::io("create", folder, &e))?;
    }
    write_png(path, &legend.below(&painted))?;
    Ok(path.display().to_string())
}

/// The pictures that `paths` name, in order: files as they are, folders by the bytes of their paths. A file that is not
/// there stays in the list, so that its row says so.
fn collect(paths: &[PathBuf], out: Option<&Path>) -> Result<Vec<Job>> {
    let mut taken = HashSet::new();
    let mut jobs = Vec::new();
    let mut add = |picture: PathBuf, name: &Path| {
        let heatmap = out.map(|out| out.join(unused(&mut taken, name)));
        jobs.push(Job { picture, heatmap });
    };
    for path in paths {
        if !path.is_dir() {
            add(path.clone(), Path::new(path.file_name().unwrap_or_default()));
            continue;
        }
        if let Some(out) = out.filter(|out| lies_in(out, path)) {
            return Err(Error::config(
                format!("heat maps in {} would be taken for pictures of {}", out.display(), path.display()),
                "choose an --out that is not in the folder of the pictures",
            ));
        }
        let pictures = pictures_below(path)?;
        if pictures.is_empty() {
            let help = format!("pictures are files that end in {}", EXTENSIONS.join(", "));
            return Err(Error::data(path, "holds no picture", help));
        }
        for picture in pictures {
            let name = picture.strip_prefix(path).unwrap_or(&picture).to_owned();
            add(picture, &name);
        }
    }
    let pictures: HashSet<PathBuf> = jobs.iter().filter_map(|job| job.picture.canonicalize().ok()).collect();
    let overwritten = |map: &&PathBuf| map.canonicalize().is_ok_and(|full| pictures.contains(&full));
    if let Some(map) = jobs.iter().filter_map(|job| job.heatmap.as_ref()).find(overwritten) {
        let what = format!("{} is a picture, and its heat map would overwrite it", map.display());
        return Err(Error::config(what, "choose an --out that is not the folder of the pictures"));
    }
    Ok(jobs)
}

/// The pictures in a folder and all folders in it. Hidden ones and links to folders are left out.
fn pictures_below(folder: &Path) -> Result<Vec<PathBuf>> {
    let hidden =
        |entry: &walkdir::DirEntry| entry.depth() > 0 && entry.file_name().as_encoded_bytes().starts_with(b".");
    let is_picture = |path: &Path| {
        let extension = path.extension().map(|e| e.to_string_lossy().to_ascii_lowercase());
        extension.is_some_and(|e| EXTENSIONS.contains(&e.as_str()))
    };
    let mut found = Vec::new();
    for entry in WalkDir::new(folder).sort_by_file_name().into_iter().filter_entry(|entry| !hidden(entry)) {
        let entry = entry.map_err(|e| {
            let at = e.path().unwrap_or(folder).to_owned();
            Error::io("read", at, &e.into())
        })?;
        if !entry.path().is_dir() && is_picture(entry.path()) {
            found.push(entry.into_path());
        }
    }
    Ok(found)
}

/// `a/b.jpg` -> `a/b.png`, or `a/b-2.png` if that is taken: pictures from several folders may have the same name.
fn unused(taken: &mut HashSet<PathBuf>, name: &Path) -> PathBuf {
    let stem = name.file_stem().unwrap_or_default().to_string_lossy();
    let numbered = (2..).map(|n| name.with_file_name(format!("{stem}-{n}.png")));
    let mut candidates = std::iter::once(name.with_file_name(format!("{stem}.png"))).chain(numbered);
    candidates.find(|candidate| taken.insert(candidate.clone())).expect("there is always a higher number")
}

/// Whether `out` is `folder` or will lie in it.
fn lies_in(out: &Path, folder: &Path) -> bool {
    let there = out.ancestors().find(|a| a.exists()).unwrap_or(Path::new(""));
    let full = |path: &Path| match path.as_os_str().is_empty() {
        true => Path::new(".").canonicalize(),
        false => path.canonicalize(),
    };
    let (Ok(there_full), Ok(folder)) = (full(there), full(folder)) else { return false };
    there_full.join(out.strip_prefix(there).unwrap_or(out)).starts_with(folder)
}
