//! From photographs to an inspection: check, train, calibrate, eval, predict, report, selftest, for every way that
//! pictures can lie in folders. And what a line does with it: verdicts, thresholds, regions, files, exit codes.

#[path = "common/program.rs"]
mod program;

use std::fs;
use std::path::Path;

use program::{Outcome, new_folder, run};
use serde_json::Value;

const TRAIN: [&str; 11] =
    ["--image-size", "64", "--blocks", "1", "--batch", "4", "--epochs", "3", "--hold-out", "0.25", "--json"];

fn copy(from: impl AsRef<Path>, to: impl AsRef<Path>) {
    fs::create_dir_all(to.as_ref().parent().unwrap()).unwrap();
    fs::copy(from, to).unwrap();
}

/// The pictures of `data` in the tree that VisA is downloaded as, with its split.
fn visa(home: &Path) {
    let (data, root) = (home.join("data"), home.join("visa"));
    let mut split = "object,split,label,image,mask\n".to_owned();
    for class in ["bolt", "cloth"] {
        for i in 0..6 {
            let (part, name) = if i < 4 { ("train", "train") } else { ("test", "test") };
            let image = format!("{class}/Data/Images/Normal/{i:04}.png");
            copy(data.join(format!("{class}/{part}/good/{i}.png")), root.join(&image));
            split += &format!("{class},{name},normal,{image},\n");
        }
        for i in 4..6 {
            let image = format!("{class}/Data/Images/Anomaly/{i:03}.png");
            let mask = format!("{class}/Data/Masks/Anomaly/{i:03}.png");
            copy(data.join(format!("{class}/test/hole/{i}.png")), root.join(&image));
            copy(data.join(format!("{class}/ground_truth/hole/{i}_mask.png")), root.join(&mask));
            split += &format!("{class},test,anomaly,{image},{mask}\n");
        }
    }
    fs::create_dir_all(root.join("split_csv")).unwrap();
    fs::write(root.join("split_csv/1cls.csv"), split).unwrap();
}

/// One class in a bare folder: good ones, and two kinds of defects.
fn bare(home: &Path) {
    let (data, root) = (home.join("data/bolt"), home.join("bare"));
    (0..4).for_each(|i| copy(data.join(format!("train/good/{i}.png")), root.join(format!("good/{i}.png"))));
    for (i, kind) in [(4, "hole"), (5, "pit")] {
        copy(data.join(format!("test/hole/{i}.png")), root.join(format!("{kind}/{i}.png")));
    }
}

/// The same pictures as lines of JSON.
fn manifest(home: &Path) {
    let listed = run(home, &["data", "manifest", "data"]).expect(0, &[]).stdout;
    assert_eq!(listed.lines().count(), 16);
    fs::write(home.join("parts.jsonl"), listed).unwrap();
}

fn rows(outcome: &Outcome) -> Vec<Value> {
    outcome.stdout.lines().map(|row| serde_json::from_str(row).unwrap()).collect()
}

