//! Plain folders.
//!
//! ```text
//! DIR/good/*                                what good looks like: all of it for training, never split
//! DIR/<defect>/*                            optional, any name: for test
//! DIR/{masks,mask,ground_truth}/<defect>/<stem>_mask.png   optional; straight in masks/ if there is one kind of defect
//! ROOT/DIR/…                                many of them: a class each
//! DIR/*                                     only pictures, no folder with any: all good, all for training
//! ```

use super::listing::{Folder, name_of, pictures_below};
use super::masks::Masks;
use super::mvtec::{add_kind, refuse_part_of_class};
use super::{Class, GOOD, Layout, Part, Split};
use crate::Result;
use crate::data::finding::Finding;

const MASKS: [&str; 3] = ["masks", "mask", "ground_truth"];

/// Opens `root` if it is a plain folder, or a folder of such folders.
///
/// # Errors
/// [`crate::Error::Io`] when a folder cannot be read, [`crate::Error::Data`] for a name that is not UTF-8, and for the
/// `test` folder of a class, whose good pictures are not for training.
pub(super) fn open(root: &mut Folder) -> Result<Option<Part>> {
    refuse_part_of_class(&root.path)?;
    let mut part = Part::new(Layout::Folder, name_of(&root.path)?);
    if root.find(GOOD).is_some() {
        let class = name_of(&root.path)?;
        part.add(class, std::mem::take(root), read_class)?;
        return Ok(Some(part));
    }
    let mut rest = Vec::new();
    for path in root.take_folders() {
        let folder = Folder::read(&path)?;
        match folder.find(GOOD).is_some() {
            true => part.add(name_of(&path)?, folder, read_class)?,
            false => rest.push(path),
        }
    }
    root.folders = rest;
    if !part.classes.is_empty() {
        std::mem::take(root).leave(&mut part.findings, "beside the classes", ": it has no folder good/");
        return Ok(Some(part));
    }
    // Pictures beside folders of pictures could be anything.
    if root.pictures.is_empty() || root.folders.iter().any(|folder| pictures_below(folder) > 0) {
        return Ok(None);
    }
    part.layout = Layout::Pictures;
    part.add(name_of(&root.path)?, std::mem::take(root), |mut folder, class, findings| {
        class.home = folder.path.clone();
        class.add_good(Split::Train, folder.take_pictures());
        folder.leave(findings, "", "");
        Ok(())
    })?;
    Ok(Some(part))
}

fn read_class(mut folder: Folder, class: &mut Class, findings: &mut Vec<Finding>) -> Result<()> {
    let mut good = folder.take(GOOD)?;
    class.home = good.path.clone();
    class.add_good(Split::Train, good.take_pictures());
    good.leave(findings, "", ": pictures lie in good/ itself");
    let mut truth = Folder::default();
    for name in MASKS {
        if truth.path.as_os_str().is_empty() && folder.find(name).is_some() {
            truth = folder.take(name)?;
        }
    }
    let kinds = folder.take_folders();
    let one_kind = kinds.len() == 1;
    for kind in kinds {
        let name = name_of(&kind)?;
        let of_kind = match truth.find(&name) {
            None if one_kind => std::mem::take(&mut truth),
            _ => truth.take(&name)?,
        };
        let masks = Masks::read(of_kind, findings)?;
        add_kind(Folder::read(&kind)?, name, masks, class, findings);
    }
    Masks::read(truth, findings)?.leave(findings);
    folder.leave(findings, "beside good/", "");
    Ok(())
}
