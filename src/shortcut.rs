//! The identity shortcut as a number: how much of an anomaly survives the reconstruction.
//!
//! ```text
//! normal      μ_p [C] mean of a class's training features at position p,   Σ [C, C] their covariance about it
//!             ⟨a, b⟩ = aᵀ (Σ + λ I)⁻¹ b,   λ = 0.01 · trace Σ / C
//! masked      w_p  share of the pixels of cell p that a defective picture's mask marks;  W_p = Σ w_p over pictures
//! survives    A  = Σ w_p ⟨r_p − μ_p, x_p − μ_p⟩      E  = Σ w_p ⟨x_p − μ_p, x_p − μ_p⟩      over defective pictures
//! control     A₀ = mean over good test pictures of Σ W_p ⟨r_p − μ_p, x_p − μ_p⟩,  E₀ likewise
//! survival    (A − A₀) / (E − E₀)       0 a defect is removed, 1 it is copied
//! ```
//! x are features, r is the reconstruction before the gate. No defect-free twin of a picture is needed. What it means,
//! where it errs and how it was checked against twins: `docs/shortcut.md`. The definition is ours; the question is that of
//! figure 1 of arXiv 2402.18293.

mod normal;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt::Write;

use rayon::prelude::*;
use serde::Serialize;

use crate::data::{Dataset, Item, load_mask};
use crate::detector::Detector;
use crate::error::{Error, Result};
use crate::inspect::reconstructions;
use crate::model::HeadConfig;
use crate::train::FeatureSource;
use normal::Normal;

/// Pictures whose reconstructions are held at a time.
const LOT: usize = 32;
/// Training pictures of a class that say what is normal: evenly spread, so many at most.
const NORMAL_PICTURES: usize = 64;

/// Pictures with their features: `items[i]` has `features.get(i)`.
#[derive(Clone, Copy)]
pub struct Sample<'a> {
    /// What they are.
    pub items: &'a [&'a Item],
    /// `[H, W, C]` each.
    pub features: &'a dyn FeatureSource,
}

/// What becomes of the anomalies of a class.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Survival {
    /// Share of what a defect adds to the features that is still there in the reconstruction. `None` without defective
    /// pictures that have a mask, without good ones, and where the masked positions do not stand out.
    pub survival: Option<f64>,
    /// The same share of what is normal: of how good test pictures differ from the mean of training, at the same
    /// positions. 1 is rebuilt in full, 0 not at all.
    pub control: Option<f64>,
    /// How far masked positions stand out, `E / E₀`: near 1 the survival rests on little.
    pub contrast: Option<f64>,
    /// Defective pictures with a mask.
    pub pictures: usize,
    /// Cells of the feature map that are masked, parts counted as parts.
    pub cells: f64,
}

impl Survival {
    /// From `[A, E]` of the defective pictures and `[A₀, E₀]`.
    fn new([a, e]: [f64; 2], good: Option<[f64; 2]>, pictures: usize, cells: f64) -> Self {
        let ratio = |a: f64, b: f64| Some(a / b).filter(|share| b > 0.0 && share.is_finite());
        Survival {
            survival: good.and_then(|[a0, e0]| ratio(a - a0, e - e0)),
            control: good.and_then(|[a0, e0]| ratio(a0, e0)),
            contrast: good.and_then(|[_, e0]| ratio(e, e0)),
            pictures,
            cells,
        }
    }
}

/// The measure for every class, and the unweighted means over the classes that have it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Shortcut {
    /// By name.
    pub classes: BTreeMap<String, Survival>,
    /// Mean survival.
    pub survival: Option<f64>,
    /// Mean control.
    pub control: Option<f64>,
}

impl Shortcut {
    fn new(classes: BTreeMap<String, Survival>) -> Self {
        let mean = |get: fn(&Survival) -> Option<f64>| {
            let all: Vec<f64> = classes.values().filter_map(get).collect();
            (!all.is_empty()).then(|| all.iter().sum::<f64>() / all.len() as f64)
        };
        Shortcut { survival: mean(|c| c.survival), control: mean(|c| c.control), classes }
    }

    /// For people, in per cent.
    pub fn table(&self) -> String {
        let width = self.classes.keys().map(|name| name.chars().count()).max().unwrap_or(0).max(5);
        let share = |v: Option<f64>| v.map_or("–".into(), |v| format!("{:.1}", 100.0 * v));
        let mut out = format!("{:width$}  survives %  control %  contrast  pictures\n", "class");
        for (name, s) in &self.classes {
            let contrast = s.contrast.map_or("–".into(), |v| format!("{v:.2}"));
            let (survival, control) = (share(s.survival), share(s.control));
            let _ = writeln!(out, "{name:width$}  {survival:>10}  {control:>9}  {contrast:>8}  {:>8}", s.pictures);
        }
        let _ = writeln!(out, "{:width$}  {:>10}  {:>9}", "mean", share(self.survival), share(self.control));
        out
    }
}

