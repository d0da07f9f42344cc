//! Inference from a picture file to its score, stage by stage: `cargo run --release --example inference`.
//!
//! Stages on the host: read and `decode`, `resize`, one thread and one picture of 1024 x 1024 pixels each. On the device, or
//! the CPU: `upload`, `prepare` (bytes normalised), `backbone`, `head`, `score` (map, smoothing, score), `graph` (these four
//! in one launch), `download`, each for a whole batch; `latency` is a batch from bytes to scores. Every stage has its median
//! and its 99 % quantile. `throughput` is what batches of that size reach in a row, bytes in, scores out. With `--json` stdout
//! has one JSON object a line.
//!
//! `--serve` is our side of `benches/peer/inference.py`: for each line read, so many batches; written are the seconds of one.

#[path = "../tests/common/formula.rs"]
mod formula;

use std::collections::BTreeMap;
use std::io::{BufRead, Cursor};
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use grad::backbone::{Backbone, Network};
use grad::bench::InferenceBench;
use grad::data::{decode_bytes, resized};
use grad::device::Device;
use grad::device::cpu::{self, Products};
use grad::device::cuda::{Gpu, Precision};
use grad::error::{Error, Result};
use grad::model::ModelKind;
use grad::rng::Rng;
use serde_json::{Value, json};

#[derive(Parser)]
#[command(about = "Times inference, stage by stage")]
struct Options {
    /// crad, crad-s or grad
    #[arg(long, default_value = "crad")]
    model: String,
    /// lite0, or b4 with weights from a formula
    #[arg(long, default_value = "lite0")]
    backbone: String,
    /// cpu, cuda or emulated
    #[arg(long, default_value = "cpu")]
    device: String,
    /// f32, tf32 or bf16
    #[arg(long, default_value = "f32")]
    precision: String,
    /// Side of the prepared pictures
    #[arg(long, default_value_t = 224)]
    size: usize,
    /// Pictures of a batch, several with commas
    #[arg(long, default_value = "1,8,32", value_delimiter = ',')]
    batch: Vec<usize>,
    /// Samples of each stage
    #[arg(long, default_value_t = 20)]
    samples: usize,
    /// Batches in a row, for the throughput
    #[arg(long, default_value_t = 4)]
    row: usize,
    /// One JSON object a line on stdout, and the table on stderr
    #[arg(long)]
    json: bool,
    /// Answer each line of stdin, which says how many batches; the first --batch counts
    #[arg(long)]
    serve: bool,
}

/// What was asked for, among what there is.
fn named<T>(what: &str, name: &str, found: Option<T>, all: &str) -> Result<T> {
    found.ok_or_else(|| Error::config(format!("there is no {what} {name}"), format!("use one of {all}")))
}

fn precision(o: &Options) -> Result<Precision> {
    let found = Precision::ALL.into_iter().find(|p| p.name() == o.precision);
    named("precision", &o.precision, found, "f32, tf32, bf16")
}

fn bench(o: &Options) -> Result<InferenceBench> {
    let kind =
        named("model", &o.model, ModelKind::ALL.into_iter().find(|k| k.name() == o.model), "crad, crad-s, grad")?;
    let precision = precision(o)?;
    let device = match o.device.as_str() {
        "cuda" => Device::Gpu(Gpu::open(0, precision)?),
        "emulated" => Device::Gpu(Gpu::emulated(precision)?),
        "cpu" => Device::Cpu,
        other => return Err(Error::config(format!("there is no device {other}"), "use --device cpu or cuda")),
    };
    let backbone = match o.backbone.as_str() {
        "lite0" => Backbone::lite0()?,
        "b4" => formula::load(Network::B4, &formula::weight_file(Network::B4, |_, _, _| {}))?,
        other => return named("backbone", other, None, "lite0, b4"),
    };
    InferenceBench::new(kind, &backbone, o.size, &device)
}

/// Median and 99 % quantile; of few samples the largest.
fn quantiles(mut seconds: Vec<f64>) -> [f64; 2] {
    seconds.sort_by(f64::total_cmp);
    let last = seconds.len() - 1;
    [seconds[seconds.len() / 2], seconds[(0.99 * last as f64).ceil() as usize]]
}

struct Report {
    json: bool,
    common: Value,
}

impl Report {
    fn say(&self, line: &str) {
        if self.json { eprintln!("{line}") } else { println!("{line}") }
    }

    fn record(&self, mut record: Value) {
        if !self.json {
            return;
        }
        let (to, from) = (record.as_object_mut().expect("an object"), self.common.as_object().expect("an object"));
        to.extend(from.clone());
        println!("{record}");
    }

    fn stage(&self, stage: &str, batch: usize, seconds: Vec<f64>) {
        let (samples, [p50, p99]) = (seconds.len(), quantiles(seconds));
        let line = format!("{batch:5} {stage:10} {:10.3} {:10.3} {:12.1}", p50 * 1e3, p99 * 1e3, batch as f64 / p50);
        self.say(&line);
        self.record(json!({
            "kind": "stage", "stage": stage, "batch": batch, "p50": p50, "p99": p99, "samples": samples,
        }));
    }
}

