//! How a head is trained: the numbers of a run.

use serde::{Deserialize, Serialize};

use crate::device::cuda::Precision;
use crate::error::{Error, Result};
use crate::model::ModelKind;
use crate::optim::StepSize;

/// How a head is trained.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainConfig {
    /// Times every picture is seen.
    pub epochs: usize,
    /// Pictures in a step; the last of an epoch may have fewer.
    pub batch: usize,
    /// Pictures that BatchNorm looks at together: a batch is split into groups of at most this many.
    pub bn_group: usize,
    /// Learning rate of everything but the grids.
    pub rate: f64,
    /// Learning rate of the grids.
    pub grid_rate: f64,
    /// `[epoch, factor]`: from this epoch on, both rates are multiplied by the factor.
    pub schedule: Vec<(usize, f64)>,
    /// AdamW's weight decay, on everything.
    pub decay: f64,
    /// Largest global gradient norm.
    pub clip: f64,
    /// Whether local coordinates are jittered.
    pub jitter: bool,
    /// Chance of a group's jitter in a step.
    pub jitter_probability: f64,
    /// Standard deviation of the jitter, in coordinate units.
    pub jitter_std: f64,
    /// Start values, order of the pictures and jitter.
    pub seed: u64,
    /// How a CUDA device stores and multiplies; the CPU knows only f32.
    #[serde(default)]
    pub precision: Precision,
}

impl TrainConfig {
    /// The published training of `kind`, on one device with batches of 16.
    pub fn published(kind: ModelKind) -> Self {
        TrainConfig {
            epochs: kind.published_epochs(),
            batch: 16,
            bn_group: 16,
            rate: 0.001,
            grid_rate: 0.1,
            // The public scheduler steps once late: 41 epochs at full rate, then 40 at a tenth.
            schedule: vec![(0, 1.0), (41, 0.1), (81, 0.01)],
            decay: 0.01,
            clip: 0.1,
            jitter: true,
            jitter_probability: 0.5,
            jitter_std: 0.05,
            seed: 0,
            precision: Precision::F32,
        }
    }

    /// A short training for the demo set: small batches, so that its few pictures make many steps, and the last epoch at
    /// a tenth of the rate. With data, features and evaluation well under three minutes on two cores.
    pub fn demo(kind: ModelKind) -> Self {
        let schedule = vec![(0, 1.0), (5, 0.1)];
        TrainConfig { epochs: 6, batch: 8, bn_group: 8, schedule, ..Self::published(kind) }
    }

    /// A shorter one for studies on the demo set, of many runs: four epochs, so that five rows from three seeds end within
    /// a quarter of an hour on two cores.
    pub fn study(kind: ModelKind) -> Self {
        TrainConfig { epochs: 4, schedule: vec![(0, 1.0), (3, 0.1)], ..Self::demo(kind) }
    }

    /// Factor of the rates in `epoch`, counted from 0.
    pub fn factor(&self, epoch: usize) -> f64 {
        self.schedule.iter().filter(|(from, _)| *from <= epoch).max_by_key(|(from, _)| *from).map_or(1.0, |(_, f)| *f)
    }

    /// Rates and constants of a step in `epoch`.
    pub fn step_size(&self, epoch: usize) -> StepSize {
        let f = self.factor(epoch);
        StepSize { grids: self.grid_rate * f, network: self.rate * f, decay: self.decay, clip: self.clip }
    }

    /// Checks that a run with these numbers makes sense.
    ///
    /// # Errors
    /// [`Error::Config`] naming the setting.
    pub fn check(&self) -> Result<()> {
        let counts = [("epochs", self.epochs), ("batch", self.batch), ("bn_group", self.bn_group)];
        if let Some((name, _)) = counts.into_iter().find(|(_, v)| *v == 0) {
            return Err(Error::config(format!("{name} is 0"), "use a number of at least 1"));
        }
        let mut numbers = vec![
            ("rate", self.rate),
            ("grid_rate", self.grid_rate),
            ("decay", self.decay),
            ("jitter_std", self.jitter_std),
            ("jitter_probability", self.jitter_probability),
        ];
        numbers.extend(self.schedule.iter().map(|(_, f)| ("schedule", *f)));
        if let Some((name, v)) = numbers.into_iter().find(|(_, v)| !(v.is_finite() && *v >= 0.0)) {
            return Err(Error::config(format!("{name} is {v}"), "use a finite number that is not negative"));
        }
        if self.clip.is_nan() || self.clip <= 0.0 {
            return Err(Error::config(
                format!("clip is {}", self.clip),
                "use a number above 0; inf turns clipping off",
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_published_schedule_drops_one_epoch_late() {
        let config = TrainConfig::published(ModelKind::Grad);
        for (epochs, factor) in [(0..41, 1.0), (41..81, 0.1), (81..100, 0.01)] {
            assert!(epochs.clone().all(|e| config.factor(e) == factor), "{epochs:?}");
        }
    }

    #[test]
    fn impossible_settings_are_named() {
        let good = TrainConfig::published(ModelKind::Crad);
        good.check().unwrap();
        for (bad, word) in [
            (TrainConfig { batch: 0, ..good.clone() }, "batch"),
            (TrainConfig { rate: f64::NAN, ..good.clone() }, "rate"),
            (TrainConfig { clip: 0.0, ..good.clone() }, "clip"),
            (TrainConfig { schedule: vec![(3, -1.0)], ..good.clone() }, "schedule"),
        ] {
            assert!(bad.check().unwrap_err().to_string().contains(word));
        }
    }
}
