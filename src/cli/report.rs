//! `grad report`: one HTML file that shows what a run learnt, what it finds, and how far it can be trusted.

mod decoded;
mod gather;
mod grids;
mod speed;

use std::io::Write;
use std::path::{Path, PathBuf};

use serde_json::json;

use super::machine::Machine;
use super::model_args::{ModelArgs, pictures_of};
use super::pictures::Pictures;
use super::ui::{OutputArgs, Ui, size};
use crate::atomic::write_atomic;
use crate::config::SourceArgs;
use crate::data::{Split, hold_out};
use crate::decoder::Painter;
use crate::error::{Error, Result};
use crate::report::study_page;
use crate::study::Study;
use crate::train::FeatureSource;
use gather::Gather;

const MORE: &str = "\
The file needs no network and no other file: send it, or open it from a disk. It
holds small copies of some test pictures.

Examples:
  grad report runs/parts
  grad report runs/parts --data parts --out parts.html
  grad report runs/parts --decoder runs/parts/decoder.safetensors
  grad report runs/study-ablation                        of a study, finished or not";

/// Write one HTML file: figures, verdicts, pictures, grids, timings
#[derive(clap::Args)]
#[command(after_help = MORE)]
pub struct ReportArgs {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    source: SourceArgs,
    /// Also show what the model rebuilds, as this decoder paints it (`grad decoder`)
    #[arg(long, value_name = "FILE", help_heading = "Pictures")]
    decoder: Option<PathBuf>,
    /// Where to write it [default: report.html beside the model]
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    out: Option<PathBuf>,
    #[command(flatten)]
    output: OutputArgs,
}

pub fn run(args: ReportArgs) -> Result<()> {
    let ReportArgs { model, source, decoder, out, output } = args;
    let ui = Ui::new(output);
    if let Some(study) = Study::read(model.path())? {
        if decoder.is_some() {
            let what = format!("{} holds a study, of which there is nothing to decode", model.path().display());
            return Err(Error::config(what, "leave --decoder out, or give one of its runs: FOLDER/ROW/seed-N"));
        }
        let folder = model.path();
        let page = study_page(&study, &gather::name_of(folder), &folder.display().to_string())?;
        return write(&ui, &out.unwrap_or_else(|| folder.join("report.html")), &page);
    }
    let file = model.file();
    let folder = file.parent().unwrap_or(Path::new("")).to_owned();
    let out = out.unwrap_or_else(|| folder.join("report.html"));
    model.with_detector(&ui, source, |mut config, detector| {
        pictures_of(&mut config, &detector.info);
        let painter = decoder.as_deref().map(|path| Painter::open(path, &detector)).transpose()?;
        let mut pictures = Pictures::open(&ui, &config)?;
        hold_out(&mut pictures.dataset, detector.info.hold_out);
        // What is stored in the grid is shown at the places of training pictures.
        let split = painter.is_none().then_some(Split::Test);
        let cached = pictures.features(&ui, &config, &detector.backbone, split)?;
        let test = cached.select(Split::Test);
        if test.is_empty() {
            let help = "add some, as CLASS/test/good/ and CLASS/test/DEFECT/, or give others by --data";
            return Err(Error::data(pictures.dataset.root(), "holds no test pictures to report on", help));
        }
        let machine = Machine::open(&config, Some(detector.info.train.precision))?.description;
        let (train, painter) = (cached.select(Split::Train), painter.as_ref());
        let (detector, dataset, file) = (&detector, &pictures.dataset, &file);
        let gather = Gather { ui: &ui, detector, painter, dataset, train: &train, test: &test, machine, file };
        let page = gather.report(&folder)?.html();
        write(&ui, &out, &page)
    })
}

fn write(ui: &Ui, out: &Path, page: &str) -> Result<()> {
    write_atomic(out, |writer| writer.write_all(page.as_bytes()))?;
    let value = json!({ "report": out.display().to_string(), "bytes": page.len() });
    ui.result(&value, format_args!("{} ({})\n", out.display(), size(page.len())))
}
