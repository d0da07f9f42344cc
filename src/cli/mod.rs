//! The command line: one file per verb, each of them thin. Results go to stdout, everything else to stderr.

mod calibrate;
mod completions;
mod data;
mod decoder;
mod demo;
mod doctor;
mod eval;
mod features;
mod interrupt;
mod machine;
mod model;
mod model_args;
mod pictures;
mod predict;
mod report;
mod selftest;
mod start;
mod study;
mod thresholds;
mod train;
mod ui;
mod weights;

use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue};
use clap::{Arg, ArgAction, Command, CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::error::{Error, Result};

const EXAMPLES: &str = "\
Examples:
  grad train                                  train on the demo set
  grad data check parts                       look for mistakes in pictures
  grad train --data parts --out runs/parts    train on your own pictures
  grad predict runs/parts new/*.jpg           verdicts and heat maps
  grad eval runs/parts                        measure on its test pictures

Every setting is a flag (--grid-rate), an environment variable (GRAD_GRID_RATE)
and a key of the --config file (grid_rate); the first that is given counts.
Exit codes: 0 done, 1 anomalies found (--fail-on-anomaly), 2 usage or
configuration, 3 data, 4 model file, 5 device, 130 interrupted.";

/// Learns what good looks like from photographs, and finds defects.
#[derive(Parser)]
#[command(name = "grad", version, max_term_width = 80, after_help = EXAMPLES, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    Train(Box<train::TrainArgs>),
    Calibrate(calibrate::CalibrateArgs),
    Eval(eval::EvalArgs),
    Predict(predict::PredictArgs),
    Decoder(decoder::DecoderArgs),
    Report(report::ReportArgs),
    Study(study::StudyArgs),
    Selftest(selftest::SelftestArgs),
    Model(model::ModelVerbArgs),
    Data(data::DataArgs),
    Demo(demo::DemoArgs),
    Features(features::FeaturesArgs),
    Weights(weights::WeightsArgs),
    Doctor(doctor::DoctorArgs),
    Completions(completions::CompletionsArgs),
    Man(completions::ManArgs),
}

/// Parses the arguments of this process, does what they say, and turns the outcome into an exit code.
pub fn main() -> ExitCode {
    let parsed = command().try_get_matches_from_mut(std::env::args_os()).and_then(|m| Cli::from_arg_matches(&m));
    let outcome = match parsed {
        Ok(cli) => run(cli.verb),
        Err(refusal) => {
            // Help asked for goes to stdout with 0, a mistake to stderr with 2. Nobody may be listening.
            let _ = refusal.print();
            if let Some(variable) = blamed_variable(&refusal) {
                ui::say(format_args!("\nnote: the value comes from the environment variable {variable}"));
            }
            return ExitCode::from(refusal.exit_code() as u8);
        }
    };
    let Err(error) = outcome else { return ExitCode::SUCCESS };
    match &error {
        Error::Interrupted(_) | Error::Anomalous(_) => ui::say(&error),
        _ => ui::say(format_args!("error: {error}")),
    }
    ExitCode::from(error.exit_code())
}

/// Every verb and flag.
fn command() -> Command {
    Cli::command().mut_subcommands(compact)
}

/// The short help, for `--help` too: one line per flag. Variables are named by a rule, so they need not be listed.
fn compact(verb: Command) -> Command {
    let help = Arg::new("help").short('h').long("help").action(ArgAction::HelpShort).help("Print help");
    verb.mut_subcommands(compact)
        .mut_args(|arg| arg.hide_env(true))
        .disable_help_flag(true)
        .arg(help.help_heading("Output"))
}

fn run(verb: Verb) -> Result<()> {
    match verb {
        Verb::Train(args) => train::run(*args),
        Verb::Calibrate(args) => calibrate::run(args),
        Verb::Eval(args) => eval::run(args),
        Verb::Predict(args) => predict::run(args),
        Verb::Decoder(args) => decoder::run(args),
        Verb::Report(args) => report::run(args),
        Verb::Study(args) => study::run(args),
        Verb::Selftest(args) => selftest::run(args),
        Verb::Model(args) => model::run(args),
        Verb::Data(args) => data::run(args),
        Verb::Demo(args) => demo::run(args),
        Verb::Features(args) => features::run(args),
        Verb::Weights(args) => weights::run(args),
        Verb::Doctor(args) => doctor::run(args),
        Verb::Completions(args) => completions::completions(args, command()),
        Verb::Man(args) => completions::man(args, command()),
    }
}

/// clap speaks of flags even where the value came from the environment: the variable that is meant, if one is.
fn blamed_variable(refusal: &clap::Error) -> Option<String> {
    let mentioned =
        [ContextKind::InvalidArg, ContextKind::PriorArg].into_iter().filter_map(|kind| match refusal.get(kind)? {
            ContextValue::String(arg) => arg.split(' ').next().map(str::to_owned),
            _ => None,
        });
    let typed = |flag: &str| std::env::args_os().any(|arg| arg.to_string_lossy().split('=').next() == Some(flag));
    mentioned.filter(|flag| flag.starts_with("--") && !typed(flag)).find_map(|flag| {
        let variable = format!("GRAD_{}", flag[2..].replace('-', "_").to_uppercase());
        std::env::var_os(&variable).map(|_| variable)
    })
}
