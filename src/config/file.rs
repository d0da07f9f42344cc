//! A TOML file of settings: every key known, every value of its type, each fault with its line.

use std::path::Path;

use clap::{Args, Command};
use serde::de::DeserializeOwned;

use super::{ExtractorArgs, MachineArgs, RecipeArgs, Settings, SourceArgs};
use crate::error::{Error, Result};

/// A word is taken for a misspelt key from this likeness on (Jaro-Winkler, 0 to 1).
const ALIKE: f64 = 0.7;

/// Reads a file of settings.
pub(super) fn read(path: &Path) -> Result<Settings> {
    let text = std::fs::read_to_string(path).map_err(|e| Error::io("read", path, &e))?;
    parse(path, &text)
}

/// `path` is for messages only.
pub(super) fn parse(path: &Path, text: &str) -> Result<Settings> {
    let table = toml::de::DeTable::parse(text).map_err(|e| fault(path, text, &e))?;
    let known = keys();
    for (key, _) in table.get_ref() {
        if !known.iter().any(|k| k == key.get_ref().as_ref()) {
            let what = format!("{}:{}: unknown key `{}`", path.display(), line(text, key.span().start), key.get_ref());
            return Err(Error::config(what, suggest(key.get_ref(), &known)));
        }
    }
    Ok(Settings {
        machine: group::<MachineArgs>(path, text)?,
        source: group::<SourceArgs>(path, text)?,
        extractor: group::<ExtractorArgs>(path, text)?,
        recipe: group::<RecipeArgs>(path, text)?,
    })
}

/// What was meant, as far as it can be guessed.
pub(crate) fn suggest(word: &str, known: &[String]) -> String {
    let likeness = |known: &String| strsim::jaro_winkler(known, word);
    match known.iter().max_by(|a, b| likeness(a).total_cmp(&likeness(b))).filter(|k| likeness(k) >= ALIKE) {
        Some(near) => format!("did you mean `{near}`?"),
        None => format!("known are: {}", known.join(", ")),
    }
}

/// Reads the keys of one group, and leaves the others to the others.
fn group<T: DeserializeOwned>(path: &Path, text: &str) -> Result<T> {
    toml::from_str(text).map_err(|e| fault(path, text, &e))
}

/// Every key: the names of the flags, but for `config` itself.
fn keys() -> Vec<String> {
    let mut all = Command::new("keys");
    for add in
        [MachineArgs::augment_args, SourceArgs::augment_args, ExtractorArgs::augment_args, RecipeArgs::augment_args]
    {
        all = add(all);
    }
    all.get_arguments().map(|arg| arg.get_id().to_string()).filter(|key| key != "config").collect()
}

fn fault(path: &Path, text: &str, error: &toml::de::Error) -> Error {
    let at = error.span().map_or(1, |span| line(text, span.start));
    let written = text.lines().nth(at - 1).unwrap_or_default().trim();
    let what = format!("{}:{at}: {}", path.display(), error.message().trim_end());
    Error::config(what, format!("mend the line `{written}`"))
}

/// Number of the line, from 1, that holds the byte.
fn line(text: &str, byte: usize) -> usize {
    text.as_bytes()[..byte.min(text.len())].iter().filter(|b| **b == b'\n').count() + 1
}
