//! The code that talks to the CUDA driver, on machines without one: against a stand-in for the library, written in C, that
//! fails in every way a driver can. Each failure ends with exit code 5, says what it is and what to do, and leaves nothing
//! half-written; with `--device auto` it is no failure at all.
#![cfg(target_os = "linux")]

#[path = "common/program.rs"]
mod program;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command as Process;

use grad::device::cuda::ARCHITECTURES;
use program::{Outcome, go, grad, new_folder, run};
use tempfile::TempDir;

/// A gate constant, because kernels that do nothing leave all features at zero, and none can be fitted to that.
const TRAIN: [&str; 12] =
    ["train", "--data", "data", "--image-size", "64", "--blocks", "1", "--mse-coef", "0.05", "--out", "run", "--batch"];

/// A folder with the stand-in under the names that a driver library has.
fn library(defines: &[&str]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/driver/libcuda.c");
    let file = folder.path().join("libcuda.so.1");
    let compiler = std::env::var_os("CC").unwrap_or("cc".into());
    let flags = ["-std=c11", "-Wall", "-Wextra", "-Werror", "-O1", "-shared", "-fPIC", "-o"];
    let status = Process::new(compiler).args(defines).args(flags).arg(&file).arg(source).status();
    assert!(status.expect("a C compiler is needed").success());
    // The first name that is looked for: a real one must not be found before the stand-in.
    fs::copy(file, folder.path().join("libcuda.so")).unwrap();
    folder
}

/// Runs `grad` with the library in `folder` in its way, and things going wrong as `faults` says.
fn on_driver(home: &Path, folder: &Path, faults: &str, args: &[&str]) -> Outcome {
    let mut command = grad(home);
    command.env_remove("GRAD_DEVICE").env("LD_LIBRARY_PATH", folder).env("FAKE_CUDA", faults).args(args);
    go(command)
}

/// An error as the user should see it, and no file cut short anywhere.
#[track_caller]
fn refused(outcome: Outcome, home: &Path, said: &[&str]) {
    let outcome = outcome.expect(5, said).expect(5, &["error: ", "\n  help: ", "--device cpu"]);
    assert_eq!(outcome.stdout, "");
    for word in ["panicked", "RUST_BACKTRACE", "unwrap"] {
        assert!(!outcome.stderr.contains(word), "{}", outcome.stderr);
    }
    let left = files(home).into_iter().find(|f| f.extension().is_some_and(|e| e == "tmp"));
    assert_eq!(left, None);
}

