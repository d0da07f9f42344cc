//! A study: rows that differ in a few settings, each trained from several seeds on the same features, and what they are
//! worth. `study.json` holds all of it and is written whole after every run, so a study that was stopped goes on.
//!
//! ```text
//! study.json = { format, kind, settings, classes, images, tested, seeds,
//!                rows: [{ name, about, changes, runs: [{ seed, seconds, metrics, survival? }] }] }
//! ```
//! A study may grow: more seeds, more rows. What was measured stays.

mod table;

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::atomic::write_atomic;
use crate::error::{Error, Result};
use crate::metrics::{Metrics, Spread};
pub(crate) use table::COLUMNS;

/// Its file in a folder.
pub const FILE: &str = "study.json";

/// Of the file. Raise it when what is written here begins to mean something else.
const FORMAT: u32 = 1;

/// What is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Branches, gate and jitter, one after the other: Table 5 of the paper.
    Ablation,
    /// Grids, vector quantisation and attention, in one branch alone: Table 1.
    Memory,
    /// One setting after the other.
    Settings,
    /// The model beside PaDiM and PatchCore.
    Baselines,
}

impl Kind {
    /// Name on the command line and in files.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Ablation => "ablation",
            Kind::Memory => "memory",
            Kind::Settings => "settings",
            Kind::Baselines => "baselines",
        }
    }
}

/// Everything that `study.json` says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Study {
    /// Of the file.
    pub format: u32,
    /// What is compared.
    pub kind: Kind,
    /// The settings that the rows change, as `config.toml` has them, without seeds.
    pub settings: String,
    /// Names of the classes.
    pub classes: Vec<String>,
    /// Pictures to train on.
    pub images: usize,
    /// Pictures to test on.
    pub tested: usize,
    /// Seeds that every row is trained from.
    pub seeds: Vec<u64>,
    /// In order.
    pub rows: Vec<Row>,
}

/// One line of the table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// Its folder.
    pub name: String,
    /// What it is, in a few words.
    pub about: String,
    /// Settings that differ from those of the study, by key.
    pub changes: BTreeMap<String, String>,
    /// What was measured, in the order of the seeds.
    pub runs: Vec<Run>,
}

/// One seed of a row.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// Where start values, order and jitter came from.
    pub seed: u64,
    /// Seconds of the training steps alone, or of fitting a baseline, summed over the models of the run.
    pub seconds: f64,
    /// Measured on the test pictures, by the last epoch.
    pub metrics: Metrics,
    /// Share of a defect that is still in the reconstruction, by class ([`crate::shortcut`]); empty where it is not
    /// measured, without the classes where it is not defined.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub survival: BTreeMap<String, f64>,
}

impl Study {
    /// A study without rows.
    pub fn new(kind: Kind, settings: String, classes: Vec<String>, [images, tested]: [usize; 2]) -> Self {
        Study { format: FORMAT, kind, settings, classes, images, tested, seeds: vec![], rows: vec![] }
    }

    /// Reads the study in a folder; `None` if there is none.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Data`] when the file is damaged or of another version.
    pub fn read(folder: &Path) -> Result<Option<Self>> {
        let path = folder.join(FILE);
        let text = match std::fs::read_to_string(&path) {
            Err(e) if matches!(e.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) => {
                return Ok(None);
            }
            read => read.map_err(|e| Error::io("read", &path, &e))?,
        };
        let help = "bring it back from a copy, or choose another --out";
        let study: Study =
            serde_json::from_str(&text).map_err(|e| Error::data(&path, format!("is damaged: {e}"), help))?;
        match study.format {
            FORMAT => Ok(Some(study)),
            other => {
                let what = format!("has format {other}, and this version reads {FORMAT}");
                Err(Error::data(path, what, "use the version of the program that wrote it, or another folder"))
            }
        }
    }

