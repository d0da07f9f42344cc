//! A data set looked at before anything is trained on it: every picture and mask is decoded, once.
//!
//! ```text
//! Dataset -> per picture, in parallel: decode -> size, mode, BLAKE3 of the pixels; masks against the picture
//!         -> in order: duplicates (equal pixels, whatever the files), classes
//!         -> Report: counts, findings; errors first, then by path
//! ```
//! Two pictures are duplicates when their decoded pixels are equal, so a copy that was saved again without loss counts.
//! The report does not depend on the number of threads.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde::Serialize;

use super::decode::{Mask, Mode, decode_mask, decode_with_mode};
use super::finding::{Code, Finding, Level};
use super::{Dataset, Item, Label, MaskRule, Picture, Split, union};
use crate::{Error, Result};

/// Two shapes are the same when their sides differ by less than this part: half a pixel in 50.
const SAME_ASPECT: f64 = 0.01;

/// What a data set holds, and what is odd about it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// Side of the prepared picture that labels were checked at, pixels.
    pub image_size: usize,
    /// The data sets.
    pub sources: Vec<SourceReport>,
    /// Classes by name.
    pub classes: BTreeMap<String, ClassReport>,
    /// Pictures in the list.
    pub pictures: usize,
    /// Masks in the list.
    pub masks: usize,
    /// Picture files that are in no list; findings name them.
    pub left_out: usize,
    /// Pictures by width and height.
    pub sizes: BTreeMap<String, usize>,
    /// Pictures by how their files store pixels.
    pub modes: BTreeMap<String, usize>,
    /// Findings by level: errors, warnings, notes.
    pub levels: BTreeMap<Level, usize>,
    /// What is odd, errors first.
    pub findings: Vec<Finding>,
}

/// A data set of a [`Report`].
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SourceReport {
    /// Folder or file.
    pub path: String,
    /// How it is laid out.
    pub layout: super::Layout,
    /// Pictures by split.
    pub pictures: BTreeMap<Split, usize>,
}

/// Pictures of one class.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct ClassReport {
    /// To train on.
    pub train: usize,
    /// Good, held out.
    pub validation: usize,
    /// Good, to test.
    pub test_good: usize,
    /// Defective, to test.
    pub test_defective: usize,
    /// Defective pictures by kind of defect.
    pub kinds: BTreeMap<String, usize>,
    /// Defective pictures that have a mask.
    pub with_mask: usize,
}

impl Report {
    /// Findings of a level.
    pub fn count(&self, level: Level) -> usize {
        self.levels.get(&level).copied().unwrap_or(0)
    }
}

/// Checks every picture and mask. `image_size` is the side of the prepared picture; `progress` is called from any thread,
/// once per picture.
pub fn check(dataset: &Dataset, image_size: usize, progress: &(dyn Fn() + Sync)) -> Report {
    let look = |item: &Item| {
        let seen = look(item, image_size);
        progress();
        seen
    };
    let looked: Vec<Looked> = dataset.items.par_iter().map(look).collect();
    let mut findings = dataset.findings.clone();
    let (mut sizes, mut modes) = (BTreeMap::new(), BTreeMap::new());
    for looked in &looked {
        findings.extend(looked.findings.iter().cloned());
        if let Some(facts) = &looked.facts {
            *sizes.entry(format!("{}x{}", facts.size.0, facts.size.1)).or_insert(0) += 1;
            *modes.entry(facts.mode.to_string()).or_insert(0) += 1;
        }
    }
    find_duplicates(dataset, &looked, &mut findings);
    let classes = count(dataset);
    for (number, (name, counts)) in classes.iter().enumerate() {
        check_class(dataset.home(number), name, counts, &mut findings);
        find_mixtures(dataset, number, &looked, &mut findings);
    }
    findings.sort_by(|a, b| (a.code, &a.path, &a.what).cmp(&(b.code, &b.path, &b.what)));
    let mut levels = BTreeMap::from([Level::Error, Level::Warning, Level::Note].map(|level| (level, 0)));
    findings.iter().for_each(|f| *levels.entry(f.code.level()).or_default() += 1);
    let source = |s: &super::Source| SourceReport {
        path: s.path.display().to_string(),
        layout: s.layout,
        pictures: s.pictures.clone(),
    };
    Report {
        image_size,
        sources: dataset.sources.iter().map(source).collect(),
        classes,
        pictures: dataset.items.len(),
        masks: dataset.items.iter().map(|item| item.masks.len()).sum(),
        left_out: findings.iter().map(|f| f.left_out).sum(),
        sizes,
        modes,
        levels,
        findings,
    }
}

/// What is known of a picture without those beside it.
struct Looked {
    /// Nothing, if it cannot be read.
    facts: Option<Facts>,
    findings: Vec<Finding>,
}

struct Facts {
    /// Width, height.
    size: (usize, usize),
    mode: Mode,
    /// Of size and pixels.
    hash: blake3::Hash,
}

