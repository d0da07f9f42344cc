//! The demo set: real photographs of six materials, cut, varied and damaged by a seeded generator.
//! `DIR/CLASS/train/good/NNN.png`, `DIR/CLASS/test/{good,KIND}/NNN.png`, `DIR/CLASS/ground_truth/KIND/NNN_mask.png`:
//! the folders of MVTec AD (Bergmann et al., CVPR 2019), 256x256, masks 0 or 255.
//!
//! The same seed gives the same bytes: every picture draws from a stream of its own. A set is built beside its place and
//! renamed into it, and carries a digest of its contents, so a half-written or altered one is never taken for whole.

mod damage;
mod photo;

use crate::rng::Rng;
use crate::{Error, Result};
use damage::{Damage, Scene};
use image::codecs::png::{CompressionType, FilterType, PngEncoder};
use image::{ExtendedColorType, ImageEncoder};
use photo::{Camera, MATERIALS, Picture, SIZE, Surface, View};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::fs;
use std::path::{Path, PathBuf};

/// Written last; says what the folder holds.
const MARKER: &str = "demo.json";
/// Raised whenever the generator draws other pictures from the same seed.
const VERSION: u32 = 2;
/// A defect covers at least this many pixels of the mask, or it is drawn again.
const SMALLEST: usize = 60;

/// How many pictures of each sort a class holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DemoCounts {
    /// Good pictures to train on.
    pub train_good: usize,
    /// Good pictures to test on.
    pub test_good: usize,
    /// Defective pictures of each of the six kinds.
    pub per_kind: usize,
}

impl Default for DemoCounts {
    /// 40 to train on, 12 good and 18 defective to test on.
    fn default() -> Self {
        DemoCounts { train_good: 40, test_good: 12, per_kind: 3 }
    }
}

/// What [`write_demo`] made or found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DemoSummary {
    /// The folder.
    pub dir: PathBuf,
    /// Names of the classes, sorted.
    pub classes: Vec<&'static str>,
    /// Names of the kinds of damage, sorted.
    pub kinds: Vec<&'static str>,
    /// Pictures of each sort in each class.
    pub counts: DemoCounts,
    /// The folder held this very set already, and nothing was written.
    pub reused: bool,
}

impl DemoSummary {
    /// Pictures in the whole set, masks not counted.
    pub fn pictures(&self) -> usize {
        let DemoCounts { train_good, test_good, per_kind } = self.counts;
        self.classes.len() * (train_good + test_good + per_kind * self.kinds.len())
    }
}

/// The contents of [`MARKER`].
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Marker {
    version: u32,
    seed: u64,
    counts: DemoCounts,
    /// Digest of the shipped photographs.
    photographs: String,
    /// Digest of every file of the set, names and bytes.
    files: String,
}

/// Writes the demo set to `dir`, or finds that it is there already.
///
/// # Errors
/// [`Error::Config`] if there is nothing to train on or to test on; [`Error::Data`] if `dir` holds anything but this very
/// set, whole; [`Error::Io`] if it cannot be written. No error leaves anything behind.
pub fn write_demo(dir: &Path, seed: u64, counts: DemoCounts) -> Result<DemoSummary> {
    if counts.train_good == 0 || counts.test_good == 0 || counts.per_kind == 0 {
        return Err(Error::config(
            format!("a demo set with {counts:?} cannot be trained and tested on"),
            "ask for at least one picture of each sort",
        ));
    }
    let summary = |reused| DemoSummary {
        dir: dir.into(),
        classes: MATERIALS.iter().map(|material| material.name).collect(),
        kinds: Damage::ALL.iter().map(|damage| damage.name()).collect(),
        counts,
        reused,
    };
    if occupied(dir)? {
        check(dir, seed, counts)?;
        return Ok(summary(true));
    }
    let beside = match dir.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    fs::create_dir_all(beside).map_err(|e| Error::io("create", beside, &e))?;
    let temporary = tempfile::Builder::new().prefix(".demo-").tempdir_in(beside);
    let temporary = temporary.map_err(|e| Error::io("create a folder in", beside, &e))?;
    // A folder inside: the temporary one is readable to its owner only.
    let set = temporary.path().join("set");
    generate(&set, seed, counts)?;
    let marker = Marker { version: VERSION, seed, counts, photographs: photographs(), files: digest(&set)? };
    let text = serde_json::to_string_pretty(&marker).expect("numbers and strings") + "\n";
    write(&set.join(MARKER), text.as_bytes())?;
    if dir.is_dir() {
        fs::remove_dir(dir).map_err(|e| Error::io("replace the empty folder", dir, &e))?;
    }
    match fs::rename(&set, dir) {
        Ok(()) => Ok(summary(false)),
        // Another process was faster.
        Err(_) if occupied(dir)? => check(dir, seed, counts).map(|()| summary(true)),
        Err(e) => Err(Error::io("create", dir, &e)),
    }
}

