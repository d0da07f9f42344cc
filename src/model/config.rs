//! What a head looks like: everything needed to build it, stored in every model file.

use serde::{Deserialize, Serialize};

/// Which published network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ModelKind {
    /// arXiv 2402.18293 v1: seven basic blocks of 3x3 convolutions.
    #[serde(rename = "grad")]
    Grad,
    /// ECCV 2024: eleven bottlenecks, four times as wide inside as the features.
    #[serde(rename = "crad")]
    Crad,
    /// The small one: eleven bottlenecks, as wide inside as the features.
    #[serde(rename = "crad-s")]
    CradS,
}

impl ModelKind {
    /// Every kind.
    pub const ALL: [ModelKind; 3] = [ModelKind::Grad, ModelKind::Crad, ModelKind::CradS];

    /// Name on the command line and in model files.
    pub fn name(self) -> &'static str {
        match self {
            ModelKind::Grad => "grad",
            ModelKind::Crad => "crad",
            ModelKind::CradS => "crad-s",
        }
    }

    /// Epochs of the published training.
    pub fn published_epochs(self) -> usize {
        if self == ModelKind::Grad { 100 } else { 50 }
    }
}

/// What a branch reads: how it finds its place in what was learnt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MemoryKind {
    /// A grid, read between its cells at learned coordinates: the paper's.
    #[default]
    Grid,
    /// Vector quantisation: the one entry that is nearest.
    Vq,
    /// A mix of all entries, weighted by their likeness.
    Attention,
}

impl MemoryKind {
    /// Every kind.
    pub const ALL: [MemoryKind; 3] = [MemoryKind::Grid, MemoryKind::Vq, MemoryKind::Attention];

    /// Name on the command line and in model files.
    pub fn name(self) -> &'static str {
        match self {
            MemoryKind::Grid => "grid",
            MemoryKind::Vq => "vq",
            MemoryKind::Attention => "attention",
        }
    }

    /// Whether it is read at coordinates, which can be jittered and drawn.
    pub fn has_coordinates(self) -> bool {
        self == MemoryKind::Grid
    }

    fn is_grid(&self) -> bool {
        *self == MemoryKind::Grid
    }
}

fn is_zero(n: &usize) -> bool {
    *n == 0
}

/// Entries of a memory: the search among them is linear.
pub(crate) const MAX_ENTRIES: usize = 4096;

/// Far above any published head, far below what would bring a machine down.
const MAX_PARAMETERS: u128 = 1 << 30;

/// A head's structure and constants.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HeadConfig {
    /// Which network.
    #[serde(rename = "model")]
    pub kind: ModelKind,
    /// Channels C of the features.
    pub channels: usize,
    /// Rows of the feature map.
    pub height: usize,
    /// Columns of the feature map.
    pub width: usize,
    /// Fusion blocks.
    pub blocks: usize,
    /// Channels inside a bottleneck; not used by `grad`.
    pub expansion: usize,
    /// Side of the local grid.
    pub local_resolution: usize,
    /// Side of the global grid.
    pub global_resolution: usize,
    /// What both branches read. Files of models of grids do not mention it.
    #[serde(default, skip_serializing_if = "MemoryKind::is_grid")]
    pub memory: MemoryKind,
    /// Entries of the local memory; 0 for a grid, which has cells.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub local_entries: usize,
    /// Entries of the global memory; 0 for a grid.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub global_entries: usize,
    /// Whether the local branch exists.
    pub local: bool,
    /// Whether the global branch exists.
    pub global: bool,
    /// Whether the refinement gate exists; without it the reconstruction is the result.
    pub refine: bool,
    /// k of the gate: a position counts as well rebuilt up to a mean squared error of `0.5 / k`.
    pub mse_coef: f64,
    /// Weight of that step in the gate.
    pub mse_weight: f64,
    /// Weight of the cosine in the gate.
    pub cos_weight: f64,
}

impl HeadConfig {
    /// The published network on features `[height, width, channels]`, with the gate constant `mse_coef`.
    pub fn published(kind: ModelKind, [height, width, channels]: [usize; 3], mse_coef: f64) -> Self {
        let (blocks, expansion) = match kind {
            ModelKind::Grad => (7, 0),
            ModelKind::Crad => (11, 4 * channels),
            ModelKind::CradS => (11, channels),
        };
        HeadConfig {
            kind,
            channels,
            height,
            width,
            blocks,
            expansion,
            local_resolution: 8,
            global_resolution: 4,
            memory: MemoryKind::Grid,
            local_entries: 0,
            global_entries: 0,
            local: true,
            global: true,
            refine: true,
            mse_coef,
            mse_weight: 0.3,
            cos_weight: 0.7,
        }
    }

