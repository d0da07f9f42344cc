//! `grad study`: every study runs, a stopped one goes on to the same figures, and what it refuses.
//!
//! On two classes of eight pictures of 64 x 64 pixels and a head without fusion blocks.

#[path = "common/program.rs"]
mod program;

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use program::{GRAD, Outcome, go, new_folder, run};
use serde_json::Value;

const TINY: [&str; 14] = [
    "--data",
    "data",
    "--image-size",
    "64",
    "--blocks",
    "0",
    "--batch",
    "4",
    "--epochs",
    "1",
    "--hold-out",
    "0.25",
    "--json",
    "--seeds",
];

fn study(home: &Path, name: &str, seeds: &str, more: &[&str]) -> Outcome {
    run(home, &[&["study", name], &TINY[..], &[seeds], more].concat())
}

fn rows(of: &Value) -> Vec<&str> {
    of["rows"].as_array().unwrap().iter().map(|row| row["name"].as_str().unwrap()).collect()
}

/// `study.json` without what a clock measured.
fn figures(home: &Path, out: &str) -> Value {
    let mut study: Value = serde_json::from_slice(&fs::read(home.join(out).join("study.json")).unwrap()).unwrap();
    for row in study["rows"].as_array_mut().unwrap() {
        for run in row["runs"].as_array_mut().unwrap() {
            assert!(run.as_object_mut().unwrap().remove("seconds").unwrap().as_f64().unwrap() > 0.0);
        }
    }
    study
}

#[test]
fn the_ablation_is_trained_measured_and_shown() {
    let home = new_folder();
    let home = home.path();
    let said = study(home, "ablation", "4,2", &["--out", "s"]).expect(0, &["study     10 of 10: + jitter, seed 2"]);
    // Pictures were opened once, and the features came once, for ten runs.
    assert_eq!((said.stderr.matches("features  16 x").count(), said.stderr.matches("layout    ").count()), (1, 1));
    let table = said.json();
    assert_eq!(rows(&table), ["global", "local", "both", "refinement", "jitter"]);
    assert_eq!(table["rows"][0]["changes"]["local"], "false");
    for row in table["rows"].as_array().unwrap() {
        assert_eq!(row["spread"]["runs"], 2);
        let pixel = row["spread"]["mean"]["mean"]["pixel_auroc"].as_f64().unwrap();
        assert!((0.0..=1.0).contains(&pixel) && row["seconds"].as_f64().unwrap() > 0.0, "{row}");
    }
    // Every run is an ordinary one, but for the checkpoint, which nobody needs any more.
    let folder = home.join("s/both/seed-2");
    assert!(folder.join("model.safetensors").is_file() && !folder.join("checkpoint.safetensors").exists());
    let of_run: Value = serde_json::from_slice(&fs::read(folder.join("metrics.json")).unwrap()).unwrap();
    assert_eq!(figures(home, "s")["rows"][2]["runs"][1]["metrics"]["classes"], of_run["classes"]);
    run(home, &["eval", "s/jitter/seed-4", "--json"]).expect(0, &[]);

    // The same command again measures nothing; more seeds are added; the figures of the first stay.
    let before = figures(home, "s");
    let again = study(home, "ablation", "4,2", &["--out", "s"]).expect(0, &["jitter, seed 2, measured already"]);
    assert_eq!(again.json(), table);
    let more = study(home, "ablation", "2,9", &["--out", "s", "--per-class"]).expect(0, &[]).json();
    assert_eq!(more["seeds"], serde_json::json!([4, 2, 9]));
    let after = figures(home, "s");
    assert_eq!(after["rows"][3]["runs"][0], before["rows"][3]["runs"][0]);
    assert_eq!(after["rows"][3]["runs"].as_array().unwrap().len(), 3);

    // As text, and as a page.
    let text: Vec<&str> = TINY.into_iter().filter(|arg| *arg != "--json").collect();
    let text = run(home, &[&["study", "ablation"], &text[..], &["4", "--out", "s", "--per-class", "-q"]].concat());
    let text = text.expect(0, &["+ refinement", "  bolt", "3 runs a row, seeds 4, 2, 9"]).stdout;
    assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
    run(home, &["report", "s"]).expect(0, &["report.html"]);
    let page = fs::read_to_string(home.join("s/report.html")).unwrap();
    for part in ["GRAD study", "+ refinement", "image AUROC, %", "cloth", "+ jitter, seed 9", "local = false"] {
        assert!(page.contains(part), "{part}");
    }
}

