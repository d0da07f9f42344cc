//! Data in any layout to one list of pictures with class, split, label and masks.
//!
//! ```text
//! path -> train.json, test.json or FILE.jsonl   manifest
//!         <class>/Data/Images, 1cls.csv         visa
//!         <class>/{train,test}                  mvtec
//!         good/, <class>/good/, only pictures   folder
//! several data sets -> one; classes of the same name become DATASET/CLASS
//! ```
//! No picture is opened. What is left out is said in [`Dataset::findings`], never dropped in silence, and no good picture
//! is moved from one split to another.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::decode::EXTENSIONS;
use super::finding::{Code, Finding};
use crate::{Error, Result};
use listing::{Folder, count};

pub use listing::is_picture;

mod folder;
mod listing;
pub mod manifest;
mod masks;
mod mvtec;
mod visa;

const GOOD: &str = "good";

const EXPECTED: &str = "one of these layouts is expected:
    ROOT/bottle/train/good/000.png        MVTec AD: a folder per class, any name, with train/ or test/
    ROOT/bottle/test/{good,broken}/       optional, to measure; masks in ground_truth/broken/000_mask.png
    DIR/good/000.png, DIR/broken/         a plain folder, or a folder of such folders
    DIR/000.png                           nothing but good pictures
    ROOT/{train,test}.json, FILE.jsonl    a manifest, one JSON object per line
    ROOT/1cls.csv, ROOT/candle/Data/      VisA";

/// What a picture is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Split {
    /// Good pictures to learn from.
    Train,
    /// Good pictures that are held out of training.
    Validation,
    /// Pictures to be judged.
    Test,
}

impl Split {
    /// Name in manifests and reports.
    pub fn name(self) -> &'static str {
        match self {
            Split::Train => "train",
            Split::Validation => "validation",
            Split::Test => "test",
        }
    }
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
    /// What it is for. Only test pictures are ever defective.
    pub split: Split,
    /// What it shows.
    pub label: Label,
    /// Where its defects are, if that is known: a pixel is defective where any of them is not 0.
    pub masks: Vec<PathBuf>,
}

/// How pictures are laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Layout {
    /// MVTec AD, MVTec LOCO AD, and whatever was reorganised like them.
    Mvtec,
    /// VisA as downloaded, with its table of splits.
    Visa,
    /// Plain folders: `good/`, and one per kind of defect.
    Folder,
    /// Pictures alone.
    Pictures,
    /// JSON lines.
    Manifest,
}

impl Layout {
    /// What it is, and what became of the pictures.
    pub fn describe(self) -> &'static str {
        match self {
            Layout::Mvtec => "layout of MVTec AD",
            Layout::Visa => "layout of VisA, split by 1cls.csv",
            Layout::Folder => "plain folder: good/ is for training, every other folder for test",
            Layout::Pictures => "only pictures: every picture counts as good and is for training",
            Layout::Manifest => "manifest",
        }
    }
}

/// Where pictures came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// The folder or file, as it was given.
    pub path: PathBuf,
    /// How it is laid out.
    pub layout: Layout,
    /// Number of its classes.
    pub classes: usize,
    /// Pictures by split.
    pub pictures: BTreeMap<Split, usize>,
}

/// The pictures of one or several data sets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dataset {
    /// The data sets, in the order they were given.
    pub sources: Vec<Source>,
    /// Names of the classes, in the order of their bytes.
    pub classes: Vec<String>,
    /// All pictures, by class, then split, then the bytes of the path.
    pub items: Vec<Item>,
    /// What was left out or looks like a mistake.
    pub findings: Vec<Finding>,
    /// Of each class, where its training pictures belong.
    homes: Vec<PathBuf>,
}

impl<'a> IntoIterator for &'a Dataset {
    type Item = &'a Item;
    type IntoIter = std::slice::Iter<'a, Item>;

    fn into_iter(self) -> Self::IntoIter {
        self.items.iter()
    }
}

