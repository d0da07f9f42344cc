//! `grad decoder` and what a report shows by it: from training pictures alone, stopped and gone on with, and what is refused.

#[path = "common/program.rs"]
mod program;

use std::fs;
use std::path::Path;

use program::{new_folder, run};

const TRAIN: [&str; 13] = [
    "train",
    "--data",
    "data",
    "--image-size",
    "64",
    "--blocks",
    "1",
    "--batch",
    "4",
    "--epochs",
    "1",
    "--hold-out",
    "0.25",
];

/// The tiny model in `out`, trained with more flags.
fn train(home: &Path, out: &str, more: &[&str]) {
    run(home, &[&TRAIN[..], &["--out", out], more].concat()).expect(0, &[]);
}

fn bytes(home: &Path, file: &str) -> Vec<u8> {
    fs::read(home.join(file)).unwrap()
}

#[test]
fn from_training_pictures_to_a_report() {
    let home = new_folder();
    let home = home.path();
    train(home, "run", &[]);
    // Six of the eight training pictures: two are held out.
    let said = run(home, &["decoder", "run", "--epochs", "2", "--json"]).expect(0, &["6 pictures of 32x32 pixels"]);
    let made = said.json();
    assert_eq!((&made["images"], &made["epochs"]), (&6.into(), &2.into()), "{made}");
    assert!(made["loss"].as_f64().unwrap() > 0.0 && made["parameters"].as_u64().unwrap() > 100_000);
    let again = run(home, &["decoder", "run", "--epochs", "2", "--json"]).expect(0, &["is trained already"]);
    assert_eq!(again.json(), made);

    let report = ["report", "run", "--decoder", "run/decoder.safetensors", "--out"];
    run(home, &[&report[..], &["with.html"]].concat()).expect(0, &[]);
    run(home, &["report", "run", "--out", "without.html"]).expect(0, &[]);
    let page = |file: &str| String::from_utf8(bytes(home, file)).unwrap();
    let parts = ["decoded features", "decoded reconstruction", "local part of", "2 epochs on 6 pictures"];
    for part in parts {
        assert!(page("with.html").contains(part), "{part}");
        assert!(!page("without.html").contains(part), "{part}");
    }
    // Two classes make one line of five places, seen with the local part of each.
    assert_eq!(page("with.html").matches("<figure class=\"line\">").count(), 1);
    assert_eq!(page("with.html").matches(", decoded\"").count(), 10);
    // Every picture that is shown, good and defective, is shown decoded.
    assert_eq!(
        page("with.html").matches("alt=\"decoded reconstruction").count(),
        page("with.html").matches("alt=\"heat map").count()
    );

    // One class is one place. A discrete memory has no places, and reconstructions all the same.
    let one = [&report[..], &["one.html", "--classes", "bolt"]].concat();
    run(home, &one).expect(0, &[]);
    assert_eq!(page("one.html").matches(", decoded\"").count(), 1);
    train(home, "vq", &["--memory", "vq"]);
    let vq = ["report", "vq", "--decoder", "run/decoder.safetensors", "--out", "vq.html"];
    run(home, &vq).expect(0, &[]);
    assert!(page("vq.html").contains("decoded reconstruction") && !page("vq.html").contains("class=\"line\""));
}

#[test]
fn it_learns_from_training_pictures_alone() {
    let home = new_folder();
    let home = home.path();
    train(home, "run", &[]);
    let decoder = |out: &str| {
        run(home, &["decoder", "run", "--epochs", "1", "--seed", "7", "--out", out]).expect(0, &["features  6"]);
        bytes(home, out)
    };
    let first = decoder("a");
    for class in ["bolt", "cloth"] {
        fs::remove_dir_all(home.join("data").join(class).join("test")).unwrap();
        fs::remove_dir_all(home.join("data").join(class).join("ground_truth")).unwrap();
    }
    assert_eq!(decoder("b"), first, "test pictures had a part in it");
    let other = run(home, &["decoder", "run", "--epochs", "1", "--seed", "8", "--out", "c"]);
    other.expect(0, &[]);
    assert_ne!(bytes(home, "c"), first);
    // Other threads, same bytes.
    run(home, &["decoder", "run", "--epochs", "1", "--seed", "7", "--out", "d", "--threads", "1"]).expect(0, &[]);
    assert_eq!(bytes(home, "d"), first);
}

