//! The program as its user starts it: every verb, every exit code, every file of a run.
//!
//! All of it on a dozen pictures of 64 x 64 pixels and a model of one block: a run takes a fraction of a second.

#[path = "common/program.rs"]
mod program;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command as Process, Stdio};
use std::time::{Duration, Instant};

use assert_cmd::Command;
use grad::device::cpu::Products;
use program::{GRAD, Outcome, go, grad, new_folder, run};
use serde_json::Value;

const TINY: [&str; 9] = ["train", "--data", "data", "--image-size", "64", "--blocks", "1", "--batch", "4"];

/// Trains the tiny model into `out` with more flags.
fn train(home: &Path, out: &str, more: &[&str]) -> Outcome {
    run(home, &[&TINY[..], &["--out", out], more].concat())
}

fn model(home: &Path, out: &str) -> Vec<u8> {
    fs::read(home.join(out).join("model.safetensors")).unwrap()
}

/// The losses and epochs of `train.jsonl`.
fn epochs(home: &Path, out: &str) -> Vec<(u64, f64)> {
    let text = fs::read_to_string(home.join(out).join("train.jsonl")).unwrap();
    let line = |line: &str| {
        let record: Value = serde_json::from_str(line).unwrap();
        (record["epoch"].as_u64().unwrap(), record["loss"].as_f64().unwrap())
    };
    text.lines().map(line).collect()
}

#[test]
fn from_pictures_to_heat_maps() {
    let home = new_folder();
    let home = home.path();
    let trained = train(home, "run", &["--epochs", "2", "--json"]).expect(0, &["model     crad-s: the default"]);
    let report = trained.json();
    assert_eq!(report["epochs"], 2);
    let metrics: Value = serde_json::from_slice(&fs::read(home.join("run/metrics.json")).unwrap()).unwrap();
    assert_eq!(report["metrics"], metrics);
    assert_eq!(metrics["protocol"], "official");
    let figure = |class: &str, name: &str| metrics["classes"][class][name].as_f64().unwrap();
    for class in ["bolt", "cloth"] {
        assert!(
            (0.0..=1.0).contains(&figure(class, "image_auroc")) && (0.0..=1.0).contains(&figure(class, "pixel_auroc"))
        );
    }
    assert!(metrics["mean"]["pixel_auroc"].as_f64().unwrap() > 0.5, "{metrics}");
    let log = epochs(home, "run");
    assert_eq!(log.iter().map(|(epoch, _)| *epoch).collect::<Vec<_>>(), [1, 2]);
    assert!(log[1].1 < log[0].1, "the loss does not fall: {log:?}");

    // What is measured later is what was measured at the end of training, with the folder found in the model file.
    let eval = run(home, &["eval", "run/model.safetensors", "--json"]).expect(0, &[]);
    assert_eq!(eval.json(), metrics);
    let table = run(home, &["eval", "run/model.safetensors", "--data", "data", "-q"]).expect(0, &["worst"]);
    assert_eq!(table.stderr, "");

    // Another protocol measures otherwise and says so; the model keeps its own.
    let other = run(home, &["eval", "run", "--protocol", "dinomaly", "--json"]).expect(0, &[]).json();
    assert_eq!(other["protocol"], "dinomaly");
    assert_ne!(other["mean"]["pixel_auroc"], metrics["mean"]["pixel_auroc"]);
    run(home, &["eval", "run", "--intervals", "-q"]).expect(0, &["protocol official", "95 % intervals"]);
    run(home, &["eval", "run", "--protocol", "best"]).expect(2, &["dinomaly"]);

    // A corrupt picture among good ones: one row each, the rest is done.
    fs::write(home.join("data/bolt/test/good/bad.png"), b"no picture").unwrap();
    let args = ["predict", "run/model.safetensors", "data/bolt/test", "data/cloth/test/good/4.png", "gone.png"];
    let predicted = run(home, &args).expect(3, &["bad.png", "2 of 7 pictures", "gone.png"]);
    assert_eq!(predicted.stdout.lines().count(), 1 + 7, "{}", predicted.stdout);
    let rows = run(home, &[&args[..], &["--json", "--out", "maps"]].concat()).expect(3, &[]);
    let rows: Vec<Value> = rows.stdout.lines().map(|row| serde_json::from_str(row).unwrap()).collect();
    assert_eq!(rows.len(), 7);
    for row in &rows {
        let maps = row["heatmap"].as_str().map(|map| image::open(home.join(map)).unwrap());
        assert_eq!(row["score"].is_number(), maps.is_some_and(|map| map.width() >= 64), "{row}");
        assert!(row["score"].is_number() ^ row["error"].is_string());
    }
    assert_eq!(rows[2]["path"], "data/bolt/test/good/bad.png");
    // The same picture alone scores the same: no score depends on the others.
    let alone =
        run(home, &["predict", "run/model.safetensors", "data/bolt/test/hole/4.png", "--json", "--out", "none"]);
    let alone = alone.expect(0, &[]).json();
    assert_eq!(alone["score"], rows.iter().find(|r| r["path"] == alone["path"]).unwrap()["score"]);
    assert!(alone["heatmap"].is_null());
}

