//! `grad data`: a data set looked at before it is trained on, and written as a list.

use std::fmt::Write;
use std::path::PathBuf;

use super::machine;
use super::ui::{OutputArgs, Ui, count};
use crate::config::{Config, MachineArgs, Settings};
use crate::data::Dataset;
use crate::data::check::{ClassReport, Report, check, verdict};
use crate::data::finding::{Code, Finding, Level};
use crate::data::layout::manifest;
use crate::error::Result;

/// Findings of a kind that are named unless all are asked for.
const NAMED: usize = 3;

/// Look at pictures before training, or list them
#[derive(clap::Args)]
pub struct DataArgs {
    #[command(subcommand)]
    verb: DataVerb,
}

#[derive(clap::Subcommand)]
enum DataVerb {
    Check(CheckArgs),
    Manifest(ManifestArgs),
}

const MORE_CHECK: &str = "\
Decodes every picture and mask. Finds what cannot be read, what is not used,
masks that do not fit, and equal pixels within and across splits. The exit code
is 3 when there are errors; warnings and notes leave it at 0.

Layouts:
  ROOT/CLASS/{train,validation,test}   MVTec AD; masks in CLASS/ground_truth
  ROOT/CLASS/Data, ROOT/1cls.csv       VisA
  ROOT/CLASS/good, ROOT/CLASS/DEFECT   plain: good ones for training, others for
                                       test; masks in CLASS/masks/DEFECT
  DIR/*.png                            all good, all for training
  train.json, test.json, FILE.jsonl    lists: grad data manifest -h

Examples:
  grad data check parts
  grad data check parts other.jsonl --all
  grad data check parts --json > report.json";

/// Find what is wrong with pictures and masks
#[derive(clap::Args)]
#[command(after_help = MORE_CHECK)]
struct CheckArgs {
    /// Folders of pictures, or manifests
    #[arg(value_name = "DIR", required = true)]
    data: Vec<PathBuf>,
    /// Side of a prepared picture, k x 16 [default: 224]
    #[arg(long, env = "GRAD_IMAGE_SIZE", value_name = "PIXELS")]
    image_size: Option<usize>,
    /// Name every finding, not the first three of a kind
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    machine: MachineArgs,
    #[command(flatten)]
    output: OutputArgs,
}

const MORE_MANIFEST: &str = "\
One JSON object per picture: filename, label, label_name, clsname, maskname,
split. Paths are absolute, so the file may lie anywhere. Edit it, and give it
back by --data.

Example:
  grad data manifest parts > parts.jsonl
  grad train --data parts.jsonl";

/// Write a list of pictures as JSON lines
#[derive(clap::Args)]
#[command(after_help = MORE_MANIFEST)]
struct ManifestArgs {
    /// Folders of pictures, or manifests
    #[arg(value_name = "DIR", required = true)]
    data: Vec<PathBuf>,
    #[command(flatten)]
    output: OutputArgs,
}

pub fn run(args: DataArgs) -> Result<()> {
    match args.verb {
        DataVerb::Check(args) => run_check(args),
        DataVerb::Manifest(args) => run_manifest(args),
    }
}

fn run_check(args: CheckArgs) -> Result<()> {
    let CheckArgs { data, image_size, all, machine, output } = args;
    let ui = Ui::new(output);
    let mut settings = Settings { machine, ..Default::default() };
    settings.extractor.image_size = image_size;
    let config = Config::settle(settings)?;
    let report = machine::on_threads(&config, || {
        let dataset = Dataset::open(&data)?;
        let bar = ui.bar("check", dataset.items.len());
        Ok(check(&dataset, config.image_size, &|| bar.advance(1)))
    })?;
    ui.result(&report, text(&report, if all { usize::MAX } else { NAMED }))?;
    verdict(&report, &data[0])
}

fn run_manifest(args: ManifestArgs) -> Result<()> {
    let ui = Ui::new(args.output);
    let dataset = Dataset::open(&args.data)?;
    let lines = dataset.into_iter().map(|item| manifest::line(&dataset, item)).collect::<Result<Vec<_>>>()?;
    let left_out: usize = dataset.findings.iter().map(|f| f.left_out).sum();
    ui.note("manifest", format_args!("{}, {left_out} left out", count(lines.len(), "picture")));
    ui.print(lines.into_iter().fold(String::new(), |text, line| text + &line + "\n"))
}

/// The report for people: tables, then findings of one kind together.
fn text(report: &Report, named: usize) -> String {
    let mut text = String::new();
    let mut line = |line: String| _ = writeln!(text, "{}", line.trim_end());
    for source in &report.sources {
        line(format!("{}: {}", source.path, source.layout.describe()));
    }
    table(report).into_iter().for_each(&mut line);
    let most_first = |groups: &std::collections::BTreeMap<String, usize>| {
        let mut groups: Vec<(&String, &usize)> = groups.iter().collect();
        groups.sort_by_key(|(_, n)| std::cmp::Reverse(**n));
        let mut shown: Vec<String> = groups.iter().take(5).map(|(name, n)| format!("{n} x {name}")).collect();
        if groups.len() > 5 {
            shown.push(format!("{} more", groups.len() - 5));
        }
        shown.join(", ")
    };
    line(format!("sizes     {}", most_first(&report.sizes)));
    line(format!("pixels    {}", most_first(&report.modes)));
    line(format!("pictures  {}, {}, {} left out", report.pictures, count(report.masks, "mask"), report.left_out));
    for &code in Code::ALL {
        let of_code: Vec<&Finding> = report.findings.iter().filter(|f| f.code == code).collect();
        if of_code.is_empty() {
            continue;
        }
        line(String::new());
        line(format!("{} {} ({}): {}", code.level().name(), code.name(), of_code.len(), code.title()));
        of_code.iter().take(named).for_each(|finding| line(format!("  {finding}")));
        if of_code.len() > named {
            line(format!("  … {} more: --all names them", of_code.len() - named));
        }
        line(format!("  help: {}", code.help()));
    }
    line(String::new());
    let [errors, warnings, notes] = [Level::Error, Level::Warning, Level::Note].map(|level| report.count(level));
    line(format!("{}, {}, {}", count(errors, "error"), count(warnings, "warning"), count(notes, "note")));
    text
}

/// Classes and what they hold.
fn table(report: &Report) -> Vec<String> {
    let wide = report.classes.keys().map(|name| name.chars().count()).max().unwrap_or(0).max("class".len());
    let header = format!(
        "{:<wide$}  {:>7} {:>10} {:>9} {:>14} {:>6}  kinds of defect",
        "class", "train", "validation", "test good", "test defective", "masked"
    );
    let row = |name: &str, class: &ClassReport| {
        let kinds: Vec<String> = class.kinds.iter().map(|(kind, n)| format!("{kind} {n}")).collect();
        format!(
            "{name:<wide$}  {:>7} {:>10} {:>9} {:>14} {:>6}  {}",
            class.train,
            class.validation,
            class.test_good,
            class.test_defective,
            class.with_mask,
            kinds.join(", ")
        )
    };
    let rows = report.classes.iter().map(|(name, class)| row(name, class));
    [header].into_iter().chain(rows).collect()
}
