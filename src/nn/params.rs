//! The parameters of a model in one arena.
//!
//! Order in the arena: grids, then the rest of the network, then running statistics. What the optimiser updates is one
//! slice, its two groups are two slices of it, and a layer's weight is a window that no one copies. Every parameter starts
//! at a cache line; the few values between two are zero and stay so. The arena lies in host memory or on a device.

use std::collections::HashMap;
use std::ops::Range;

use crate::buffer::Buffer;
use crate::device::Device;
use crate::error::Result;
use crate::rng::Rng;
use crate::shape::Shape;
use crate::storage::{Shared, Storage};
use crate::tensor::Tensor;

/// Values of a cache line: what vector loads, of the CPU and of a GPU, want a row to start at.
const ALIGN: usize = 16;

/// What a parameter is for; decides its learning rate. In the order of the arena.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// A local or global grid, or a memory in its place.
    Grid,
    /// Weights, biases, BatchNorm scales.
    Network,
    /// Running mean or variance: not trained, updated from the batch.
    Statistic,
}

/// How a parameter starts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Init {
    /// Every value the same.
    Constant(f32),
    /// Normal with mean zero and this standard deviation.
    Normal(f64),
}

/// Index of a parameter in its [`Params`], in the order of declaration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Id(pub(super) usize);

/// Declares parameters; [`Builder::build`] lays them out.
#[derive(Default)]
pub struct Builder {
    declared: Vec<(String, Shape, Role, Init)>,
}

impl Builder {
    /// A parameter called `name`.
    pub fn declare(&mut self, name: impl Into<String>, shape: impl Into<Shape>, role: Role, init: Init) -> Id {
        self.declared.push((name.into(), shape.into(), role, init));
        Id(self.declared.len() - 1)
    }

    /// Lays out every parameter and draws its start, which depends on the seed and its name alone. Without a seed nothing
    /// is drawn: for values that come from a file.
    pub fn build(self, seed: Option<u64>) -> Params {
        let mut order: Vec<usize> = (0..self.declared.len()).collect();
        order.sort_by_key(|&i| self.declared[i].2);
        let mut ranges = vec![0..0; order.len()];
        let (mut end, mut ends) = (0, [0; 3]);
        for &i in &order {
            ranges[i] = end..end + self.declared[i].1.numel();
            end = ranges[i].end.next_multiple_of(ALIGN);
            ends[self.declared[i].2 as usize] = end;
        }
        let mut values = Buffer::filled(end, 0.0);
        for ((name, _, _, init), range) in self.declared.iter().zip(&ranges) {
            let values = &mut values[range.clone()];
            match (*init, seed) {
                (Init::Constant(v), _) => values.fill(v),
                (Init::Normal(_), None) => {}
                (Init::Normal(std), Some(seed)) => {
                    let hash = blake3::hash(name.as_bytes());
                    let stream = u64::from_le_bytes(std::array::from_fn(|i| hash.as_bytes()[i]));
                    Rng::new(seed, stream).fill_normal(values, std as f32);
                }
            }
        }
        let place = |((name, shape, role, _), range)| Entry { name, shape, role, range };
        let entries: Vec<Entry> = self.declared.into_iter().zip(ranges).map(place).collect();
        let by_name = entries.iter().enumerate().map(|(i, e)| (e.name.clone(), Id(i))).collect();
        Params {
            entries,
            by_name,
            grids: ends[0],
            trained: ends[1].max(ends[0]),
            values: Shared::new(Storage::Host(values)),
        }
    }
}

/// One parameter's place.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Dotted path, the key in a model file.
    pub name: String,
    /// Channels last.
    pub shape: Shape,
    /// What it is for.
    pub role: Role,
    /// Its values in the arena.
    pub range: Range<usize>,
}

/// All parameters of a model and their values.
#[derive(Clone, Debug)]
pub struct Params {
    entries: Vec<Entry>,
    by_name: HashMap<String, Id>,
    grids: usize,
    trained: usize,
    values: Shared,
}