#[test]
fn every_layout_goes_all_the_way() {
    let home = new_folder();
    let home = home.path();
    visa(home);
    bare(home);
    manifest(home);
    // Data, its layout as it is named, pictures to train on and to test, picture to judge.
    for (data, layout, train, test) in [
        ("data", "MVTec AD", 8, 8),
        ("visa", "VisA", 8, 8),
        ("bare", "folder", 4, 2),
        ("parts.jsonl", "manifest", 8, 8),
    ] {
        let checked = run(home, &["data", "check", data, "--image-size", "64", "--json"]).expect(0, &[]).json();
        assert_eq!(checked["pictures"], train + test, "{checked}");
        let named = run(home, &["data", "check", data, "--image-size", "64"]).expect(0, &[layout]);
        assert!(!named.stdout.is_empty());

        let out = format!("runs/{}", data.replace('.', "-"));
        let trained = run(home, &[&["train", "--data", data, "--out", &out, "--eval-every", "1"], &TRAIN[..]].concat());
        let trained = trained.expect(0, &[layout, "held out", "threshold "]).json();
        let oracle = &trained["oracle"];
        if data == "bare" {
            assert!(trained["metrics"]["mean"]["image_auroc"].is_null());
        } else {
            let figure = |of: &Value| of["mean"]["image_auroc"].as_f64().unwrap();
            assert!(figure(&oracle["metrics"]) >= figure(&trained["metrics"]), "{trained}");
        }

        let calibrated = run(home, &["calibrate", &out, "--target-frr", "0.4", "--json"]).expect(0, &[]).json();
        assert_eq!(calibrated["target_frr"], 0.4);
        assert_eq!(calibrated["any"]["held_out"], if data == "bare" { 1 } else { 2 });
        let measured = run(home, &["eval", &out, "--json"]).expect(0, &[]).json();
        assert_eq!(measured["classes"], trained["metrics"]["classes"]);

        let args = ["predict", &out, "data/bolt/test", "--out", "maps", "--maps", "raw", "--csv", "rows.csv", "--json"];
        let judged = run(home, &args).expect(0, &["threshold"]);
        let judged = rows(&judged);
        assert_eq!(judged.len(), 4);
        for row in &judged {
            let anomalous = row["score"].as_f64() > row["threshold"].as_f64();
            assert_eq!(row["verdict"], if anomalous { "anomalous" } else { "good" }, "{row}");
            assert!(row["p_value"].as_f64().unwrap() > 0.0);
            assert!(!anomalous || !row["regions"].as_array().unwrap().is_empty(), "{row}");
            for file in ["heatmap", "map"] {
                assert!(home.join(row[file].as_str().unwrap()).is_file());
            }
        }
        let mut csv = csv::Reader::from_path(home.join("rows.csv")).unwrap();
        let verdicts: Vec<String> = csv.records().map(|record| record.unwrap()[4].to_owned()).collect();
        assert_eq!(verdicts, judged.iter().map(|row| row["verdict"].as_str().unwrap()).collect::<Vec<_>>());

        run(home, &["report", &out]).expect(0, &["report.html"]);
        let page = fs::read_to_string(home.join(&out).join("report.html")).unwrap();
        assert!(page.starts_with("<!DOCTYPE html>") && page.trim_end().ends_with("</html>"));
        let tested = run(home, &["selftest", &out, "--json"]).expect(0, &["passed"]).json();
        assert_eq!((&tested["ok"], &tested["largest_difference"]), (&true.into(), &0.0.into()));
        run(home, &["model", "show", &out]).expect(0, &["thresholds for 40 %", "golden"]);
    }
}

/// A run with thresholds from two held-out pictures, one of each class.
fn trained(home: &Path) {
    run(home, &[&["train", "--data", "data", "--out", "run"], &TRAIN[..]].concat()).expect(0, &[]);
}

