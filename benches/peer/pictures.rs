//! Our side of `pictures.py`: for each line read, all pictures of a folder once; written are the seconds that took.
//!
//! `load DIR`: each is read, decoded, resized and normalised. `features DIR NETWORK FILE`: they were before; each goes
//! through the backbone. `verdicts DIR`: each is read, decoded, resized and scored by `crad-s` on Lite0. All of it on all
//! threads, as `grad features` and `grad predict` do it.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use grad::backbone::Backbone;
use grad::bench::InferenceBench;
use grad::config::BackboneKind;
use grad::data::{decode_file, layout::pictures, preprocess, resized};
use grad::device::Device;
use grad::error::{Error, Result};
use grad::model::ModelKind;
use rayon::prelude::*;

const SIZE: usize = 224;

fn prepare(path: &Path) -> Result<Vec<f32>> {
    Ok(preprocess(&decode_file(path)?, SIZE, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
}

/// Answers every line with the seconds of one pass over the pictures.
fn serve(pass: impl Fn() -> Result<f32>) -> Result<()> {
    for _ in std::io::stdin().lines().map_while(std::result::Result::ok) {
        let started = Instant::now();
        let sum = pass()?;
        println!("{} {sum}", started.elapsed().as_secs_f64());
    }
    Ok(())
}

fn answer() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let help = || Error::config("unknown arguments", "load DIR, verdicts DIR, or features DIR NETWORK FILE");
    let (&["load" | "verdicts", folder] | &["features", folder, ..]) = &arguments[..] else { return Err(help()) };
    let paths: Vec<PathBuf> = pictures(Path::new(folder))?;
    let prepared = || paths.par_iter().map(|path| prepare(path)).collect::<Result<Vec<_>>>();
    // A sum over what came out, so that nothing can be left out.
    let total = |values: &[f32]| values.iter().step_by(997).sum::<f32>();
    match arguments[..] {
        ["load", _] => serve(|| Ok(prepared()?.iter().map(|x| total(x)).sum())),
        ["verdicts", _] => {
            let bench = InferenceBench::new(ModelKind::CradS, &Backbone::lite0()?, SIZE, &Device::Cpu)?;
            let score = |path: &PathBuf| Ok(bench.score(&resized(&decode_file(path)?, SIZE))?.image);
            serve(|| Ok(paths.par_iter().map(score).collect::<Result<Vec<f32>>>()?.iter().sum()))
        }
        [_, _, network, file] => {
            let kind = BackboneKind::find(network).ok_or_else(help)?;
            let (backbone, inputs) = (Backbone::load(kind.network(), Path::new(file))?, prepared()?);
            let features = |x: &Vec<f32>| Ok(total(backbone.forward(&backbone.input(SIZE, &[x])?)?.data()));
            serve(|| Ok(inputs.par_iter().map(features).collect::<Result<Vec<_>>>()?.iter().sum()))
        }
        _ => Err(help()),
    }
}

fn main() -> ExitCode {
    match answer() {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("{e}");
            ExitCode::from(e.exit_code())
        }
    }
}