#[cfg(unix)]
#[test]
fn stopped_training_goes_on_to_the_same_bytes() {
    use std::process::{Command, Stdio};
    use std::time::{Duration, Instant};

    let home = new_folder();
    let home = home.path();
    train(home, "run", &[]);
    let args = |out| ["decoder", "run", "--epochs", "200", "--out", out];
    run(home, &args("whole")).expect(0, &[]);
    for (signal, code) in [("-INT", Some(130)), ("-KILL", None)] {
        let mut child = Command::new(program::GRAD);
        child.current_dir(home).args(args("cut")).env("GRAD_DEVICE", "cpu").arg("-q");
        let mut child = child.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let started = Instant::now();
        // It is written before the first step.
        while !home.join("cut").exists() {
            assert!(started.elapsed() < Duration::from_secs(120), "nothing is written");
            std::thread::sleep(Duration::from_millis(2));
        }
        std::thread::sleep(Duration::from_millis(150));
        assert!(Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap().success());
        assert_eq!(child.wait().unwrap().code(), code, "it was faster than the signal");
    }
    // What is not finished paints nothing.
    run(home, &["report", "run", "--decoder", "cut"]).expect(4, &["of 200 epochs", "it goes on"]);
    run(home, &args("cut")).expect(0, &["resume    at epoch"]);
    assert_eq!(bytes(home, "cut"), bytes(home, "whole"));
}

#[test]
fn what_cannot_be_decoded_is_refused() {
    let home = new_folder();
    let home = home.path();
    let decoder = |more: &[&str]| run(home, &[&["decoder"], more].concat());
    decoder(&["run"]).expect(4, &["run", "cannot be read"]);
    train(home, "run", &[]);
    decoder(&["run", "--epochs", "0"]).expect(2, &["epochs is 0"]);
    decoder(&["run", "--epochs", "1", "--out", "none/d"]).expect(2, &["cannot", "none"]);
    decoder(&["run", "--epochs", "1"]).expect(0, &[]);
    let made = bytes(home, "run/decoder.safetensors");

    // What is there already stays, whatever it is.
    decoder(&["run", "--epochs", "2"]).expect(2, &["other pictures, features or settings", "--out"]);
    decoder(&["run", "--epochs", "1", "--classes", "bolt"]).expect(2, &["other pictures"]);
    decoder(&["run", "--out", "run/model.safetensors"]).expect(4, &["of another kind"]);
    let picture = "data/bolt/train/good/0.png";
    let before = bytes(home, picture);
    decoder(&["run", "--out", picture]).expect(4, &["is damaged"]);
    assert_eq!((bytes(home, picture), bytes(home, "run/decoder.safetensors")), (before, made.clone()));

    let report = |run_of: &str, file: &str| run(home, &["report", run_of, "--decoder", file, "--out", "page.html"]);
    report("run", "gone").expect(4, &["gone", "cannot be read"]);
    report("run", "run/model.safetensors").expect(4, &["not a decoder"]);
    report("run", picture).expect(4, &["is damaged"]);
    fs::write(home.join("short"), &made[..made.len() - 7]).unwrap();
    report("run", "short").expect(4, &["is damaged", "train another"]);
    let larger = TRAIN.map(|flag| if flag == "64" { "96" } else { flag });
    run(home, &[&larger[..], &["--out", "larger"]].concat()).expect(0, &[]);
    report("larger", "run/decoder.safetensors").expect(4, &["8x8x152", "12x12x152", "train one for this model"]);
    // A decoder is no model.
    run(home, &["eval", "run/decoder.safetensors"]).expect(4, &["another kind"]);
    let study = ["study", "settings", "--vary", "jitter=off", "--seeds", "1", "--out", "s"];
    run(home, &[&study[..], &TRAIN[1..]].concat()).expect(0, &[]);
    report("s", "run/decoder.safetensors").expect(2, &["holds a study", "leave --decoder out"]);
    assert!(!home.join("page.html").exists());
}
