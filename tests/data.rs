//! Data sets of every layout through the program: what is opened, checked, listed and trained on.

#[path = "common/program.rs"]
mod program;

use std::fs;
use std::path::Path;

use program::{go, grad, new_folder, run};
use serde_json::Value;

const TINY: [&str; 9] = ["--image-size", "64", "--blocks", "1", "--batch", "4", "--epochs", "1", "--json"];

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to.parent().unwrap()).unwrap();
    fs::copy(from, to).unwrap();
}

/// `data/` again as plain folders: `plain/bolt/{good,hole}` and `plain/bolt/masks`.
fn plain(home: &Path) {
    let (from, to) = (home.join("data/bolt"), home.join("plain/bolt"));
    for i in 0..4 {
        copy(&from.join(format!("train/good/{i}.png")), &to.join(format!("good/{i}.png")));
    }
    for i in 4..6 {
        copy(&from.join(format!("test/hole/{i}.png")), &to.join(format!("hole/{i}.png")));
        copy(&from.join(format!("ground_truth/hole/{i}_mask.png")), &to.join(format!("masks/{i}_mask.png")));
    }
}

#[test]
fn a_sound_folder_passes_the_check() {
    let home = new_folder();
    let home = home.path();
    let checked = run(home, &["data", "check", "data", "--image-size", "64"]);
    let text = checked.expect(0, &["data: layout of MVTec AD", "0 errors, 0 warnings, 0 notes"]).stdout;
    assert!(
        text.lines().any(|line| line.split_whitespace().eq(["bolt", "4", "0", "2", "2", "2", "hole", "2"])),
        "{text}"
    );
    let report = run(home, &["data", "check", "data", "--json"]).expect(0, &[]).json();
    assert_eq!((&report["pictures"], &report["masks"], &report["levels"]["error"]), (&16.into(), &4.into(), &0.into()));
    assert!(report["findings"].as_array().unwrap().iter().all(|f| f["code"] == "smaller-than-network"), "{report}");
}

#[test]
fn errors_are_named_and_the_exit_code_is_3() {
    let home = new_folder();
    let home = home.path();
    let bolt = home.join("data/bolt");
    for i in 0..5 {
        copy(&bolt.join("train/good/0.png"), &bolt.join(format!("test/good/copy of {i}.png")));
    }
    fs::write(bolt.join("train/good/torn.png"), b"\x89PNG").unwrap();
    fs::write(bolt.join("train/good/phone.heic"), b"x").unwrap();
    let args = ["data", "check", "data", "--image-size", "64"];
    let said = [
        "error duplicate-across-splits (5): the same pixels in two splits",
        "error unreadable (1): pictures that cannot be read",
        "warning unsupported-format",
        "phone.heic",
        "data/bolt/test/good/copy of 2.png: in test of bolt, equals data/bolt/train/good/0.png in train of bolt",
        "… 2 more: --all names them",
        "help: keep one of them",
        "6 errors, ",
        "error: data: 6 errors in the data",
    ];
    let few = run(home, &args).expect(3, &said).stdout;
    assert!(!few.contains("copy of 4.png"), "{few}");
    run(home, &[&args[..], &["--all"]].concat()).expect(3, &["copy of 4.png"]);
    let report = run(home, &[&args[..], &["--json", "-q"]].concat()).expect(3, &[]).json();
    let codes: Vec<&str> = report["findings"].as_array().unwrap().iter().map(|f| f["code"].as_str().unwrap()).collect();
    assert_eq!(codes.iter().filter(|code| **code == "duplicate-across-splits").count(), 5, "{codes:?}");
    // The first copy is compared with training, the others too: none of them is only a repeat within the test set.
    assert!(!codes.contains(&"duplicate"), "{codes:?}");
    run(home, &["data", "check", "nowhere"]).expect(3, &["no such folder"]);
    run(home, &["data", "check"]).expect(2, &["Usage"]);
    run(home, &["data"]).expect(2, &["Usage"]);
}

