//! The two ways to a convolution on a Hopper GPU, `mma.sync` and the warpgroups of `kernels/hopper/`, in turns:
//! `cargo run --release --example hopper`.
//!
//! For each direction of each convolution of the networks: judged, then both ways one after the other, as often as there are
//! samples, each with a cold cache, by the device's own clock; laying out the weights is part of a call. With `--json`
//! stdout has one JSON object a line, from which `scripts/gpu-check` makes `kernels/hopper/chosen.json`. Values are random.

use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use grad::check::Effort;
use grad::device::cuda::{ElementKind, Gpu, GpuArg, GpuOut, Hopper, Precision, Values};
use grad::error::{Error, Result};
use grad::op::Op;
use grad::ops::{Conv2d, Kind, PointwiseConv, REGISTRY};
use grad::rng::Rng;
use grad::shape::Shape;
use grad::storage::Storage;
use serde_json::json;

#[derive(Parser)]
#[command(about = "Times two ways to the convolutions of the networks")]
struct Options {
    /// Start no convolution after so many seconds
    #[arg(long, default_value_t = f64::INFINITY)]
    seconds: f64,
    /// One JSON object a line on stdout, and the table on stderr
    #[arg(long)]
    json: bool,
}

/// Which product of a convolution.
#[derive(Clone, Copy)]
enum Direction {
    Forward,
    Input,
    Weight,
}

impl Direction {
    const ALL: [Direction; 3] = [Direction::Forward, Direction::Input, Direction::Weight];

    fn name(self) -> &'static str {
        ["forward", "input gradient", "weight gradient"][self as usize]
    }

    /// Its kernel and shape `[m, n, k, taps]`, as the table of choices has them.
    fn key(self, op: &str, [m, a, b, taps]: [usize; 4]) -> (String, [usize; 4]) {
        let (kernel, shape) = match self {
            Direction::Forward => ("forward", [m, b, a, taps]),
            Direction::Input => ("forward", [m, a, b, taps]),
            Direction::Weight => ("weight_gradient", [m, b, a, taps]),
        };
        (format!("{op}_wgmma_{kernel}"), shape)
    }
}

/// Everything that a call on one device reads and writes.
struct Set {
    x: Storage,
    w: Storage,
    dy: Storage,
    y: Storage,
    dx: Storage,
    dw: Storage,
}

impl Set {
    fn new(gpu: &Gpu, [x, w, y]: [Shape; 3], seed: u64) -> Result<Self> {
        let rng = &mut Rng::new(seed, 0);
        let mut random = |in_f32, s: &Shape| {
            let values: Vec<f32> = (0..s.numel()).map(|_| rng.uniform_in(-1.0, 1.0)).collect();
            Storage::upload(gpu, in_f32, &values)
        };
        let (values, weights, upstream) = (random(false, &x)?, random(true, &w)?, random(false, &y)?);
        let empty = |in_f32, s: &Shape| Storage::scratch(gpu, in_f32, s.numel());
        let (y, dx, dw) = (empty(false, &y)?, empty(false, &x)?, empty(true, &w)?);
        Ok(Set { x: values, w: weights, dy: upstream, y, dx, dw })
    }

    fn call<O: Op>(&mut self, gpu: &Gpu, op: &O, [x, w, _]: [Shape; 3], direction: Direction) -> Result<()> {
        let args = [(x, &self.x), (w, &self.w)].map(|(shape, s)| GpuArg { shape, data: s.values(0, s.len()) });
        let (none, dy) = ([Values::none(ElementKind::F32)], self.dy.values(0, self.dy.len()));
        match direction {
            Direction::Forward => op.cuda_forward(gpu, &args, &mut [GpuOut::from(self.y.values_mut())]),
            Direction::Input => op.cuda_backward(gpu, &args, &none, dy, &mut [Some(self.dx.values_mut()), None]),
            Direction::Weight => op.cuda_backward(gpu, &args, &none, dy, &mut [None, Some(self.dw.values_mut())]),
        }
    }
}

/// One of the ways, with arrays of its own.
struct Way {
    gpu: Gpu,
    sets: Vec<Set>,
    seconds: Vec<f64>,
}

impl Way {
    fn sample<O: Op>(&mut self, op: &O, shapes: [Shape; 3], direction: Direction, effort: Effort) -> Result<f64> {
        let (gpu, sets) = (&self.gpu, &mut self.sets);
        let mut cleared = gpu.scratch::<f32>(effort.cleared / 4)?;
        gpu.zero(&mut cleared.slice_mut())?;
        let taken = gpu.time(|| sets.iter_mut().try_for_each(|set| set.call(gpu, op, shapes, direction)))?;
        Ok(taken / sets.len() as f64)
    }