#[test]
fn heat_maps_never_land_on_pictures() {
    let home = new_folder();
    let home = home.path();
    train(home, "run", &["--epochs", "1"]).expect(0, &[]);
    let predict = |path: &str, out: &str| run(home, &["predict", "run/model.safetensors", path, "--out", out]);
    predict("data", "data/maps").expect(2, &["taken for pictures"]);
    let picture = home.join("data/bolt/test/good/4.png");
    let before = fs::read(&picture).unwrap();
    predict("data/bolt/test/good/4.png", "data/bolt/test/good").expect(2, &["overwrite"]);
    assert_eq!(fs::read(&picture).unwrap(), before);
    fs::create_dir(home.join("empty")).unwrap();
    predict("empty", "maps").expect(3, &["holds no picture"]);
}

#[test]
fn features_are_computed_once() {
    let home = new_folder();
    let features =
        || run(home.path(), &["features", "--data", "data", "--image-size", "64", "--json"]).expect(0, &[]).json();
    let first = features();
    assert_eq!((&first["pictures"], &first["computed"]), (&16.into(), &16.into()));
    assert_eq!(first["shape"], serde_json::json!([8, 8, 152]));
    assert_eq!((&features()["computed"], &features()["from_cache"]), (&0.into(), &16.into()));
    let none = run(home.path(), &["features", "--data", "data", "--image-size", "64", "--json", "--cache", "none"]);
    assert_eq!(none.expect(0, &[]).json()["computed"], 16);
}

#[test]
fn the_demo_set_is_written_once() {
    let home = tempfile::tempdir().unwrap();
    let demo = run(home.path(), &["demo", "set", "--json"]).expect(0, &[]).json();
    assert!(demo["classes"].as_array().unwrap().len() >= 5 && demo["reused"] == false);
    let bytes = |dir: &str| fs::read(home.path().join(dir).join("brick/train/good/000.png")).unwrap();
    run(home.path(), &["demo", "set"]).expect(0, &["was there already"]);
    run(home.path(), &["demo", "set", "--seed", "1"]).expect(3, &["another seed"]);
    run(home.path(), &["demo", "other", "--seed", "1"]).expect(0, &[]);
    assert_ne!(bytes("set"), bytes("other"));
}

