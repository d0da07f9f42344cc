//! The masks of one kind of defect, found by the name of their picture:
//!
//! ```text
//! <stem>_mask.png   <stem>.png   <stem>/*.png      any extension of a picture; several masks are one, by their union
//! ```

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::listing::Folder;
use crate::Result;
use crate::data::finding::{Code, Finding};

#[derive(Debug, Default)]
pub(super) struct Masks {
    by_name: BTreeMap<Vec<u8>, Vec<PathBuf>>,
}

impl Masks {
    /// The masks in a folder, and in the folders in it. What those hold deeper down is left out.
    ///
    /// # Errors
    /// [`crate::Error::Io`] when a folder cannot be read.
    pub fn read(mut folder: Folder, findings: &mut Vec<Finding>) -> Result<Self> {
        let mut masks = Masks::default();
        for path in folder.take_pictures() {
            masks.add(stem(&path).to_vec(), path);
        }
        for several in folder.take_folders() {
            let name = several.file_name().unwrap_or_default().as_encoded_bytes().to_vec();
            let mut several = Folder::read(&several)?;
            for path in several.take_pictures() {
                masks.add(name.clone(), path);
            }
            several.leave(findings, "", "in a folder of masks");
        }
        folder.leave(findings, "", "");
        Ok(masks)
    }

    fn add(&mut self, name: Vec<u8>, path: PathBuf) {
        self.by_name.entry(name).or_default().push(path);
    }

    /// Takes the masks of a picture out.
    pub fn take(&mut self, picture: &Path) -> Vec<PathBuf> {
        let stem = stem(picture);
        self.by_name.remove(&[stem, b"_mask"].concat()).or_else(|| self.by_name.remove(stem)).unwrap_or_default()
    }

    /// Names those that were not taken.
    pub fn leave(self, findings: &mut Vec<Finding>) {
        let orphan = |path: PathBuf| Finding::new(Code::OrphanMask, path, "a mask without a picture").leaving_out(1);
        findings.extend(self.by_name.into_values().flatten().map(orphan));
    }
}

fn stem(path: &Path) -> &[u8] {
    path.file_stem().unwrap_or_default().as_encoded_bytes()
}