/// All files in a folder and below it.
fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().map(|e| e.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

#[test]
fn a_driver_that_cannot_be_used_is_explained() {
    let (home, current, old) = (new_folder(), library(&[]), library(&["-DVERY_OLD"]));
    let home = home.path();
    for (folder, faults, device, said) in [
        (&current, "init=803", "cuda", ["starting the driver: system has unsupported display driver", "restart"]),
        (&current, "init=100", "cuda", ["no CUDA-capable device", "nvidia-smi"]),
        (&current, "init=34", "cuda", ["STUB_LIBRARY", "LD_LIBRARY_PATH"]),
        (&current, "devices=0", "cuda", ["there is no CUDA device 0 (0 found)", "or auto"]),
        (&current, "devices=2", "cuda:7", ["there is no CUDA device 7 (2 found)", "cuda:0 to cuda:1"]),
        (&current, "context=2", "cuda", ["opening the device: out of memory", "other programs"]),
        (&current, "context=46", "cuda", ["DEVICE_UNAVAILABLE", "another program"]),
        (&current, "load=209", "cuda", ["no kernel image is available", "compute capability 8.0"]),
        (&current, "memory=4096", "cuda", ["Stand-in GPU has no room for", "--batch"]),
        (&old, "", "cuda", ["has no function cu", "install a recent NVIDIA driver"]),
    ] {
        let args = [&TRAIN[..], &["4", "--epochs", "1", "--device", device]].concat();
        refused(on_driver(home, folder.path(), faults, &args), home, &said);
        assert!(!home.join("run").exists(), "{faults}: a run that never began leaves nothing behind");
        // Where nobody asked for it, it is passed over. That it has too little memory is found out too late for that.
        if device == "cuda" && !faults.starts_with("memory") {
            let why = if ARCHITECTURES.is_empty() { "this build holds no CUDA kernels" } else { said[0] };
            let auto = ["features", "--data", "data", "--image-size", "64", "--device", "auto"];
            on_driver(home, folder.path(), faults, &auto).expect(0, &["device    cpu", "(auto: ", why]);
        }
    }
}

#[test]
fn a_machine_without_the_library_is_no_crash() {
    let (home, empty) = (new_folder(), tempfile::tempdir().unwrap());
    let doctor =
        on_driver(home.path(), empty.path(), "", &["doctor", "--device", "cpu", "--json"]).expect(0, &[]).json();
    if !doctor["driver"].as_str().unwrap().contains("is not on this machine") {
        println!("skipped: there is a CUDA driver");
        return;
    }
    let asked = on_driver(home.path(), empty.path(), "", &["features", "--data", "data", "--device", "cuda"]);
    refused(asked, home.path(), &["libcuda", "install the NVIDIA driver"]);
    on_driver(home.path(), empty.path(), "", &["doctor"]).expect(0, &["device     cpu", "driver     none", "(auto: "]);
    on_driver(home.path(), empty.path(), "", &["doctor", "--device", "cuda"]).expect(5, &["device     none: the CUDA"]);
}

#[test]
fn the_doctor_describes_the_device() {
    let (home, driver) = (tempfile::tempdir().unwrap(), library(&[]));
    let said =
        on_driver(home.path(), driver.path(), "", &["doctor", "--device", "cuda", "--precision", "bf16", "--json"]);
    let said = said.expect(0, &[]).json();
    assert_eq!(said["driver"], "CUDA 13.0");
    assert_eq!(said["gpu"], "Stand-in GPU, compute capability 9.0, 4 multiprocessors, 1024 MiB");
    assert!(said["device"].as_str().unwrap().starts_with("cuda:0, Stand-in GPU, bf16, "), "{said}");
    let broken = on_driver(home.path(), driver.path(), "init=803", &["doctor", "--device", "cuda"]);
    broken.expect(5, &["driver     none: CUDA: starting the driver: system has", "gpu        none", "restart"]);
}

/// Kernels that do nothing are enough to see that all memory is found and all launches are accepted.
#[test]
fn a_whole_run_through_the_driver() {
    let (home, driver) = (new_folder(), library(&[]));
    let home = home.path();
    let args = [&TRAIN[..], &["4", "--epochs", "2", "--device", "cuda", "--json"]].concat();
    let trained = on_driver(home, driver.path(), "", &args)
        .expect(0, &["device    cuda:0, Stand-in GPU, f32", "device    keeps all features, "]);
    assert_eq!(trained.json()["loss"], 0.0);
    let eval = on_driver(home, driver.path(), "", &["eval", "run", "--device", "cuda", "--json"]).expect(0, &[]);
    assert_eq!(eval.json(), trained.json()["metrics"]);
    // The features of a device are its own: the CPU finds none of them in the cache.
    let cpu = run(home, &["features", "--data", "data", "--image-size", "64", "--json"]).expect(0, &[]).json();
    assert_eq!(cpu["computed"], 16);
}

/// Tensor maps and clusters as the driver wants them, where they are forced and nowhere else. The stand-in is of the one
/// architecture that can have them.
#[test]
fn kernels_for_hopper_are_launched_where_they_are_forced() {
    let (home, driver, old) = (new_folder(), library(&[]), library(&["-DCUDA_11"]));
    let home = home.path();
    let train = |way: &str, folder: &TempDir, faults: &str, model: &str, out: &str| {
        let mut command = grad(home);
        command.env_remove("GRAD_DEVICE").env("LD_LIBRARY_PATH", folder.path()).env("FAKE_CUDA", faults);
        let fixed = ["--batch", "4", "--epochs", "1", "--device", "cuda", "--precision", "bf16"];
        command.env("GRAD_HOPPER", way).args(&TRAIN[..TRAIN.len() - 3]).args(fixed);
        command.args(["--model", model, "--out", out]);
        go(command)
    };
    let refusal = "clusters=719";
    let launching = "launching pointwise_conv_wgmma_forward: unspecified launch failure";
    refused(train("force", &driver, refusal, "crad", "refused"), home, &[launching]);
    refused(train("force", &old, "", "crad", "old"), home, &["has no function cuTensorMapEncode", "GRAD_HOPPER=off"]);
    assert!(!home.join("refused/model.safetensors").exists() && !home.join("old/model.safetensors").exists());
    train("on", &driver, "", "crad", "none").expect(2, &["GRAD_HOPPER=on", "off or force"]);
    assert!(!home.join("none").exists());
    train("off", &driver, refusal, "crad", "off").expect(0, &[]);
    // Nothing was measured on such a device: nobody takes them of his own accord.
    train("", &old, "", "crad", "measured").expect(0, &[]);
    for model in ["grad", "crad"] {
        train("force", &driver, "", model, model).expect(0, &[]);
    }
}

#[test]
fn a_device_lost_in_mid_run_harms_nothing() {
    let (home, driver) = (new_folder(), library(&[]));
    let home = home.path();
    let lost = ["unspecified launch failure", "the device was lost", "--resume"];
    let args = [&TRAIN[..], &["4", "--epochs", "100", "--device", "cuda"]].concat();
    // While features are computed.
    refused(on_driver(home, driver.path(), "launches=20", &args), home, &lost);
    assert!(!home.join("run").exists());
    // While it trains.
    let outcome = on_driver(home, driver.path(), "launches=3000", &args);
    assert!(outcome.stderr.contains("run       run, 100 epochs"), "{}", outcome.stderr);
    refused(outcome, home, &lost);
    assert!(!home.join("run/model.safetensors").exists());
    run(home, &["train", "--resume", "run", "--device", "cpu"]).expect(0, &["at epoch 1, step 1"]);
    // While it scores.
    let predict = ["predict", "run", "data/bolt/test", "--device", "cuda", "--out", "maps", "--json"];
    refused(on_driver(home, driver.path(), "launches=20", &predict), home, &lost[..2]);
    assert!(!home.join("maps").exists());
}

#[test]
fn too_little_memory_for_the_features_is_no_failure() {
    let (home, driver) = (new_folder(), library(&[]));
    let home = home.path();
    let good = home.join("data/bolt/train/good");
    (0..392).for_each(|i| _ = fs::copy(good.join("0.png"), good.join(format!("copy{i}.png"))).unwrap());
    let features = ["features", "--data", "data", "--image-size", "64", "--device", "cuda"];
    on_driver(home, driver.path(), "", &features).expect(0, &[]);
    // 14 MiB of features, 9 of parameters and weights, as much for inference, and what a step on one picture needs.
    let train = |batch| [&TRAIN[..], &[batch, "--epochs", "1", "--device", "cuda"]].concat();
    let streamed = ["has no room for all features", "MiB: they are streamed"];
    on_driver(home, driver.path(), "memory=40000000", &train("1")).expect(0, &streamed);
    fs::remove_dir_all(home.join("run")).unwrap();
    on_driver(home, driver.path(), "", &train("1")).expect(0, &["keeps all features"]);
    fs::remove_dir_all(home.join("run")).unwrap();
    // A step on 64 pictures does not fit. The run stays as it was before that step.
    let refusal = on_driver(home, driver.path(), "memory=40000000", &train("64")).expect(5, &streamed);
    refused(refusal, home, &["Stand-in GPU has no room for", "--batch"]);
    assert!(home.join("run/checkpoint.safetensors").exists() && !home.join("run/model.safetensors").exists());
    run(home, &["train", "--resume", "run"]).expect(0, &["at epoch 1, step 1"]);
}