/// Whether something is there that must not be overwritten.
fn occupied(dir: &Path) -> Result<bool> {
    match fs::read_dir(dir) {
        Ok(mut entries) => Ok(entries.next().is_some()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(e) if e.kind() == std::io::ErrorKind::NotADirectory => {
            Err(Error::data(dir, "is a file, and the demo set needs a folder", "choose another place for it"))
        }
        Err(e) => Err(Error::io("read", dir, &e)),
    }
}

/// Refuses a folder that is not this very set.
fn check(dir: &Path, seed: u64, counts: DemoCounts) -> Result<()> {
    let refuse =
        |what: &str| Err(Error::data(dir, what, "choose a folder that is empty or not there yet, or remove this one"));
    let Ok(text) = fs::read(dir.join(MARKER)) else {
        return refuse("holds files that are not a demo set, and they will not be overwritten");
    };
    let Ok(found) = serde_json::from_slice::<Marker>(&text) else {
        return refuse("its demo.json cannot be read");
    };
    if (found.version, found.seed, found.counts, &found.photographs) != (VERSION, seed, counts, &photographs()) {
        return refuse("holds a demo set made with another seed, other counts or another version");
    }
    if found.files != digest(dir)? {
        return refuse("holds a demo set whose files have been added to, changed or removed");
    }
    Ok(())
}

fn photographs() -> String {
    let mut hasher = blake3::Hasher::new();
    MATERIALS.iter().for_each(|material| {
        hasher.update(material.bytes);
    });
    hasher.finalize().to_hex().to_string()
}

/// Digest of every file but the marker, in the order of their paths. Hidden files do not count: file managers leave some.
fn digest(dir: &Path) -> Result<String> {
    let hidden =
        |entry: &walkdir::DirEntry| entry.depth() > 0 && entry.file_name().as_encoded_bytes().starts_with(b".");
    let mut hasher = blake3::Hasher::new();
    for entry in walkdir::WalkDir::new(dir).sort_by_file_name().into_iter().filter_entry(|entry| !hidden(entry)) {
        let entry = entry.map_err(|e| Error::io("read", dir, &e.into()))?;
        let path = entry.path().strip_prefix(dir).expect("below the folder that is walked");
        if !entry.file_type().is_file() || path == Path::new(MARKER) {
            continue;
        }
        let bytes = fs::read(entry.path()).map_err(|e| Error::io("read", entry.path(), &e))?;
        for part in path.components() {
            hasher.update(part.as_os_str().as_encoded_bytes()).update(b"/");
        }
        hasher.update(&(bytes.len() as u64).to_le_bytes()).update(&bytes);
    }
    Ok(hasher.finalize().to_hex().to_string())
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    fs::write(path, bytes).map_err(|e| Error::io("write", path, &e))
}

/// Which picture of a class.
#[derive(Clone, Copy)]
enum Shot {
    TrainGood(usize),
    TestGood(usize),
    Defect(Damage, usize),
}

impl Shot {
    fn all(counts: DemoCounts) -> impl Iterator<Item = Shot> {
        let defects =
            Damage::ALL.into_iter().flat_map(move |kind| (0..counts.per_kind).map(move |i| Shot::Defect(kind, i)));
        (0..counts.train_good).map(Shot::TrainGood).chain((0..counts.test_good).map(Shot::TestGood)).chain(defects)
    }

    /// Folder of the picture inside its class, and its number.
    fn place(self) -> (PathBuf, usize) {
        match self {
            Shot::TrainGood(i) => (["train", "good"].iter().collect(), i),
            Shot::TestGood(i) => (["test", "good"].iter().collect(), i),
            Shot::Defect(kind, i) => (["test", kind.name()].iter().collect(), i),
        }
    }

    /// A stream of random numbers for each `purpose` of each picture: 8 bits purpose, 32 number, 8 sort, 16 class.
    fn rng(self, seed: u64, class: usize, purpose: u64) -> Rng {
        let (sort, number) = match self {
            Shot::TrainGood(i) => (0, i),
            Shot::TestGood(i) => (1, i),
            Shot::Defect(kind, i) => (2 + kind as u64, i),
        };
        Rng::new(seed, (class as u64) << 48 | sort << 40 | (number as u64) << 8 | purpose)
    }
}

/// A picture before it is taken: drawn alike for good and defective ones.
struct Stage<'a> {
    surface: &'a Surface,
    view: View,
    camera: Camera,
    /// What the camera sees while nothing is wrong.
    subject: Picture,
}

