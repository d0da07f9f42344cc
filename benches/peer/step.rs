//! Our side of `compare.py`: for each line read, as many training steps as it says; written are the seconds of a step by the
//! wall clock, the last loss, and the seconds of a step by the clock of the device. The last line, after the input ends,
//! has the kernels, copies and zeroings of a step, and the peak resident memory of the process in MiB.
//!
//! With `--epochs` no line is read: whole epochs of as many pictures as MVTec AD has are trained, as `grad train` would from
//! cached features, and one JSON object says how long each took.

use std::io::BufRead;
use std::process::ExitCode;

use clap::Parser;
use grad::bench::{PICTURES, StepBench};
use grad::device::Device;
use grad::device::cpu::Products;
use grad::device::cpu::products::threads;
use grad::device::cuda::{Gpu, Precision};
use grad::error::{Error, Result};
use grad::model::ModelKind;
use grad::train::Kept;
use serde_json::json;

#[derive(Parser)]
#[command(about = "Takes training steps when asked to, and says how long they took")]
struct Options {
    /// crad, crad-s or grad
    model: String,
    /// Images of a step
    #[arg(long, default_value_t = 16)]
    batch: usize,
    /// cpu, cuda or emulated
    #[arg(long, default_value = "cpu")]
    device: String,
    /// f32, tf32 or bf16
    #[arg(long, default_value = "f32")]
    precision: String,
    /// Height and width, and channels, of the features
    #[arg(long, num_args = 2, default_values_t = [28, 216])]
    features: Vec<usize>,
    /// Upload every batch, as where the features do not fit on the device
    #[arg(long)]
    streamed: bool,
    /// Train so many epochs, and answer no lines
    #[arg(long)]
    epochs: Option<usize>,
}

/// The value of `all` that is called `name`.
fn named<T: Copy>(what: &str, name: &str, all: &[T], name_of: fn(T) -> &'static str) -> Result<T> {
    let found = all.iter().copied().find(|&v| name_of(v) == name);
    let names = all.iter().map(|&v| name_of(v)).collect::<Vec<_>>().join(", ");
    found.ok_or_else(|| Error::config(format!("there is no {what} {name}"), format!("use one of {names}")))
}

fn bench(options: &Options, precision: Precision) -> Result<(StepBench, Device)> {
    let kind = named("model", &options.model, &ModelKind::ALL, ModelKind::name)?;
    let device = match options.device.as_str() {
        "cpu" => Device::Cpu,
        "cuda" => Device::Gpu(Gpu::open(0, precision)?),
        "emulated" => Device::Gpu(Gpu::emulated(precision)?),
        other => return Err(Error::config(format!("there is no device {other}"), "use --device cpu or cuda")),
    };
    let (side, channels) = (options.features[0], options.features[1]);
    let bench = StepBench::new(kind, [side, side, channels], options.batch, &device)?;
    Ok((bench, device))
}

/// Whole epochs, features first.
fn epochs(options: &Options, precision: Precision, count: usize) -> Result<()> {
    let (mut bench, device) = bench(options, precision)?;
    let (kept, seconds) =
        if options.streamed { (None, 0.0) } else { bench.keep(&device).map(|(k, s)| (Some(k), s))? };
    let epochs = (0..count).map(|_| bench.epoch()).collect::<Result<Vec<_>>>()?;
    let found = json!({
        "model": options.model, "batch": options.batch, "precision": options.precision, "pictures": PICTURES,
        "steps": PICTURES.div_ceil(options.batch), "epochs": bench.epochs(), "launches": bench.launches(),
        "kept": matches!(kept, Some(Kept::OnDevice(_))), "keep_seconds": seconds, "epoch_seconds": epochs,
    });
    println!("{found}");
    Ok(())
}

fn answer(options: &Options, precision: Precision) -> Result<()> {
    let (mut bench, device) = bench(options, precision)?;
    if !options.streamed {
        bench.keep(&device)?;
    }
    for line in std::io::stdin().lock().lines().map_while(std::result::Result::ok) {
        let steps: usize = line.trim().parse().ok().filter(|&n| n > 0).ok_or_else(|| {
            Error::config(format!("`{line}` is no number of steps"), "write a number of at least 1 on each line")
        })?;
        let taken = bench.run(steps)?;
        println!("{} {} {}", taken.seconds, taken.loss, taken.on_device);
    }
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak =
        status.lines().find_map(|l| l.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.trim().parse::<f64>().ok());
    println!("{} {}", bench.launches().unwrap_or(0), peak.unwrap_or(f64::NAN) / 1024.0);
    Ok(())
}

/// Does it on one thread for each core, which on a CPU compute in the precision asked for.
fn run(options: &Options) -> Result<()> {
    let precision = named("precision", &options.precision, &Precision::ALL, Precision::name)?;
    let products = Products::requested(if options.device == "cpu" { precision } else { Precision::F32 })?;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let pool = threads(cores, products);
    let pool =
        pool.map_err(|e| Error::config(format!("{cores} threads cannot be started: {e}"), "free some memory"))?;
    pool.install(|| match options.epochs {
        Some(count) => epochs(options, precision, count),
        None => answer(options, precision),
    })
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("{e}");
            ExitCode::from(e.exit_code())
        }
    }
}