impl Dataset {
    /// Opens data sets, each a folder in a layout that is recognised or a manifest, and puts them together. Classes of
    /// one name in several data sets become `DATASET/CLASS`.
    ///
    /// # Errors
    /// [`Error::Data`] when nothing is there, when a layout is not recognised (the message shows those that are, and what
    /// was found), for lines of a manifest or table that cannot be used, and when two classes cannot be told apart;
    /// [`Error::Io`] when a folder or file cannot be read.
    pub fn open(paths: &[PathBuf]) -> Result<Self> {
        let mut parts = paths.iter().map(|path| open_one(path)).collect::<Result<Vec<_>>>()?;
        let mut holders: BTreeMap<String, Vec<usize>> = BTreeMap::new();
        for (i, part) in parts.iter().enumerate() {
            part.classes.iter().for_each(|class| holders.entry(class.name.clone()).or_default().push(i));
        }
        for part in &mut parts {
            let name = &part.name;
            for class in part.classes.iter_mut().filter(|class| holders[&class.name].len() > 1) {
                class.name = format!("{name}/{}", class.name);
            }
        }
        let mut classes: BTreeMap<String, (usize, Class)> = BTreeMap::new();
        let (mut sources, mut findings) = (Vec::new(), Vec::new());
        for (i, (part, path)) in parts.into_iter().zip(paths).enumerate() {
            let mut pictures = BTreeMap::new();
            let number = part.classes.len();
            part.classes.iter().flat_map(|c| &c.entries).for_each(|e| *pictures.entry(e.split).or_insert(0) += 1);
            findings.extend(part.findings);
            sources.push(Source { path: path.clone(), layout: part.layout, classes: number, pictures });
            for class in part.classes {
                if let Some((other, _)) = classes.get(&class.name) {
                    let what = format!("and {} both hold a class {}", paths[*other].display(), class.name);
                    return Err(Error::data(path, what, "give each data set once, in folders of different names"));
                }
                classes.insert(class.name.clone(), (i, class));
            }
        }
        let mut dataset = Dataset { sources, classes: vec![], items: vec![], findings, homes: vec![] };
        for (number, (name, (_, class))) in classes.into_iter().enumerate() {
            dataset.add(number, name, class);
        }
        Ok(dataset)
    }

    fn add(&mut self, number: usize, name: String, mut class: Class) {
        let bytes = |entry: &Entry| entry.path.as_os_str().as_encoded_bytes().to_vec();
        class.entries.sort_by_cached_key(|entry| (entry.split, bytes(entry)));
        if class.entries.iter().filter(|entry| entry.split == Split::Train).count() == 1 {
            let what = format!("class {name} has a single picture: it will be learnt by heart, so expect false alarms");
            self.findings.push(Finding::new(Code::SingleTraining, &class.home, what));
        }
        self.classes.push(name);
        self.homes.push(class.home);
        self.items.extend(class.entries.into_iter().map(|Entry { path, split, label, masks }| Item {
            path,
            class: number,
            split,
            label,
            masks,
        }));
    }

    /// The pictures of a split, in order.
    pub fn of(&self, split: Split) -> impl Iterator<Item = &Item> {
        self.items.iter().filter(move |item| item.split == split)
    }

    /// Name of an item's class.
    pub fn class_of(&self, item: &Item) -> &str {
        &self.classes[item.class]
    }

    /// Where training pictures of a class belong: a folder, or the list that names them.
    ///
    /// # Panics
    /// If there are not that many classes.
    pub fn home(&self, class: usize) -> &Path {
        &self.homes[class]
    }

    /// The first data set, for messages about all of them.
    pub fn root(&self) -> &Path {
        self.sources.first().map_or(Path::new(""), |source| &source.path)
    }

    /// Forgets all classes but these.
    pub fn keep_classes(&mut self, wanted: &[String]) {
        let kept: Vec<usize> = (0..self.classes.len()).filter(|&i| wanted.contains(&self.classes[i])).collect();
        self.items.retain_mut(|item| match kept.binary_search(&item.class) {
            Ok(number) => {
                item.class = number;
                true
            }
            Err(_) => false,
        });
        self.classes = kept.iter().map(|&i| self.classes[i].clone()).collect();
        self.homes = kept.iter().map(|&i| self.homes[i].clone()).collect();
    }

