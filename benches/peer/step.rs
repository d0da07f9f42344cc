//! Our side of `compare.py`: for each line read, as many training steps as it says; written are the seconds of a step and
//! the last loss. The last line, after the input ends, is the peak resident memory of the process in MiB.

use std::io::BufRead;
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use grad::bench::StepBench;
use grad::device::Device;
use grad::device::cpu::Products;
use grad::device::cpu::products::threads;
use grad::device::cuda::{Gpu, Precision};
use grad::error::{Error, Result};
use grad::model::ModelKind;

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
}

/// The value of `all` that is called `name`.
fn named<T: Copy>(what: &str, name: &str, all: &[T], name_of: fn(T) -> &'static str) -> Result<T> {
    let found = all.iter().copied().find(|&v| name_of(v) == name);
    let names = all.iter().map(|&v| name_of(v)).collect::<Vec<_>>().join(", ");
    found.ok_or_else(|| Error::config(format!("there is no {what} {name}"), format!("use one of {names}")))
}

fn bench(options: &Options, precision: Precision) -> Result<StepBench> {
    let kind = named("model", &options.model, &ModelKind::ALL, ModelKind::name)?;
    let device = match options.device.as_str() {
        "cpu" => Device::Cpu,
        "cuda" => Device::Gpu(Gpu::open(0, precision)?),
        "emulated" => Device::Gpu(Gpu::emulated(precision)?),
        other => return Err(Error::config(format!("there is no device {other}"), "use --device cpu or cuda")),
    };
    let (side, channels) = (options.features[0], options.features[1]);
    StepBench::new(kind, [side, side, channels], options.batch, &device)
}

fn answer(options: &Options, precision: Precision) -> Result<()> {
    let mut bench = bench(options, precision)?;
    for line in std::io::stdin().lock().lines().map_while(std::result::Result::ok) {
        let steps: u32 = line.trim().parse().ok().filter(|&n| n > 0).ok_or_else(|| {
            Error::config(format!("`{line}` is no number of steps"), "write a number of at least 1 on each line")
        })?;
        let (started, mut loss) = (Instant::now(), f64::NAN);
        for _ in 0..steps {
            loss = bench.run()?;
        }
        println!("{} {loss}", started.elapsed().as_secs_f64() / f64::from(steps));
    }
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak =
        status.lines().find_map(|l| l.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.trim().parse::<f64>().ok());
    println!("{}", peak.unwrap_or(f64::NAN) / 1024.0);
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
    pool.install(|| answer(options, precision))
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
