//! The program as a child process, and a folder with pictures for it: two classes of 64 x 64 pixels.

use std::fs;
use std::path::Path;

use assert_cmd::Command;
use image::{GrayImage, Luma, Rgb, RgbImage};
use serde_json::Value;
use tempfile::TempDir;

pub const GRAD: &str = env!("CARGO_BIN_EXE_grad");

/// A folder to work in, with `data/` in the layout of MVTec AD: two classes, four pictures to train on, four to test.
pub fn new_folder() -> TempDir {
    let home = tempfile::tempdir().unwrap();
    for (class, phase) in [("bolt", 0), ("cloth", 40)] {
        let class = home.path().join("data").join(class);
        for i in 0..4 {
            picture(&class.join(format!("train/good/{i}.png")), phase + i, false);
        }
        for i in 4..6 {
            picture(&class.join(format!("test/good/{i}.png")), phase + i, false);
            picture(&class.join(format!("test/hole/{i}.png")), phase + i, true);
            let mask = GrayImage::from_fn(64, 64, |x, y| Luma([if in_hole(x, y) { 255 } else { 0 }]));
            let file = class.join(format!("ground_truth/hole/{i}_mask.png"));
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            mask.save(file).unwrap();
        }
    }
    home
}

fn in_hole(x: u32, y: u32) -> bool {
    (20..36).contains(&x) && (24..40).contains(&y)
}

/// Stripes, a little different for each `variant`, with or without a dark square.
fn picture(path: &Path, variant: u32, hole: bool) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let pixel = |x: u32, y: u32| match hole && in_hole(x, y) {
        true => Rgb([10, 0, 20]),
        false => {
            Rgb([((x + variant) * 7 % 97 + 100) as u8, ((y + variant) * 5 % 83 + 90) as u8, (120 + variant) as u8])
        }
    };
    RgbImage::from_fn(64, 64, pixel).save(path).unwrap();
}

/// `grad` in `home`, with no setting from the environment of the tests, on the CPU unless a test names a device.
pub fn grad(home: &Path) -> Command {
    let mut command = Command::new(GRAD);
    command.current_dir(home).args([""; 0]);
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("GRAD_")) {
        command.env_remove(name);
    }
    command.env("GRAD_DEVICE", "cpu");
    command
}

/// What came of a run of the program.
pub struct Outcome {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Outcome {
    /// Fails unless it ended with this code and said all of these words.
    #[track_caller]
    pub fn expect(self, code: i32, said: &[&str]) -> Self {
        assert_eq!(self.code, code, "{}{}", self.stdout, self.stderr);
        for word in said {
            assert!(self.stderr.contains(word) || self.stdout.contains(word), "no `{word}`: {}", self.stderr);
        }
        self
    }

    /// What it said on stdout.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap()
    }
}

pub fn go(mut command: Command) -> Outcome {
    let output = command.output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Outcome { code: output.status.code().unwrap_or(-1), stdout: text(output.stdout), stderr: text(output.stderr) }
}

pub fn run(home: &Path, args: &[&str]) -> Outcome {
    let mut command = grad(home);
    command.args(args);
    go(command)
}
