//! Our side of `compare.py`: one training step for each line read, its seconds for each line written.
//! Arguments: model, images. The last line, after the input ends, is the peak resident memory in MiB.

use std::io::BufRead;
use std::time::Instant;

use grad::bench::StepBench;
use grad::model::ModelKind;

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let kind = ModelKind::ALL.into_iter().find(|k| Some(k.name()) == args.get(1).map(String::as_str));
    let (Some(kind), Some(images)) = (kind, args.get(2).and_then(|n| n.parse().ok())) else {
        eprintln!("usage: step crad|crad-s|grad IMAGES");
        std::process::exit(2);
    };
    let mut bench = StepBench::new(kind, images);
    for _ in std::io::stdin().lock().lines() {
        let started = Instant::now();
        let loss = bench.run();
        println!("{} {loss}", started.elapsed().as_secs_f64());
    }
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak =
        status.lines().find_map(|l| l.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.trim().parse::<f64>().ok());
    println!("{}", peak.unwrap_or(f64::NAN) / 1024.0);
}
