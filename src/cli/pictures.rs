//! Pictures and their features, as every verb opens them: the user's folder or the demo set, the classes asked for.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use tempfile::TempDir;

use super::ui::{Ui, count};
use crate::backbone::Backbone;
use crate::config::{Cache, Config, DEMO_SEED, demo_counts, suggest};
use crate::data::demo::write_demo;
use crate::data::finding::brief;
use crate::data::{Dataset, Item, Split};
use crate::error::{Error, Result};
use crate::features::Features;
use crate::train::FeatureSource;

/// Findings of a kind that are named before a run; `grad data check` names all.
pub const NAMED: usize = 3;

/// What a model file says of pictures that come with the program.
pub const DEMO: &str = "demo";

/// A dataset, and where it came from.
#[derive(Clone)]
pub struct Pictures {
    pub dataset: Dataset,
    /// The folders and manifests, or [`DEMO`].
    pub origins: Vec<String>,
    /// Holds the demo set when there is no cache; removed at the end.
    _temporary: Option<Arc<TempDir>>,
}

impl Pictures {
    /// Opens the user's data sets, or writes the demo set into the cache unless it is there.
    ///
    /// # Errors
    /// What opening and writing refuse; [`Error::Config`] for a class that is not there.
    pub fn open(ui: &Ui, config: &Config) -> Result<Self> {
        let (paths, temporary) = match (&config.data[..], &config.cache) {
            ([], Cache::Folder(cache)) => (vec![demo(ui, &cache.join("demo"))?], None),
            ([], Cache::None) => {
                let home = tempfile::tempdir();
                let home = home.map_err(|e| Error::io("create a folder in", std::env::temp_dir(), &e))?;
                (vec![demo(ui, &home.path().join("demo"))?], Some(Arc::new(home)))
            }
            (paths, _) => (paths.to_vec(), None),
        };
        let mut dataset = Dataset::open(&paths)?;
        brief(&dataset.findings, NAMED).iter().for_each(|warning| ui.warn(warning));
        if !config.classes.is_empty() {
            keep_classes(&mut dataset, &config.classes)?;
        }
        let origins: Vec<String> = match config.data.is_empty() {
            true => vec![DEMO.into()],
            false => paths.iter().map(|path| path.display().to_string()).collect(),
        };
        for (source, origin) in dataset.sources.iter().zip(&origins) {
            ui.note("layout", format_args!("{origin}: {}", source.layout.describe()));
        }
        ui.note("data", format_args!("{}: {}", origins.join(", "), contents(&dataset)));
        Ok(Pictures { dataset, origins, _temporary: temporary })
    }

    /// Features of the pictures of a split, or of all, from the cache as far as it has them.
    ///
    /// # Errors
    /// What [`Features::open_or_compute`] refuses.
    pub fn features(&self, ui: &Ui, config: &Config, backbone: &Backbone, split: Option<Split>) -> Result<Cached<'_>> {
        let items: Vec<&Item> = self.dataset.items.iter().filter(|i| split.is_none_or(|s| s == i.split)).collect();
        let paths: Vec<&PathBuf> = items.iter().map(|item| &item.path).collect();
        let started = Instant::now();
        let features = {
            let bar = ui.bar("features", paths.len());
            Features::open_or_compute(config.cache.folder(), backbone, config.image_size, &paths, &|done, _| {
                bar.at(done)
            })?
        };
        backbone.doubts().iter().for_each(|doubt| ui.warn(doubt));
        features.warnings().iter().for_each(|warning| ui.warn(warning));
        let seconds = started.elapsed().as_secs_f64();
        let [h, w, c] = features.shape();
        let origin = match (features.computed(), items.len()) {
            (0, _) => format!("from {}", config.cache),
            (n, all) if n == all => format!("{seconds:.1} s, {:.1} pictures/s", n as f64 / seconds),
            (n, _) => format!("{n} computed in {seconds:.1} s, the others from {}", config.cache),
        };
        ui.note("features", format_args!("{} x {h}x{w}x{c} by {}, {origin}", items.len(), backbone.name()));
        let records = (0..items.len()).collect();
        Ok(Cached { items, features: Arc::new(features), records })
    }
}

/// Items and the features of each.
pub struct Cached<'a> {
    pub items: Vec<&'a Item>,
    pub features: Arc<Features>,
    /// Which of the features belong to each item.
    pub records: Vec<usize>,
}

impl Cached<'_> {
    /// The pictures of one split.
    pub fn select(&self, split: Split) -> Selection<'_> {
        let of = (0..self.items.len()).filter(|&i| self.items[i].split == split).collect();
        Selection { cached: self, of }
    }
}

/// Some of the pictures.
pub struct Selection<'a> {
    cached: &'a Cached<'a>,
    /// Their numbers.
    of: Vec<usize>,
}

impl Selection<'_> {
    pub fn items(&self) -> Vec<&Item> {
        self.of.iter().map(|&i| self.cached.items[i]).collect()
    }

    /// Mean of the squares of all their features.
    pub fn mean_square(&self) -> f64 {
        let records: Vec<usize> = self.of.iter().map(|&i| self.cached.records[i]).collect();
        self.cached.features.mean_square(&records)
    }
}

impl FeatureSource for Selection<'_> {
    fn len(&self) -> usize {
        self.of.len()
    }

    fn get(&self, i: usize) -> &[f32] {
        self.cached.features.get(self.cached.records[self.of[i]])
    }
}

fn demo(ui: &Ui, folder: &Path) -> Result<PathBuf> {
    let summary = write_demo(folder, DEMO_SEED, demo_counts())?;
    let done = if summary.reused { "is in" } else { "was written to" };
    ui.note("demo", format_args!("no --data, so the demo set is used; it {done} {}", folder.display()));
    Ok(folder.into())
}

/// `2 classes, 8 pictures to train on, 8 to test`.
fn contents(dataset: &Dataset) -> String {
    let classes = match &dataset.classes[..] {
        [one] => format!("class {one}"),
        many => format!("{} classes", many.len()),
    };
    let [train, held_out, test] = [Split::Train, Split::Validation, Split::Test].map(|split| dataset.of(split).count());
    let held_out = if held_out == 0 { String::new() } else { format!("{held_out} good ones held out, ") };
    format!("{classes}, {} to train on, {held_out}{test} to test", count(train, "picture"))
}

fn keep_classes(dataset: &mut Dataset, wanted: &[String]) -> Result<()> {
    if let Some(unknown) = wanted.iter().find(|name| !dataset.classes.contains(name)) {
        let what = format!("{} has no class `{unknown}`", dataset.root().display());
        return Err(Error::config(what, suggest(unknown, &dataset.classes)));
    }
    dataset.keep_classes(wanted);
    Ok(())
}