#[test]
fn the_doctor_knows_the_machine() {
    let home = tempfile::tempdir().unwrap();
    let doctor = run(home.path(), &["doctor", "--json", "--threads", "3"]).expect(0, &[]).json();
    assert_eq!((&doctor["ok"], &doctor["threads"]), (&true.into(), &"3".into()));
    assert!(!home.path().join(".grad").exists(), "it must change nothing");
    run(home.path(), &["doctor", "--cache", "/proc/nowhere"]).expect(2, &["NOT writable"]);
    let mut wrong = grad(home.path());
    wrong.arg("doctor").env("GRAD_SIMD", "mmx");
    go(wrong).expect(2, &["GRAD_SIMD=mmx"]);
    let mut wrong = grad(home.path());
    wrong.arg("doctor").env("GRAD_CONV", "fft");
    go(wrong).expect(2, &["GRAD_CONV=fft", "direct or winograd"]);
    let mut wrong = grad(home.path());
    wrong.arg("doctor").env("GRAD_PRODUCTS", "mmx");
    go(wrong).expect(2, &["GRAD_PRODUCTS=mmx", "fma"]);
    let mut forced = grad(home.path());
    forced.args(["doctor", "--device", "cpu", "--precision", "bf16"]).env("GRAD_PRODUCTS", "amx-model");
    go(forced).expect(0, &["device     cpu, ", "bf16 by amx-model", "products   f32 by "]);
    run(home.path(), &["train", "--device", "cuda:1000"]).expect(5, &["--device cpu"]);
}

#[test]
fn help_fits_a_terminal() {
    let home = tempfile::tempdir().unwrap();
    for verb in [
        &["--help"][..],
        &["train", "--help"],
        &["eval", "--help"],
        &["predict", "-h"],
        &["demo", "-h"],
        &["features", "-h"],
        &["doctor", "-h"],
        &["study", "-h"],
        &["study", "settings", "-h"],
    ] {
        let help = run(home.path(), verb).expect(0, &["Usage: grad"]);
        let wide = help.stdout.lines().find(|line| line.chars().count() > 80);
        assert_eq!(wide, None, "{verb:?}");
    }
    let help = run(home.path(), &["train", "--help"]).stdout;
    for flag in [
        "--model",
        "--backbone",
        "--epochs",
        "--batch",
        "--out",
        "--seed",
        "--threads",
        "--device",
        "--precision",
        "--config",
        "--local",
        "--global",
        "--refine",
        "--jitter",
        "--mse-coef",
        "--resume",
        "--json",
        "Examples:",
    ] {
        assert!(help.contains(flag), "{flag}");
    }
    run(home.path(), &["train", "--epoch", "3"]).expect(2, &["--epochs"]);
    run(home.path(), &[]).expect(2, &["Usage"]);
}

#[test]
fn flag_over_environment_over_file_over_default() {
    let home = new_folder();
    let home = home.path();
    fs::write(home.join("c.toml"), "epochs = 3\nseed = 5\nblocks = 0\njitter = \"off\"\nmse_coef = 1\n").unwrap();
    let mut command = grad(home);
    command.args([
        "train",
        "--data",
        "data",
        "--image-size",
        "64",
        "--config",
        "c.toml",
        "--out",
        "run",
        "--epochs",
        "1",
    ]);
    command.env("GRAD_EPOCHS", "2").env("GRAD_SEED", "7").env("GRAD_REFINE", "off");
    go(command).expect(0, &[]);
    let settled: toml::Table = fs::read_to_string(home.join("run/config.toml")).unwrap().parse().unwrap();
    let integer = |key: &str| settled[key].as_integer().unwrap();
    assert_eq!([integer("epochs"), integer("seed"), integer("blocks"), integer("batch")], [1, 7, 0, 16]);
    let switches = ["jitter", "refine", "local"].map(|key| settled[key].as_bool().unwrap());
    assert_eq!(switches, [false, false, true]);
    assert_eq!(settled["mse_coef"].as_float(), Some(1.0));
    // The settled file says the same again.
    run(home, &["train", "--config", "run/config.toml", "--out", "again"]).expect(0, &[]);
    assert_eq!(model(home, "run"), model(home, "again"));
    assert_eq!(fs::read(home.join("run/config.toml")).unwrap(), fs::read(home.join("again/config.toml")).unwrap());
}

