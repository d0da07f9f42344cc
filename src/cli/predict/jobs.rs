//! Which pictures are scored, and where what belongs to each is written.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use walkdir::WalkDir;

use crate::data::decode::EXTENSIONS;
use crate::data::layout::is_picture;
use crate::error::{Error, Result};

/// A picture to be scored.
pub struct Job {
    /// Its file.
    pub picture: PathBuf,
    /// Where in a folder of results its files go, without extension; different for every picture.
    name: PathBuf,
}

impl Job {
    /// Its file with this extension in a folder of results.
    pub fn file_in(&self, folder: &Path, extension: &str) -> PathBuf {
        let mut file = folder.join(&self.name).into_os_string();
        file.push(".");
        file.push(extension);
        file.into()
    }
}

/// The pictures that `paths` name, in order: files as they are, folders and patterns (`*`, `?`, `[..]`) by the bytes of the
/// paths in them. A file that is not there stays in the list, so that its row says so. `heatmaps` is where they will go.
///
/// # Errors
/// [`Error::Data`] for a folder without pictures and a pattern that nothing matches; [`Error::Config`] where heat maps would
/// land on, or among, the pictures.
pub fn collect(paths: &[PathBuf], heatmaps: Option<&Path>) -> Result<Vec<Job>> {
    let mut taken = HashSet::new();
    let mut jobs = Vec::new();
    let mut add = |picture: PathBuf, name: &Path| jobs.push(Job { picture, name: unused(&mut taken, name) });
    let file_name = |path: &Path| PathBuf::from(path.file_name().unwrap_or_default());
    for path in paths {
        if path.is_dir() {
            if let Some(out) = heatmaps.filter(|out| lies_in(out, path)) {
                return Err(Error::config(
                    format!("heat maps in {} would be taken for pictures of {}", out.display(), path.display()),
                    "choose an --out that is not in the folder of the pictures",
                ));
            }
            let pictures = pictures_below(path)?;
            if pictures.is_empty() {
                let help = format!("pictures are files that end in {}", EXTENSIONS.join(", "));
                return Err(Error::data(path, "holds no picture", help));
            }
            for picture in pictures {
                let name = picture.strip_prefix(path).unwrap_or(&picture).to_owned();
                add(picture, &name);
            }
        } else if let Some(matched) = matches(path)? {
            matched.into_iter().for_each(|picture| add(picture.clone(), &file_name(&picture)));
        } else {
            add(path.clone(), &file_name(path));
        }
    }
    let Some(heatmaps) = heatmaps else { return Ok(jobs) };
    let pictures: HashSet<PathBuf> = jobs.iter().filter_map(|job| job.picture.canonicalize().ok()).collect();
    let overwritten = |map: &PathBuf| map.canonicalize().is_ok_and(|full| pictures.contains(&full));
    if let Some(map) = jobs.iter().map(|job| job.file_in(heatmaps, "png")).find(overwritten) {
        let what = format!("{} is a picture, and its heat map would overwrite it", map.display());
        return Err(Error::config(what, "choose an --out that is not the folder of the pictures"));
    }
    Ok(jobs)
}

/// The pictures that a pattern matches; `None` if the path is none, or a file of that very name exists.
fn matches(path: &Path) -> Result<Option<Vec<PathBuf>>> {
    let Some(pattern) = path.to_str().filter(|text| text.contains(['*', '?', '[']) && !path.exists()) else {
        return Ok(None);
    };
    let wrong = |e: glob::PatternError| {
        Error::config(format!("the pattern {pattern} cannot be read: {e}"), "write [[] for a bracket")
    };
    let mut found = vec![];
    for entry in glob::glob(pattern).map_err(wrong)? {
        let file = entry.map_err(|e| Error::io("read", e.path(), e.error()))?;
        if file.is_file() && is_picture(&file) {
            found.push(file);
        }
    }
    if found.is_empty() {
        let help = format!("check it; pictures are files that end in {}", EXTENSIONS.join(", "));
        return Err(Error::data(path, "no picture matches this pattern", help));
    }
    Ok(Some(found))
}

/// The pictures in a folder and all folders in it. Hidden ones and links to folders are left out.
fn pictures_below(folder: &Path) -> Result<Vec<PathBuf>> {
    let hidden =
        |entry: &walkdir::DirEntry| entry.depth() > 0 && entry.file_name().as_encoded_bytes().starts_with(b".");
    let mut found = Vec::new();
    for entry in WalkDir::new(folder).sort_by_file_name().into_iter().filter_entry(|entry| !hidden(entry)) {
        let entry = entry.map_err(|e| {
            let at = e.path().unwrap_or(folder).to_owned();
            Error::io("read", at, &e.into())
        })?;
        if !entry.path().is_dir() && is_picture(entry.path()) {
            found.push(entry.into_path());
        }
    }
    Ok(found)
}

/// `a/b.jpg` -> `a/b`, or `a/b-2` if that is taken: pictures from several folders may have the same name.
fn unused(taken: &mut HashSet<PathBuf>, name: &Path) -> PathBuf {
    let stem = name.file_stem().unwrap_or_default().to_os_string();
    let numbered = (2..).map(|n| {
        let mut numbered = stem.clone();
        numbered.push(format!("-{n}"));
        name.with_file_name(numbered)
    });
    let mut candidates = std::iter::once(name.with_file_name(&stem)).chain(numbered);
    candidates.find(|candidate| taken.insert(candidate.clone())).expect("there is always a higher number")
}

/// Whether `out` is `folder` or will lie in it.
fn lies_in(out: &Path, folder: &Path) -> bool {
    let there = out.ancestors().find(|a| a.exists()).unwrap_or(Path::new(""));
    let full = |path: &Path| match path.as_os_str().is_empty() {
        true => Path::new(".").canonicalize(),
        false => path.canonicalize(),
    };
    let (Ok(there_full), Ok(folder)) = (full(there), full(folder)) else { return false };
    there_full.join(out.strip_prefix(there).unwrap_or(out)).starts_with(folder)
}