    /// Writes the study into a folder.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn write(&self, folder: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self).expect("figures are plain data") + "\n";
        write_atomic(folder.join(FILE), |file| file.write_all(text.as_bytes()))
    }

    /// Adds what is not there yet: seeds, and rows without their runs.
    ///
    /// # Errors
    /// [`Error::Config`] when a row of that name was measured with other settings.
    pub fn grow(&mut self, seeds: &[u64], rows: Vec<Row>) -> Result<()> {
        for seed in seeds {
            if !self.seeds.contains(seed) {
                self.seeds.push(*seed);
            }
        }
        for row in rows {
            match self.rows.iter().find(|known| known.name == row.name) {
                None => self.rows.push(row),
                Some(known) if known.changes == row.changes => {}
                Some(known) => {
                    let what = format!("the study has a row `{}` of other settings: {:?}", row.name, known.changes);
                    return Err(Error::config(what, "choose another --out"));
                }
            }
        }
        Ok(())
    }

    /// Whether a row has been measured from a seed.
    pub fn has(&self, row: &str, seed: u64) -> bool {
        self.rows.iter().any(|known| known.name == row && known.runs.iter().any(|run| run.seed == seed))
    }

    /// Adds what was measured of a row, in the order of the seeds.
    pub fn record(&mut self, row: &str, run: Run) {
        let seeds = &self.seeds;
        if let Some(row) = self.rows.iter_mut().find(|known| known.name == row) {
            row.runs.push(run);
            row.runs.sort_by_key(|run| seeds.iter().position(|seed| *seed == run.seed));
        }
    }

    /// What the figures themselves warn of: the first of those that differ in their numbers alone, and how many more
    /// runs say so.
    pub fn warnings(&self) -> Vec<String> {
        let mut all: Vec<(String, &str, usize)> = vec![];
        for warning in self.rows.iter().flat_map(|row| &row.runs).flat_map(|run| &run.metrics.warnings) {
            let words = warning.replace(|c: char| c.is_ascii_digit() || c == '.', "");
            match all.iter_mut().find(|(known, ..)| *known == words) {
                Some((.., more)) => *more += 1,
                None => all.push((words, warning, 0)),
            }
        }
        let text = |(_, first, more): (String, &str, usize)| match more {
            0 => first.to_owned(),
            n => format!("{first} (so in {n} more runs)"),
        };
        all.into_iter().map(text).collect()
    }

    /// The table for machines: the spread of every row.
    ///
    /// # Errors
    /// As [`Row::spread`].
    pub fn summary(&self, folder: &Path) -> Result<serde_json::Value> {
        let row = |row: &Row| -> Result<serde_json::Value> {
            let (spread, seconds, survival) = (row.spread()?, row.seconds(), row.survival(None));
            let Row { name, about, changes, .. } = row;
            let mut value =
                json!({ "name": name, "about": about, "changes": changes, "seconds": seconds, "spread": spread });
            if let Some((mean, std)) = survival {
                value["survival"] = json!({ "mean": mean, "std": std });
            }
            Ok(value)
        };
        let rows = self.rows.iter().map(row).collect::<Result<Vec<_>>>()?;
        let folder = folder.display().to_string();
        Ok(json!({ "study": self.kind, "folder": folder, "seeds": self.seeds, "rows": rows }))
    }
}

impl Row {
    /// Mean and deviation of every figure over the seeds; `None` before the first is measured.
    ///
    /// # Errors
    /// [`Error::Config`] when the runs were not measured alike.
    pub fn spread(&self) -> Result<Option<Spread>> {
        let all: Vec<Metrics> = self.runs.iter().map(|run| run.metrics.clone()).collect();
        if all.is_empty() { Ok(None) } else { Spread::of(&all).map(Some) }
    }

    /// Mean and sample deviation over the seeds of the share of a defect that survives, in `class` or as the mean over
    /// classes; `None` where no run has it, and the second for a single one.
    pub fn survival(&self, class: Option<&str>) -> Option<(f64, Option<f64>)> {
        let of_run = |run: &Run| match class {
            Some(class) => run.survival.get(class).copied(),
            None if run.survival.is_empty() => None,
            None => Some(run.survival.values().sum::<f64>() / run.survival.len() as f64),
        };
        let all: Vec<f64> = self.runs.iter().filter_map(of_run).collect();
        let n = all.len() as f64;
        let mean = all.iter().sum::<f64>() / n;
        let squares: f64 = all.iter().map(|x| (x - mean) * (x - mean)).sum();
        (!all.is_empty()).then(|| (mean, (all.len() > 1).then(|| (squares / (n - 1.0)).sqrt())))
    }

