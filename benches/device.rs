//! Every op of the registry on a device, forward and backward: `cargo run --release --example device`.
//!
//! For each case at the shapes of the networks: the median time of a call with a cold cache, by the device's own clock; the
//! bytes it has to move and the operations it has to do, as rates; and the rate of bytes as a fraction of what a large
//! copy reaches in the same run. An op that fails its judge is not timed. With `--json` stdout has one JSON object a line.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use grad::check::{DeviceTime, Effort, Entry};
use grad::device::cuda::{Gpu, Precision};
use grad::error::Result;
use grad::ops::REGISTRY;
use serde_json::{Value, json};

#[derive(Parser)]
#[command(about = "Times every op on a device")]
struct Options {
    /// cuda, or emulated: small cases, to see whether all of it runs
    #[arg(long, default_value = "cuda")]
    device: String,
    /// One of f32, tf32, bf16, or several with commas
    #[arg(long, default_value = "f32,tf32,bf16")]
    precision: String,
    /// Write the names of all ops, and do nothing else
    #[arg(long)]
    list: bool,
    /// Some ops only, with commas
    #[arg(long)]
    ops: Option<String>,
    /// Start no op after so many seconds
    #[arg(long, default_value_t = f64::INFINITY)]
    seconds: f64,
    /// One JSON object a line on stdout, and the table on stderr
    #[arg(long)]
    json: bool,
}

/// Bytes per second of a copy on the device, read and written bytes counted.
fn copy_rate(gpu: &Gpu, effort: Effort) -> Result<f64> {
    let bytes = (2 * effort.cleared).min(gpu.free_memory()? / 4);
    let from = gpu.upload(&(0..bytes / 4).map(|i| i as f32).collect::<Vec<_>>())?;
    let mut to = gpu.scratch::<f32>(from.len())?;
    let mut seconds = vec![];
    for _ in 0..=effort.samples {
        seconds.push(gpu.time(|| gpu.copy(from.slice(), &mut to.slice_mut()))?);
    }
    // The first is not counted: the memory may be new.
    let counted = &mut seconds[1..];
    counted.sort_by(f64::total_cmp);
    Ok(2.0 * bytes as f64 / counted[counted.len() / 2])
}

/// What went wrong, as one line.
fn message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref().copied());
    text.unwrap_or("it panicked").lines().next().unwrap_or_default().to_string()
}

/// Judges an op, and times it if it passes.
fn measured(entry: &Entry, gpu: &Gpu, effort: Effort) -> std::result::Result<Vec<DeviceTime>, String> {
    let judged = catch_unwind(AssertUnwindSafe(|| (entry.device_truth)(gpu)));
    judged.map_err(|panic| format!("failed its judge: {}", message(&*panic)))?;
    (entry.device_bench)(gpu, effort).map_err(|e| e.to_string())
}

/// A line of the table.
fn line(op: &str, time: &DeviceTime, copy: f64) -> String {
    let (seconds, rate) = (time.median(), time.bytes as f64 / time.median());
    let (micros, gb, of_copy) = (seconds * 1e6, rate / 1e9, 100.0 * rate / copy);
    let flops = if time.flops == 0 { String::new() } else { format!("{:.2}", time.flops as f64 / seconds / 1e12) };
    format!("{op:26} {:8} {micros:10.1} {gb:8.0} {of_copy:5.0} % {flops:>8}  {}", time.direction, time.case)
}

struct Report {
    json: bool,
}

impl Report {
    fn say(&self, line: &str) {
        if self.json { eprintln!("{line}") } else { println!("{line}") }
    }

    fn record(&self, record: &Value) {
        if self.json {
            println!("{record}");
        }
    }
}

/// One op in one precision; whether it passed.
fn one(entry: &Entry, gpu: &Gpu, effort: Effort, copy: f64, report: &Report) -> bool {
    let (op, precision) = (entry.name, gpu.precision().name());
    let times = match measured(entry, gpu, effort) {
        Ok(times) => times,
        Err(why) => {
            report.say(&format!("{op:26} not timed: {why}"));
            report.record(&json!({ "kind": "failed", "op": op, "precision": precision, "why": why }));
            return false;
        }
    };
    for time in &times {
        report.say(&line(op, time, copy));
        report.record(&json!({
            "kind": "time", "op": op, "precision": precision, "direction": time.direction, "case": time.case,
            "seconds": time.median(), "min": time.seconds[0], "max": time.seconds[time.seconds.len() - 1],
            "flops": time.flops, "bytes": time.bytes,
        }));
    }
    true
}

fn run(options: &Options) -> Result<bool> {
    let wanted = |list: &str, name: &str| list.split(',').any(|item| item == name);
    let (started, report, mut passed) = (Instant::now(), Report { json: options.json }, true);
    let mut copy = None;
    for precision in Precision::ALL.into_iter().filter(|p| wanted(&options.precision, p.name())) {
        let (gpu, effort) = match options.device.as_str() {
            "emulated" => (Gpu::emulated(precision)?, Effort::DRY),
            _ => (Gpu::open(0, precision)?, Effort::FULL),
        };
        let facts = gpu.facts();
        let copy = match copy {
            Some(rate) => rate,
            None => *copy.insert(copy_rate(&gpu, effort)?),
        };
        report.say(&format!("{}, {}, a copy: {:.0} GB/s", facts.name, precision.name(), copy / 1e9));
        report.say(&format!("{:26} {:8} {:>10} {:>8} {:>7} {:>8}  case", "op", "", "us", "GB/s", "of copy", "TFLOP/s"));
        report.record(&json!({ "kind": "copy", "bytes_per_second": copy }));
        for entry in REGISTRY.iter().filter(|e| options.ops.as_ref().is_none_or(|list| wanted(list, e.name))) {
            if started.elapsed().as_secs_f64() > options.seconds {
                report.say(&format!("{:26} skipped: no time was left", entry.name));
                report.record(&json!({ "kind": "skipped", "op": entry.name, "precision": precision.name() }));
            } else {
                passed &= one(entry, &gpu, effort, copy, &report);
            }
        }
    }
    Ok(passed)
}

fn main() -> ExitCode {
    let options = Options::parse();
    if options.list {
        REGISTRY.iter().for_each(|entry| println!("{}", entry.name));
        return ExitCode::SUCCESS;
    }
    // A failed judge is reported in one line; its panic message would be a second one.
    std::panic::set_hook(Box::new(|_| {}));
    match run(&options) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("{e}");
            ExitCode::from(e.exit_code())
        }
    }
}