#[cfg(unix)]
#[test]
fn a_study_that_was_stopped_goes_on_to_the_same_figures() {
    let home = new_folder();
    let home = home.path();
    let plain: Vec<&str> = TINY.into_iter().filter(|arg| !["--epochs", "1", "--json"].contains(arg)).collect();
    let vary = ["1,2", "--vary", "batch=2/2,4/2", "--vary", "jitter=off", "--epochs", "20", "--out"];
    let args = |out| [&["study", "settings"], &plain[..], &vary, &[out]].concat();
    run(home, &args("whole")).expect(0, &[]);
    // In the middle of the first run, then after the second.
    for (signal, code, file, line) in [
        ("-KILL", None, "cut/configured/seed-1/train.jsonl", "\"epoch\":"),
        ("-INT", Some(130), "cut/study.json", "\"seed\": 1"),
    ] {
        let mut child = Command::new(GRAD);
        child.current_dir(home).args(args("cut")).env("GRAD_DEVICE", "cpu");
        let mut child = child.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let started = Instant::now();
        while fs::read_to_string(home.join(file)).map_or(0, |text| text.matches(line).count()) < 2 {
            assert!(started.elapsed() < Duration::from_secs(120), "{file} does not grow");
            std::thread::sleep(Duration::from_millis(2));
        }
        assert!(Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap().success());
        assert_eq!(child.wait().unwrap().code(), code, "it was faster than the signal");
    }
    run(home, &args("cut")).expect(0, &["2 of 8: batch 2, groups of 2, seed 1, measured already"]);
    assert_eq!(figures(home, "cut"), figures(home, "whole"));
}

/// A limit on the size of files refuses a write half-way through, as a full disk does.
#[cfg(unix)]
#[test]
fn a_study_on_a_full_disk_goes_on_later() {
    let home = new_folder();
    let home = home.path();
    let args = [&["study", "settings"], &TINY[..], &["1", "--vary", "jitter=off", "--out", "s"]].concat();
    let script = format!("trap '' XFSZ; ulimit -f 100; exec '{GRAD}' {}", args.join(" "));
    let mut full = assert_cmd::Command::new("sh");
    full.current_dir(home).env("GRAD_DEVICE", "cpu").args(["-c", &script]);
    go(full).expect(2, &["cannot write s/configured/seed-1/checkpoint.safetensors"]);
    run(home, &args).expect(0, &["2 of 2"]);
    run(home, &[&args[..args.len() - 1], &["whole"]].concat()).expect(0, &[]);
    assert_eq!(figures(home, "s"), figures(home, "whole"));
}

#[test]
fn settings_and_separate_models() {
    let home = new_folder();
    let home = home.path();
    let vary = ["--vary", "separate", "--vary", "expansion=2", "--out", "s"];
    let table = study(home, "settings", "1", &vary).expect(0, &[]).json();
    assert_eq!(rows(&table), ["configured", "separate-on", "expansion-2"]);
    assert!(home.join("s/separate-on/cloth/seed-1/model.safetensors").is_file());
    assert_eq!(table["rows"][2]["changes"]["expansion"], "2.0");
    // More axes are added to what is there.
    let more =
        study(home, "settings", "1", &["--vary", "blocks=1", "--out", "s"]).expect(0, &["configured, seed 1, mea"]);
    assert_eq!(rows(&more.json()), ["configured", "separate-on", "expansion-2", "blocks-1"]);
    let separate = &more.json()["rows"][1]["spread"];
    assert_eq!(separate, &table["rows"][1]["spread"]);
    assert!(separate["classes"]["bolt"]["mean"]["image_auroc"].is_number());
}

