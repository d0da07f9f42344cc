//! `grad model show`: what a model file says of itself.

use std::path::PathBuf;

use serde_json::json;

use super::thresholds;
use super::ui::{OutputArgs, Ui, count, size};
use crate::checkpoint::{ModelInfo, load_model};
use crate::detector::{model_file, unreadable};
use crate::error::{Error, Result};
use crate::model::{Head, HeadConfig, MemoryKind};

const MORE: &str = "\
Examples:
  grad model show runs/parts
  grad model show runs/parts/model.safetensors --json";

/// Look into a model file
#[derive(clap::Args)]
#[command(arg_required_else_help = true)]
pub struct ModelVerbArgs {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(clap::Subcommand)]
enum Verb {
    Show(ShowArgs),
}

/// Say what a model was trained on, how, and what its thresholds promise
#[derive(clap::Args)]
#[command(after_help = MORE)]
struct ShowArgs {
    /// A run's folder, or its model.safetensors
    #[arg(value_name = "MODEL")]
    model: PathBuf,
    #[command(flatten)]
    output: OutputArgs,
}

pub fn run(args: ModelVerbArgs) -> Result<()> {
    let Verb::Show(ShowArgs { model, output }) = args.verb;
    let ui = Ui::new(output);
    let file = model_file(&model);
    let bytes = std::fs::read(&file).map_err(|e| unreadable(Error::io("read", &file, &e)))?;
    let digest = blake3::hash(&bytes);
    let (info, head, _) = load_model(&file)?;
    let parameters = info.head.parameters();
    let text = describe(&info, &head, parameters, bytes.len());
    let value = json!({
        "file": file.display().to_string(),
        "bytes": bytes.len(),
        "blake3": digest.to_string(),
        "parameters": parameters as u64,
        "thresholds": info.calibration.as_ref().map(thresholds::json),
        "info": ModelInfo { calibration: None, trained_on: vec![], ..info },
    });
    ui.result(&value, format!("file        {}\nblake3      {digest}\n{text}", file.display()))
}

fn describe(info: &ModelInfo, head: &Head, parameters: u128, bytes: usize) -> String {
    let config = head.config();
    let [h, w, c] = [config.height, config.width, config.channels];
    let train = &info.train;
    let loss = info.record.last().map_or("not trained here".into(), |last| format!("last loss {:.5}", last.loss));
    let data = if info.data.is_empty() { "not known".into() } else { info.data.join(", ") };
    let mut rows = vec![
        ("model", format!("{}, {parameters} parameters, {}", config.kind.name(), size(bytes))),
        ("written by", format!("version {}, format {}", info.version, info.format)),
        ("backbone", format!("{}, weights {}", info.backbone, info.backbone_digest)),
        ("features", format!("{h}x{w}x{c} of pictures of {0}x{0} pixels", info.image_size)),
        (if info.head.memory == MemoryKind::Grid { "grids" } else { "memories" }, memories(&info.head)),
        ("classes", if info.classes.is_empty() { "not known".into() } else { info.classes.join(", ") }),
        ("pictures", format!("{} from {data}", count(info.images, "training picture"))),
        (
            "training",
            format!(
                "{}, batch {}, seed {}, {}; {loss}",
                count(info.record.len(), "epoch"),
                train.batch,
                train.seed,
                train.precision.name()
            ),
        ),
        ("score", info.protocol.name.clone()),
        ("golden", format!("{} for `grad selftest`", count(info.golden.len(), "picture"))),
    ];
    if info.calibration.is_none() {
        rows.push(("thresholds", "none: `grad calibrate` sets them".into()));
    }
    let mut text: String = rows.iter().map(|(name, value)| format!("{name:<11} {value}\n")).collect();
    if let Some(calibration) = &info.calibration {
        text += &format!("\nthresholds for {} % false rejects\n", 100.0 * calibration.target());
        text += &thresholds::table(calibration);
    }
    text
}

fn memories(head: &HeadConfig) -> String {
    let part = |name: &str, has: bool, side: usize, entries: usize| match head.memory {
        _ if !has => format!("no {name}"),
        MemoryKind::Grid => format!("{name} {side}x{side}"),
        _ => format!("{name} {entries} entries"),
    };
    let local = part("local", head.local, head.local_resolution, head.local_entries);
    let global = part("global", head.global, head.global_resolution, head.global_entries);
    let kind = if head.memory == MemoryKind::Grid { String::new() } else { format!("{}: ", head.memory.name()) };
    format!("{kind}{local}, {global}; gate {}", if head.refine { "on" } else { "off" })
}
