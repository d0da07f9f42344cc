//! Read of whole entries of a table: `y_m = values[i_m]`.
//!
//! values: `[K, D..]`, index: `[M..]`, y: `[M.., D..]`. An index is rounded down; outside 0..K the entry is zero.
//! PyTorch: `values[index]`, or `embedding`.
//!
//! A local memory holds vectors `[K, C]`, read once for each position; a global one maps `[K, H, W, C]`, read once for each
//! image. `dvalues_k = Σ dy_m` over the m that read entry k, in the order of m: bit-equal for any number of threads. An
//! entry that nobody reads has gradient zero.

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::readers::Readers;
use crate::buffer::Doubles;
use crate::device::cuda::{Gpu, GpuArg, GpuOut, Grid, Slabs, Values, launch};
use crate::error::Result;
use crate::op::{Arg, Case, List, Op, expect_inputs, list, refuse};
use crate::real::Real;
use crate::shape::Shape;

/// See the head of this file.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct EntryRead {}

/// Values of an entry that one task handles: a few pages.
const SPAN: usize = 8192;

/// How the kernels share the work out; the same numbers as in `kernels/entry_read.cu`.
mod kernel {
    /// Threads that copy the same entry, and values that they have at a time.
    pub(super) const WARP: usize = 32;
    pub(super) const SPAN: usize = 128;
    /// Values of an entry that a block adds up.
    pub(super) const BLOCK: usize = 256;
}

/// The entry that an index means. In floating point, so that no index, nor NaN, can wrap round to an entry.
fn entry<T: Real>(index: T, entries: usize) -> Option<usize> {
    let i = index.floor().f64();
    (i >= 0.0 && i < entries as f64).then_some(i as usize)
}

/// Entries, and values of an entry.
fn sizes(values: Shape) -> (usize, usize) {
    (values[0], values[1..].iter().product())
}

impl Op for EntryRead {
    const NAME: &'static str = "entry_read";

    fn infer(&self, x: &[Shape]) -> Result<List<Shape>> {
        expect_inputs::<Self>(x, &[2])?;
        let (values, index) = (x[0], x[1]);
        if values.len() < 2 || values.numel() == 0 {
            return refuse::<Self, _>(format!("values must be [K, values..] and not empty, got {values}"));
        }
        let Some(read) = Shape::joined(&index, &values[1..]) else {
            return refuse::<Self, _>(format!("reading {values} at {index} has too many dimensions"));
        };
        Ok(list([read]))
    }

    fn differentiable(&self, i: usize) -> bool {
        i == 0
    }

    fn reads_input(&self, i: usize) -> bool {
        i == 1
    }

    fn reads_output(&self, _: usize) -> bool {
        false
    }

    fn reference_forward<T: Real>(&self, x: &[Arg<T>], y: &mut [&mut [T]]) {
        let (entries, n) = sizes(x[0].shape);
        for (y, &index) in y[0].chunks_exact_mut(n).zip(x[1].data) {
            match entry(index, entries) {
                Some(k) => y.copy_from_slice(&x[0].data[k * n..(k + 1) * n]),
                None => y.fill(T::zero()),
            }
        }
    }

    fn reference_backward<T: Real>(&self, x: &[Arg<T>], _: &[&[T]], dy: &[T], dx: &mut [Option<&mut [T]>]) {
        let Some(dvalues) = &mut dx[0] else { return };
        let (entries, n) = sizes(x[0].shape);
        dvalues.fill(T::zero());
        for (dy, &index) in dy.chunks_exact(n).zip(x[1].data) {
            let Some(k) = entry(index, entries) else { continue };
            dvalues[k * n..].iter_mut().zip(dy).for_each(|(d, &dy)| *d += dy);
        }
    }

    fn cpu_forward(&self, x: &[Arg<f32>], y: &mut [&mut [f32]]) {
        let (entries, n) = sizes(x[0].shape);
        let values = x[0].data;
        let read = |k: Option<usize>, from: usize, y: &mut [f32]| match k {
            Some(k) => y.copy_from_slice(&values[k * n + from..][..y.len()]),
            None => y.fill(0.0),
        };
        let rows = y[0].par_chunks_mut(n).zip(x[1].data);
        if n > SPAN {
            rows.for_each(|(y, &index)| {
                let k = entry(index, entries);
                y.par_chunks_mut(SPAN).enumerate().for_each(|(i, y)| read(k, i * SPAN, y));
            });
        } else {
            rows.with_min_len(64).for_each(|(y, &index)| read(entry(index, entries), 0, y));
        }
    }