#[test]
fn verdicts_on_the_line() {
    let home = new_folder();
    let home = home.path();
    trained(home);
    // Trained for a moment on flat stripes, but a black square is like none of them.
    let judged = run(home, &["predict", "run", "data/bolt/test/hole", "--json", "--class", "bolt"]).expect(0, &[]);
    for row in rows(&judged) {
        assert_eq!(row["verdict"], "anomalous", "{row}");
        let region = &row["regions"][0];
        let at = |i: usize| region["box"][i].as_f64().unwrap();
        // The square is at 20..36, 24..40.
        assert!(at(0) < 36.0 && at(0) + at(2) > 20.0 && at(1) < 40.0 && at(1) + at(3) > 24.0, "{row}");
        assert!(region["contour"].as_array().unwrap().len() >= 4);
    }
    let predict = |more: &[&str]| run(home, &[&["predict", "run"], more].concat());
    predict(&["data/bolt/test/hole", "--fail-on-anomaly"]).expect(1, &["2 of 2 pictures anomalous", "anomalous"]);
    // The picture that was held out is no more anomalous than the threshold that comes from it.
    let good = predict(&["data/bolt/train", "--json"]).expect(0, &[]);
    let good = rows(&good).into_iter().find(|row| row["verdict"] == "good").unwrap();
    predict(&[good["path"].as_str().unwrap(), "--fail-on-anomaly"]).expect(0, &["good"]);
    // What cannot be read matters more than what is anomalous.
    fs::write(home.join("data/bolt/test/hole/6.png"), b"").unwrap();
    predict(&["data/bolt/test/hole", "--fail-on-anomaly"]).expect(3, &["1 of 3 pictures", "6.png", "is empty"]);
    let rows = predict(&["data/bolt/test/hole", "--csv", "rows.csv"]).expect(3, &[]);
    assert_eq!(rows.stdout.lines().count(), 1 + 3);
    let mut csv = csv::Reader::from_path(home.join("rows.csv")).unwrap();
    let last = csv.records().last().unwrap().unwrap();
    assert!(last[0].ends_with("6.png") && last[4].is_empty() && last[13].contains("is empty"), "{last:?}");

    predict(&["data/*/test/good/?.png", "--out", "none"]).expect(0, &["4.png"]);
    predict(&["data/*.tif"]).expect(3, &["no picture matches"]);
    predict(&["data/[", "--out", "none"]).expect(2, &["pattern"]);
    predict(&["data", "--class", "bold"]).expect(2, &["did you mean `bolt`?"]);
    predict(&["data", "--target-frr", "5"]).expect(2, &["between 0 and 1"]);
}

/// Every kind of file that a camera or a person may leave in a folder is one row.
#[test]
fn pictures_of_every_kind_are_judged() {
    use image::{DynamicImage, GrayImage, ImageBuffer, Luma, Rgb, RgbImage, Rgba, RgbaImage};

    let home = new_folder();
    let home = home.path();
    trained(home);
    let folder = home.join("fünf parts");
    fs::create_dir(&folder).unwrap();
    let deep = ImageBuffer::from_fn(300, 200, |x, y| Luma([(x * 200 + y * 17) as u16]));
    let all: [(&str, DynamicImage); 6] = [
        ("black.png", RgbImage::new(640, 480).into()),
        ("grey.png", GrayImage::from_fn(100, 100, |x, y| Luma([(x + y) as u8])).into()),
        ("deep 16.png", DynamicImage::ImageLuma16(deep)),
        ("glass.png", RgbaImage::from_pixel(90, 120, Rgba([9, 90, 200, 3])).into()),
        ("one.png", RgbImage::from_pixel(1, 1, Rgb([7, 8, 9])).into()),
        ("wide.png", RgbImage::from_fn(900, 3, |x, _| Rgb([x as u8; 3])).into()),
    ];
    for (name, picture) in &all {
        picture.save(folder.join(name)).unwrap();
    }
    let judged = run(home, &["predict", "run", "fünf parts", "--json", "--maps", "raw"]).expect(0, &[]);
    let judged = rows(&judged);
    assert_eq!(judged.len(), all.len());
    for row in judged {
        assert!(row["score"].as_f64().unwrap().is_finite() && row["verdict"].is_string(), "{row}");
        let picture = image::open(home.join(row["path"].as_str().unwrap())).unwrap();
        for region in row["regions"].as_array().unwrap() {
            let at = |i: usize| region["box"][i].as_f64().unwrap();
            assert!(at(0) + at(2) <= f64::from(picture.width()) + 1e-3, "{row}");
            assert!(at(1) + at(3) <= f64::from(picture.height()) + 1e-3, "{row}");
        }
    }
}

#[test]
fn a_class_without_good_test_pictures_has_no_figures() {
    let home = new_folder();
    let home = home.path();
    fs::remove_dir_all(home.join("data/bolt/test/good")).unwrap();
    let trained = run(home, &[&["train", "--data", "data", "--out", "run"], &TRAIN[..]].concat());
    let trained = trained.expect(0, &["threshold"]).json();
    assert!(trained["metrics"]["classes"]["bolt"]["image_auroc"].is_null());
    assert!(trained["metrics"]["classes"]["cloth"]["image_auroc"].is_number());
    run(home, &["eval", "run", "--intervals"]).expect(0, &["there is no good picture"]);
    run(home, &["report", "run"]).expect(0, &[]);
    let page = fs::read_to_string(home.join("run/report.html")).unwrap();
    assert!(page.contains("bolt: no good test picture, so false alarms were not measured"));
}