    fn median(&mut self) -> f64 {
        self.seconds.sort_by(f64::total_cmp);
        self.seconds[self.seconds.len() / 2]
    }
}

/// All directions of one convolution, both ways.
fn measure<O: Op>(op: &O, x: &[usize], w: &[usize], gpus: [&Gpu; 2], json: bool) -> Result<()> {
    let effort = Effort::FULL;
    let shapes = [Shape::new(x), Shape::new(w)];
    let y = op.infer(&shapes)?[0];
    let (all, rows) = ([shapes[0], shapes[1], y], y.rows());
    let taps = w[..w.len() - 2].iter().product();
    let count = (effort.rotated / (2 * (shapes[0].numel() + y.numel()))).clamp(2, 32);
    for direction in Direction::ALL {
        let mut ways = vec![];
        for gpu in gpus {
            let sets: Result<Vec<Set>> = (0..count).map(|i| Set::new(gpu, all, i as u64)).collect();
            ways.push(Way { gpu: gpu.clone(), sets: sets?, seconds: vec![] });
        }
        // The first round loads the kernels and fills the memory pools.
        for round in 0..=effort.samples {
            for way in &mut ways {
                let taken = way.sample(op, all, direction, effort)?;
                if round > 0 {
                    way.seconds.push(taken);
                }
            }
        }
        let ratios: Vec<f64> = ways[0].seconds.iter().zip(&ways[1].seconds).map(|(mma, wgmma)| mma / wgmma).collect();
        let [mma, wgmma] = [0, 1].map(|i| ways[i].median());
        let (kernel, shape) = direction.key(O::NAME, [rows, x[x.len() - 1], w[w.len() - 1], taps]);
        let flops = op.flops(&shapes) as f64;
        let (case, rates) = (format!("{x:?} {w:?}"), [mma, wgmma].map(|s| flops / s / 1e12));
        let line = format!(
            "{kernel:36} {:15} {:9.1} {:9.1} us {:7.0} {:7.0} TFLOP/s  {case}",
            direction.name(),
            mma * 1e6,
            wgmma * 1e6,
            rates[0],
            rates[1]
        );
        if json {
            eprintln!("{line}")
        } else {
            println!("{line}")
        }
        if json {
            println!(
                "{}",
                json!({
                    "kind": "time", "kernel": kernel, "shape": shape, "direction": direction.name(), "case": case,
                    "flops": flops, "mma": mma, "wgmma": wgmma, "ratios": ratios,
                })
            );
        }
        drop(ways);
        gpus.iter().try_for_each(|gpu| gpu.trim())?;
    }
    Ok(())
}

fn run(options: &Options) -> Result<()> {
    let started = Instant::now();
    let [off, force] = [Hopper::Off, Hopper::Force].map(|way| Gpu::open_with(0, Precision::Bf16, way));
    let (off, force) = (off?, force?);
    let facts = force.facts();
    if !force.has_warpgroup_products() {
        return Err(Error::Device {
            what: format!("{} is no device for kernels/hopper, or this build holds none of them", facts.name),
            help: "use a device of compute capability 9.0 and a build with nvcc 12 or later".into(),
        });
    }
    for entry in REGISTRY.iter().filter(|e| ["conv2d", "pointwise_conv"].contains(&e.name)) {
        (entry.device_truth)(&force);
    }
    if options.json {
        let (architecture, multiprocessors) = (facts.architecture, facts.multiprocessors);
        let device = json!({
            "kind": "device", "name": facts.name, "architecture": architecture, "multiprocessors": multiprocessors
        });
        println!("{device}");
    }
    let gpus = [&off, &force];
    let (conv, pointwise) =
        (Conv2d { stride: 1, pad: [1; 4], act: Kind::Identity }, PointwiseConv { act: Kind::Identity });
    for batch in [16, 64] {
        for channels in [[432, 432], [432, 864], [864, 432], [432, 216]] {
            if started.elapsed().as_secs_f64() > options.seconds {
                return Ok(());
            }
            let ([a, b], x) = (channels, [batch, 28, 28, channels[0]]);
            if a == b {
                measure(&conv, &x, &[3, 3, a, b], gpus, options.json)?;
            } else {
                measure(&pointwise, &x, &[a, b], gpus, options.json)?;
            }
        }
    }
    Ok(())
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