#[test]
fn baselines_stand_beside_the_model() {
    let home = new_folder();
    let home = home.path();
    let table = study(home, "baselines", "1,2", &["--out", "s"]).expect(0, &["fitted"]).json();
    let all = ["model", "padim", "patchcore", "model-separate", "padim-separate", "patchcore-separate"];
    assert_eq!(rows(&table), all);
    for row in table["rows"].as_array().unwrap() {
        assert!(row["spread"]["mean"]["mean"]["pixel_auroc"].as_f64().unwrap() > 0.5, "{row}");
    }
    let again = study(home, "baselines", "1,2", &["--out", "s"]).expect(0, &["12 of 12"]);
    assert_eq!(again.json(), table);
}

#[test]
fn memories_are_compared_in_one_branch() {
    let home = new_folder();
    let home = home.path();
    let table = study(home, "memory", "1", &["--out", "s"]).expect(0, &[]).json();
    assert_eq!(rows(&table).len(), 12);
    assert_eq!(table["rows"][2]["changes"]["memory"], "\"vq\"");
    let figures: Vec<&Value> = (0..12).map(|i| &table["rows"][i]["spread"]["mean"]["mean"]["image_auroc"]).collect();
    assert!(figures.iter().all(|figure| figure.is_number()), "{table}");
    assert!((0..12).all(|i| table["rows"][i]["survival"]["mean"].is_number()), "{table}");
    assert_ne!(table["rows"][0]["spread"], table["rows"][2]["spread"], "a codebook is no grid");
    run(home, &["report", "s"]).expect(0, &[]);
    assert!(fs::read_to_string(home.join("s/report.html")).unwrap().contains("survival of defects, %"));
}

#[test]
fn what_cannot_be_studied_is_refused() {
    let home = new_folder();
    let home = home.path();
    let settings = |more: &[&str]| study(home, "settings", "1", more);
    settings(&["--vary", "block", "--out", "a"]).expect(2, &["nothing called `block`", "did you mean `blocks`?"]);
    settings(&["--vary", "blocks=x", "--out", "a"]).expect(2, &["`x` is no value of blocks"]);
    let one = ["--vary", "separate", "--classes", "bolt", "--out", "a"];
    settings(&one).expect(2, &["there is one class only"]);
    study(home, "ablation", "1", &["--jitter", "off"]).expect(2, &["jitter is given", "leave it out"]);
    study(home, "ablation", "1,1", &[]).expect(2, &["names 1 twice"]);
    assert!(!home.join("a").exists() && !home.join("runs").exists(), "nothing began, nothing stays");

    // Folders that are not this study's.
    fs::create_dir(home.join("mine")).unwrap();
    fs::write(home.join("mine/notes.txt"), "x").unwrap();
    settings(&["--vary", "blocks=1", "--out", "mine"]).expect(2, &["is not empty"]);
    settings(&["--vary", "blocks=1", "--out", "s"]).expect(0, &[]);
    study(home, "ablation", "1", &["--out", "s"]).expect(2, &["holds another study: settings"]);
    settings(&["--vary", "blocks=1", "--rate", "0.01", "--out", "s"]).expect(2, &["rate is not what the study in s"]);
    settings(&["--vary", "blocks=1", "--classes", "bolt", "--out", "s"]).expect(2, &["classes is not what"]);
    fs::remove_file(home.join("data/bolt/test/hole/4.png")).unwrap();
    settings(&["--vary", "blocks=1", "--out", "s"]).expect(3, &["are not what the study in s began with"]);

    // Without masks there are no figures of pixels, and the table says so; without defects there is nothing to compare.
    fs::remove_dir_all(home.join("data/bolt/ground_truth")).unwrap();
    fs::remove_dir_all(home.join("data/cloth/ground_truth")).unwrap();
    let bare = settings(&["--vary", "blocks=1", "--out", "bare"]).expect(0, &[]).json();
    let mean = &bare["rows"][0]["spread"]["mean"]["mean"];
    assert!(mean["image_auroc"].is_number() && mean["pixel_auroc"].is_null(), "{mean}");
    for class in ["bolt", "cloth"] {
        fs::remove_dir_all(home.join("data").join(class).join("test/hole")).unwrap();
    }
    settings(&["--vary", "blocks=1", "--out", "none"]).expect(3, &["holds no defective test pictures"]);
    assert!(!home.join("none").exists());
    // A damaged file is named.
    fs::write(home.join("s/study.json"), "{").unwrap();
    settings(&["--vary", "blocks=1", "--out", "s"]).expect(3, &["study.json", "is damaged"]);
}
