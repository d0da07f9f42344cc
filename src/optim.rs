//! AdamW over the trained part of the parameter arena (Loshchilov & Hutter 2019), after a clip of the global norm.
//!
//! ```text
//! total = sqrt(Σ g²) over everything trained        g ← g · min(1, clip / (total + 1e-6))
//! θ ← θ (1 − rate · decay)      m ← β1 m + (1 − β1) g      v ← β2 v + (1 − β2) g²
//! θ ← θ − rate / (1 − β1ᵗ) · m / (sqrt(v) / sqrt(1 − β2ᵗ) + ε)
//! ```
//! PyTorch: `clip_grad_norm_`, then `AdamW`. The decay reaches grids, biases and BatchNorm scales too.

mod steps;

use std::ops::Range;

use rayon::prelude::*;

use crate::buffer::{Buffer, Doubles};
use crate::device::Device;
use crate::device::cpu::{CHUNK, simd, simd_fn};
use crate::error::Result;
use crate::nn::Params;
use crate::storage::Storage;
pub use steps::Steps;

const BETA1: f64 = 0.9;
const BETA2: f64 = 0.999;
const EPS: f64 = 1e-8;
/// Keeps the clip factor finite.
const CLIP_GUARD: f64 = 1e-6;

/// Learning rates and constants of one step.
#[derive(Clone, Copy, Debug)]
pub struct StepSize {
    /// Rate of the grids.
    pub grids: f64,
    /// Rate of everything else.
    pub network: f64,
    /// Weight decay of everything.
    pub decay: f64,
    /// Largest global gradient norm.
    pub clip: f64,
}

/// The optimiser's memory. It lies where the parameters do.
#[derive(Debug)]
pub struct AdamW {
    /// First moments, laid out as the trained part of the arena.
    pub m: Storage,
    /// Second moments.
    pub v: Storage,
    /// Steps taken.
    pub steps: u64,
}

impl AdamW {
    /// A fresh optimiser for `params`, in host memory.
    pub fn new(params: &Params) -> Self {
        let zeros = || Storage::Host(Buffer::filled(params.trained_range().len(), 0.0));
        AdamW { m: zeros(), v: zeros(), steps: 0 }
    }

    /// A copy on another device.
    ///
    /// # Errors
    /// What a device refuses.
    pub fn to(&self, device: &Device) -> Result<Self> {
        Ok(AdamW { m: device.copy_of(&self.m)?, v: device.copy_of(&self.v)?, steps: self.steps })
    }

    /// One step along `grads`, laid out as the trained part of the arena, in host memory; on a device [`Self::launch`] does
    /// it. Returns the gradient norm before clipping.
    pub fn step(&mut self, params: &mut Params, grads: &[f32], size: StepSize) -> f64 {
        self.steps += 1;
        let squares = |g: &[f32]| g.iter().map(|&g| f64::from(g).powi(2)).sum::<f64>();
        // Chunks of fixed size, added in order: the same bits for any number of threads.
        let mut partial = Doubles::scratch(grads.len().div_ceil(CHUNK));
        grads.par_chunks(CHUNK).zip(&mut partial[..]).for_each(|(g, sum)| *sum = squares(g));
        let norm = partial.iter().sum::<f64>().sqrt();
        let clip = (size.clip / (norm + CLIP_GUARD)).min(1.0) as f32;
        let (grids, trained) = (params.grid_range(), params.trained_range());
        let [of_grids, of_network] = Constants::of(self.steps, size);
        let groups: [(Range<usize>, Constants); 2] = [(grids.clone(), of_grids), (grids.end..trained.end, of_network)];
        let values = &mut params.values_mut()[trained];
        let (m, v) = (self.m.host_mut(), self.v.host_mut());
        for (range, k) in groups {
            let state = m[range.clone()].par_chunks_mut(CHUNK).zip(v[range.clone()].par_chunks_mut(CHUNK));
            let chunks = values[range.clone()].par_chunks_mut(CHUNK).zip(grads[range].par_chunks(CHUNK)).zip(state);
            chunks.for_each(|((theta, g), (m, v))| update(simd(), k, clip, g, theta, m, v));
        }
        norm
    }
}

