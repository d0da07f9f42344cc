//! `grad decoder`: the network that paints features, trained beside a model's run.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::json;

use super::interrupt;
use super::model_args::{ModelArgs, pictures_of};
use super::pictures::Pictures;
use super::ui::{OutputArgs, Ui, count};
use crate::config::SourceArgs;
use crate::data::{Split, fingerprint, hold_out};
use crate::decoder::{DecoderConfig, DecoderInfo, DecoderTrainer, DecoderTraining, Targets, load_unfinished, save};
use crate::detector::Detector;
use crate::error::{Error, Result};
use crate::train::FeatureSource;

/// At most this much work is lost when the process is killed.
const CHECKPOINT_EVERY: Duration = Duration::from_secs(30);

const MORE: &str = "\
Learns from the good pictures that the model learnt from, one decoder for all
classes, and has no part in any score. Ctrl-C saves; the same command goes on,
to the same bits.

Examples:
  grad decoder runs/parts
  grad report runs/parts --decoder runs/parts/decoder.safetensors";

/// Train what shows features and reconstructions as pictures
#[derive(clap::Args)]
#[command(after_help = MORE)]
pub struct DecoderArgs {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    source: SourceArgs,
    /// Times every picture is seen [default: 20, more for few pictures]
    #[arg(long, value_name = "N", help_heading = "Training")]
    epochs: Option<usize>,
    /// Seed of start values and order
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = "Training")]
    seed: u64,
    /// Where to write it [default: decoder.safetensors beside the model]
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    out: Option<PathBuf>,
    #[command(flatten)]
    output: OutputArgs,
}

pub fn run(args: DecoderArgs) -> Result<()> {
    let DecoderArgs { model, source, epochs, seed, out, output } = args;
    let ui = Ui::new(output);
    let out = out.unwrap_or_else(|| model.file().with_file_name("decoder.safetensors"));
    interrupt::watch()?;
    model.with_detector(&ui, source, |mut config, detector| {
        let started = Instant::now();
        pictures_of(&mut config, &detector.info);
        let mut pictures = Pictures::open(&ui, &config)?;
        pictures.dataset.require_training()?;
        hold_out(&mut pictures.dataset, detector.info.hold_out);
        let paths: Vec<&Path> = pictures.dataset.of(Split::Train).map(|item| item.path.as_path()).collect();
        let training = DecoderTraining::standard(epochs.unwrap_or(DecoderTraining::epochs_for(paths.len())), seed);
        // Before the features: a file that cannot be gone on with, or a place that cannot be written, is found now.
        let (mut info, trainer) = begin_or_go_on(&ui, &out, &detector, &paths, training)?;
        if let Some(trainer) = trainer {
            let cached = pictures.features(&ui, &config, &detector.backbone, Some(Split::Train))?;
            train(&ui, &out, &detector, &paths, &cached.select(Split::Train), &mut info, trainer)?;
        }
        ui.note("done", format_args!("{:.0} s, {}", started.elapsed().as_secs_f64(), out.display()));
        let loss = info.losses.last();
        let value = json!({
            "decoder": out.display().to_string(),
            "epochs": info.losses.len(),
            "loss": loss,
            "images": info.images,
            "parameters": info.decoder.parameters() as u64,
        });
        let loss = loss.map_or(String::new(), |loss| format!(", loss {loss:.4}"));
        ui.result(&value, format_args!("{}{loss}\n", out.display()))
    })
}

/// A fresh trainer, the one in the file `out`, or none if that is finished.
fn begin_or_go_on(
    ui: &Ui,
    out: &Path,
    detector: &Detector,
    paths: &[&Path],
    training: DecoderTraining,
) -> Result<(DecoderInfo, Option<DecoderTrainer>)> {
    let mut digest = blake3::Hasher::new();
    for path in paths {
        digest.update(&fingerprint(path)?.to_le_bytes());
    }
    let head = detector.head.config();
    let structure = DecoderConfig::standard([head.height, head.width, head.channels]);
    let fresh = DecoderTrainer::new(structure, training)?;
    let fresh_info = DecoderInfo::new(detector, &fresh, paths.len(), digest.finalize().to_string());
    if !out.exists() {
        save(out, &fresh_info, &fresh)?;
        return Ok((fresh_info, Some(fresh)));
    }
    let (info, trainer) = load_unfinished(out)?;
    // All but how far it is must be the same: else it would not be the same training.
    let same = DecoderInfo { version: info.version.clone(), losses: info.losses.clone(), ..fresh_info };
    if same != info {
        return Err(Error::config(
            format!("{} holds a decoder of other pictures, features or settings", out.display()),
            "choose another --out, or remove it",
        ));
    }
    match &trainer {
        None => ui.note("decoder", "every epoch is trained already"),
        Some(t) => ui.note("resume", format_args!("at epoch {}, step {}", t.progress.epoch + 1, t.progress.step + 1)),
    }
    Ok((info, trainer))
}

/// Trains until every epoch is done or the user asks to stop.
fn train(
    ui: &Ui,
    out: &Path,
    detector: &Detector,
    paths: &[&Path],
    features: &dyn FeatureSource,
    info: &mut DecoderInfo,
    trainer: DecoderTrainer,
) -> Result<()> {
    let [side, _] = info.decoder.picture();
    let epochs = trainer.training.epochs;
    let what = format_args!("{} of {side}x{side} pixels, {}", count(paths.len(), "picture"), count(epochs, "epoch"));
    ui.note("decoder", what);
    let targets = Targets::read(paths, side, detector.backbone.mean(), detector.backbone.std())?;
    let mut trainer = trainer.to(&detector.device())?;
    let mut saved = Instant::now();
    let steps = trainer.steps_per_epoch(paths.len());
    let bar = ui.bar("train", steps * epochs);
    bar.at(steps * trainer.progress.epoch + trainer.progress.step);
    while !trainer.finished() {
        let ended = trainer.step(features, &targets)?;
        bar.advance(1);
        if let Some((loss, seconds)) = ended {
            info.losses.push(loss);
            match bar.is_hidden() {
                false => bar.message(format!("loss {loss:.4}")),
                true => {
                    let of = format!("{}/{epochs}", info.losses.len());
                    ui.note("epoch", format_args!("{of:<7} loss {loss:.4}  {seconds:.1} s"));
                }
            }
        }
        let stop = interrupt::requested();
        if stop || trainer.finished() || saved.elapsed() >= CHECKPOINT_EVERY {
            save(out, info, &trainer)?;
            saved = Instant::now();
        }
        if stop && !trainer.finished() {
            let at = format!("in epoch {}; everything is saved, the same command goes on", info.losses.len() + 1);
            return Err(Error::Interrupted(at));
        }
    }
    Ok(())
}