/// Measures a detector: `train` says what is normal, `test` what survives. `progress` is told how many more test pictures
/// are done. The same bits on any number of threads.
///
/// # Errors
/// [`Error::Data`] when a mask cannot be read; [`Error::Shape`] for features of another size; what a device refuses.
pub fn measure(
    detector: &Detector,
    dataset: &Dataset,
    train: Sample,
    test: Sample,
    progress: &dyn Fn(usize),
) -> Result<Shortcut> {
    let of_class = |sample: Sample, class: usize| -> Vec<usize> {
        (0..sample.items.len()).filter(|&i| sample.items[i].class == class).collect()
    };
    let mut classes = BTreeMap::new();
    for (class, name) in dataset.classes.iter().enumerate() {
        let (train_of, test_of) = (of_class(train, class), of_class(test, class));
        let looked_at = train_of.len().min(NORMAL_PICTURES);
        let spread = (0..looked_at).map(|i| train.features.get(train_of[i * train_of.len() / looked_at]));
        let survival = match Normal::of(&spread.collect::<Vec<_>>(), detector.head.config().channels) {
            Some(normal) => of_pictures(detector, &normal, test, &test_of, progress)?,
            None => Survival::default(),
        };
        classes.insert(name.clone(), survival);
    }
    Ok(Shortcut::new(classes))
}

/// The measure on the test pictures of one class.
fn of_pictures(
    detector: &Detector,
    normal: &Normal,
    test: Sample,
    of: &[usize],
    progress: &dyn Fn(usize),
) -> Result<Survival> {
    let HeadConfig { height, width, channels, .. } = *detector.head.config();
    if let Some(&i) = of.iter().find(|&&i| test.features.get(i).len() != height * width * channels) {
        let what = format!("{} values are not {height}x{width}x{channels}", test.features.get(i).len());
        return Err(Error::Shape { op: "shortcut", what });
    }
    let size = detector.info.image_size;
    let marked = of.iter().filter(|&&i| !test.items[i].label.is_good() && !test.items[i].masks.is_empty());
    let marked: Vec<(usize, Vec<f64>)> = marked
        .map(|&i| Ok((i, cells(&load_mask(test.items[i], size)?, size, [height, width]))))
        .collect::<Result<_>>()?;
    let mut all = vec![0.0; height * width];
    marked.iter().for_each(|(_, weights)| all.iter_mut().zip(weights).for_each(|(sum, w)| *sum += w));
    let good: Vec<(usize, &[f64])> =
        of.iter().filter(|&&i| test.items[i].label.is_good()).map(|&i| (i, &all[..])).collect();
    let marked: Vec<(usize, &[f64])> = marked.iter().map(|(i, weights)| (*i, &weights[..])).collect();
    let sums = |pictures: &[(usize, &[f64])]| -> Result<[f64; 2]> {
        let mut total = [0.0; 2];
        for lot in pictures.chunks(LOT) {
            let x: Vec<&[f32]> = lot.iter().map(|(i, _)| test.features.get(*i)).collect();
            let r = reconstructions(detector, &x)?;
            let each = x.par_iter().zip(&r).zip(lot);
            let each: Vec<[f64; 2]> = each.map(|((x, r), (_, weights))| normal.products(x, r, weights)).collect();
            each.iter().for_each(|[a, e]| (total[0], total[1]) = (total[0] + a, total[1] + e));
            progress(lot.len());
        }
        Ok(total)
    };
    let n = good.len() as f64;
    let of_good = (!good.is_empty()).then(|| sums(&good)).transpose()?.map(|total| total.map(|sum| sum / n));
    Ok(Survival::new(sums(&marked)?, of_good, marked.len(), all.iter().sum()))
}

/// Share of the marked pixels in each cell of a map `[height, width]` over a mask `[size, size]`.
fn cells(mask: &[u8], size: usize, [height, width]: [usize; 2]) -> Vec<f64> {
    let mut counts = vec![[0u32; 2]; height * width];
    for (i, &marked) in mask.iter().enumerate() {
        let [all, of_those] = &mut counts[i / size * height / size * width + i % size * width / size];
        *all += 1;
        *of_those += u32::from(marked > 0);
    }
    counts.iter().map(|[all, marked]| f64::from(*marked) / f64::from((*all).max(1))).collect()
}
