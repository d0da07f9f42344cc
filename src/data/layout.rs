//! Folders in the layout of MVTec AD (specification 13.2) to a list of pictures with class, split, label and mask.
//!
//! ```text
//! ROOT/<class>/train/good/*                            what good looks like
//! ROOT/<class>/test/{good,<defect>}/*                  optional
//! ROOT/<class>/ground_truth/<defect>/<stem>_mask.png   or <stem>.png; optional
//! ```
//! ROOT may itself be one class. Every folder is read flat, at a known depth, so a loop of links cannot be walked into.
//! What is left out is said in [`Dataset::warnings`], never dropped in silence.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use super::decode::EXTENSIONS;
use crate::{Error, Result};

const GOOD: &str = "good";

const EXPECTED: &str = "the layout of MVTec AD is expected:
    ROOT/
      bottle/                 any name: one folder per class
        train/good/000.png    pictures without defects, for training
        test/good/000.png     optional, for evaluation
        test/broken/000.png   optional, any name: one folder per kind of defect
        ground_truth/broken/000_mask.png";

/// What a picture is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Split {
    /// Good pictures to learn from.
    Train,
    /// Pictures to be judged.
    Test,
}

/// What a picture shows.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Label {
    /// No defect.
    Good,
    /// A defect of the kind its folder names.
    Defect(String),
}

impl Label {
    /// Whether there is no defect.
    pub fn is_good(&self) -> bool {
        *self == Label::Good
    }
}

/// One picture of a dataset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// The picture.
    pub path: PathBuf,
    /// Index into [`Dataset::classes`].
    pub class: usize,
    /// What it is for.
    pub split: Split,
    /// What it shows.
    pub label: Label,
    /// Where its defects are, if that is known.
    pub mask: Option<PathBuf>,
}

/// The pictures of a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dataset {
    /// The folder, as it was given.
    pub root: PathBuf,
    /// Names of the classes, in the order of their bytes.
    pub classes: Vec<String>,
    /// All pictures, by class, then split (training first), then the bytes of the path.
    pub items: Vec<Item>,
    /// What was left out or looks like a mistake, one sentence each.
    pub warnings: Vec<String>,
}

impl<'a> IntoIterator for &'a Dataset {
    type Item = &'a Item;
    type IntoIter = std::slice::Iter<'a, Item>;

    fn into_iter(self) -> Self::IntoIter {
        self.items.iter()
    }
}

