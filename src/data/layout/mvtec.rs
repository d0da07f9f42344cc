//! The layout of MVTec AD and MVTec LOCO AD (specification 13.2), and of VisA where it was reorganised like them.
//!
//! ```text
//! ROOT/<class>/train/good/*                            what good looks like
//! ROOT/<class>/validation/good/*                       optional: good pictures held out of training
//! ROOT/<class>/test/{good,<defect>}/*                  optional
//! ROOT/<class>/ground_truth/<defect>/<stem>_mask.png   or <stem>.png or <stem>/*.png; optional
//! ```
//! ROOT may itself be one class.

use std::path::Path;

use super::listing::{Folder, is_called, name_of};
use super::masks::Masks;
use super::{Class, Entry, GOOD, Label, Layout, Part, Split};
use crate::data::finding::{Code, Finding};
use crate::{Error, Result};

const TRAIN: &str = "train";
const VALIDATION: &str = "validation";
const TEST: &str = "test";
const TRUTH: &str = "ground_truth";

/// Opens `root` if it is in this layout.
///
/// # Errors
/// [`Error::Io`] when a folder cannot be read, [`Error::Data`] for a name that is not UTF-8.
pub(super) fn open(root: &mut Folder) -> Result<Option<Part>> {
    let mut part = Part::new(Layout::Mvtec, name_of(&root.path)?);
    if is_class(root) {
        let class = name_of(&root.path)?;
        part.add(class, std::mem::take(root), read_class)?;
        return Ok(Some(part));
    }
    let mut rest = Vec::new();
    for path in root.take_folders() {
        let folder = Folder::read(&path)?;
        match is_class(&folder) {
            true => part.add(name_of(&path)?, folder, read_class)?,
            false => rest.push(path),
        }
    }
    root.folders = rest;
    if part.classes.is_empty() {
        return Ok(None);
    }
    std::mem::take(root).leave(&mut part.findings, "beside the classes", ": it has neither train/ nor test/");
    Ok(Some(part))
}

fn is_class(folder: &Folder) -> bool {
    folder.find(TRAIN).is_some() || folder.find(TEST).is_some()
}

/// Refuses `path` when it is the part of a class, not a class: its good test pictures would be taken for training.
///
/// # Errors
/// [`Error::Data`] that names the class.
pub(super) fn refuse_part_of_class(path: &Path) -> Result<()> {
    let Ok(full) = path.canonicalize() else { return Ok(()) };
    let is_part = [TRAIN, VALIDATION, TEST, TRUTH].iter().any(|name| is_called(&full, name));
    match full.parent() {
        Some(class) if is_part && Folder::read(class).is_ok_and(|folder| is_class(&folder)) => {
            let help = format!("give the class: {}", class.display());
            Err(Error::data(path, "is a part of a class in the layout of MVTec AD", help))
        }
        _ => Ok(()),
    }
}

fn read_class(mut folder: Folder, class: &mut Class, findings: &mut Vec<Finding>) -> Result<()> {
    class.home = folder.path.join(TRAIN).join(GOOD);
    for (name, split) in [(TRAIN, Split::Train), (VALIDATION, Split::Validation)] {
        let mut all = folder.take(name)?;
        let mut good = all.take(GOOD)?;
        class.add_good(split, good.take_pictures());
        good.leave(findings, "", ": pictures lie in good/ itself");
        let why = match split {
            Split::Train => ": only good pictures are learnt from",
            _ => ": only good pictures are held out",
        };
        all.leave(findings, "outside good/", why);
    }
    let mut test = folder.take(TEST)?;
    let mut truth = folder.take(TRUTH)?;
    for kind in test.take_folders() {
        let name = name_of(&kind)?;
        let masks = Masks::read(truth.take(&name)?, findings)?;
        add_kind(Folder::read(&kind)?, name, masks, class, findings);
    }
    test.leave(findings, "in no folder that would say what they show", "");
    for unused in truth.take_folders() {
        Masks::read(Folder::read(&unused)?, findings)?.leave(findings);
    }
    truth.leave(findings, "of masks in no folder of a kind of defect", "");
    folder.leave(findings, "beside train/ and test/", ": it is none of train, validation, test and ground_truth");
    Ok(())
}

/// Adds the test pictures of one folder, `good` or a kind of defect, with their masks.
pub(super) fn add_kind(
    mut folder: Folder,
    name: String,
    mut masks: Masks,
    class: &mut Class,
    findings: &mut Vec<Finding>,
) {
    if folder.pictures.is_empty() {
        findings.push(Finding::new(Code::EmptyFolder, &folder.path, "holds no picture"));
    }
    for path in folder.take_pictures() {
        let label = if name.eq_ignore_ascii_case(GOOD) { Label::Good } else { Label::Defect(name.clone()) };
        let masks = masks.take(&path);
        if masks.is_empty() && !label.is_good() {
            findings.push(Finding::new(Code::MissingMask, &path, "defective, and has no mask"));
        }
        class.entries.push(Entry { path, split: Split::Test, label, masks });
    }
    masks.leave(findings);
    folder.leave(findings, "", ": pictures lie in the folder of their kind itself");
}
