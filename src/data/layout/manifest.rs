//! Manifests: JSON lines, one object per picture (specification 13.1), with two keys more.
//!
//! ```text
//! {"filename": "bottle/test/broken/000.png", "label": 1, "label_name": "broken", "clsname": "bottle",
//!  "maskname": "bottle/ground_truth/broken/000_mask.png", "split": "test"}
//! ```
//! `label` is 0 (good) or 1 (defective). Paths are absolute, or count from the folder of the manifest; those of the
//! official `train.json` and `test.json` may count from a folder beside them. `maskname` may be a list. Without `clsname`
//! the class is the fourth part of the path from its end, as the official loader takes it. Without `split` the name of the
//! file is the split.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::listing::{Folder, name_of};
use super::{Dataset, Entry, GOOD, Item, Label, Layout, Part, Split};
use crate::data::finding::{Code, Finding};
use crate::{Error, Result};

/// Lines that are refused are counted up to here; the first is named.
const MOST_REFUSED: usize = 1000;

/// A line, as it is read.
#[derive(Deserialize)]
struct Line {
    filename: String,
    label: i64,
    label_name: Option<String>,
    clsname: Option<String>,
    maskname: Option<OneOrMany>,
    split: Option<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(untagged, expecting = "expected a path or a list of paths")]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

/// A line, as it is written.
#[derive(Serialize)]
struct Written<'a> {
    filename: &'a str,
    label: u8,
    label_name: &'a str,
    clsname: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    maskname: Option<OneOrMany>,
    split: &'static str,
}

/// Opens a manifest.
///
/// # Errors
/// [`Error::Data`] when the file is none by its name, or naming the first line that cannot be used; [`Error::Io`] when it
/// cannot be read.
pub(super) fn open(path: &Path) -> Result<Part> {
    if !path.extension().is_some_and(|e| e.eq_ignore_ascii_case("jsonl") || e.eq_ignore_ascii_case("json")) {
        let help = "give the folder that holds the pictures, or a manifest: FILE.jsonl";
        return Err(Error::data(path, "is a file, not a folder", help));
    }
    let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let mut part = Part::new(Layout::Manifest, name);
    add(path, &mut part)?;
    Ok(part)
}

/// Opens the manifests `train.json` and `test.json` of a folder, if it has any.
///
/// # Errors
/// As [`open`].
pub(super) fn open_folder(folder: &Path) -> Result<Option<Part>> {
    let files = ["train.json", "test.json"].map(|name| folder.join(name));
    let files: Vec<&PathBuf> = files.iter().filter(|file| file.is_file()).collect();
    if files.is_empty() {
        return Ok(None);
    }
    let mut part = Part::new(Layout::Manifest, name_of(folder)?);
    files.iter().try_for_each(|file| add(file, &mut part))?;
    Ok(Some(part))
}

fn add(path: &Path, part: &mut Part) -> Result<()> {
    let bytes = std::fs::read(path).map_err(|e| Error::io("read", path, &e))?;
    let folder = path.parent().unwrap_or(Path::new(""));
    let entries = |part: &Part| part.classes.iter().map(|class| class.entries.len()).sum::<usize>();
    let before = entries(part);
    read(path, &bytes, &|name| image_root(folder, name), part)?;
    if entries(part) == before {
        return Err(Error::data(path, "lists no picture", "write one JSON object per line, with a filename in each"));
    }
    Ok(())
}

/// The folder that paths count from: that of the manifest, or the one in it that holds the first picture where the
/// manifest's own does not.
fn image_root(folder: &Path, first: &str) -> PathBuf {
    if !folder.join(first).exists() {
        let beside = Folder::read(if folder.as_os_str().is_empty() { Path::new(".") } else { folder });
        let found = beside.into_iter().flat_map(|f| f.folders).find(|inner| inner.join(first).exists());
        return found.unwrap_or_else(|| folder.into());
    }
    folder.into()
}

