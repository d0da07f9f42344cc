//! What a branch of a head reads: a grid at learned coordinates, or one of the discrete memories it is compared with.
//!
//! ```text
//! grid        v = tanh(W2 tanh(W1 q + b1) + b2) [+ jitter]       f = grid(v)
//! vq          k = argmin_k ‖q − keys_k‖²                         f = values_k
//! attention   w = softmax(q · keysᵀ / √C)                        f = w · values
//! ```
//! The query q is the feature x_p `[C]` of a position (local), or the mean of all positions (global). A local memory of K
//! entries is one tensor `[K, C]`, keys and values at once; a global one has keys `[K, C]` and values `[K, H, W, C]`. So f has
//! the shape of a grid's read, and the rest of the network is the same.
//!
//! A codebook (the keys of vq) is trained by `mean ‖sg[q] − keys_k‖²` alone, which is added to the loss with weight 1: the
//! reconstruction chooses nothing and moves no key. Values of a global memory are trained by the reconstruction. No entry
//! is placed anew: one that is never chosen stays where it began, but for the optimiser's weight decay.
//!
//! Sources: arXiv 2402.18293, Table 1, which names these memories but does not define them: the definition is ours. The
//! codebook's loss is that of van den Oord et al., arXiv 1711.00937, equation 3, without the commitment of an encoder, for
//! the features are frozen. More in `docs/memories.md`.

use super::config::{HeadConfig, MemoryKind};
use crate::error::Result;
use crate::nn::{Builder, Context, Id, Init, Pointwise, Role};
use crate::op::List;
use crate::ops::{Add, AttentionMemory, EntryRead, GridSample, Kind, NearestEntry};
use crate::shape::Shape;
use crate::tensor::Tensor;

/// The layers and parameters of one branch.
#[derive(Clone, Copy, Debug)]
pub(super) struct Branch {
    name: &'static str,
    memory: Memory,
}

#[derive(Clone, Copy, Debug)]
enum Memory {
    Grid { coord: [Pointwise; 2], grid: Id },
    Vq(Entries),
    Attention(Entries),
}

/// The entries of a discrete memory; one id twice where they are their own keys.
#[derive(Clone, Copy, Debug)]
struct Entries {
    keys: Id,
    values: Id,
}

/// A term of the loss: the chosen entries, and the queries that they should come near to.
pub(super) struct CodebookTerm {
    pub chosen: Tensor,
    pub queries: Tensor,
}

impl Branch {
    /// `local_coord.{0,1}` and `local_grid [R, R, C]`, or `local_memory [K, C]`.
    pub fn local(b: &mut Builder, config: &HeadConfig) -> Self {
        let (resolution, entries) = (config.local_resolution, config.local_entries);
        Self::new(b, config, "local", resolution, entries, &[config.channels])
    }

    /// `global_coord.{0,1}` and `global_grid [R, R, H, W, C]`, or `global_keys [K, C]` and `global_memory [K, H, W, C]`.
    pub fn global(b: &mut Builder, config: &HeadConfig) -> Self {
        let (resolution, entries) = (config.global_resolution, config.global_entries);
        Self::new(b, config, "global", resolution, entries, &[config.height, config.width, config.channels])
    }

    fn new(
        b: &mut Builder,
        config: &HeadConfig,
        name: &'static str,
        resolution: usize,
        entries: usize,
        cell: &[usize],
    ) -> Self {
        let c = config.channels;
        // Each starts as Xavier's rule has it for a kernel `[1, V, ..]` of V values a cell: its fans are V + 1 times the cells.
        let declare = |b: &mut Builder, key: String, cells: &[usize], cell: &[usize]| {
            let [values, n] = [cell, cells].map(|sizes| sizes.iter().product::<usize>());
            let std = (2.0 / ((values + 1) as f64 * n as f64)).sqrt();
            b.declare(key, Shape::new(&[cells, cell].concat()), Role::Grid, Init::Normal(std))
        };
        if config.memory == MemoryKind::Grid {
            let grid = declare(b, format!("{name}_grid"), &[resolution; 2], cell);
            let coord = [(0, c), (1, 2)]
                .map(|(i, to)| Pointwise::with_bias(b, &format!("{name}_coord.{i}"), c, to, Kind::Tanh));
            return Branch { name, memory: Memory::Grid { coord, grid } };
        }
        let values = declare(b, format!("{name}_memory"), &[entries], cell);
        let keys = if cell == [c] { values } else { declare(b, format!("{name}_keys"), &[entries], &[c]) };
        let entries = Entries { keys, values };
        let vq = config.memory == MemoryKind::Vq;
        Branch { name, memory: if vq { Memory::Vq(entries) } else { Memory::Attention(entries) } }
    }

    /// f for the queries `[.., C]`; what training a codebook takes is added to `codebook`. `jitter` is added to
    /// coordinates, where there are any.
    pub fn read(
        &self,
        cx: &Context,
        queries: &Tensor,
        jitter: Option<&Tensor>,
        codebook: &mut List<CodebookTerm>,
    ) -> Result<Tensor> {
        let stage = |what: &str, t: Tensor| cx.stage(format_args!("{}_{what}", self.name), t);
        let read = match self.memory {
            Memory::Grid { coord: layers, grid } => {
                let mut coord = layers[1].forward(cx, &layers[0].forward(cx, queries)?)?;
                if let Some(jitter) = jitter {
                    coord = cx.tape.apply(Add {}, &[&coord, jitter])?;
                }
                cx.tape.apply(GridSample {}, &[cx.param(grid), &stage("coord", coord)])?
            }
            Memory::Vq(Entries { keys, values }) => {
                let entry = cx.tape.apply(NearestEntry {}, &[queries, &constant(cx.param(keys))])?;
                let entry = stage("entry", entry);
                let chosen = cx.tape.apply(EntryRead {}, &[cx.param(keys), &entry])?;
                let read = if keys == values {
                    constant(&chosen)
                } else {
                    cx.tape.apply(EntryRead {}, &[cx.param(values), &entry])?
                };
                codebook.push(CodebookTerm { chosen, queries: queries.clone() });
                read
            }
            Memory::Attention(Entries { keys, values }) => {
                let mut y = cx.tape.apply_all(AttentionMemory {}, &[queries, cx.param(keys), cx.param(values)])?;
                stage("weights", y.swap_remove(1));
                y.swap_remove(0)
            }
        };
        Ok(stage("read", read))
    }
}

/// The same values, through which no gradient flows.
fn constant(t: &Tensor) -> Tensor {
    t.reshaped(t.shape())
}