    /// The same network with another memory of as many entries as its grids have cells.
    pub fn with_memory(self, memory: MemoryKind) -> Self {
        let entries = |side: usize| if memory == MemoryKind::Grid { 0 } else { side * side };
        let (local_entries, global_entries) = (entries(self.local_resolution), entries(self.global_resolution));
        HeadConfig { memory, local_entries, global_entries, ..self }
    }

    /// Channels that enter the fusion blocks: those of the branches that exist.
    pub fn fused_channels(&self) -> usize {
        self.channels * (usize::from(self.local) + usize::from(self.global))
    }

    /// Number of trained parameters, counted without building anything: sizes may come from a damaged file.
    pub fn parameters(&self) -> u128 {
        let [c, h, w, f, e] =
            [self.channels, self.height, self.width, self.fused_channels(), self.expansion].map(|v| v as u128);
        let cells = |side: usize| (side as u128).pow(2);
        let (local, global) = if self.memory == MemoryKind::Grid {
            let coordinates = c * c + c + 2 * c + 2;
            let global = cells(self.global_resolution) * h * w * c + coordinates;
            (cells(self.local_resolution) * c + coordinates, global)
        } else {
            // A local entry is its own key; a global one has a key of C values beside its map.
            (self.local_entries as u128 * c, self.global_entries as u128 * (c + h * w * c))
        };
        let (local, global) = (if self.local { local } else { 0 }, if self.global { global } else { 0 });
        let block = match self.kind {
            ModelKind::Grad => 2 * (9 * f * f + 2 * f),
            _ => 2 * f * e + 9 * e + 2 * e * (e / 4).max(1) + 4 * e + 2 * f,
        };
        local + global + self.blocks as u128 * block + f * c
    }

    /// What cannot be built, if anything.
    pub fn fault(&self) -> Option<String> {
        let sizes = [self.channels, self.height, self.width, self.local_resolution, self.global_resolution];
        if !self.local && !self.global {
            return Some("both branches are off: the model would know nothing about a picture".into());
        }
        if sizes.iter().any(|s| !(1..=4096).contains(s)) || self.blocks > 1000 || self.expansion > 65_536 {
            return Some(format!("impossible sizes: {self:?}"));
        }
        if self.memory != MemoryKind::Grid {
            let memories = [("local", self.local, self.local_entries), ("global", self.global, self.global_entries)];
            let impossible = |(_, on, n): &(&str, bool, usize)| *on && !(1..=MAX_ENTRIES).contains(n);
            if let Some((name, _, n)) = memories.into_iter().find(impossible) {
                return Some(format!("{n} {name} entries: a memory has 1 to {MAX_ENTRIES}"));
            }
        }
        if self.parameters() > MAX_PARAMETERS {
            return Some(format!("{} parameters are more than the {MAX_PARAMETERS} supported", self.parameters()));
        }
        if self.kind != ModelKind::Grad && self.expansion == 0 {
            return Some("a bottleneck needs at least one inner channel".into());
        }
        let constants = [self.mse_coef, self.mse_weight, self.cos_weight];
        if constants.iter().any(|k| !k.is_finite() || *k < 0.0) {
            return Some(format!("the constants of the gate must be finite and not negative, got {constants:?}"));
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_named() {
        let good = HeadConfig::published(ModelKind::CradS, [28, 28, 216], 0.05);
        assert_eq!(good.fault(), None);
        for (bad, word) in [
            (HeadConfig { local: false, global: false, ..good.clone() }, "both branches"),
            (HeadConfig { width: 0, ..good.clone() }, "impossible"),
            (HeadConfig { width: 4000, height: 4000, ..good.clone() }, "parameters"),
            (HeadConfig { expansion: 0, ..good.clone() }, "inner channel"),
            (HeadConfig { mse_coef: f64::NAN, ..good.clone() }, "finite"),
            (HeadConfig { memory: MemoryKind::Vq, ..good.clone() }, "local entries"),
            (HeadConfig { global_entries: 4097, ..good.clone().with_memory(MemoryKind::Vq) }, "global entries"),
        ] {
            assert!(bad.fault().is_some_and(|f| f.contains(word)), "{bad:?}");
        }
    }

    /// Models of grids were written before there were other memories, and are written as then.
    #[test]
    fn files_without_a_memory_hold_grids() {
        let grid = HeadConfig::published(ModelKind::CradS, [28, 28, 216], 0.05);
        let text = serde_json::to_string(&grid).unwrap();
        assert!(!text.contains("memory") && !text.contains("entries"), "{text}");
        assert_eq!(serde_json::from_str::<HeadConfig>(&text).unwrap(), grid);
        let vq = grid.with_memory(MemoryKind::Vq);
        assert_eq!((vq.local_entries, vq.global_entries, vq.fault()), (64, 16, None));
        assert_eq!(serde_json::from_str::<HeadConfig>(&serde_json::to_string(&vq).unwrap()).unwrap(), vq);
    }
}