#[test]
fn every_memory_goes_all_the_way() {
    let home = new_folder();
    let home = home.path();
    for memory in ["vq", "attention"] {
        let more = ["--epochs", "1", "--memory", memory, "--local-entries", "9"];
        train(home, memory, &more).expect(0, &[]);
        let settled: toml::Table = fs::read_to_string(home.join(memory).join("config.toml")).unwrap().parse().unwrap();
        assert_eq!((settled["memory"].as_str(), settled["jitter"].as_bool()), (Some(memory), Some(false)));
        assert_eq!(["local_entries", "global_entries"].map(|k| settled[k].as_integer()), [Some(9), Some(16)]);
        let shown = run(home, &["model", "show", memory]).expect(0, &[]).stdout;
        assert!(shown.contains(&format!("{memory}: local 9 entries, global 16 entries")), "{shown}");
        for verb in ["eval", "report", "selftest"] {
            run(home, &[verb, memory]).expect(0, &[]);
        }
        run(home, &["predict", memory, "data/bolt/test"]).expect(0, &[]);
        train(home, &format!("{memory}-on"), &["--epochs", "1", "--from", memory]).expect(0, &[]);
    }
}

#[test]
fn settings_that_make_no_sense_are_named() {
    let home = new_folder();
    let home = home.path();
    for (text, said) in [
        ("seed = 1\n\ngrid_rat = 0.1\n", ["c.toml:3", "did you mean `grid_rate`?"]),
        ("epochs = \"many\"\n", ["c.toml:1", "a whole number"]),
        ("epochs = \n", ["c.toml:1", "mend"]),
        ("jitter = \"maybe\"\n", ["c.toml:1", "on or off"]),
        ("mse_coef = \"big\"\n", ["c.toml:1", "auto"]),
        ("device = \"gpu\"\n", ["c.toml:1", "cuda:N"]),
        ("precision = \"f16\"\n", ["c.toml:1", "bf16"]),
        ("model = \"crads\"\n", ["c.toml:1", "crad-s"]),
        ("rate = -1.0\n", ["rate is -1", "not negative"]),
        ("local = false\nglobal = false\n", ["local and global", "at least one"]),
        ("memory = \"lattice\"\n", ["c.toml:1", "attention"]),
        ("memory = \"vq\"\njitter = true\n", ["jitter is on", "no coordinates"]),
        ("memory = \"vq\"\nlocal_entries = 0\n", ["local_entries is 0", "from 1 to 4096"]),
        ("global_entries = 9\n", ["a grid has cells", "global_resolution"]),
    ] {
        fs::write(home.join("c.toml"), text).unwrap();
        train(home, "run", &["--config", "c.toml"]).expect(2, &said);
    }
    for (flags, said) in [
        (["--image-size", "100"], "use 96 or 112"),
        (["--image-size", "32"], "from 64 to 2048"),
        (["--epochs", "0"], "epochs is 0"),
        (["--threads", "0"], "threads is 0"),
        (["--backbone", "b4"], "--backbone-weights"),
        (["--classes", "bolts"], "did you mean `bolt`?"),
        (["--config", "gone.toml"], "gone.toml"),
        (["--schedule", "1-2"], "EPOCH:FACTOR"),
        (["--seed", "18446744073709551615"], "seed is"),
    ] {
        let flags =
            if flags[0] == "--image-size" { flags.to_vec() } else { [&flags[..], &["--image-size", "64"]].concat() };
        run(home, &[&["train", "--data", "data", "--out", "run"], &flags[..]].concat()).expect(2, &[said]);
    }
    let mut command = grad(home);
    command.args(TINY).env("GRAD_EPOCHS", "x");
    go(command).expect(2, &["environment variable GRAD_EPOCHS"]);
    assert!(!home.join("run").exists(), "a run that never began leaves nothing behind");
}

#[test]
fn a_used_folder_is_refused() {
    let home = new_folder();
    let home = home.path();
    train(home, "run", &["--epochs", "1"]).expect(0, &[]);
    let before = model(home, "run");
    train(home, "run", &["--epochs", "1", "--seed", "3"]).expect(2, &["already holds a run", "--resume run"]);
    assert_eq!(model(home, "run"), before);
    train(home, "data", &["--epochs", "1"]).expect(2, &["data is not empty"]);
    // Without --out, runs are numbered.
    for name in ["runs/crad-s-1", "runs/crad-s-2"] {
        run(home, &[&TINY[..], &["--epochs", "1", "-q"]].concat()).expect(0, &[]);
        assert!(home.join(name).join("metrics.json").is_file());
    }
    // Nothing can be made below a file.
    train(home, "data/bolt/train/good/0.png/run", &["--epochs", "1"]).expect(2, &["cannot create"]);
    train(home, "/proc/run", &["--epochs", "1"]).expect(2, &["/proc/run"]);
}

