//! A mix of all entries of a memory, weighted by the likeness of their keys to a query: attention with learned keys.
//!
//! x: `[M.., C]`, keys: `[K, C]`, values: `[K, D..]`; y: `[M.., D..]`, weights: `[M.., K]`.
//! `weights = softmax(x · keysᵀ / √C)`, `y = weights · values`.
//! PyTorch: `scaled_dot_product_attention(x, keys, values)`.
//!
//! A local memory is its own keys and values `[K, C]`, and gets both gradients; a global one has values `[K, H, W, C]`.
//!
//! `dvalues = weightsᵀ · dy`, `dw = dy · valuesᵀ`, `ds = weights ⊙ (dw − Σ weights ⊙ dw) / √C`, `dkeys = dsᵀ · x`,
//! `dx = ds · keys`. Each is a matrix product, and each sum has one order.

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::activation::Kind;
use super::pointwise_conv::{LaidOut, product, weight_gradient};
use crate::buffer::Buffer;
use crate::device::cpu::{self, Matrix, exp_f32, simd, simd_fn};
use crate::device::cuda::{
    DeviceVec, Gpu, GpuArg, GpuOut, Grid, Real as Stored, Slice, Two, Values, launch, sum_in_slabs,
};
use crate::error::Result;
use crate::op::{Arg, Case, List, Op, expect_inputs, expect_shape, list, refuse};
use crate::real::Real;
use crate::shape::Shape;

/// See the head of this file.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AttentionMemory {}

/// Threads of the kernels that share a row of weights.
const WARP: usize = 32;

/// Sizes of a call: M queries, K entries, C values of a key, D of an entry.
struct Sizes {
    m: usize,
    k: usize,
    c: usize,
    d: usize,
}

impl Sizes {
    fn of([x, keys, values]: [Shape; 3]) -> Self {
        Sizes { m: x.rows(), k: keys[0], c: keys[1], d: values[1..].iter().product() }
    }

    fn from_args<T>(x: &[Arg<T>]) -> Self {
        Self::of([x[0].shape, x[1].shape, x[2].shape])
    }

    fn on(x: &[GpuArg]) -> Self {
        Self::of([x[0].shape, x[1].shape, x[2].shape])
    }

    /// What likenesses are multiplied by.
    fn scale(&self) -> f64 {
        1.0 / (self.c as f64).sqrt()
    }
}

impl Op for AttentionMemory {
    const NAME: &'static str = "attention_memory";

    fn infer(&self, x: &[Shape]) -> Result<List<Shape>> {
        expect_inputs::<Self>(x, &[3])?;
        let [query, keys, values] = [x[0], x[1], x[2]];
        let (c, entries) = (query.channels(), keys[0]);
        if query.len() < 2 || c == 0 || entries == 0 {
            return refuse::<Self, _>(format!(
                "x must be [.., C] and keys [K, C], neither empty, got {query} and {keys}"
            ));
        }
        expect_shape::<Self>("keys", keys, [entries, c])?;
        if values.len() < 2 || values[0] != entries || values.numel() == 0 {
            return refuse::<Self, _>(format!("values must be [{entries}, values..] and not empty, got {values}"));
        }
        let Some(read) = Shape::joined(&query[..query.len() - 1], &values[1..]) else {
            return refuse::<Self, _>(format!("reading {values} by {query} has too many dimensions"));
        };
        Ok(list([read, query.with_channels(entries)]))
    }

    fn differentiable(&self, _: usize) -> bool {
        true
    }

    fn reads_input(&self, _: usize) -> bool {
        true
    }

    fn reads_output(&self, i: usize) -> bool {
        i == 1
    }

    fn reference_forward<T: Real>(&self, x: &[Arg<T>], y: &mut [&mut [T]]) {
        let s = Sizes::from_args(x);
        let [y, weights] = y else { unreachable!("infer promises two outputs") };
        let rows = x[0].data.chunks_exact(s.c).zip(y.chunks_exact_mut(s.d)).zip(weights.chunks_exact_mut(s.k));
        for ((x_m, y), w) in rows {
            for (w, key) in w.iter_mut().zip(x[1].data.chunks_exact(s.c)) {
                *w = x_m.iter().zip(key).map(|(&a, &b)| a * b).sum::<T>() * T::of(s.scale());
            }
            let highest = w.iter().fold(T::neg_infinity(), |a, &b| a.max(b));
            w.iter_mut().for_each(|w| *w = (*w - highest).exp());
            let total: T = w.iter().copied().sum();
            w.iter_mut().for_each(|w| *w = *w / total);
            for (i, y) in y.iter_mut().enumerate() {
                *y = w.iter().enumerate().map(|(k, &w)| w * x[2].data[k * s.d + i]).sum();
            }
        }
    }

