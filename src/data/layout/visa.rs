//! VisA as it is downloaded (specification 13.3), split by the table that comes with it.
//!
//! ```text
//! ROOT/<class>/Data/Images/{Normal,Anomaly}/*   ROOT/<class>/Data/Masks/Anomaly/*.png
//! ROOT/split_csv/1cls.csv or ROOT/1cls.csv      object,split,label,image,mask; paths from ROOT on
//! ```
//! Masks number the kinds of defect; anything above 0 is one. A picture that the table does not name is left out.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::listing::{Folder, all_below, count, name_of};
use super::{Entry, Label, Layout, Part, Split};
use crate::data::finding::{Code, Finding};
use crate::{Error, Result};

const HELP: &str = "VisA comes with split_csv/1cls.csv: put it back, with the columns object,split,label,image,mask";

/// A line of the table.
#[derive(Deserialize)]
struct Row {
    object: String,
    split: String,
    label: String,
    image: String,
    mask: Option<String>,
}

/// Opens `root` if it is in this layout.
///
/// # Errors
/// [`Error::Data`] when the table is not there or has a line that cannot be used, [`Error::Io`] when it cannot be read.
pub(super) fn open(root: &Folder) -> Result<Option<Part>> {
    if is_class(&root.path) {
        let help = "give the folder that holds it and split_csv/, and this one's name by --classes";
        return Err(Error::data(&root.path, "is one class of VisA", help));
    }
    if !root.folders.iter().any(|folder| is_class(folder)) {
        return Ok(None);
    }
    let places = [root.path.join("split_csv").join("1cls.csv"), root.path.join("1cls.csv")];
    let Some(table) = places.iter().find(|path| path.is_file()) else {
        let help =
            format!("{HELP}; or reorganise it like MVTec AD (train/good, test/good, test/bad, ground_truth/bad)");
        return Err(Error::data(
            &root.path,
            "is laid out like VisA, and nothing says which pictures are for test",
            help,
        ));
    };
    let bytes = std::fs::read(table).map_err(|e| Error::io("read", table, &e))?;
    let mut part = read(&root.path, table, &bytes)?;
    part.name = name_of(&root.path)?;
    say_unlisted(&root.path, &mut part);
    Ok(Some(part))
}

fn is_class(folder: &Path) -> bool {
    folder.join("Data").join("Images").is_dir()
}

/// The pictures that the table lists. `table` is for messages only.
fn read(root: &Path, table: &Path, bytes: &[u8]) -> Result<Part> {
    let mut part = Part::new(Layout::Visa, String::new());
    let at = |line: u64| format!("{}:{line}", table.display());
    let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::All).from_reader(bytes);
    let headers = reader.headers().map_err(|e| Error::data(at(1), e.to_string(), HELP))?.clone();
    let mut record = csv::StringRecord::new();
    loop {
        let line = reader.position().line();
        match reader.read_record(&mut record) {
            Ok(true) => {}
            Ok(false) => break,
            Err(e) => return Err(Error::data(at(e.position().map_or(line, csv::Position::line)), text(&e), HELP)),
        }
        let line = record.position().map_or(line, csv::Position::line);
        let row: Row = record.deserialize(Some(&headers)).map_err(|e| Error::data(at(line), text(&e), HELP))?;
        let entry = entry(root, &row).map_err(|(what, help)| Error::data(at(line), what, help))?;
        part.class(&row.object, table).entries.push(entry);
    }
    if part.classes.is_empty() {
        return Err(Error::data(table, "lists no picture", HELP));
    }
    Ok(part)
}

/// Item of a row; what is wrong with it and what to do, if it is none.
fn entry(root: &Path, row: &Row) -> Result<Entry, (String, &'static str)> {
    let split = match row.split.as_str() {
        "train" => Split::Train,
        "test" => Split::Test,
        other => return Err((format!("split is `{other}`"), "write train or test")),
    };
    let label = match row.label.as_str() {
        "normal" => Label::Good,
        "anomaly" if split == Split::Train => {
            return Err(("an anomaly is for training".into(), "only normal pictures are learnt from: write test"));
        }
        "anomaly" => Label::Defect("anomaly".into()),
        other => return Err((format!("label is `{other}`"), "write normal or anomaly")),
    };
    for (column, value) in [("object", &row.object), ("image", &row.image)] {
        if value.is_empty() {
            return Err((format!("{column} is empty"), "fill it in, or remove the line"));
        }
    }
    let masks = row.mask.iter().filter(|mask| !mask.is_empty()).map(|mask| root.join(mask)).collect();
    Ok(Entry { path: root.join(&row.image), split, label, masks })
}