#[test]
fn the_same_bits_again() {
    let home = new_folder();
    let home = home.path();
    let straight = |out: &str, more: &[&str]| {
        train(home, out, &[&["--epochs", "4", "--bn-group", "3"], more].concat()).expect(0, &[]);
        model(home, out)
    };
    let first = straight("first", &["--threads", "1"]);
    assert_eq!(first, straight("two", &["--threads", "2"]));
    assert_eq!(first, straight("three", &["--threads", "3", "--cache", "none"]));
    assert_ne!(first, straight("other", &["--seed", "1"]));
    // Half of it, then the rest.
    train(home, "half", &["--epochs", "2", "--bn-group", "3"]).expect(0, &[]);
    assert_ne!(first, model(home, "half"));
    run(home, &["train", "--resume", "half", "--epochs", "4"]).expect(0, &["epoch 3, step 1"]);
    assert_eq!(first, model(home, "half"));
    assert_eq!(epochs(home, "half"), epochs(home, "first"));
    // Nothing left to do is no mistake; less than was done is one, and so is another recipe.
    run(home, &["train", "--resume", "half"]).expect(0, &["every epoch is trained"]);
    assert_eq!(first, model(home, "half"));
    run(home, &["train", "--resume", "half", "--epochs", "3"]).expect(2, &["epochs is 3"]);
    run(home, &["train", "--resume", "half", "--seed", "9"]).expect(2, &["seed is not what"]);
    run(home, &["train", "--resume", "gone"]).expect(2, &["no such folder"]);
    fs::remove_file(home.join("data/bolt/train/good/0.png")).unwrap();
    run(home, &["train", "--resume", "half", "--epochs", "5"]).expect(3, &["7 training pictures", "8"]);
}

#[cfg(unix)]
#[test]
fn an_interrupted_run_goes_on_to_the_same_bits() {
    let home = new_folder();
    let home = home.path();
    train(home, "straight", &["--epochs", "40"]).expect(0, &[]);
    for (out, signal) in [("interrupted", "-INT"), ("killed", "-KILL")] {
        let args = [&TINY[..], &["--epochs", "40", "--out", out]].concat();
        let mut child = Process::new(GRAD).current_dir(home).args(args).stderr(Stdio::null()).spawn().unwrap();
        let log = home.join(out).join("train.jsonl");
        let started = Instant::now();
        while fs::read_to_string(&log).map_or(0, |text| text.lines().count()) < 2 {
            assert!(started.elapsed() < Duration::from_secs(60), "no epoch was trained");
            std::thread::sleep(Duration::from_millis(2));
        }
        assert!(Process::new("kill").args([signal, &child.id().to_string()]).status().unwrap().success());
        let status = child.wait().unwrap();
        assert_eq!(status.code(), if signal == "-INT" { Some(130) } else { None }, "{out} was faster than the signal");
        assert!(!home.join(out).join("model.safetensors").exists());
        run(home, &["train", "--resume", out]).expect(0, &["resume"]);
        assert_eq!(model(home, "straight"), model(home, out), "{out}");
        assert_eq!(epochs(home, "straight"), epochs(home, out), "{out}");
    }
}