#[test]
fn maps_are_numbers_as_they_were_scored() {
    let home = new_folder();
    let home = home.path();
    trained(home);
    let picture = "data/cloth/test/hole/5.png";
    let row = run(home, &["predict", "run", picture, "--maps", "raw", "--json"]).expect(0, &[]).json();
    let bytes = fs::read(home.join(row["map"].as_str().unwrap())).unwrap();
    let npy = npyz::NpyFile::new(&bytes[..]).unwrap();
    assert_eq!(npy.shape(), [64, 64]);
    let map: Vec<f32> = npy.into_vec().unwrap();
    let peak = map.iter().copied().fold(f32::MIN, f32::max);
    assert_eq!(row["regions"][0]["peak"].as_f64().unwrap() as f32, peak);
}

#[test]
fn thresholds_come_from_pictures_it_has_not_seen() {
    let home = new_folder();
    let home = home.path();
    trained(home);
    let calibrate = |more: &[&str]| run(home, &[&["calibrate", "run"], more].concat());
    // Two pictures can promise one reject in three, and no less.
    let said = calibrate(&["--target-frr", "0.01"]).expect(0, &["too few pictures", "any class", "bolt", "cloth"]);
    assert!(said.stdout.contains("333 ("), "{}", said.stdout);
    calibrate(&["--good", "data/bolt/train"]).expect(3, &[]);
    calibrate(&["--good", "nowhere"]).expect(3, &["no such folder"]);
    calibrate(&["--target-frr", "0"]).expect(2, &["between 0 and 1"]);
    calibrate(&["--good", "data", "--class", "nut"]).expect(2, &["was not trained on a class `nut`"]);

    // What was learnt is left out, and so are defects; what was held out counts.
    let both =
        calibrate(&["--good", "data", "--json"]).expect(0, &["left out 6 pictures", "4 defective pictures left out"]);
    let held_out = |json: &Value, class: &str| json["classes"][class]["held_out"].as_u64().unwrap();
    let both = both.json();
    assert_eq!((held_out(&both, "bolt"), held_out(&both, "cloth")), (3, 3));
    fs::create_dir(home.join("new")).unwrap();
    fs::rename(home.join("data/bolt/test/good/4.png"), home.join("new/4.png")).unwrap();
    let one = calibrate(&["--good", "new", "--class", "bolt", "--json"]).expect(0, &[]).json();
    assert_eq!(held_out(&one, "bolt"), 1);
    // A finished run that is opened again keeps them.
    run(home, &["train", "--resume", "run"]).expect(0, &["kept: "]);
    let shown = run(home, &["model", "show", "run", "--json"]).expect(0, &[]).json();
    assert_eq!(held_out(&shown["thresholds"], "bolt"), 1, "{shown}");
    // A class without held-out pictures has no threshold of its own.
    run(home, &["predict", "run", "data/cloth/test", "--class", "cloth"]).expect(4, &["no picture of class `cloth`"]);
    run(home, &["predict", "run", "data/cloth/test", "--out", "none"]).expect(0, &["verdict"]);
}