    fn cpu_backward(&self, x: &[Arg<f32>], _: &[&[f32]], dy: &[f32], dx: &mut [Option<&mut [f32]>]) {
        let Some(dvalues) = &mut dx[0] else { return };
        let (entries, n) = sizes(x[0].shape);
        let index = x[1].data;
        let readers = Readers::new(entries, index.len(), index.iter().map(|&index| entry(index, entries)));
        dvalues.par_chunks_mut(n).enumerate().for_each(|(k, d)| {
            d.par_chunks_mut(SPAN).enumerate().for_each(|(i, d)| {
                let mut sums = Doubles::zeros(d.len());
                for m in readers.of(k) {
                    let dy = &dy[m * n + i * SPAN..][..d.len()];
                    sums.iter_mut().zip(dy).for_each(|(s, &dy)| *s += f64::from(dy));
                }
                d.iter_mut().zip(&sums[..]).for_each(|(d, &s)| *d = s as f32);
            });
        });
    }

    fn input_in_f32(&self, _: usize) -> bool {
        true
    }

    fn output_in_f32(&self, _: usize) -> bool {
        false
    }

    fn cuda_forward(&self, gpu: &Gpu, x: &[GpuArg], y: &mut [GpuOut]) -> Result<()> {
        let (entries, n) = sizes(x[0].shape);
        let rows = x[1].shape.numel();
        let grid = Grid::threads(rows * n.div_ceil(kernel::SPAN) * kernel::WARP);
        let (values, index) = (x[0].data.floats(), x[1].data.floats());
        launch::entry_read_forward(gpu, grid, values, index, &mut y[0].reals(), rows, entries, n)
    }

    fn cuda_backward(
        &self,
        gpu: &Gpu,
        x: &[GpuArg],
        _: &[Values],
        dy: Values,
        dx: &mut [Option<GpuOut>],
    ) -> Result<()> {
        let Some(dvalues) = &mut dx[0] else { return Ok(()) };
        let (entries, n) = sizes(x[0].shape);
        let (rows, blocks) = (x[1].shape.numel(), entries * n.div_ceil(kernel::BLOCK));
        let (index, dy) = (x[1].data.floats(), dy.reals());
        let slabs = Slabs::new(gpu, rows, blocks, 256);
        slabs.sum(gpu, entries * n, &mut dvalues.floats(), |partial, slab| {
            let grid = Grid::blocks2(blocks, slabs.count);
            launch::entry_read_backward_values(gpu, grid, index, dy, partial, rows, entries, n, slab)
        })
    }

    fn flops(&self, _: &[Shape]) -> u64 {
        0
    }

    fn cases() -> Vec<Case<Self>> {
        let case = |values: &[usize], index: &[usize]| {
            Case::new(EntryRead {}, &[values, index].map(Shape::new)).range(1, 0.0, values[0] as f64)
        };
        vec![
            case(&[8, 5], &[2, 3, 4]),
            case(&[4, 2, 3, 4], &[6]),
            // Before the first entry and beyond the last; and more entries than readers, so that some are never read.
            case(&[3, 7], &[17]).range(1, -2.0, 5.0),
            case(&[40, 6], &[9]),
            case(&[1, 1], &[1]),
            // Long entries, read by parts.
            case(&[2, 9000], &[3]),
            // More readers than are added up in one go.
            case(&[2, 132], &[700]),
        ]
    }

    fn bench_cases() -> Vec<Case<Self>> {
        let case = |values: &[usize], index: &[usize]| {
            Case::new(EntryRead {}, &[values, index].map(Shape::new)).range(1, 0.0, values[0] as f64)
        };
        vec![case(&[64, 216], &[16, 28, 28]), case(&[16, 28, 28, 216], &[16])]
    }

    fn refused() -> Vec<(Self, Vec<Shape>, &'static str)> {
        vec![
            (EntryRead {}, vec![[8, 5].into()], "2"),
            (EntryRead {}, vec![[8].into(), [4].into()], "values must be"),
            (EntryRead {}, vec![[8, 0].into(), [4].into()], "not empty"),
            (EntryRead {}, vec![[2, 3, 4, 5].into(), [2, 3, 4].into()], "dimensions"),
        ]
    }
}