    /// Refuses a class that nothing can be learnt about.
    ///
    /// # Errors
    /// [`Error::Data`] that names the class and where its pictures belong.
    pub fn require_training(&self) -> Result<()> {
        let mut has = vec![false; self.classes.len()];
        self.of(Split::Train).for_each(|item| has[item.class] = true);
        let Some(class) = has.iter().position(|has| !has) else { return Ok(()) };
        let home = &self.homes[class];
        let loose = |f: &&Finding| f.code == Code::LeftOut && Some(f.path.as_path()) == home.parent();
        let help = match self.findings.iter().find(loose) {
            Some(f) => format!("move the {} of {} into it", count(f.left_out), f.path.display()),
            None => format!("put pictures without defects there ({}), or take the class away", EXTENSIONS.join(", ")),
        };
        Err(Error::data(home, format!("class {} has no picture to train on", self.classes[class]), help))
    }
}

/// One data set, before it is put together with others.
struct Part {
    layout: Layout,
    name: String,
    classes: Vec<Class>,
    findings: Vec<Finding>,
}

/// A class of one data set.
#[derive(Default)]
struct Class {
    name: String,
    /// Where its training pictures belong.
    home: PathBuf,
    entries: Vec<Entry>,
}

/// An [`Item`] whose class is known by where it is.
struct Entry {
    path: PathBuf,
    split: Split,
    label: Label,
    masks: Vec<PathBuf>,
}

impl Part {
    fn new(layout: Layout, name: String) -> Self {
        Part { layout, name, classes: vec![], findings: vec![] }
    }

    fn add(
        &mut self,
        name: String,
        folder: Folder,
        read: impl FnOnce(Folder, &mut Class, &mut Vec<Finding>) -> Result<()>,
    ) -> Result<()> {
        let mut class = Class { name, ..Class::default() };
        read(folder, &mut class, &mut self.findings)?;
        self.classes.push(class);
        Ok(())
    }

    /// The class of this name, made if there is none yet.
    fn class(&mut self, name: &str, home: &Path) -> &mut Class {
        let at = self.classes.iter().position(|class| class.name == name).unwrap_or_else(|| {
            self.classes.push(Class { name: name.into(), home: home.into(), entries: vec![] });
            self.classes.len() - 1
        });
        &mut self.classes[at]
    }
}

impl Class {
    fn add_good(&mut self, split: Split, pictures: Vec<PathBuf>) {
        let entry = |path| Entry { path, split, label: Label::Good, masks: vec![] };
        self.entries.extend(pictures.into_iter().map(entry));
    }
}

fn open_one(path: &Path) -> Result<Part> {
    match std::fs::metadata(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            return Err(Error::data(path, "no such folder or file", "check the path"));
        }
        Err(e) => return Err(Error::io("read", path, &e)),
        Ok(there) if !there.is_dir() => return manifest::open(path),
        Ok(_) => {}
    }
    if let Some(part) = manifest::open_folder(path)? {
        return Ok(part);
    }
    let mut root = Folder::read(path)?;
    if let Some(part) = visa::open(&root)? {
        return Ok(part);
    }
    for open in [mvtec::open, folder::open] {
        if let Some(part) = open(&mut root)? {
            return Ok(part);
        }
    }
    Err(Error::data(path, "holds no class", format!("{EXPECTED}\n  what is there: {root}")))
}

/// Lists the pictures that lie in a folder itself, by the bytes of their names. Hidden files and files whose extension is
/// no picture's are left out.
///
/// # Errors
/// [`Error::Io`] when the folder cannot be read.
pub fn pictures(folder: &Path) -> Result<Vec<PathBuf>> {
    Ok(Folder::read(folder)?.pictures)
}

#[cfg(test)]
mod tests;
