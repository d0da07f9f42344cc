//! The two baselines that need no training, on the same cached features: PaDiM and PatchCore.
//!
//! ```text
//! features of good pictures [N, H, W, C] -> Method::fit -> Baseline
//! features of a picture [H, W, C] -> Baseline::score -> raw map [H, W] -> Protocol -> Scored -> metrics
//! ```
//! Everything from the raw map on is shared with the trained models ([`Scoring`] is a [`Scorer`]), so that the numbers can
//! be compared. One model over all classes or one per class is the caller's choice: it is whose features are given.
//! Definitions, deviations from the publications and costs: `docs/baselines.md`.

pub mod coreset;
pub mod nearest;
pub mod padim;
pub mod patchcore;

use std::time::Instant;

use rayon::prelude::*;

use crate::evaluate::Scorer;
use crate::score::{Protocol, Scored};
use crate::train::FeatureSource;
use crate::{Error, Result};
use padim::{Padim, PadimOptions};
use patchcore::{PatchCore, PatchCoreOptions};

/// A fitted baseline. The same features, options and seed give the same bits on any number of threads.
pub trait Baseline: Send + Sync {
    /// Scores the features `[H, W, C]` of a picture.
    ///
    /// # Errors
    /// [`Error::Shape`] when they are not of the size that was fitted, or not finite.
    fn score(&self, features: &[f32]) -> Result<RawScored>;

    /// Bytes that it keeps.
    fn bytes(&self) -> usize;

    /// One line about what was fitted, with its sizes.
    fn describe(&self) -> String;
}

/// What a baseline says about a picture, before any protocol.
#[derive(Debug, Clone, PartialEq)]
pub struct RawScored {
    /// Anomaly map `[H, W]` at feature size, a distance. Higher is more anomalous.
    pub map: Vec<f32>,
    /// The method's own score of the picture, if it has one that is not made from the map.
    pub image: Option<f32>,
}

/// How far a fit is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// What is being done, such as `coreset`.
    pub stage: &'static str,
    /// Parts of it that are done.
    pub done: usize,
    /// All of its parts.
    pub total: usize,
}

/// Told between blocks of a fit, on the calling thread. An error of it ends the fit, which has then changed nothing: that is
/// how Ctrl-C stops one.
pub type Watch<'a> = &'a dyn Fn(Progress) -> Result<()>;

/// A method with its options.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Method {
    /// Per-position Gaussians.
    Padim(PadimOptions),
    /// Nearest neighbours in a coreset of patches.
    PatchCore(PatchCoreOptions),
}

/// A fitted baseline and what fitting it took.
pub struct Fitted {
    /// The baseline.
    pub baseline: Box<dyn Baseline>,
    /// Seconds that fitting took.
    pub seconds: f64,
}

impl Method {
    /// Names of the methods there are.
    pub const NAMES: [&str; 2] = ["padim", "patchcore"];

    /// The method of a name, with its default options.
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "padim" => Some(Method::Padim(PadimOptions::default())),
            "patchcore" => Some(Method::PatchCore(PatchCoreOptions::default())),
            _ => None,
        }
    }

    /// Its name.
    pub fn name(&self) -> &'static str {
        match self {
            Method::Padim(_) => Self::NAMES[0],
            Method::PatchCore(_) => Self::NAMES[1],
        }
    }

    /// Fits features of good pictures, each `shape = [H, W, C]`. What is drawn at random is drawn from `seed`.
    ///
    /// # Errors
    /// [`Error::Config`] for options that cannot be used and too few pictures, [`Error::Shape`] for features of another
    /// size or that are not finite, and what `watch` returns.
    pub fn fit(&self, features: &dyn FeatureSource, shape: [usize; 3], seed: u64, watch: Watch) -> Result<Fitted> {
        let started = Instant::now();
        let baseline: Box<dyn Baseline> = match self {
            Method::Padim(options) => Box::new(Padim::fit(features, shape, options, seed, watch)?),
            Method::PatchCore(options) => Box::new(PatchCore::fit(features, shape, options, seed, watch)?),
        };
        Ok(Fitted { baseline, seconds: started.elapsed().as_secs_f64() })
    }
}

/// Where the score of a picture comes from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ImageScore {
    /// From the map by the protocol, as for every other model.
    #[default]
    Protocol,
    /// [`RawScored::image`], as published for the method; by the protocol where the method has none.
    Own,
}

/// A baseline with what makes scores of its maps.
pub struct Scoring<'a> {
    /// The fitted baseline.
    pub baseline: &'a dyn Baseline,
    /// `[H, W]` of its maps.
    pub size: [usize; 2],
    /// How maps become scores.
    pub protocol: &'a Protocol,
    /// Side in pixels of the prepared pictures.
    pub image_size: usize,
    /// Where the score of a picture comes from.
    pub image: ImageScore,
}

impl Scorer for Scoring<'_> {
    fn protocol(&self) -> &Protocol {
        self.protocol
    }

    fn image_size(&self) -> usize {
        self.image_size
    }

    fn score_features(&self, features: &[&[f32]]) -> Result<Vec<Scored>> {
        let ([h, w], side) = (self.size, self.image_size);
        let score = |x: &&[f32]| {
            let raw = self.baseline.score(x)?;
            let scored = self.protocol.score(&raw.map, h, w, side, side)?;
            Ok(match (self.image, raw.image) {
                (ImageScore::Own, Some(image_score)) => Scored { image_score, ..scored },
                _ => scored,
            })
        };
        features.par_iter().map(score).collect()
    }
}

/// Features of one picture, after a look at their size and values.
fn checked(features: &[f32], shape: [usize; 3]) -> Result<&[f32]> {
    let [h, w, c] = shape;
    let what = match features {
        x if x.len() != h * w * c => format!("{} values are not {h}x{w}x{c}", x.len()),
        x if !x.iter().all(|v| v.is_finite()) => "features that are not finite".into(),
        x => return Ok(x),
    };
    Err(Error::Shape { op: "baseline", what })
}

#[cfg(test)]
mod tests;