impl Dataset {
    /// Scans a folder of classes, or one class. Opens no picture.
    ///
    /// # Errors
    /// [`Error::Data`] when nothing is there, when no class is found (the message shows the layout that is expected and
    /// what was found), when a class has nothing to train on; [`Error::Io`] when a folder cannot be read.
    pub fn scan(root: &Path) -> Result<Self> {
        match std::fs::metadata(root) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                return Err(Error::data(root, "no such folder", "check the path"));
            }
            Err(e) => return Err(Error::io("read", root, &e)),
            Ok(there) if !there.is_dir() => {
                return Err(Error::data(root, "is a file, not a folder", "give the folder that holds the classes"));
            }
            Ok(_) => {}
        }
        let found = Listing::read(root)?;
        let mut dataset = Dataset { root: root.into(), classes: Vec::new(), items: Vec::new(), warnings: Vec::new() };
        if is_class(root)? {
            dataset.add_class(root, class_name(root)?)?;
            return Ok(dataset);
        }
        for folder in &found.folders {
            if is_class(folder)? {
                dataset.add_class(folder, class_name(folder)?)?;
            } else {
                dataset.warn(folder, "is no class (it has neither train/ nor test/) and was left out");
            }
        }
        if dataset.classes.is_empty() {
            let help = format!("{EXPECTED}\n  what is there: {found}");
            return Err(Error::data(root, "holds no class", help));
        }
        if !found.pictures.is_empty() {
            dataset.warn(root, &format!("left out {} beside the classes", count(found.pictures.len())));
        }
        Ok(dataset)
    }

    /// The pictures to learn from, in order.
    pub fn train(&self) -> impl Iterator<Item = &Item> {
        self.items.iter().filter(|item| item.split == Split::Train)
    }

    /// The pictures to be judged, in order.
    pub fn test(&self) -> impl Iterator<Item = &Item> {
        self.items.iter().filter(|item| item.split == Split::Test)
    }

    /// Name of an item's class.
    pub fn class_of(&self, item: &Item) -> &str {
        &self.classes[item.class]
    }

    fn warn(&mut self, path: &Path, what: &str) {
        self.warnings.push(format!("{}: {what}", path.display()));
    }

    fn add_class(&mut self, folder: &Path, name: String) -> Result<()> {
        let class = self.classes.len();
        let first = self.items.len();
        self.add_train(folder, class, &name)?;
        self.add_test(folder, class)?;
        self.items[first..].sort_by(|a, b| {
            (a.split, a.path.as_os_str().as_encoded_bytes()).cmp(&(b.split, b.path.as_os_str().as_encoded_bytes()))
        });
        self.classes.push(name);
        Ok(())
    }

    fn add_train(&mut self, folder: &Path, class: usize, name: &str) -> Result<()> {
        let train = folder.join("train");
        let good = train.join(GOOD);
        let all = Listing::read_if_there(&train)?;
        let pictures = Listing::read_if_there(&good)?.pictures;
        if pictures.is_empty() {
            let what = format!("class {name} has no picture to train on");
            let help = match all.pictures.len() {
                0 => format!("put pictures without defects there ({}), or take the class away", EXTENSIONS.join(", ")),
                n => format!("move the {} of {} into it", count(n), train.display()),
            };
            return Err(Error::data(good, what, help));
        }
        if pictures.len() == 1 {
            self.warn(&good, "a single picture: it will be learnt by heart, so expect false alarms on all others");
        }
        for other in all.folders.iter().filter(|f| f.file_name() != Some(OsStr::new(GOOD))) {
            self.warn(other, "was left out: only good pictures are learnt from");
        }
        if !all.pictures.is_empty() {
            self.warn(&train, &format!("left out {} outside {GOOD}/", count(all.pictures.len())));
        }
        self.items.extend(pictures.into_iter().map(|path| Item {
            path,
            class,
            split: Split::Train,
            label: Label::Good,
            mask: None,
        }));
        Ok(())
    }

    fn add_test(&mut self, folder: &Path, class: usize) -> Result<()> {
        let test = folder.join("test");
        let all = Listing::read_if_there(&test)?;
        if !all.pictures.is_empty() {
            let what = "in no folder that would say what they show";
            self.warn(&test, &format!("left out {} {what}", count(all.pictures.len())));
        }
        for kind in all.folders {
            let pictures = Listing::read(&kind)?.pictures;
            let label = kind.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let truth = folder.join("ground_truth").join(kind.file_name().unwrap_or_default());
            let mut masks = Masks::read(&truth)?;
            let mut missing = Vec::new();
            if pictures.is_empty() {
                self.warn(&kind, "holds no picture");
            }
            for path in pictures {
                let label = if label == GOOD { Label::Good } else { Label::Defect(label.clone()) };
                let mask = masks.take(&path);
                if mask.is_none() && !label.is_good() {
                    missing.push(path.clone());
                }
                self.items.push(Item { path, class, split: Split::Test, label, mask });
            }
            if let Some(path) = missing.first() {
                let n = missing.len() - 1;
                let more = if n == 0 { String::new() } else { format!(" (and {n} more in {})", kind.display()) };
                self.warn(path, &format!("no mask in {}: all of it counts as defect{more}", truth.display()));
            }
            if let Some(path) = masks.orphan() {
                self.warn(path, "a mask without a picture");
            }
        }
        Ok(())
    }
}

/// Lists the pictures that lie in a folder itself, by the bytes of their names. Hidden files and files whose extension is
/// no picture's are left out.
///
/// # Errors
/// [`Error::Io`] when the folder cannot be read.
pub fn pictures(folder: &Path) -> Result<Vec<PathBuf>> {
    Ok(Listing::read(folder)?.pictures)
}

/// What lies in a folder, by the bytes of its names, without what is hidden.
#[derive(Debug, Default)]
struct Listing {
    folders: Vec<PathBuf>,
    pictures: Vec<PathBuf>,
    /// Files that are no pictures, and links that lead nowhere.
    others: usize,
}

impl Listing {
    fn read(folder: &Path) -> Result<Self> {
        let refuse = |e: std::io::Error| Error::io("read", folder, &e);
        let mut names = Vec::new();
        for entry in std::fs::read_dir(folder).map_err(refuse)? {
            names.push(entry.map_err(refuse)?.file_name());
        }
        names.sort_by(|a, b| a.as_encoded_bytes().cmp(b.as_encoded_bytes()));
        let mut listing = Listing::default();
        for path in names.iter().filter(|n| !n.as_encoded_bytes().starts_with(b".")).map(|n| folder.join(n)) {
            match std::fs::metadata(&path) {
                Ok(what) if what.is_dir() => listing.folders.push(path),
                // A link to nothing stays in the list: reading it then says which picture is missing.
                Ok(what) if what.is_file() && is_picture(&path) => listing.pictures.push(path),
                Err(_) if is_picture(&path) => listing.pictures.push(path),
                _ => listing.others += 1,
            }
        }
        Ok(listing)
    }