#[test]
fn a_model_without_thresholds_says_so() {
    let home = new_folder();
    let home = home.path();
    let none = ["--hold-out", "0"];
    let args = [&["train", "--data", "data", "--out", "run"], &TRAIN[..8], &none].concat();
    run(home, &args).expect(0, &["held out  none"]);
    let predicted = run(home, &["predict", "run", "data/bolt/test"]).expect(0, &["no verdicts", "grad calibrate"]);
    assert!(!predicted.stdout.contains("verdict"));
    run(home, &["predict", "run", "data/bolt/test", "--fail-on-anomaly"]).expect(4, &["grad calibrate"]);
    run(home, &["predict", "run", "data/bolt/test", "--class", "bolt"]).expect(4, &["holds no thresholds"]);
    run(home, &["calibrate", "run"]).expect(4, &["nothing was held out", "--good"]);
    run(home, &["calibrate", "run", "--good", "data"]).expect(0, &["left out 8 pictures"]);
    run(home, &["predict", "run", "data/bolt/test"]).expect(0, &["verdict"]);
}

#[test]
fn a_selftest_that_fails() {
    let home = new_folder();
    let home = home.path();
    let precise = ["train", "--data", "data", "--out", "run", "--precision", "f32"];
    run(home, &[&precise[..], &TRAIN].concat()).expect(0, &[]);
    run(home, &["selftest", "run"]).expect(0, &["recorded", "passed"]);
    // Another device rounds differently, and no more than that.
    let other = run(home, &["selftest", "run", "--device", "emulated", "--json"]).expect(0, &[]).json();
    assert!(other["largest_difference"].as_f64().unwrap() < 1e-3, "{other}");
    // A weight with its sign turned: the file is whole, the scores are not.
    let path = home.join("run/model.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let fields: Value = serde_json::from_slice(&bytes[8..8 + header]).unwrap();
    let offsets = &fields["recover.weight"]["data_offsets"];
    let [from, to] = [0, 1].map(|i| 8 + header + offsets[i].as_u64().unwrap() as usize);
    bytes[from..to].chunks_exact_mut(4).for_each(|value| value[3] ^= 0x80);
    fs::write(&path, bytes).unwrap();
    run(home, &["selftest", "run"]).expect(5, &["FAILED", "golden pictures differ"]);
}

#[test]
fn several_runs_make_one_table() {
    let home = new_folder();
    let home = home.path();
    let more = ["--out", "all", "--separate", "--seeds", "3,1"];
    let args = [&["train", "--data", "data"], &TRAIN[..], &more].concat();
    let all = run(home, &args).expect(0, &["run       4 of 4: all/cloth/seed-1"]).json();
    assert_eq!(all["seeds"], serde_json::json!([3, 1]));
    let figure = |seed: usize, class: &str| all["metrics"][seed]["classes"][class]["pixel_auroc"].as_f64().unwrap();
    let of_run = |path: &str| -> Value {
        serde_json::from_slice(&fs::read(home.join(path).join("metrics.json")).unwrap()).unwrap()
    };
    let bolt = of_run("all/bolt/seed-3")["classes"]["bolt"]["pixel_auroc"].as_f64().unwrap();
    assert_eq!(figure(0, "bolt"), bolt);
    assert_ne!(figure(0, "cloth"), figure(1, "cloth"));
    // What is done is not done again; what was lost is.
    fs::remove_dir_all(home.join("all/cloth/seed-3")).unwrap();
    let again = run(home, &["train", "--resume", "all", "--json"]).expect(0, &["is trained and measured already"]);
    assert_eq!(again.json(), all);
    run(home, &["train", "--resume", "all", "--seeds", "4"]).expect(2, &["seeds is not what"]);
    run(home, &["train", "--data", "data", "--seeds", "1,1"]).expect(2, &["names 1 twice"]);
}

#[test]
fn shells_and_manuals() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let script = run(home, &["completions", shell]).expect(0, &[]).stdout;
        assert!(script.contains("calibrate") && script.contains("target-frr"), "{shell}");
    }
    run(home, &["completions", "cmd"]).expect(2, &["possible values"]);
    let page = run(home, &["man"]).expect(0, &[]).stdout;
    assert!(page.contains(".TH grad 1") && page.contains("calibrate"), "{page}");
    run(home, &["man", "--out", "man1"]).expect(0, &[]);
    let page = fs::read_to_string(home.join("man1/grad-predict.1")).unwrap();
    assert!(page.contains("fail\\-on\\-anomaly"), "{page}");
}