    fn reference_backward<T: Real>(&self, x: &[Arg<T>], y: &[&[T]], dy: &[T], dx: &mut [Option<&mut [T]>]) {
        let s = Sizes::from_args(x);
        let [dquery, dkeys, dvalues] = dx else { unreachable!("infer accepts three inputs") };
        dquery.iter_mut().chain(&mut *dkeys).chain(&mut *dvalues).for_each(|d| d.fill(T::zero()));
        let rows = x[0].data.chunks_exact(s.c).zip(y[1].chunks_exact(s.k)).zip(dy.chunks_exact(s.d));
        for (m, ((x_m, w), dy)) in rows.enumerate() {
            if let Some(dvalues) = dvalues {
                for (d, &w) in dvalues.chunks_exact_mut(s.d).zip(w) {
                    d.iter_mut().zip(dy).for_each(|(d, &dy)| *d += w * dy);
                }
            }
            let dot = |value: &[T]| value.iter().zip(dy).map(|(&v, &dy)| v * dy).sum::<T>();
            let dw: Vec<T> = x[2].data.chunks_exact(s.d).map(dot).collect();
            let mean: T = w.iter().zip(&dw).map(|(&w, &d)| w * d).sum();
            for (k, (&w, &dw)) in w.iter().zip(&dw).enumerate() {
                let (ds, key) = (w * (dw - mean) * T::of(s.scale()), k * s.c..(k + 1) * s.c);
                if let Some(dkeys) = dkeys {
                    dkeys[key.clone()].iter_mut().zip(x_m).for_each(|(d, &x)| *d += ds * x);
                }
                if let Some(dquery) = dquery {
                    dquery[m * s.c..].iter_mut().zip(&x[1].data[key]).for_each(|(d, &key)| *d += ds * key);
                }
            }
        }
    }

    fn cpu_forward(&self, x: &[Arg<f32>], y: &mut [&mut [f32]]) {
        let s = Sizes::from_args(x);
        let [y, weights] = y else { unreachable!("infer promises two outputs") };
        let (query, keys) = (Matrix::new(x[0].data, s.m, s.c), Matrix::new(x[1].data, s.k, s.c));
        let scale = s.scale() as f32;
        cpu::gemm(s.m, s.k, s.c, &query, &keys.t(), weights, |_, rows| {
            rows.chunks_exact_mut(s.k).for_each(|row| softmax(simd(), row, scale));
        });
        let (weights, values) = (Matrix::new(weights, s.m, s.k), Matrix::new(x[2].data, s.k, s.d));
        cpu::gemm(s.m, s.d, s.k, &weights, &values, y, cpu::no_epilogue);
    }

    fn cpu_backward(&self, x: &[Arg<f32>], y: &[&[f32]], dy: &[f32], dx: &mut [Option<&mut [f32]>]) {
        let s = Sizes::from_args(x);
        let [dquery, dkeys, dvalues] = dx else { unreachable!("infer accepts three inputs") };
        let dy = Matrix::new(dy, s.m, s.d);
        if let Some(dvalues) = dvalues {
            let weights = Matrix::new(y[1], s.m, s.k);
            cpu::gemm(s.k, s.d, s.m, &weights.t(), &dy, dvalues, cpu::no_epilogue);
        }
        if dquery.is_none() && dkeys.is_none() {
            return;
        }
        let values = Matrix::new(x[2].data, s.k, s.d);
        let mut ds = Buffer::scratch(s.m * s.k);
        cpu::gemm(s.m, s.k, s.d, &dy, &values.t(), &mut ds, cpu::no_epilogue);
        let rows = ds.par_chunks_mut(s.k).zip(y[1].par_chunks(s.k));
        rows.with_min_len(64).for_each(|(ds, w)| {
            let mean: f64 = ds.iter().zip(w).map(|(&d, &w)| f64::from(d) * f64::from(w)).sum();
            ds.iter_mut().zip(w).for_each(|(d, &w)| *d = (f64::from(w) * (f64::from(*d) - mean) * s.scale()) as f32);
        });
        let ds = Matrix::new(&ds, s.m, s.k);
        if let Some(dkeys) = dkeys {
            let query = Matrix::new(x[0].data, s.m, s.c);
            cpu::gemm(s.k, s.c, s.m, &ds.t(), &query, dkeys, cpu::no_epilogue);
        }
        if let Some(dquery) = dquery {
            let keys = Matrix::new(x[1].data, s.k, s.c);
            cpu::gemm(s.m, s.c, s.k, &ds, &keys, dquery, cpu::no_epilogue);
        }
    }