    /// Nothing, if there is no such folder.
    fn read_if_there(folder: &Path) -> Result<Self> {
        if is_there(folder)? { Self::read(folder) } else { Ok(Self::default()) }
    }
}

impl std::fmt::Display for Listing {
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
        write!(f, ", {}, {} other files", count(self.pictures.len()), self.others)
    }
}

/// The masks of one kind of defect by the stem of their picture.
struct Masks {
    by_stem: HashMap<Vec<u8>, PathBuf>,
}

impl Masks {
    fn read(folder: &Path) -> Result<Self> {
        let paths = Listing::read_if_there(folder)?.pictures;
        Ok(Masks { by_stem: paths.into_iter().map(|path| (stem(&path).to_vec(), path)).collect() })
    }

    fn take(&mut self, picture: &Path) -> Option<PathBuf> {
        let stem = stem(picture);
        self.by_stem.remove(&[stem, b"_mask"].concat()).or_else(|| self.by_stem.remove(stem))
    }

    /// The first that was not taken.
    fn orphan(&self) -> Option<&PathBuf> {
        self.by_stem.values().min()
    }
}

fn stem(path: &Path) -> &[u8] {
    path.file_stem().unwrap_or_default().as_encoded_bytes()
}

fn is_picture(path: &Path) -> bool {
    path.extension().is_some_and(|e| EXTENSIONS.iter().any(|known| e.eq_ignore_ascii_case(known)))
}

fn is_class(folder: &Path) -> Result<bool> {
    Ok(is_there(&folder.join("train"))? || is_there(&folder.join("test"))?)
}

/// Whether something is there; an error where that may not be known, so that a locked folder is not taken for none.
fn is_there(path: &Path) -> Result<bool> {
    path.try_exists().map_err(|e| Error::io("read", path, &e))
}

/// Name of a class's folder; of `.` and `..` too.
fn class_name(folder: &Path) -> Result<String> {
    let full = folder.canonicalize().map_err(|e| Error::io("read", folder, &e))?;
    let name = folder.file_name().or(full.file_name()).unwrap_or_else(|| OsStr::new("class"));
    name.to_str().map(str::to_owned).ok_or_else(|| {
        Error::data(folder, "the name of this class is not UTF-8, so it could not be written to a report", "rename it")
    })
}