/// What is the same for every value of a group.
#[derive(Clone, Copy)]
struct Constants {
    keep: f32,
    rate: f32,
    correction: f32,
}

impl Constants {
    /// Of the grids and of the rest, in step `t`, counted from 1.
    fn of(t: u64, size: StepSize) -> [Self; 2] {
        let t = t as f64;
        [size.grids, size.network].map(|rate| Constants {
            keep: (1.0 - rate * size.decay) as f32,
            rate: (rate / (1.0 - BETA1.powf(t))) as f32,
            correction: (1.0 - BETA2.powf(t)).sqrt().recip() as f32,
        })
    }
}

simd_fn! {
    fn update<FMA>(k: Constants, clip: f32, g: &[f32], theta: &mut [f32], m: &mut [f32], v: &mut [f32]) {
        for (((theta, &g), m), v) in theta.iter_mut().zip(g).zip(m).zip(v) {
            let g = g * clip;
            *m += (g - *m) * (1.0 - BETA1) as f32;
            *v = *v * BETA2 as f32 + g * g * (1.0 - BETA2) as f32;
            *theta = *theta * k.keep - k.rate * *m / (v.sqrt() * k.correction + EPS as f32);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::{Builder, Init, Role};
    use crate::rng::Rng;

    /// Three steps against the formulas in f64, with gradients large enough to be clipped.
    #[test]
    fn follows_the_formulas() {
        let mut b = Builder::default();
        b.declare("grid", [50], Role::Grid, Init::Normal(1.0));
        b.declare("weight", [70], Role::Network, Init::Normal(1.0));
        b.declare("mean", [3], Role::Statistic, Init::Constant(5.0));
        let mut params = b.build(Some(1));
        let mut optimiser = AdamW::new(&params);
        let size = StepSize { grids: 0.1, network: 0.001, decay: 0.01, clip: 0.1 };
        // The grid takes 64 places of the arena: parameters start at cache lines.
        let (n, grid) = (params.trained_range().len(), params.grid_range().len());
        assert_eq!((n, grid), (64 + 80, 64));
        let mut theta: Vec<f64> = params.values()[..n].iter().map(|&v| v.into()).collect();
        let (mut m, mut v) = (vec![0.0; n], vec![0.0; n]);
        for t in 1..=3 {
            let mut grads = Buffer::filled(n, 0.0);
            Rng::new(t, 0).fill_normal(&mut grads, 0.3);
            let norm = grads.iter().map(|&g| f64::from(g).powi(2)).sum::<f64>().sqrt();
            let found = optimiser.step(&mut params, &grads, size);
            assert!((found - norm).abs() <= 1e-12 * norm, "{found} {norm}");
            for i in 0..n {
                let rate = if i < grid { 0.1 } else { 0.001 };
                let g = f64::from(grads[i]) * (0.1 / (norm + 1e-6)).min(1.0);
                m[i] = 0.9 * m[i] + 0.1 * g;
                v[i] = 0.999 * v[i] + 0.001 * g * g;
                let (mc, vc) = (m[i] / (1.0 - 0.9f64.powi(t as i32)), v[i] / (1.0 - 0.999f64.powi(t as i32)));
                theta[i] = theta[i] * (1.0 - rate * 0.01) - rate * mc / (vc.sqrt() + 1e-8);
                let err = (f64::from(params.values()[i]) - theta[i]).abs();
                assert!(err <= 2e-6 * (1.0 + theta[i].abs()), "step {t}, value {i}: off by {err:.1e}");
            }
        }
        assert_eq!(params.values()[n..n + 3], [5.0; 3], "statistics are not the optimiser's");
    }
}
