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
    let mut message = error.message().trim_end().to_owned();
    for (rust, english) in [("usize", "a whole number"), ("u64", "a whole number"), ("f64", "a number")] {
        message = message.replace(&format!("expected {rust}"), &format!("expected {english}"));
    }
    let what = format!("{}:{at}: {message}", path.display());
    Error::config(what, format!("mend the line `{written}`"))
}

/// Number of the line, from 1, that holds the byte.
fn line(text: &str, byte: usize) -> usize {
    text.as_bytes()[..byte.min(text.len())].iter().filter(|b| **b == b'\n').count() + 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Cache, Config, DeviceChoice, MseCoef, Schedule};

    fn read(text: &str) -> Result<Settings> {
        parse(Path::new("c.toml"), text)
    }

    #[test]
    fn keys_are_the_names_of_the_flags() {
        let keys = keys();
        for key in ["model", "backbone_weights", "grid_rate", "mse_coef", "threads", "cache", "classes", "out"] {
            assert!(keys.iter().any(|k| k == key), "{key}");
        }
        assert!(!keys.iter().any(|k| k == "config"));
    }

    #[test]
    fn values_of_every_kind() {
        let text = "device = \"cuda:2\"\nmse_coef = 2\ncache = \"none\"\nlocal = \"off\"\nglobal = true\n\
                    schedule = [[0, 1], [9, 0.5]]\nclip = inf\nclasses = [\"a\", \"b c\"]\n";
        let settings = read(text).unwrap();
        assert_eq!(settings.machine.device, Some(DeviceChoice::Cuda(2)));
        assert_eq!(settings.source.cache, Some(Cache::None));
        assert_eq!(settings.source.classes, Some(vec!["a".to_owned(), "b c".to_owned()]));
        let recipe = settings.recipe;
        assert_eq!((recipe.local, recipe.global, recipe.refine), (Some(false), Some(true), None));
        assert_eq!(recipe.mse_coef, Some(MseCoef::Value(2.0)));
        assert_eq!(recipe.schedule, Some(Schedule(vec![(0, 1.0), (9, 0.5)])));
        assert_eq!(recipe.clip, Some(f64::INFINITY));
    }

    /// Runs of earlier versions wrote a single path.
    #[test]
    fn data_is_a_path_or_a_list() {
        let data = |text: &str| read(text).unwrap().source.data.unwrap();
        assert_eq!(data("data = \"a b\""), [Path::new("a b")]);
        assert_eq!(data("data = [\"a\", \"b\"]"), [Path::new("a"), Path::new("b")]);
        assert!(read("data = 3").unwrap_err().to_string().contains("expected a path or a list of paths"));
    }

    #[test]
    fn what_is_settled_reads_back_the_same() {
        let mut settings = Settings::default();
        settings.recipe.clip = Some(f64::INFINITY);
        settings.recipe.mse_coef = Some(MseCoef::Value(0.3));
        settings.source.data = Some(vec!["some folder/ä".into(), "b".into()]);
        settings.machine.device = Some(DeviceChoice::Cpu);
        let config = Config::settle(settings).unwrap();
        let again = Config::settle(read(&config.to_toml()).unwrap()).unwrap();
        assert_eq!(again.differences(&config), [""; 0]);
        assert_eq!(again.to_toml(), config.to_toml());
    }

    #[test]
    fn faults_name_the_line() {
        for (text, said) in [
            ("\n\nepocs = 1\n", "c.toml:3: unknown key `epocs`\n  help: did you mean `epochs`?"),
            ("zzz = 1\n", "help: known are: threads, device"),
            ("seed = 1\nrate = \"high\"\n", "c.toml:2: invalid type: string \"high\", expected a number"),
            ("[train]\nepochs = 1\n", "c.toml:1: unknown key `train`"),
            ("epochs = 1\nepochs = 2\n", "c.toml:2"),
            ("cache = 3\n", "c.toml:1"),
        ] {
            let refusal = read(text).unwrap_err();
            assert!(refusal.to_string().contains(said), "{refusal}");
            assert_eq!(refusal.exit_code(), 2);
        }
    }
}