impl<'a> Stage<'a> {
    fn new(shot: Shot, surface: &'a Surface, seed: u64, class: usize) -> Self {
        let view = surface.view(&mut shot.rng(seed, class, 0));
        let camera = Camera::new(shot.rng(seed, class, 1));
        Stage { surface, view, camera, subject: surface.picture(&view) }
    }

    /// The good picture.
    fn good(&self) -> Vec<u8> {
        self.camera.develop(&self.subject)
    }

    /// The same picture with a defect, and its mask. A defect that does not show is drawn again, stronger.
    fn defective(&self, kind: Damage, number: usize, rng: impl Fn(u64) -> Rng) -> (Vec<u8>, Vec<u8>) {
        let good = self.good();
        // In turn plain, middling and hard to see.
        let mut severity = [1.6, 1.0, 0.6][number % 3];
        let mut purpose = 2;
        loop {
            let Stage { surface, view, .. } = *self;
            let mut scene = Scene { surface, view, picture: self.subject.clone(), severity };
            scene.apply(kind, &mut rng(purpose));
            let picture = self.camera.develop(&scene.picture);
            let mask = damage::mask(&good, &picture, surface.channels);
            if mask.iter().filter(|&&m| m > 0).count() >= SMALLEST {
                return (picture, mask);
            }
            severity *= 1.3;
            purpose += 1;
        }
    }
}

fn generate(set: &Path, seed: u64, counts: DemoCounts) -> Result<()> {
    let surfaces = MATERIALS.par_iter().map(Surface::halves).collect::<Result<Vec<_>>>()?;
    for material in &MATERIALS {
        let class = set.join(material.name);
        let kinds =
            Damage::ALL.iter().flat_map(|kind| ["test", "ground_truth"].map(|top| Path::new(top).join(kind.name())));
        for folder in kinds.chain([Path::new("train").join("good"), Path::new("test").join("good")]) {
            let folder = class.join(folder);
            fs::create_dir_all(&folder).map_err(|e| Error::io("create", &folder, &e))?;
        }
    }
    let shots: Vec<(usize, Shot)> =
        (0..MATERIALS.len()).flat_map(|class| Shot::all(counts).map(move |shot| (class, shot))).collect();
    shots.into_par_iter().try_for_each(|(class, shot)| {
        let surface = &surfaces[class][usize::from(!matches!(shot, Shot::TrainGood(_)))];
        let stage = Stage::new(shot, surface, seed, class);
        let (folder, number) = shot.place();
        let home = set.join(MATERIALS[class].name);
        let picture = match shot {
            Shot::TrainGood(_) | Shot::TestGood(_) => stage.good(),
            Shot::Defect(kind, _) => {
                let (picture, mask) = stage.defective(kind, number, |purpose| shot.rng(seed, class, purpose));
                let file = home.join("ground_truth").join(kind.name()).join(format!("{number:03}_mask.png"));
                write(&file, &png(&mask, 1))?;
                picture
            }
        };
        write(&home.join(folder).join(format!("{number:03}.png")), &png(&picture, surface.channels))
    })
}

fn png(pixels: &[u8], channels: usize) -> Vec<u8> {
    let color = if channels == 1 { ExtendedColorType::L8 } else { ExtendedColorType::Rgb8 };
    let mut out = Vec::new();
    PngEncoder::new_with_quality(&mut out, CompressionType::Fast, FilterType::Sub)
        .write_image(pixels, SIZE as u32, SIZE as u32, color)
        .expect("a buffer of the right length, written to memory");
    out
}

/// For tests of what needs to know the truth: a defective picture, the same without its defect, and its mask, as PNG files.
#[cfg(test)]
pub(crate) fn twins(seed: u64, class: usize, counts: DemoCounts) -> Result<Vec<[Vec<u8>; 3]>> {
    let [_, surface] = Surface::halves(&MATERIALS[class])?;
    let defects = Shot::all(counts).filter_map(|shot| match shot {
        Shot::Defect(kind, number) => Some((shot, kind, number)),
        _ => None,
    });
    let twins = defects.map(|(shot, kind, number)| {
        let stage = Stage::new(shot, &surface, seed, class);
        let (picture, mask) = stage.defective(kind, number, |purpose| shot.rng(seed, class, purpose));
        [png(&picture, surface.channels), png(&stage.good(), surface.channels), png(&mask, 1)]
    });
    Ok(twins.collect())
}

#[cfg(test)]
mod tests;