impl Params {
    /// Every parameter, in the order of declaration.
    pub fn entries(&self) -> impl ExactSizeIterator<Item = (Id, &Entry)> {
        self.entries.iter().enumerate().map(|(i, e)| (Id(i), e))
    }

    /// The parameter called `name`.
    pub fn find(&self, name: &str) -> Option<Id> {
        self.by_name.get(name).copied()
    }

    /// Name, shape, role and place of a parameter.
    pub fn entry(&self, id: Id) -> &Entry {
        &self.entries[id.0]
    }

    /// A parameter as a constant tensor, sharing the arena.
    pub fn tensor(&self, id: Id) -> Tensor {
        let e = self.entry(id);
        Tensor::window(e.shape, self.values.clone(), e.range.start)
    }

    /// The whole arena, in host memory.
    ///
    /// # Panics
    /// If it lies on a device.
    pub fn values(&self) -> &[f32] {
        self.values.host()
    }

    /// The whole arena, in host memory, to be changed. Tensors handed out before keep the old values.
    ///
    /// # Panics
    /// If it lies on a device.
    pub fn values_mut(&mut self) -> &mut [f32] {
        if self.values.get_mut().is_none() {
            self.values = Shared::new(Storage::Host(self.values.host().into()));
        }
        self.storage_mut().expect("nobody shares the copy").host_mut()
    }

    /// Where the arena lies.
    pub fn storage(&self) -> &Storage {
        &self.values
    }

    /// The arena, to be changed where it lies; `None` while tensors share it.
    pub fn storage_mut(&mut self) -> Option<&mut Storage> {
        self.values.get_mut()
    }

    /// The same parameters on another device; shared, not copied, where they are there already.
    ///
    /// # Errors
    /// What a device refuses.
    pub fn to(&self, device: &Device) -> Result<Self> {
        let values =
            if device.holds(&self.values) { self.values.clone() } else { Shared::new(device.copy_of(&self.values)?) };
        Ok(Params { values, ..self.clone() })
    }

    /// Number of trained values, without the gaps between parameters.
    pub fn trained_values(&self) -> usize {
        self.entries.iter().filter(|e| e.role != Role::Statistic).map(|e| e.range.len()).sum()
    }

    /// The values of one parameter, to be changed.
    pub fn get_mut(&mut self, id: Id) -> &mut [f32] {
        let range = self.entries[id.0].range.clone();
        &mut self.values_mut()[range]
    }

    /// The part of the arena that holds the grids.
    pub fn grid_range(&self) -> Range<usize> {
        0..self.grids
    }

    /// The part of the arena that is trained: grids, then the rest of the network.
    pub fn trained_range(&self) -> Range<usize> {
        0..self.trained
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_arena_is_ordered_by_role_and_draws_by_name() {
        let build = |names: [&str; 2]| {
            let mut b = Builder::default();
            b.declare("mean", [3], Role::Statistic, Init::Constant(0.0));
            let _ = names.map(|n| b.declare(n, [4, 5], Role::Network, Init::Normal(0.5)));
            b.declare("grid", [2, 2, 7], Role::Grid, Init::Normal(2.0));
            b.build(Some(9))
        };
        let (p, q) = (build(["a", "b"]), build(["b", "a"]));
        assert_eq!((p.grid_range(), p.trained_range(), p.values().len()), (0..32, 0..96, 112));
        assert_eq!(p.trained_values(), 68);
        for name in ["a", "b", "grid", "mean"] {
            let [x, y] = [&p, &q].map(|p| p.tensor(p.find(name).unwrap()).data().to_vec());
            assert_eq!(x, y, "{name} depends on the order of declaration");
        }
        assert_ne!(p.tensor(p.find("a").unwrap()).data(), p.tensor(p.find("b").unwrap()).data());
    }
}