#[test]
fn a_manifest_is_the_same_data_from_anywhere() {
    let home = new_folder();
    let home = home.path();
    plain(home);
    for set in ["data", "plain"] {
        let written = run(home, &["data", "manifest", set]).expect(0, &["manifest "]).stdout;
        let first: Value = serde_json::from_str(written.lines().next().unwrap()).unwrap();
        assert!(Path::new(first["filename"].as_str().unwrap()).is_absolute(), "{first}");
        let away = tempfile::tempdir().unwrap();
        fs::write(away.path().join("list.jsonl"), &written).unwrap();
        let again = run(away.path(), &["data", "manifest", "list.jsonl", "-q"]).expect(0, &[]);
        assert_eq!((again.stdout, again.stderr), (written, String::new()));
        let report = |at: &Path, set: &str| {
            let mut report = run(at, &["data", "check", set, "--json"]).expect(0, &[]).json();
            assert_eq!(report["left_out"], 0);
            report["classes"].take()
        };
        assert_eq!(report(away.path(), "list.jsonl"), report(home, set));
    }
    fs::write(home.join("bad.jsonl"), "{\"filename\": \"0.png\"}\n").unwrap();
    run(home, &["train", "--data", "bad.jsonl"]).expect(3, &["bad.jsonl:1: missing field `label`", "help: "]);
}

#[test]
fn several_data_sets_make_one_model() {
    let home = new_folder();
    let home = home.path();
    plain(home);
    let args = [&["train", "--data", "data", "--data", "plain", "--out", "run"], &TINY[..]].concat();
    let said = ["data: layout of MVTec AD", "plain: plain folder: good/ is for training", "data, plain: 3 classes"];
    let trained = run(home, &args).expect(0, &said).json();
    let mut classes: Vec<&String> = trained["metrics"]["classes"].as_object().unwrap().keys().collect();
    classes.sort();
    assert_eq!(classes, ["cloth", "data/bolt", "plain/bolt"]);
    // The model knows where all of them were.
    let eval = run(home, &["eval", "run", "--json"]).expect(0, &["data, plain: 3 classes"]).json();
    assert_eq!(eval, trained["metrics"]);
    // The run's file holds the list, and so does a variable, as PATH does.
    let settled: toml::Table = fs::read_to_string(home.join("run/config.toml")).unwrap().parse().unwrap();
    assert_eq!(settled["data"], toml::Value::from(vec!["data", "plain"]));
    run(home, &["train", "--config", "run/config.toml", "--out", "again"]).expect(0, &["data, plain: 3 classes"]);
    let mut command = grad(home);
    command.args(["eval", "run"]).env("GRAD_DATA", std::env::join_paths(["plain", "data"]).unwrap());
    go(command).expect(0, &["plain, data: 3 classes"]);
    run(home, &["train", "--data", "data", "--data", "data", "--out", "twice"]).expect(3, &["both hold a class"]);
}

#[test]
fn test_pictures_alone_can_be_measured() {
    let home = new_folder();
    let home = home.path();
    run(home, &[&["train", "--data", "data", "--out", "run"], &TINY[..]].concat()).expect(0, &[]);
    let whole = run(home, &["eval", "run", "--json"]).expect(0, &[]).json();
    fs::remove_dir_all(home.join("data/bolt/train")).unwrap();
    assert_eq!(run(home, &["eval", "run", "--json"]).expect(0, &[]).json(), whole);
    run(home, &["train", "--data", "data"]).expect(3, &["bolt has no picture to train on"]);
    run(home, &["data", "check", "data", "--image-size", "64"]).expect(0, &["warning no-training (1): "]);
    // Good pictures alone are a data set to train on, and what became of them is said.
    let loose = ["train", "--data", "data/cloth/test/good/..", "--out", "loose"];
    run(home, &loose).expect(3, &["is a part of a class"]);
    for i in 0..4 {
        copy(&home.join(format!("data/cloth/train/good/{i}.png")), &home.join(format!("photos/{i}.png")));
    }
    let args = [&["train", "--data", "photos", "--out", "loose"], &TINY[..]].concat();
    run(home, &args).expect(0, &["every picture counts as good", "class photos, 4 pictures to train on, 0 to test"]);
}

#[test]
fn help_fits_a_terminal() {
    let home = tempfile::tempdir().unwrap();
    for verb in [&["data", "--help"][..], &["data", "check", "--help"], &["data", "manifest", "-h"]] {
        let help = run(home.path(), verb).expect(0, &["Usage: grad data"]);
        let wide = help.stdout.lines().find(|line| line.chars().count() > 80);
        assert_eq!(wide, None, "{verb:?}");
    }
}
