//! Scores on their way to a ranking, 4 bytes each and 4 more where defective, split by label.

use super::pile::{BUDGET, Pile};
use super::radix;
use super::ranking::Ranking;
use crate::components::components;
use crate::{Error, Result};

/// Scores collected picture by picture. The order of pushing does not matter. What does not fit in memory (256 MiB of
/// good and as much of defective samples) goes to a temporary file; the figures stay the same to the bit.
#[derive(Debug)]
pub struct Samples {
    /// Key of the score, and below it the area of the region.
    positives: Pile<u64>,
    /// Key of the score.
    negatives: Pile<u32>,
    regions: usize,
}

impl Default for Samples {
    fn default() -> Self {
        Self::with_budget(BUDGET)
    }
}

impl Samples {
    pub(super) fn with_budget(bytes: usize) -> Self {
        Self { positives: Pile::new(bytes), negatives: Pile::new(bytes), regions: 0 }
    }

    /// Adds `scores` with one label each (0 good, else defective). Every positive is a region of its own.
    ///
    /// # Errors
    /// With nothing added: lengths differ; a score is NaN or infinite; [`Error::Io`] as [`Self::push_map`].
    pub fn push(&mut self, scores: &[f32], labels: &[u8]) -> Result<()> {
        self.admit("Samples::push", scores, labels)?;
        for (&score, &label) in scores.iter().zip(labels) {
            let key = radix::key(score);
            match label {
                0 => self.negatives.held().push(key),
                _ => self.positives.held().push(u64::from(key) << 32 | 1),
            }
            self.regions += usize::from(label != 0);
        }
        Ok(())
    }

    /// Adds an anomaly map of rows of `width` pixels with its mask (0 good, else defective). Positives belong to the
    /// 8-connected regions of the mask.
    ///
    /// # Errors
    /// With nothing added: lengths differ; a score is NaN or infinite; [`Error::Io`] when scores beyond the memory budget
    /// cannot be written to a temporary file.
    pub fn push_map(&mut self, scores: &[f32], mask: &[u8], width: usize) -> Result<()> {
        self.admit("Samples::push_map", scores, mask)?;
        let (runs, count) = components(mask, width, |&pixel| pixel != 0);
        let mut areas = vec![0; count];
        runs.iter().for_each(|run| areas[run.component] += run.pixels.len() as u64);
        let (positives, negatives) = (self.positives.held(), self.negatives.held());
        let mut from = 0;
        for run in &runs {
            negatives.extend(scores[from..run.pixels.start].iter().map(|&score| radix::key(score)));
            let area = areas[run.component];
            positives.extend(scores[run.pixels.clone()].iter().map(|&score| u64::from(radix::key(score)) << 32 | area));
            from = run.pixels.end;
        }
        negatives.extend(scores[from..].iter().map(|&score| radix::key(score)));
        self.regions += count;
        Ok(())
    }

    /// Adds the scores of good pixels or pictures.
    ///
    /// # Errors
    /// With nothing added: a score is NaN or infinite; [`Error::Io`] as [`Self::push_map`].
    pub fn push_good(&mut self, scores: &[f32]) -> Result<()> {
        check(scores)?;
        self.negatives.make_room(scores.len())?;
        self.negatives.held().extend(scores.iter().map(|&score| radix::key(score)));
        Ok(())
    }

    /// Checks what is to be added and makes room for it.
    fn admit(&mut self, op: &'static str, scores: &[f32], labels: &[u8]) -> Result<()> {
        if scores.len() != labels.len() {
            let what =
                format!("{} scores and {} labels: there must be one label per score", scores.len(), labels.len());
            return Err(Error::Shape { op, what });
        }
        check(scores)?;
        self.positives.make_room(scores.len())?;
        self.negatives.make_room(scores.len())
    }

    /// Sorts, once.
    ///
    /// # Errors
    /// [`Error::Io`] when a temporary file cannot be written or read back.
    pub fn rank(self) -> Result<Ranking> {
        let (positives, negatives) = rayon::join(|| self.positives.sort(), || self.negatives.sort());
        Ok(Ranking::new(positives?, negatives?, self.regions))
    }
}

/// Refuses NaN, which has no rank, and infinity, which only a diverged model gives.
pub(super) fn check(scores: &[f32]) -> Result<()> {
    // Whole blocks without an early exit: this vectorises.
    let finite = |block: &[f32]| block.iter().fold(true, |all, score| all & score.is_finite());
    if scores.chunks(1 << 10).all(finite) {
        return Ok(());
    }
    let at = scores.iter().position(|score| !score.is_finite()).unwrap_or_default();
    Err(Error::data(
        "anomaly scores",
        format!("score {at} of {} is {}", scores.len(), scores[at]),
        "the model has diverged or its file is damaged: train again, with a smaller learning rate if it happens again",
    ))
}