    fn input_in_f32(&self, i: usize) -> bool {
        i > 0
    }

    fn output_in_f32(&self, _: usize) -> bool {
        false
    }

    fn cuda_forward(&self, gpu: &Gpu, x: &[GpuArg], y: &mut [GpuOut]) -> Result<()> {
        let s = Sizes::on(x);
        let (query, keys, values) = (x[0].data.reals(), x[1].data.floats(), x[2].data.floats());
        let [y, weights] = y else { unreachable!("infer promises two outputs") };
        let likeness = dots(gpu, query, keys, [s.m, s.k, s.c])?;
        let grid = Grid::threads(s.m * WARP);
        launch::attention_memory_weights(gpu, grid, likeness.slice(), &mut weights.reals(), s.m, s.k, s.scale())?;
        let values = LaidOut::new(gpu, values, [s.k, s.d])?;
        let weights = weights.as_values();
        product(gpu, weights.reals(), &values, None, None, None, &mut y.reals(), [s.m, s.d, s.k], Kind::Identity)
    }

    fn cuda_backward(
        &self,
        gpu: &Gpu,
        x: &[GpuArg],
        y: &[Values],
        dy: Values,
        dx: &mut [Option<GpuOut>],
    ) -> Result<()> {
        let s = Sizes::on(x);
        let (weights, dy) = (y[1].reals(), dy.reals());
        let [dquery, dkeys, dvalues] = dx else { unreachable!("infer accepts three inputs") };
        if let Some(dvalues) = dvalues {
            weight_gradient(gpu, weights, dy, &mut dvalues.floats(), [s.m, s.k, s.d])?;
        }
        if dquery.is_none() && dkeys.is_none() {
            return Ok(());
        }
        let dw = dots(gpu, dy, x[2].data.floats(), [s.m, s.k, s.d])?;
        let mut ds = gpu.scratch::<Stored>(s.m * s.k)?;
        let grid = Grid::threads(s.m * WARP);
        launch::attention_memory_backward_likeness(
            gpu,
            grid,
            weights,
            dw.slice(),
            &mut ds.slice_mut(),
            s.m,
            s.k,
            s.scale(),
        )?;
        if let Some(dkeys) = dkeys {
            weight_gradient(gpu, ds.slice(), x[0].data.reals(), &mut dkeys.floats(), [s.m, s.k, s.c])?;
        }
        let Some(dquery) = dquery else { return Ok(()) };
        let keys = LaidOut::new(gpu, x[1].data.floats(), [s.k, s.c])?;
        product(gpu, ds.slice(), &keys, None, None, None, &mut dquery.reals(), [s.m, s.c, s.k], Kind::Identity)
    }

    fn flops(&self, x: &[Shape]) -> u64 {
        let s = Sizes::of([x[0], x[1], x[2]]);
        2 * (s.m * s.k * (s.c + s.d)) as u64
    }

    fn cases() -> Vec<Case<Self>> {
        let case = |x: &[usize], keys: &[usize], values: &[usize]| {
            Case::new(AttentionMemory {}, &[x, keys, values].map(Shape::new))
        };
        vec![
            case(&[2, 3, 4, 5], &[7, 5], &[7, 5]),
            case(&[6, 40], &[16, 40], &[16, 2, 3, 8]),
            case(&[1, 1], &[1, 1], &[1, 1]),
            // Weights that are nearly all of one entry.
            case(&[1, 5, 5, 9], &[20, 9], &[20, 3]).range(0, -9.0, 9.0).range(1, -3.0, 3.0),
            // More than a tile of queries and entries.
            case(&[1, 9, 11, 8], &[130, 8], &[130, 12]),
            // Long entries, whose likeness is added up in parts.
            case(&[3, 4], &[4, 4], &[4, 3000]),
        ]
    }