#[test]
fn model_files_that_cannot_be_used() {
    let home = new_folder();
    let home = home.path();
    train(home, "run", &["--epochs", "1"]).expect(0, &[]);
    let good = model(home, "run");
    let bad = home.join("bad.safetensors");
    let refuse = |said: &str| {
        for args in [&["eval", "bad.safetensors"][..], &["predict", "bad.safetensors", "data", "--out", "none"]] {
            let refused = run(home, args).expect(4, &["bad.safetensors", said, "help:"]);
            assert_eq!(refused.stdout, "");
        }
    };
    for length in [0, 7, 100, good.len() / 2, good.len() - 1] {
        fs::write(&bad, &good[..length]).unwrap();
        refuse("safetensors");
    }
    let mut nan = good.clone();
    let first = 8 + u64::from_le_bytes(good[..8].try_into().unwrap()) as usize;
    nan[first..first + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    fs::write(&bad, &nan).unwrap();
    refuse("value 0 of tensor");
    fs::copy(Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/backbone/efficientnet-lite0.safetensors"), &bad)
        .unwrap();
    refuse("another kind");
    run(home, &["eval", "gone.safetensors"]).expect(4, &["gone.safetensors"]);
    // A model needs the very backbone that it was trained on.
    let other = ["eval", "run/model.safetensors", "--backbone-weights", "run/model.safetensors"];
    run(home, &other).expect(4, &["run/model.safetensors"]);
}

#[test]
fn pictures_that_cannot_be_used() {
    let home = new_folder();
    let home = home.path();
    let refuse = |said: &[&str]| _ = train(home, "run", &["--epochs", "1"]).expect(3, said);
    run(home, &["train", "--data", "nowhere"]).expect(3, &["no such folder"]);
    fs::create_dir_all(home.join("data/new/train/good")).unwrap();
    refuse(&["new has no picture to train on"]);
    fs::write(home.join("data/new/train/good/0.png"), b"not a picture").unwrap();
    refuse(&["0.png", "not a picture"]);
    let whole = fs::read(home.join("data/bolt/train/good/0.png")).unwrap();
    fs::write(home.join("data/new/train/good/0.png"), &whole[..whole.len() / 2]).unwrap();
    refuse(&["cut short"]);
    assert!(!home.join("run").exists());

    // One picture is little, but no mistake; a class without test pictures has no figures.
    fs::write(home.join("data/new/train/good/0.png"), &whole).unwrap();
    let one = train(home, "run", &["--epochs", "1", "--json"]).expect(0, &["a single picture"]).json();
    assert!(one["metrics"]["classes"]["new"]["image_auroc"].is_null());
    assert!(one["metrics"]["classes"]["bolt"]["image_auroc"].is_number());
    let alone = run(home, &[&TINY[..], &["--classes", "new", "--epochs", "1", "--out", "alone", "--json"]].concat());
    assert!(alone.expect(0, &["no test pictures"]).json()["metrics"].is_null());
    run(home, &["eval", "alone/model.safetensors", "--classes", "new"]).expect(3, &["no test pictures"]);
    let other = run(home, &["eval", "alone/model.safetensors", "--data", "data"]);
    other.expect(0, &["bolt: the model was not trained on this class"]);
}

/// A limit on the size of files refuses a write half-way through, as a full disk does.
#[cfg(unix)]
#[test]
fn a_failed_write_leaves_the_old_files() {
    let home = new_folder();
    let home = home.path();
    train(home, "run", &["--epochs", "1"]).expect(0, &[]);
    let files = ["checkpoint.safetensors", "model.safetensors", "metrics.json", "train.jsonl"];
    let read = || files.map(|name| fs::read(home.join("run").join(name)).unwrap());
    let names = || {
        let mut names: Vec<PathBuf> = fs::read_dir(home.join("run")).unwrap().map(|e| e.unwrap().path()).collect();
        names.sort();
        names
    };
    let before = (read(), names());
    let script = format!("trap '' XFSZ; ulimit -f 100; exec '{GRAD}' train --resume run --epochs 2");
    let mut limited = Command::new("sh");
    limited.current_dir(home).args(["-c", &script]);
    go(limited).expect(2, &["cannot write", "checkpoint.safetensors"]);
    assert_eq!((read(), names()), before);
    run(home, &["train", "--resume", "run", "--epochs", "2"]).expect(0, &[]);
}

#[cfg(unix)]
#[test]
fn output_that_nobody_reads_is_no_crash() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    for args in [&["doctor"][..], &["doctor", "--json"], &["--help"]] {
        let script = format!("exec '{GRAD}' {} 2>err | true", args.join(" "));
        Process::new("sh").current_dir(home).args(["-c", &script]).status().unwrap();
        assert_eq!(fs::read_to_string(home.join("err")).unwrap(), "", "{args:?}");
    }
    let script = format!("'{GRAD}' doctor >/dev/full");
    let mut full = Command::new("sh");
    full.current_dir(home).args(["-c", &script]);
    if Path::new("/dev/full").exists() {
        go(full).expect(2, &["cannot write stdout"]);
    }
}

/// One class, on the emulated device: every kernel runs on the CPU, every access checked.
fn emulated(home: &Path, args: &[&str]) -> Outcome {
    run(home, &[args, &["--device", "emulated"]].concat())
}

#[test]
fn a_device_does_what_the_cpu_does() {
    let home = new_folder();
    let home = home.path();
    let one = ["--classes", "bolt", "--epochs", "1", "--precision", "f32", "--json"];
    let loss = |outcome: &Outcome| outcome.json()["loss"].as_f64().unwrap();
    let cpu = train(home, "cpu", &one).expect(0, &["device    cpu, "]);
    let gpu = emulated(home, &[&TINY[..], &["--out", "gpu"], &one].concat());
    let gpu = gpu.expect(0, &["device    emulated, emulated device, f32, ", "device    keeps all features, "]);
    // One step: the same features, batch and noise but for the order of sums.
    let near = |a: f64, b: f64| (a - b).abs() <= 1e-4 * a.abs();
    assert!(near(loss(&cpu), loss(&gpu)), "{} on the CPU, {} on the device", loss(&cpu), loss(&gpu));
    let eval =
        emulated(home, &["eval", "gpu", "--classes", "bolt", "--json"]).expect(0, &["4 x 8x8x152", "from .grad"]);
    assert_eq!(eval.json(), gpu.json()["metrics"]);

    // The same model on either device, and pictures in a lot or alone.
    let scores = |outcome: Outcome| -> Vec<f64> {
        let rows = outcome.expect(0, &[]).stdout;
        rows.lines().map(|row| serde_json::from_str::<Value>(row).unwrap()["score"].as_f64().unwrap()).collect()
    };
    let predict = ["predict", "cpu", "data/bolt/test", "--json", "--out", "none"];
    let (on_cpu, on_gpu) = (scores(run(home, &predict)), scores(emulated(home, &predict)));
    assert!(on_cpu.iter().zip(&on_gpu).all(|(a, b)| near(*a, *b)), "{on_cpu:?} {on_gpu:?}");
    let alone = emulated(home, &["predict", "cpu", "data/bolt/test/hole/4.png", "--json", "--out", "none"]);
    assert_eq!(scores(alone), on_gpu[2..3]);
}

#[test]
fn features_of_a_device_are_kept_apart() {
    let home = new_folder();
    let features = |more: &[&str]| {
        let args = ["features", "--data", "data", "--classes", "bolt", "--image-size", "64", "--json"];
        let found = run(home.path(), &[&args[..], more].concat()).expect(0, &[]).json();
        assert_eq!((&found["pictures"], &found["shape"]), (&8.into(), &serde_json::json!([8, 8, 152])));
        found["computed"].as_u64().unwrap()
    };
    assert_eq!(features(&["--device", "emulated"]), 8);
    assert_eq!(features(&["--device", "emulated", "--precision", "f32"]), 0);
    assert_eq!(features(&["--precision", "f32"]), 8);
    assert_eq!(features(&["--device", "emulated", "--precision", "bf16"]), 8);
    assert_eq!(features(&["--device", "emulated", "--precision", "bf16"]), 0);
    assert_eq!(features(&["--device", "cpu", "--precision", "bf16"]), 8);
    assert_eq!(features(&["--device", "cpu", "--precision", "bf16"]), 0);
}

#[test]
fn a_run_in_bf16_on_the_cpu_stays_in_bf16() {
    let home = new_folder();
    let home = home.path();
    for (out, epochs) in [("straight", "2"), ("half", "1")] {
        train(home, out, &["--precision", "bf16", "--epochs", epochs]).expect(0, &["device    cpu, ", "bf16 by "]);
    }
    run(home, &["train", "--resume", "half", "--epochs", "2"]).expect(0, &["bf16 by "]);
    assert_eq!(model(home, "straight"), model(home, "half"));
    train(home, "full", &["--epochs", "2", "--precision", "f32"]).expect(0, &["f32 by "]);
    assert_ne!(epochs(home, "straight"), epochs(home, "full"));
    run(home, &["eval", "half"]).expect(0, &["bf16 by "]);
    run(home, &["selftest", "half"]).expect(0, &["bf16 by ", "passed"]);
    run(home, &["selftest", "half", "--precision", "f32"]).expect(0, &["f32 by ", "passed"]);
}

#[test]
fn a_cpu_takes_bf16_where_it_multiplies_it() {
    let home = new_folder();
    let home = home.path();
    let precision = Products::preferred().unwrap().name();
    let device = format!("{precision} by ");
    train(home, "as-is", &["--epochs", "1"]).expect(0, &[&device]);
    let config = fs::read_to_string(home.join("as-is/config.toml")).unwrap();
    assert!(config.contains(&format!("precision = \"{precision}\"")), "{config}");
    let mut plain = grad(home);
    plain.args(TINY).args(["--out", "plain", "--epochs", "1"]).env("GRAD_SIMD", "portable");
    go(plain).expect(0, &["f32 by portable"]);
    // What is compared in fractions of a point is not rounded.
    let study = ["study", "ablation", "--data", "data", "--classes", "bolt", "--image-size", "64", "--blocks", "1"];
    run(home, &[&study[..], &["--epochs", "1", "--seeds", "1", "--batch", "4"]].concat()).expect(0, &["f32 by "]);
}

#[test]
fn a_run_on_a_device_resumes_to_the_same_bits() {
    let home = new_folder();
    let home = home.path();
    let train = |out: &str, epochs: &str| {
        let more = ["--classes", "bolt", "--precision", "bf16", "--bn-group", "3", "--epochs", epochs, "--out", out];
        emulated(home, &[&TINY[..], &more].concat()).expect(0, &["bf16"]);
    };
    train("straight", "2");
    train("half", "1");
    assert_ne!(model(home, "straight"), model(home, "half"));
    emulated(home, &["train", "--resume", "half", "--epochs", "2"]).expect(0, &["epoch 2, step 1", "bf16"]);
    assert_eq!(model(home, "straight"), model(home, "half"));
    assert_eq!(epochs(home, "straight"), epochs(home, "half"));

    // A model is used in the precision that it was trained in, unless another is asked for.
    let predict = |more: &[&str]| run(home, &[&["predict", "half", "data/bolt/test/hole/4.png"], more].concat());
    predict(&["--device", "emulated"]).expect(0, &["emulated device, bf16"]);
    predict(&["--device", "emulated", "--precision", "tf32"]).expect(0, &["emulated device, tf32"]);
    predict(&[]).expect(0, &["device    cpu", "bf16 by "]);
    predict(&["--precision", "f32"]).expect(0, &["device    cpu", "f32 by "]);
    run(home, &["train", "--resume", "half", "--precision", "f32"]).expect(0, &["every epoch is trained"]);
}

#[test]
fn devices_and_precisions_that_do_not_exist() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    run(home, &["doctor", "--device", "gpu"]).expect(2, &["use auto, cpu, cuda or cuda:N"]);
    run(home, &["doctor", "--precision", "f16"]).expect(2, &["f32, tf32, bf16"]);
    let said = emulated(home, &["doctor", "--json"]).expect(0, &[]).json();
    assert!(said["device"].as_str().unwrap().starts_with("emulated, emulated device, f32, "), "{said}");
    assert!(["kernels", "driver", "gpu"].iter().all(|key| said[key].is_string()), "{said}");
    run(home, &["doctor", "--precision", "tf32"]).expect(0, &["device     cpu, ", "tf32 by "]);
}