fn look(item: &Item, image_size: usize) -> Looked {
    let mut findings = Vec::new();
    let read = std::fs::read(&item.path).map_err(|e| Error::io("read", &item.path, &e));
    let facts = match read.and_then(|bytes| decode_with_mode(&item.path, &bytes)) {
        Ok((picture, mode)) => Some(look_at_pixels(&item.path, &picture, mode, image_size, &mut findings)),
        Err(error) => {
            findings.push(Finding::new(Code::Unreadable, &item.path, cause(error)));
            None
        }
    };
    look_at_masks(item, facts.as_ref().map(|facts| facts.size), image_size, &mut findings);
    Looked { facts, findings }
}

/// What is wrong, without the path and the advice, which a finding has already.
fn cause(error: Error) -> String {
    match error {
        Error::Data { what, .. } => what,
        Error::Io { cause, .. } => cause,
        other => other.to_string(),
    }
}

fn look_at_pixels(path: &Path, picture: &Picture, mode: Mode, image_size: usize, findings: &mut Vec<Finding>) -> Facts {
    let (width, height) = (picture.width, picture.height);
    let pixels = picture.rgb.as_chunks::<3>().0;
    let first = pixels[0];
    let largest = picture.rgb.iter().copied().max().unwrap_or(0);
    if pixels.iter().all(|pixel| *pixel == first) {
        let colour = if largest == 0 { "black".to_owned() } else { format!("of the colour {first:?}") };
        findings.push(Finding::new(Code::Constant, path, format!("is {colour} all over")));
    } else if mode.bits == 16 && largest < 16 {
        findings.push(Finding::new(Code::Dark, path, "uses 12 of its 16 bits: all values are below 4096"));
    }
    if width.min(height) < image_size {
        let what = format!("is {width}x{height} pixels, enlarged to {image_size}x{image_size}");
        findings.push(Finding::new(Code::Small, path, what));
    }
    let mut hasher = blake3::Hasher::new();
    hasher.update(&(width as u64).to_le_bytes()).update(&(height as u64).to_le_bytes()).update(&picture.rgb);
    Facts { size: (width, height), mode, hash: hasher.finalize() }
}

fn look_at_masks(item: &Item, picture: Option<(usize, usize)>, image_size: usize, findings: &mut Vec<Finding>) {
    let Some(first) = item.masks.first() else { return };
    let mut masks: Vec<Mask> = Vec::new();
    for path in &item.masks {
        match decode_mask(path) {
            Ok(mask) => {
                look_at_mask(path, &mask, picture, findings);
                masks.push(mask);
            }
            Err(error) => findings.push(Finding::new(Code::UnreadableMask, path, cause(error))),
        }
    }
    let marked: usize = masks.iter().map(|mask| mask.grey.iter().filter(|v| **v > 0).count()).sum();
    let what = match (item.label.is_good(), marked) {
        // An unreadable mask may hold what the others lack.
        _ if masks.len() < item.masks.len() => return,
        (true, 0) => return,
        (true, n) => (Code::MaskOnGood, format!("marks {n} pixels of a good picture, {}", item.path.display())),
        (false, 0) => (Code::EmptyMask, "is 0 everywhere, and its picture is defective".into()),
        (false, n) if union(&masks, image_size, MaskRule::Nearest).iter().all(|v| *v == 0) => {
            (Code::MaskVanishes, format!("none of its {n} marked pixels is left at {image_size}x{image_size}"))
        }
        _ => return,
    };
    findings.push(Finding::new(what.0, first, what.1));
}

fn look_at_mask(path: &Path, mask: &Mask, picture: Option<(usize, usize)>, findings: &mut Vec<Finding>) {
    let mut seen = [false; 256];
    mask.grey.iter().for_each(|v| seen[usize::from(*v)] = true);
    let others: Vec<String> = (1..255).filter(|v| seen[*v]).map(|v| v.to_string()).collect();
    if let Some(shown) = others.get(..others.len().min(5)).filter(|shown| !shown.is_empty()) {
        let more = if others.len() > shown.len() { ", …" } else { "" };
        findings.push(Finding::new(Code::MaskValues, path, format!("holds {}{more}", shown.join(", "))));
    }
    let Some((width, height)) = picture.filter(|size| *size != (mask.width, mask.height)) else { return };
    let ratio = (mask.width * height) as f64 / (mask.height * width) as f64;
    let code = if (ratio - 1.0).abs() < SAME_ASPECT { Code::MaskSize } else { Code::MaskAspect };
    let what = format!("is {}x{} pixels, its picture {width}x{height}", mask.width, mask.height);
    findings.push(Finding::new(code, path, what));
}