/// Without its position, which is said already.
fn text(error: &csv::Error) -> String {
    match error.kind() {
        csv::ErrorKind::Deserialize { err, .. } => err.to_string(),
        csv::ErrorKind::UnequalLengths { expected_len, len, .. } => {
            format!("has {len} columns instead of {expected_len}")
        }
        csv::ErrorKind::Utf8 { .. } => "is not UTF-8".into(),
        _ => error.to_string(),
    }
}

/// Names what lies in the tree and not in the table, and defects whose mask the table does not name.
fn say_unlisted(root: &Path, part: &mut Part) {
    let entries = || part.classes.iter().flat_map(|class| &class.entries);
    let listed: HashSet<&PathBuf> = entries().flat_map(|e| e.masks.iter().chain([&e.path])).collect();
    let mut folders: BTreeMap<PathBuf, usize> = BTreeMap::new();
    for picture in all_below(root).filter(|picture| !listed.contains(picture)) {
        *folders.entry(picture.parent().unwrap_or(root).into()).or_default() += 1;
    }
    let mut findings = Vec::new();
    for (folder, n) in folders {
        let what = format!("left out {}: not in 1cls.csv", count(n));
        findings.push(Finding::new(Code::LeftOut, folder, what).leaving_out(n));
    }
    for entry in entries().filter(|entry| !entry.label.is_good() && entry.masks.is_empty()) {
        findings.push(Finding::new(Code::MissingMask, &entry.path, "defective, and has no mask"));
    }
    part.findings.extend(findings);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HEADER: &str = "object,split,label,image,mask\n";

    fn parse(text: &str) -> Result<Part> {
        read(Path::new("visa"), Path::new("visa/1cls.csv"), text.as_bytes())
    }

    #[test]
    fn rows_become_items() {
        let rows = "\u{feff}object,split,label,image,mask\r\n\
                    candle,train,normal,candle/Data/Images/Normal/0.JPG,\r\n\
                    candle,test,anomaly,\"candle/Data/Images/Anomaly/a, b.JPG\",candle/Data/Masks/Anomaly/0.png\r\n";
        let part = parse(rows).unwrap();
        let [candle] = &part.classes[..] else { panic!("{} classes", part.classes.len()) };
        let [good, bad] = &candle.entries[..] else { panic!("{} pictures", candle.entries.len()) };
        assert_eq!((candle.name.as_str(), good.split, good.label.is_good()), ("candle", Split::Train, true));
        assert_eq!(bad.path, Path::new("visa/candle/Data/Images/Anomaly/a, b.JPG"));
        assert_eq!((bad.split, &bad.label), (Split::Test, &Label::Defect("anomaly".into())));
        assert_eq!((good.masks.len(), &bad.masks[..]), (0, &["visa/candle/Data/Masks/Anomaly/0.png".into()][..]));
    }

    #[test]
    fn a_bad_row_is_named_by_its_line() {
        for (rows, said) in [
            ("a,train,normal,0.png,\na,train,anomaly,0.png,\n", "1cls.csv:3: an anomaly is for training"),
            ("a,dev,normal,0.png,\n", "1cls.csv:2: split is `dev`"),
            ("a,test,bad,0.png,\n", "1cls.csv:2: label is `bad`"),
            ("a,test,normal,,\n", "1cls.csv:2: image is empty"),
            ("a,test,normal\n", "1cls.csv:2: has 3 columns instead of 5"),
            ("", "1cls.csv: lists no picture"),
        ] {
            let error = parse(&format!("{HEADER}{rows}")).err().unwrap().to_string();
            assert!(error.contains(said) && error.contains("help: "), "{error}");
        }
        let error = parse("object,label\na,normal\n").err().unwrap().to_string();
        assert!(error.contains("1cls.csv:2: missing field `split`"), "{error}");
        let error = read(Path::new(""), Path::new("t"), b"object,split,label,image,mask\n\xff,,,,\n").err().unwrap();
        assert!(error.to_string().contains("t:2: is not UTF-8"), "{error}");
    }

    proptest! {
        #[test]
        fn no_bytes_are_a_panic(bytes: Vec<u8>, header: bool, quoted in "[a-z,\"\n\r/]{0,200}") {
            let text = if header { [HEADER.as_bytes(), &bytes].concat() } else { bytes };
            let _ = read(Path::new("r"), Path::new("t"), &text);
            let _ = read(Path::new("r"), Path::new("t"), format!("{HEADER}{quoted}").as_bytes());
        }
    }
}