/// Adds the lines of a manifest. `path` gives the split of lines that name none; `root` is asked once, with the first
/// path, what paths count from.
fn read(path: &Path, bytes: &[u8], root: &dyn Fn(&str) -> PathBuf, part: &mut Part) -> Result<()> {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let of_file = path.file_stem().and_then(|stem| split(&stem.to_string_lossy()));
    let mut folder = None;
    let mut refused = Vec::new();
    for (number, line) in bytes.split(|&b| b == b'\n').enumerate() {
        if line.trim_ascii().is_empty() {
            continue;
        }
        let parsed = serde_json::from_slice::<Line>(line).map_err(|e| json_fault(&e));
        let entry = parsed.and_then(|line| {
            let folder = &*folder.get_or_insert_with(|| root(&line.filename));
            entry(folder, of_file, line)
        });
        match entry {
            Ok((class, entry)) => {
                if !entry.label.is_good() && entry.masks.is_empty() {
                    part.findings.push(Finding::new(Code::MissingMask, &entry.path, "defective, and has no mask"));
                }
                part.class(&class, path).entries.push(entry);
            }
            Err((what, help)) => refused.push((number + 1, what, help)),
        }
        if refused.len() == MOST_REFUSED {
            break;
        }
    }
    let Some((line, what, help)) = refused.first() else { return Ok(()) };
    let more = match refused.len() - 1 {
        0 => String::new(),
        n => format!(" ({n} more bad lines)"),
    };
    Err(Error::data(format!("{}:{line}", path.display()), format!("{what}{more}"), *help))
}

