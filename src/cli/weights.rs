//! `grad weights`: what a weight file holds, the same in another format, and checkpoints of the official program as ours.

use std::io::Write;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::ui::{OutputArgs, Ui, count};
use crate::atomic::write_atomic;
use crate::backbone::{Backbone, Network, Source, Survey};
use crate::checkpoint::{save_checkpoint, save_model};
use crate::detector::unreadable;
use crate::error::{Error, Result};
use crate::model::HeadConfig;
use crate::official::Official;
use crate::train::{Progress, Trainer};

const MORE: &str = "\
A PyTorch file is read without running anything that is in it: it may hold
tensors and plain containers, and is refused if it holds anything else.

Examples:
  grad weights inspect efficientnet-b4-6ed6700e.pth
  grad weights convert efficientnet-b4-6ed6700e.pth --to b4.safetensors
  grad weights import ckpt_best.pth.tar --out crad.safetensors
  grad eval crad.safetensors --data mvtec --backbone-weights ckpt_best.pth.tar
  grad train --from crad.safetensors --data parts \\
      --backbone-weights ckpt_best.pth.tar";

/// Tensors listed in short; the others are counted.
const LISTED: usize = 8;

/// Look at, convert and import weight files of PyTorch
#[derive(clap::Args)]
#[command(after_help = MORE)]
pub struct WeightsArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(clap::Subcommand)]
enum Action {
    /// Say what a file holds, and which network it fits
    Inspect {
        /// A weight file: .pth, .pt, .pth.tar or .safetensors
        #[arg(value_name = "FILE")]
        file: PathBuf,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Write the weights of a backbone as safetensors
    Convert {
        /// A weight file: .pth, .pt, .pth.tar or .safetensors
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// The file to write
        #[arg(long, value_name = "FILE")]
        to: PathBuf,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Make a model of a checkpoint of the official GRAD or CRAD
    Import {
        /// Its ckpt.pth.tar or ckpt_best.pth.tar
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// The model file to write
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
        /// EfficientNet-B4, if the checkpoint does not hold it
        #[arg(long, env = "GRAD_BACKBONE_WEIGHTS", value_name = "FILE")]
        backbone_weights: Option<PathBuf>,
        #[command(flatten)]
        output: OutputArgs,
    },
}

pub fn run(args: WeightsArgs) -> Result<()> {
    match args.action {
        Action::Inspect { file, output } => inspect(&Ui::new(output), &file),
        Action::Convert { file, to, output } => convert(&Ui::new(output), &file, &to),
        Action::Import { file, out, backbone_weights, output } => {
            import(&Ui::new(output), &file, &out, backbone_weights.as_deref())
        }
    }
}

const HELP: &str = "give a PyTorch file (.pth, .pt, .pth.tar) or a safetensors file of weights";

fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(|e| unreadable(Error::io("read", path, &e)))
}

/// Refuses to write over a file.
fn vacant(path: &Path) -> Result<()> {
    if !path.exists() {
        return Ok(());
    }
    Err(Error::config(format!("{} is there already", path.display()), "choose another name, or remove it first"))
}

fn inspect(ui: &Ui, path: &Path) -> Result<()> {
    let bytes = read(path)?;
    let source = Source::parse(path, HELP, &bytes)?;
    let entries = source.entries();
    let tensor = |name: &str| {
        let entry = source.find(name);
        entry.map(|e| json!({"name": e.name, "dtype": format!("{:?}", e.dtype), "shape": e.shape}))
    };
    let tensors: Vec<Value> = entries.iter().filter_map(|entry| tensor(&entry.name)).collect();
    let values: usize = entries.iter().map(|entry| entry.shape.iter().product::<usize>()).sum();
    let head = Official::parse(path, &bytes);
    let head = head.as_ref().ok();
    let survey = Survey::of(path, &source);
    let (network, names, faults, unused, digest) = match &survey {
        Ok(s) => (Some(s.network.name()), s.describe_names(), s.faults.clone(), s.unused.clone(), s.digest),
        Err(fault) => (None, "none that is known here".into(), vec![fault.clone()], vec![], None),
    };
    let value = json!({
        "file": path.display().to_string(),
        "kind": source.kind(),
        "names": names,
        "network": network,
        "fits": digest.is_some(),
        "digest": digest.map(|d| d.to_string()),
        "faults": faults,
        "unused": unused,
        "head": head.map(Official::describe),
        "tensors": tensors,
    });
    let mut text = format!("kind      {}\ntensors   {}, {values} values\n", source.kind(), entries.len());
    text += &format!("names     {names}\n");
    text += &match (network, digest) {
        (Some(network), Some(digest)) => format!("network   {network}: every tensor is there\ndigest    {digest}\n"),
        (Some(network), None) => format!("network   none; the nearest is {network}\n"),
        (None, _) => "network   none\n".into(),
    };
    text += &head.map(|head| format!("head      {}\n", head.describe())).unwrap_or_default();
    text += &listed("fault", &faults);
    text += &listed("unused", &unused);
    for entry in entries {
        text += &format!("  {:<5} {:<20} {}\n", format!("{:?}", entry.dtype), format!("{:?}", entry.shape), entry.name);
    }
    ui.result(&value, text)
}

/// The first few of a list, and how many more there are.
fn listed(label: &str, items: &[String]) -> String {
    let mut text: String = items.iter().take(LISTED).map(|item| format!("{label:<9} {item}\n")).collect();
    if items.len() > LISTED {
        text += &format!("{label:<9} and {} more\n", items.len() - LISTED);
    }
    text
}

impl Official {
    /// Its sizes in a line.
    fn describe(&self) -> String {
        let HeadConfig {
            kind,
            channels,
            height,
            width,
            blocks,
            expansion,
            local_resolution: l,
            global_resolution: g,
            ..
        } = self.head.config();
        let wide = if *expansion > 0 { format!(", {expansion} wide inside") } else { String::new() };
        let blocks = count(*blocks, "block");
        format!("{} on {height}x{width}x{channels} features, {blocks}{wide}, grids {l} and {g}", kind.name())
    }
}

fn convert(ui: &Ui, path: &Path, to: &Path) -> Result<()> {
    vacant(to)?;
    let bytes = read(path)?;
    let source = Source::parse(path, HELP, &bytes)?;
    let survey = Survey::of(path, &source).map_err(|what| Error::model(path, what, HELP))?;
    let converted = survey.to_safetensors(path)?;
    // What loading it would say: a name that speaks against the file does so here too.
    let backbone = Backbone::load(survey.network, path)?;
    backbone.doubts().iter().for_each(|doubt| ui.warn(doubt));
    write_atomic(to, |file| file.write_all(&converted))?;
    let (network, digest) = (backbone.name(), backbone.digest().to_string());
    let value = json!({
        "file": to.display().to_string(),
        "network": network,
        "names": survey.describe_names(),
        "digest": digest,
        "left_out": survey.unused,
    });
    let left = count(survey.unused.len(), "tensor");
    let names = survey.describe_names();
    ui.result(
        &value,
        format!(
            "network   {network}\nnames     {names}\ndigest    {digest}\nleft out  {left}\nwritten   {}\n",
            to.display()
        ),
    )
}

fn import(ui: &Ui, path: &Path, out: &Path, weights: Option<&Path>) -> Result<()> {
    vacant(out)?;
    let official = Official::parse(path, &read(path)?)?;
    let config = official.head.config().clone();
    let from = weights.unwrap_or(path);
    let backbone = Backbone::load(Network::B4, from).map_err(|error| match error {
        Error::Model { path, what, .. } if weights.is_none() => {
            let help = "give EfficientNet-B4 as the checkpoint was trained with by --backbone-weights";
            Error::model(path, format!("does not hold its backbone: it {what}"), help)
        }
        other => other,
    })?;
    backbone.doubts().iter().for_each(|doubt| ui.warn(doubt));
    if config.channels != backbone.channels() {
        let what =
            format!("its head is for {} channels, {} has {}", config.channels, backbone.name(), backbone.channels());
        return Err(Error::model(path, what, "only checkpoints on EfficientNet-B4 can be imported"));
    }
    let info = official.info(backbone.digest().to_string());
    let (described, epochs) = (official.describe(), official.epochs);
    let memory = match official.optimiser {
        Ok(optimiser) => {
            let steps = optimiser.steps;
            let progress = Progress { epoch: epochs.unwrap_or(0), ..Progress::default() };
            let trainer = Trainer::resume(official.head, official.params, optimiser, info.train.clone(), progress);
            save_checkpoint(out, &info, &trainer)?;
            format!("moments of {steps} steps")
        }
        Err(why) => {
            save_model(out, &info, &official.params)?;
            format!("none: {why}")
        }
    };
    let value = json!({
        "model": out.display().to_string(),
        "kind": info.head.kind.name(),
        "head": described,
        "image_size": info.image_size,
        "epochs": epochs,
        "optimiser": memory,
        "backbone": backbone.name(),
        "backbone_digest": info.backbone_digest,
        "backbone_weights": from.display().to_string(),
    });
    let trained = epochs.map_or("an unknown number of epochs".into(), |n| count(n, "epoch"));
    let text = format!(
        "model     {described}\npictures  {0} x {0} pixels\ntrained   for {trained}\noptimiser {memory}\nbackbone  {1}, in \
         {from}\nwritten   {2}\nuse it with --backbone-weights {from}\n",
        info.image_size,
        backbone.name(),
        out.display(),
        from = from.display(),
    );
    ui.result(&value, text)
}