/// Seconds of something, several times.
fn timed(samples: usize, mut work: impl FnMut() -> Result<()>) -> Result<Vec<f64>> {
    work()?;
    let one = |_| {
        let started = Instant::now();
        work().map(|()| started.elapsed().as_secs_f64())
    };
    (0..samples).map(one).collect()
}

/// What the host does with a file, one picture at a time.
fn host_stages(o: &Options, report: &Report) -> Result<()> {
    let (mut rng, mut file) = (Rng::new(0, 0), Cursor::new(vec![]));
    // Noise under a slow gradient: noise alone would be the worst case of a codec, and zeros the best.
    let image = image::RgbImage::from_fn(1024, 1024, |x, y| {
        image::Rgb([x / 6, y / 6, (x + y) / 12].map(|v| (v + rng.next_u32() % 16) as u8))
    });
    image.write_to(&mut file, image::ImageFormat::Png).expect("PNG holds RGB");
    let (path, file) = (Path::new("picture.png"), file.into_inner());
    let picture = decode_bytes(path, &file)?;
    report.stage("decode", 1, timed(o.samples, || decode_bytes(path, &file).map(drop))?);
    report.stage(
        "resize",
        1,
        timed(o.samples, || {
            std::hint::black_box(resized(&picture, o.size));
            Ok(())
        })?,
    );
    Ok(())
}

fn measure(o: &Options, bench: &mut InferenceBench) -> Result<()> {
    let common = json!({
        "model": o.model, "backbone": o.backbone, "device": o.device, "precision": o.precision, "size": o.size,
    });
    let report = Report { json: o.json, common };
    report.say(&format!("{} on {}, {}, {}, {} x {}", o.model, o.backbone, o.device, o.precision, o.size, o.size));
    report.say("batch stage          p50 ms     p99 ms   pictures/s");
    host_stages(o, &report)?;
    for &n in &o.batch {
        bench.in_batches_of(n);
        if let Some([kernels, transfers]) = bench.launches(n)? {
            report.say(&format!("{n:5} graph of {kernels} kernels and {transfers} copies"));
            report.record(json!({ "kind": "graph", "batch": n, "kernels": kernels, "transfers": transfers }));
        }
        let mut stages: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
        let runs = bench.stages(n, o.samples)?;
        for (name, seconds) in runs.iter().flatten() {
            stages.entry(name).or_default().push(*seconds);
        }
        // In the order in which they come.
        for (name, _) in &runs[0] {
            report.stage(name, n, stages.remove(name).expect("every run has every stage"));
        }
        report.stage("latency", n, timed(o.samples, || bench.scores(n).map(drop))?);
        let count = n * o.row;
        let [p50, _] = quantiles(timed(o.samples.div_ceil(8), || bench.scores(count).map(drop))?);
        let rate = count as f64 / p50;
        report.say(&format!("{n:5} throughput, {} batches in a row: {rate:.1} pictures/s", o.row));
        report.record(json!({
            "kind": "throughput", "batch": n, "pictures": count, "seconds": p50, "pictures_per_second": rate,
        }));
    }
    Ok(())
}

fn serve(o: &Options, bench: &mut InferenceBench) -> Result<()> {
    let n = o.batch.first().copied().unwrap_or(1);
    bench.in_batches_of(n);
    for line in std::io::stdin().lock().lines().map_while(std::result::Result::ok) {
        let batches: usize = line.trim().parse().ok().filter(|&b| b > 0).ok_or_else(|| {
            Error::config(format!("`{line}` is no number of batches"), "write a number of at least 1 on each line")
        })?;
        let started = Instant::now();
        let scores = bench.scores(n * batches)?;
        let sum: f32 = scores.iter().map(|s| s.image).sum();
        println!("{} {sum}", started.elapsed().as_secs_f64() / batches as f64);
    }
    Ok(())
}

/// On a pool of threads that multiply in the precision, which matters where the CPU computes.
fn run(o: &Options) -> Result<()> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let products = Products::requested(if o.device == "cpu" { precision(o)? } else { Precision::F32 })?;
    let pool = cpu::products::threads(threads, products)
        .map_err(|e| Error::config(format!("{threads} threads cannot be started: {e}"), "end other programs"))?;
    let mut bench = bench(o)?;
    pool.install(|| if o.serve { serve(o, &mut bench) } else { measure(o, &mut bench) })
}

fn main() -> ExitCode {
    let o = Options::parse();
    if o.batch.contains(&0) || o.samples == 0 || o.row == 0 {
        eprintln!("--batch, --samples and --row must be at least 1");
        return ExitCode::FAILURE;
    }
    match run(&o) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("{e}");
            ExitCode::from(e.exit_code())
        }
    }
}