fn count(pictures: usize) -> String {
    format!("{pictures} picture{}", if pictures == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// A folder holding empty files of these names; a scan opens none of them.
    fn folder(files: &[&str]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for file in files {
            let path = folder.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, b"").unwrap();
        }
        folder
    }

    fn refusal(path: &Path) -> String {
        let error = Dataset::scan(path).unwrap_err();
        assert_eq!(error.exit_code(), 3, "{error}");
        error.to_string()
    }

    fn names(dataset: &Dataset) -> Vec<String> {
        let name = |item: &Item| item.path.strip_prefix(&dataset.root).unwrap().to_str().unwrap().to_owned();
        dataset.into_iter().map(name).collect()
    }

    #[test]
    fn a_folder_of_classes() {
        let folder = folder(&[
            "b c/train/good/2.PNG",
            "b c/train/good/10.jpg",
            "b/train/good/ü.png",
            "b/train/good/0.png",
            "b/test/good/7.png",
            "b/test/broken/3.png",
            "b/test/broken/4.png",
            "b/test/broken-2/1.png",
            "b/ground_truth/broken/3_mask.png",
            "b/ground_truth/broken/4.png",
            "b/ground_truth/broken-2/1_mask.tif",
        ]);
        let dataset = Dataset::scan(folder.path()).unwrap();
        assert_eq!(dataset.classes, ["b", "b c"]);
        let order = [
            "b/train/good/0.png",
            "b/train/good/ü.png",
            "b/test/broken-2/1.png",
            "b/test/broken/3.png",
            "b/test/broken/4.png",
            "b/test/good/7.png",
            "b c/train/good/10.jpg",
            "b c/train/good/2.PNG",
        ];
        assert_eq!(names(&dataset), order);
        assert_eq!((dataset.train().count(), dataset.test().count()), (4, 4));
        let mask = |i: usize| dataset.items[i].mask.as_ref().map(|m| m.strip_prefix(folder.path()).unwrap().to_owned());
        assert_eq!(mask(2), Some("b/ground_truth/broken-2/1_mask.tif".into()));
        assert_eq!(mask(3), Some("b/ground_truth/broken/3_mask.png".into()));
        assert_eq!(mask(4), Some("b/ground_truth/broken/4.png".into()));
        assert_eq!(mask(5), None);
        assert_eq!(dataset.items[3].label, Label::Defect("broken".into()));
        assert!(dataset.items[5].label.is_good());
        assert_eq!(dataset.class_of(&dataset.items[7]), "b c");
        assert_eq!(dataset.warnings, [""; 0]);
    }

    #[test]
    fn a_folder_that_is_one_class() {
        let folder = folder(&["nut/train/good/0.png", "nut/train/good/1.png"]);
        let dataset = Dataset::scan(&folder.path().join("nut")).unwrap();
        assert_eq!((dataset.classes, dataset.items.len()), (vec!["nut".to_owned()], 2));
        let dataset = Dataset::scan(&folder.path().join("nut/train/..")).unwrap();
        assert_eq!(dataset.classes, ["nut"]);
    }

    #[test]
    fn what_is_left_out_is_said() {
        let folder = folder(&[
            "a/train/good/0.png",
            "a/train/good/.hidden.png",
            "a/train/good/Thumbs.db",
            "a/train/bent/0.png",
            "a/train/1.png",
            "a/test/2.png",
            "a/test/bent/3.png",
            "a/test/bent/4.png",
            "a/test/bent/.ipynb_checkpoints/4.png",
            "a/test/torn/notes.txt",
            "a/ground_truth/bent/9_mask.png",
            "photos/0.png",
            "5.png",
        ]);
        let dataset = Dataset::scan(folder.path()).unwrap();
        assert_eq!(names(&dataset), ["a/train/good/0.png", "a/test/bent/3.png", "a/test/bent/4.png"]);
        let said = [
            ("a/train/good", "a single picture"),
            ("a/train/bent", "only good pictures"),
            ("a/train", "left out 1 picture outside good/"),
            ("a/test", "left out 1 picture in no folder"),
            ("a/test/bent/3.png", "(and 1 more in"),
            ("a/ground_truth/bent/9_mask.png", "a mask without a picture"),
            ("a/test/torn", "holds no picture"),
            ("photos", "is no class"),
            ("", "left out 1 picture beside"),
        ];
        assert_eq!(dataset.warnings.len(), said.len(), "{:#?}", dataset.warnings);
        for (warning, (path, what)) in dataset.warnings.iter().zip(said) {
            let path = folder.path().join(path);
            let path = path.to_str().unwrap().trim_end_matches('/');
            assert!(warning.starts_with(&format!("{path}: ")) && warning.contains(what), "{warning}");
        }
    }

    #[test]
    fn no_folder_and_no_class_are_explained() {
        assert!(refusal(Path::new("nowhere/at all")).contains("no such folder"));
        let folder = folder(&["one.png", "two.jpg", "notes.txt", "x/three.png", "y/z/four.png"]);
        assert!(refusal(&folder.path().join("one.png")).contains("is a file, not a folder"));
        let text = refusal(folder.path());
        assert!(text.contains("train/good/000.png"), "{text}");
        assert!(text.ends_with("what is there: 2 folders (x, y), 2 pictures, 1 other files"), "{text}");
    }

    #[test]
    fn a_class_with_nothing_to_train_on_is_named() {
        let folder = folder(&["a/train/good/0.png", "b/test/good/0.png", "c/train/0.png"]);
        assert!(refusal(folder.path()).contains("class b has no picture to train on"));
        let text = refusal(&folder.path().join("c"));
        assert!(text.contains("class c has") && text.contains("move the 1 picture of"), "{text}");
    }

    #[test]
    fn a_folder_that_cannot_be_read_is_an_error() {
        let folder = folder(&["a/train/good"]);
        let error = Dataset::scan(folder.path()).unwrap_err();
        assert!(matches!(&error, Error::Io { path, .. } if path.ends_with("a/train/good")), "{error}");
    }

    #[cfg(unix)]
    #[test]
    fn loops_of_links_are_harmless() {
        use std::os::unix::fs::symlink;
        let folder = folder(&["a/train/good/0.png", "a/train/good/1.png", "a/test/bent/2.png"]);
        let at = |path: &str| folder.path().join(path);
        symlink("..", at("a/loop")).unwrap();
        symlink(".", at("again")).unwrap();
        symlink("itself", at("a/test/itself")).unwrap();
        symlink("..", at("a/test/bent/up")).unwrap();
        symlink("0.png", at("a/train/good/3.png")).unwrap();
        symlink("nothing", at("a/train/good/4.png")).unwrap();
        let dataset = Dataset::scan(folder.path()).unwrap();
        let order = ["0.png", "1.png", "3.png", "4.png"].map(|name| format!("a/train/good/{name}"));
        assert_eq!(names(&dataset)[..4], order);
        assert_eq!((dataset.classes.len(), dataset.items.len()), (1, 5));
    }
}