/// Equal pixels, in the order of the list: one finding for each picture that repeats an earlier one.
fn find_duplicates(dataset: &Dataset, looked: &[Looked], findings: &mut Vec<Finding>) {
    let mut groups: HashMap<blake3::Hash, Vec<usize>> = HashMap::new();
    for (i, looked) in looked.iter().enumerate() {
        if let Some(facts) = &looked.facts {
            groups.entry(facts.hash).or_default().push(i);
        }
    }
    for group in groups.into_values() {
        // The first picture of each split and label: what later ones are compared with.
        let mut firsts: Vec<&Item> = Vec::new();
        for item in group.iter().map(|&i| &dataset.items[i]) {
            let against = |other: &&Item| match () {
                () if other.split != item.split => Code::DuplicateAcrossSplits,
                () if other.label.is_good() != item.label.is_good() => Code::ContradictoryDuplicate,
                () => Code::Duplicate,
            };
            if let Some(other) = firsts.iter().min_by_key(|other| against(other)) {
                let place = |item: &Item| format!("{} of {}", item.split.name(), dataset.class_of(item));
                let what = format!("in {}, equals {} in {}", place(item), other.path.display(), place(other));
                findings.push(Finding::new(against(other), &item.path, what));
            }
            if firsts.iter().all(|f| (f.split, f.label.is_good()) != (item.split, item.label.is_good())) {
                firsts.push(item);
            }
        }
    }
}

fn count(dataset: &Dataset) -> BTreeMap<String, ClassReport> {
    let mut classes: Vec<ClassReport> = vec![ClassReport::default(); dataset.classes.len()];
    for item in dataset {
        let class = &mut classes[item.class];
        match (item.split, &item.label) {
            (Split::Train, _) => class.train += 1,
            (Split::Validation, _) => class.validation += 1,
            (Split::Test, Label::Good) => class.test_good += 1,
            (Split::Test, Label::Defect(kind)) => {
                class.test_defective += 1;
                *class.kinds.entry(kind.clone()).or_default() += 1;
                class.with_mask += usize::from(!item.masks.is_empty());
            }
        }
    }
    dataset.classes.iter().cloned().zip(classes).collect()
}

fn check_class(home: &Path, name: &str, counts: &ClassReport, findings: &mut Vec<Finding>) {
    let mut say = |code, what: String| findings.push(Finding::new(code, home, format!("class {name} has {what}")));
    if counts.train == 0 {
        say(Code::NoTraining, "no picture to train on".into());
    }
    match (counts.test_good, counts.test_defective) {
        (0, 0) => say(Code::NoTest, "no test picture".into()),
        (0, n) => say(Code::NoGoodTest, format!("{n} defective test pictures and no good one")),
        (n, 0) => say(Code::NoDefectiveTest, format!("{n} good test pictures and no defective one")),
        _ => {}
    }
}

fn find_mixtures(dataset: &Dataset, class: usize, looked: &[Looked], findings: &mut Vec<Finding>) {
    let (mut sizes, mut modes) = (BTreeMap::new(), BTreeMap::new());
    for (item, looked) in dataset.items.iter().zip(looked).filter(|(item, _)| item.class == class) {
        if let Some(facts) = &looked.facts {
            sizes.entry(facts.size).or_insert_with(Vec::new).push(&item.path);
            modes.entry(facts.mode).or_insert_with(Vec::new).push(&item.path);
        }
    }
    let sizes = sizes.into_iter().map(|((w, h), paths)| (format!("{w}x{h}"), paths)).collect();
    let modes = modes.into_iter().map(|(mode, paths)| (mode.to_string(), paths)).collect();
    for (code, groups) in [(Code::MixedSizes, sizes), (Code::MixedModes, modes)] {
        say_mixture(code, &dataset.classes[class], groups, findings);
    }
}

/// One finding for a class whose pictures are in several groups, with an example of the smallest.
fn say_mixture(code: Code, class: &str, mut groups: Vec<(String, Vec<&PathBuf>)>, findings: &mut Vec<Finding>) {
    const SHOWN: usize = 4;
    if groups.len() < 2 {
        return;
    }
    groups.sort_by_key(|(_, paths)| std::cmp::Reverse(paths.len()));
    let mut shown: Vec<String> =
        groups.iter().take(SHOWN).map(|(name, paths)| format!("{} are {name}", paths.len())).collect();
    if groups.len() > SHOWN {
        shown.push(format!("{} other groups", groups.len() - SHOWN));
    }
    let (odd, paths) = groups.last().expect("there are at least two");
    let what = format!("class {class}: {}; this one is {odd}", shown.join(", "));
    findings.push(Finding::new(code, paths[0], what));
}

/// The sum of what can be wrong with a data set before training, as an error for a program that ends.
///
/// # Errors
/// [`Error::Data`] when the report holds errors.
pub fn verdict(report: &Report, root: &Path) -> Result<()> {
    match report.count(Level::Error) {
        0 => Ok(()),
        n => Err(Error::data(
            root,
            format!("{n} error{} in the data", if n == 1 { "" } else { "s" }),
            "the report names each, and what to do",
        )),
    }
}

#[cfg(test)]
mod tests;