    /// Mean training time over the seeds, in seconds.
    pub fn seconds(&self) -> Option<f64> {
        let n = self.runs.len();
        (n > 0).then(|| self.runs.iter().map(|run| run.seconds).sum::<f64>() / n as f64)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::metrics::ClassMetrics;
    use crate::score::Protocol;

    /// What a model is worth: two classes, one of them without masks.
    pub(crate) fn metrics(auroc: f64) -> Metrics {
        let mut metrics = Metrics::new(&Protocol::official(), BTreeMap::new());
        let class = |image_auroc, pixel_auroc| ClassMetrics {
            image_auroc: Some(image_auroc),
            pixel_auroc,
            pixel_aupro: pixel_auroc,
            good: 12,
            defective: 18,
            ..ClassMetrics::default()
        };
        metrics.classes = [("brick".into(), class(auroc, Some(0.5))), ("<wood>".into(), class(auroc, None))].into();
        metrics.mean = class(auroc, Some(0.5));
        metrics.warnings = vec!["<wood>: pixel AUROC is undefined: no defective picture has a mask".into()];
        metrics
    }

    pub(crate) fn row(name: &str, about: &str, local: bool) -> Row {
        let changes = [("local".to_owned(), local.to_string())].into();
        Row { name: name.into(), about: about.into(), changes, runs: vec![] }
    }

    pub(crate) fn example() -> Study {
        let classes = vec!["brick".into(), "<wood>".into()];
        let mut study = Study::new(Kind::Ablation, "model = \"crad-s\"\n".into(), classes, [216, 60]);
        study.grow(&[3, 1], vec![row("global", "global only", false), row("jitter", "+ jitter", true)]).unwrap();
        for (name, seed, auroc) in [("global", 1, 0.5), ("global", 3, 0.75), ("jitter", 3, 1.0)] {
            // Half of what it is worth, in one class.
            let survival = [("brick".to_owned(), auroc / 2.0)].into();
            study.record(name, Run { seed, seconds: 10.0 * seed as f64, metrics: metrics(auroc), survival });
        }
        study
    }

    #[test]
    fn a_study_is_read_as_it_was_written() {
        let home = tempfile::tempdir().unwrap();
        assert_eq!(Study::read(home.path()).unwrap(), None);
        assert_eq!(Study::read(&home.path().join("nowhere")).unwrap(), None);
        let study = example();
        study.write(home.path()).unwrap();
        assert_eq!(Study::read(home.path()).unwrap(), Some(study.clone()));
        Study { format: 9, ..study }.write(home.path()).unwrap();
        assert!(Study::read(home.path()).unwrap_err().to_string().contains("format 9"));
        std::fs::write(home.path().join(FILE), "{").unwrap();
        assert!(Study::read(home.path()).unwrap_err().to_string().contains("damaged"));
    }

    #[test]
    fn it_grows_and_keeps_what_it_has() {
        let mut study = example();
        let seeds = |study: &Study| study.rows[0].runs.iter().map(|run| run.seed).collect::<Vec<_>>();
        assert_eq!(seeds(&study), [3, 1], "in the order asked for");
        study.grow(&[1, 7], vec![row("local", "local only", false), row("global", "global only", false)]).unwrap();
        assert_eq!((study.seeds.clone(), study.rows.len()), (vec![3, 1, 7], 3));
        assert!(study.has("global", 1) && !study.has("global", 7) && !study.has("local", 1));
        let refusal = study.grow(&[], vec![row("global", "global only", true)]).unwrap_err();
        assert!(refusal.to_string().contains("row `global` of other settings"), "{refusal}");
    }

    #[test]
    fn rows_are_put_together() {
        let study = example();
        let spread = study.rows[0].spread().unwrap().unwrap();
        assert_eq!((spread.mean.mean.image_auroc, spread.runs), (Some(0.625), 2));
        assert_eq!((study.rows[0].seconds(), study.rows[1].seconds()), (Some(20.0), Some(30.0)));
        assert_eq!(row("a", "a", true).spread().unwrap(), None);
        // 0.25 and 0.375.
        let deviation = 2.0_f64.sqrt() / 16.0;
        assert_eq!(study.rows[0].survival(None), Some((0.3125, Some(deviation))));
        assert_eq!(study.rows[1].survival(Some("brick")), Some((0.5, None)));
        assert_eq!((study.rows[0].survival(Some("<wood>")), row("a", "a", true).survival(None)), (None, None));
        let warning = "<wood>: pixel AUROC is undefined: no defective picture has a mask (so in 2 more runs)";
        assert_eq!(study.warnings(), [warning]);
        let summary = study.summary(Path::new("out")).unwrap();
        assert_eq!(summary["rows"][0]["spread"]["mean"]["mean"]["image_auroc"], 0.625);
    }
}