/// What is wrong with a line, and what to do.
type Fault = (String, &'static str);

fn json_fault(error: &serde_json::Error) -> Fault {
    let text = error.to_string();
    // Each line is parsed alone, so the line that serde names is always 1.
    let what = text.split(" at line ").next().unwrap_or(&text);
    (format!("{what} (column {})", error.column()), "write one JSON object per line, with filename and label")
}

/// Class and item of a line.
fn entry(folder: &Path, of_file: Option<Split>, line: Line) -> Result<(String, Entry), Fault> {
    let split = match (&line.split, of_file) {
        (Some(name), _) => {
            split(name).ok_or_else(|| (format!("split is `{name}`"), "write train, validation or test"))?
        }
        (None, Some(split)) => split,
        (None, None) => {
            return Err(("has no split".into(), "add \"split\", or call the file train.jsonl or test.jsonl"));
        }
    };
    let is_good_name = line.label_name.as_ref().map(|name| name.eq_ignore_ascii_case(GOOD));
    let label = match (line.label, is_good_name) {
        (0, None | Some(true)) => Label::Good,
        (1, None | Some(false)) => Label::Defect(line.label_name.unwrap_or_else(|| "defective".into())),
        (0 | 1, Some(_)) => {
            let name = line.label_name.unwrap_or_default();
            return Err((format!("label {} contradicts label_name `{name}`", line.label), "0 is good, 1 is defective"));
        }
        (other, _) => return Err((format!("label is {other}"), "write 0 for good, 1 for defective")),
    };
    if split != Split::Test && !label.is_good() {
        return Err((format!("a defective picture is for {}", split.name()), "only test pictures may be defective"));
    }
    if line.filename.is_empty() {
        return Err(("filename is empty".into(), "name the picture"));
    }
    let class =
        match line.clsname.filter(|name| !name.is_empty()) {
            Some(name) => name,
            None => line.filename.rsplit('/').nth(3).filter(|name| !name.is_empty()).map(str::to_owned).ok_or_else(
                || (format!("has no clsname, and `{}` is not CLASS/x/y/NAME", line.filename), "add \"clsname\""),
            )?,
        };
    let masks = match line.maskname {
        None => vec![],
        Some(OneOrMany::One(mask)) => vec![mask],
        Some(OneOrMany::Many(masks)) => masks,
    };
    let masks = masks.iter().filter(|mask| !mask.is_empty()).map(|mask| folder.join(mask)).collect();
    Ok((class, Entry { path: folder.join(&line.filename), split, label, masks }))
}

fn split(name: &str) -> Option<Split> {
    [Split::Train, Split::Validation, Split::Test].into_iter().find(|split| split.name() == name)
}

/// The line of an item, without its end. Paths are absolute, so the manifest may be kept and used anywhere on the machine.
///
/// # Errors
/// [`Error::Data`] for a path that is not UTF-8, [`Error::Io`] when the current folder is gone.
pub fn line(dataset: &Dataset, item: &Item) -> Result<String> {
    let filename = absolute(&item.path)?;
    let mut masks = item.masks.iter().map(|mask| absolute(mask)).collect::<Result<Vec<_>>>()?;
    let maskname = match masks.len() {
        0 => None,
        1 => masks.pop().map(OneOrMany::One),
        _ => Some(OneOrMany::Many(masks)),
    };
    let written = Written {
        filename: &filename,
        label: u8::from(!item.label.is_good()),
        label_name: match &item.label {
            Label::Good => GOOD,
            Label::Defect(kind) => kind,
        },
        clsname: dataset.class_of(item),
        maskname,
        split: item.split.name(),
    };
    Ok(serde_json::to_string(&written).expect("a line is plain data"))
}

fn absolute(path: &Path) -> Result<String> {
    let full = std::path::absolute(path).map_err(|e| Error::io("find", path, &e))?;
    full.into_os_string()
        .into_string()
        .map_err(|_| Error::data(path, "is not UTF-8, so no JSON can hold it", "rename the file or folder"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(name: &str, text: &[u8]) -> Result<Part> {
        let mut part = Part::new(Layout::Manifest, "m".into());
        read(Path::new(name), text, &|_| "root".into(), &mut part)?;
        Ok(part)
    }

    #[test]
    fn the_official_files() {
        let train = parse(
            "x/train.json",
            b"{\"filename\": \"bottle/train/good/0.png\", \"label\": 0, \"label_name\": \"good\", \"clsname\": \"bottle\"}\r\n\n",
        );
        let train = train.unwrap();
        assert_eq!((train.classes[0].name.as_str(), train.classes[0].entries[0].split), ("bottle", Split::Train));
        let test = b"\xef\xbb\xbf{\"filename\":\"data/nut/test/bent/0.png\",\"label\":1,\"label_name\":\"defective\",\"maskname\":\"m.png\"}";
        let test = parse("test.json", test).unwrap();
        let nut = &test.classes[0];
        // The fourth part from the end.
        assert_eq!((nut.name.as_str(), nut.entries[0].split), ("nut", Split::Test));
        assert_eq!(nut.entries[0].path, Path::new("root/data/nut/test/bent/0.png"));
        assert_eq!(nut.entries[0].masks, [Path::new("root/m.png")]);
        assert_eq!(nut.entries[0].label, Label::Defect("defective".into()));
    }

    #[test]
    fn a_bad_line_is_named() {
        let good = r#"{"filename":"/0.png","label":0,"clsname":"a","split":"train"}"#;
        for (line, said) in [
            ("{", "m.jsonl:2: EOF while parsing an object (column 1)"),
            ("[1]", "m.jsonl:2: "),
            (r#"{"label":0}"#, "missing field `filename`"),
            (r#"{"filename":"0.png","clsname":"a","split":"test"}"#, "missing field `label`"),
            (r#"{"filename":"0.png","label":2,"clsname":"a","split":"test"}"#, "label is 2"),
            (r#"{"filename":"0.png","label":0,"clsname":"a"}"#, "has no split"),
            (r#"{"filename":"0.png","label":0,"clsname":"a","split":"dev"}"#, "split is `dev`"),
            (r#"{"filename":"0.png","label":1,"clsname":"a","split":"train"}"#, "a defective picture is for train"),
            (r#"{"filename":"0.png","label":1,"label_name":"good","clsname":"a","split":"test"}"#, "contradicts"),
            (r#"{"filename":"0.png","label":0,"split":"test"}"#, "has no clsname"),
            (r#"{"filename":"","label":0,"clsname":"a","split":"test"}"#, "filename is empty"),
            (
                r#"{"filename":"0.png","label":0,"clsname":"a","split":"test","maskname":3}"#,
                "a path or a list of paths",
            ),
        ] {
            let text = format!("{good}\n{line}\n{line}\n");
            let error = parse("m.jsonl", text.as_bytes()).err().unwrap().to_string();
            assert!(error.starts_with("m.jsonl:2: ") && error.contains(said), "{error}");
            assert!(error.contains("(1 more bad lines)\n  help: "), "{error}");
        }
    }

    #[test]
    fn several_masks_are_a_list() {
        let text = br#"{"filename":"/p.png","label":1,"clsname":"a","split":"test","maskname":["a.png","/b.png"]}"#;
        let part = parse("m.jsonl", text).unwrap();
        assert_eq!(part.classes[0].entries[0].masks, [Path::new("root/a.png"), Path::new("/b.png")]);
    }

    proptest! {
        #[test]
        fn no_bytes_are_a_panic(bytes: Vec<u8>, keys in proptest::collection::vec("(filename|label|clsname|split|maskname)", 0..6),
            values in proptest::collection::vec("(0|1|-1|\"\"|\"test\"|\"a/b/c/d\"|null|\\[\\]|\\{\\}|1e9|\"\\\\u0000\")", 0..6)) {
            let _ = parse("m.jsonl", &bytes);
            let pairs: Vec<String> = keys.iter().zip(&values).map(|(k, v)| format!("\"{k}\":{v}")).collect();
            let object = format!("{{{}}}", pairs.join(","));
            let _ = parse("test.json", object.as_bytes());
            let damaged: Vec<u8> = object.bytes().zip(bytes.iter().cycle()).map(|(a, b)| if b % 16 == 0 { *b } else { a }).collect();
            let _ = parse("train.json", &damaged);
        }
    }
}