    fn bench_cases() -> Vec<Case<Self>> {
        let case = |x: &[usize], k: usize, map: &[usize]| {
            Case::new(AttentionMemory {}, &[Shape::new(x), [k, 216].into(), Shape::new(&[&[k], map].concat())])
        };
        vec![
            case(&[16, 28, 28, 216], 64, &[216]),
            case(&[16, 28, 28, 216], 256, &[216]),
            case(&[16, 216], 16, &[28, 28, 216]),
        ]
    }

    fn refused() -> Vec<(Self, Vec<Shape>, &'static str)> {
        let (x, keys) = (Shape::from([2, 3, 4, 5]), Shape::from([7, 5]));
        vec![
            (AttentionMemory {}, vec![x, keys], "3"),
            (AttentionMemory {}, vec![x, [7, 4].into(), keys], "keys must be [7, 5]"),
            (AttentionMemory {}, vec![x, keys, [6, 5].into()], "values must be [7,"),
            (AttentionMemory {}, vec![x, keys, [7, 0].into()], "not empty"),
            (AttentionMemory {}, vec![x, [0, 5].into(), keys], "neither empty"),
            (AttentionMemory {}, vec![x, keys, [7, 2, 3, 4].into()], "dimensions"),
        ]
    }
}

simd_fn! {
    /// `softmax(scale · row)`, in place.
    fn softmax<FMA>(row: &mut [f32], scale: f32) {
        let mut highest = f32::NEG_INFINITY;
        for v in row.iter_mut() {
            *v *= scale;
            highest = if *v > highest { *v } else { highest };
        }
        for v in row.iter_mut() {
            *v = exp_f32(*v - highest);
        }
        let total = row.iter().map(|&v| f64::from(v)).sum::<f64>() as f32;
        for v in row.iter_mut() {
            *v /= total;
        }
    }
}

/// `a [m, d] · b [n, d]ᵀ`, in f32: over d in slabs, which are added in order.
fn dots(gpu: &Gpu, a: Slice<Stored>, b: Slice<f32>, [m, n, d]: [usize; 3]) -> Result<DeviceVec<f32>> {
    let b = LaidOut::transposed(gpu, b, [1, n, d])?;
    let mut sums = gpu.scratch(m * n)?;
    sum_in_slabs(gpu, &[d], [m, n], d, Two::Neither, &mut sums.slice_mut(), |grid, partial, slab, tiling| {
        let b = (b.values.slice(), b.pitch);
        launch::attention_memory_dots(gpu, grid, a, b.0, partial, m, n, d, b.1, slab, tiling)
    })?;
    Ok(sums)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{tape::Tape, tensor::Tensor};

    /// Weights of a query that is like none, like one and far beyond what e^x can hold.
    #[test]
    fn weights_are_shares() {
        let keys = Tensor::from_slice([3, 1], &[0.0, 1.0, -1.0]);
        let values = Tensor::from_slice([3, 2], &[3.0, 0.0, 6.0, 1.0, 0.0, 2.0]);
        let x = Tensor::from_slice([3, 1], &[0.0, 2.0f32.ln(), 1e4]);
        let y = Tape::off().apply_all(AttentionMemory {}, &[&x, &keys, &values]).unwrap();
        let third = 1.0 / 3.0;
        // e^{ln 2}, 1 and e^{-ln 2}: 2 : 1 : 1/2.
        let weights = [third, third, third, 2.0 / 7.0, 4.0 / 7.0, 1.0 / 7.0, 0.0, 1.0, 0.0];
        let read = [3.0, 1.0, 30.0 / 7.0, 6.0 / 7.0, 6.0, 1.0];
        for (found, expected) in y[1].data().iter().zip(weights).chain(y[0].data().iter().zip(read)) {
            // A few roundings of a value below 8.
            assert!((found - expected).abs() <= 32.0 * f32::EPSILON, "{found} {expected}");
        }
    }
}
