//! What lies in a folder, read flat, by the bytes of its names. A layout takes out of a [`Folder`] what it uses; what
//! stays in is left out, and [`Folder::leave`] says so. So every picture that is seen is an item, a mask or a finding.
//!
//! Folders are read at known depths only, so a loop of links cannot be walked into.

use std::path::{Path, PathBuf};

use walkdir::WalkDir;

use crate::data::decode::EXTENSIONS;
use crate::data::finding::{Code, Finding};
use crate::{Error, Result};

/// Pictures by their extension that no decoder here reads.
const UNSUPPORTED: [&str; 10] = ["gif", "heic", "heif", "avif", "jxl", "jp2", "j2k", "tga", "exr", "dng"];

/// A folder without what is hidden in it.
#[derive(Debug, Default)]
pub(super) struct Folder {
    pub path: PathBuf,
    /// Folders in it, and links to folders.
    pub folders: Vec<PathBuf>,
    pub pictures: Vec<PathBuf>,
    /// Files that are no pictures, and links that lead nowhere.
    pub others: Vec<PathBuf>,
}

impl Folder {
    /// # Errors
    /// [`Error::Io`] when it cannot be read.
    pub fn read(path: &Path) -> Result<Self> {
        let refuse = |e: std::io::Error| Error::io("read", path, &e);
        let mut entries = Vec::new();
        for entry in std::fs::read_dir(path).map_err(refuse)? {
            let entry = entry.map_err(refuse)?;
            entries.push((entry.file_name(), entry.file_type().map_err(refuse)?));
        }
        entries.sort_by(|(a, _), (b, _)| a.as_encoded_bytes().cmp(b.as_encoded_bytes()));
        let mut folder = Folder { path: path.into(), ..Self::default() };
        for (name, kind) in entries.into_iter().filter(|(name, _)| !is_hidden(name)) {
            let path = path.join(name);
            // Only a link has to be looked at again: 100 000 questions less.
            let kind =
                if kind.is_symlink() { std::fs::metadata(&path).ok().map(|m| m.file_type()) } else { Some(kind) };
            match kind {
                Some(kind) if kind.is_dir() => folder.folders.push(path),
                Some(kind) if kind.is_file() && is_picture(&path) => folder.pictures.push(path),
                // A link to nothing stays in the list: reading it then says which picture is missing.
                None if is_picture(&path) => folder.pictures.push(path),
                _ => folder.others.push(path),
            }
        }
        Ok(folder)
    }

    /// The folder in it that is called `name`, in upper or lower case.
    pub fn find(&self, name: &str) -> Option<&PathBuf> {
        self.folders.iter().find(|path| is_called(path, name))
    }

    /// Takes the folder called `name` out and reads it; nothing, if there is none.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be read.
    pub fn take(&mut self, name: &str) -> Result<Folder> {
        match self.folders.iter().position(|path| is_called(path, name)) {
            Some(at) => Folder::read(&self.folders.remove(at)),
            None => Ok(Folder { path: self.path.join(name), ..Folder::default() }),
        }
    }

    /// Takes the pictures out.
    pub fn take_pictures(&mut self) -> Vec<PathBuf> {
        std::mem::take(&mut self.pictures)
    }

    /// Takes the folders out.
    pub fn take_folders(&mut self) -> Vec<PathBuf> {
        std::mem::take(&mut self.folders)
    }

    /// Says what was not taken out: loose pictures with the reason `loose`, pictures in folders with the reason `nested`.
    pub fn leave(self, findings: &mut Vec<Finding>, loose: &str, nested: &str) {
        if !self.pictures.is_empty() {
            let n = self.pictures.len();
            findings.push(Finding::new(Code::LeftOut, &self.path, left_out(n, loose)).leaving_out(n));
        }
        for folder in &self.folders {
            let n = pictures_below(folder);
            if n > 0 {
                findings.push(Finding::new(Code::LeftOut, folder, left_out(n, nested)).leaving_out(n));
            }
        }
        let unsupported = |path: &&PathBuf| has_extension(path, &UNSUPPORTED);
        for (code, files) in [
            (Code::Unsupported, self.others.iter().filter(unsupported).collect::<Vec<_>>()),
            (Code::OtherFiles, self.others.iter().filter(|path| !unsupported(path)).collect()),
        ] {
            if let Some(first) = files.first() {
                let name = first.file_name().unwrap_or_default().display();
                let what = match files.len() - 1 {
                    0 => format!("left out {name}"),
                    more => format!("left out {name} and {more} more"),
                };
                findings.push(Finding::new(code, &self.path, what));
            }
        }
    }
}

/// What is there, for a message.
impl std::fmt::Display for Folder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        const SHOWN: usize = 5;
        let names: Vec<_> = self.folders.iter().filter_map(|p| p.file_name()).map(|n| n.to_string_lossy()).collect();
        match names.len() {
            0 => write!(f, "no folder")?,
            n => write!(f, "{n} folder{} ({}", if n == 1 { "" } else { "s" }, names[..n.min(SHOWN)].join(", "))?,
        }
        if !names.is_empty() {
            write!(f, "{})", if names.len() > SHOWN { ", …" } else { "" })?;
        }
        write!(f, ", {}, {} other files", count(self.pictures.len()), self.others.len())
    }
}

/// Pictures in a folder and in all folders below it. Follows no link, so it ends.
pub(super) fn all_below(folder: &Path) -> impl Iterator<Item = PathBuf> {
    let seen = |entry: &walkdir::DirEntry| entry.depth() == 0 || !is_hidden(entry.file_name());
    let entries = WalkDir::new(folder).sort_by_file_name().into_iter().filter_entry(seen);
    // What cannot be read there is not used anyway.
    entries.filter_map(|e| e.ok()).filter(|e| !e.file_type().is_dir() && is_picture(e.path())).map(|e| e.into_path())
}

pub(super) fn pictures_below(folder: &Path) -> usize {
    all_below(folder).count()
}

/// Whether the last part of the path is `name`, in upper or lower case.
pub(super) fn is_called(path: &Path, name: &str) -> bool {
    path.file_name().is_some_and(|n| n.eq_ignore_ascii_case(name))
}

/// Name of a folder or file as a class, data set or kind of defect; of `.` and `..` too.
///
/// # Errors
/// [`Error::Data`] when it is not UTF-8.
pub(super) fn name_of(path: &Path) -> Result<String> {
    let full = path.canonicalize().map_err(|e| Error::io("read", path, &e))?;
    let name = path.file_name().or(full.file_name()).unwrap_or_else(|| std::ffi::OsStr::new("class"));
    name.to_str()
        .map(str::to_owned)
        .ok_or_else(|| Error::data(path, "this name is not UTF-8, so it could not be written to a report", "rename it"))
}

/// `1 picture`, `2 pictures`.
pub(super) fn count(pictures: usize) -> String {
    format!("{pictures} picture{}", if pictures == 1 { "" } else { "s" })
}

fn left_out(pictures: usize, why: &str) -> String {
    format!("left out {}{}{why}", count(pictures), if why.starts_with(':') { "" } else { " " })
}

fn is_hidden(name: &std::ffi::OsStr) -> bool {
    name.as_encoded_bytes().starts_with(b".")
}

/// Whether a file is a picture, by its extension.
pub fn is_picture(path: &Path) -> bool {
    has_extension(path, &EXTENSIONS)
}

fn has_extension(path: &Path, extensions: &[&str]) -> bool {
    path.extension().is_some_and(|e| extensions.iter().any(|known| e.eq_ignore_ascii_case(known)))
}
