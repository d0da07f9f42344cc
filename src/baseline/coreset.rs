//! A greedy k-center coreset: few points that no other point is far from.
//!
//! ```text
//! c_0 = a given start;   c_k = argmax_i min_{j < k} |x_i - c_j|,  ties to the lowest i
//! covering radius after k centres: r_k = max_i min_{j < k} |x_i - c_j|, which never grows
//! ```
//! r_k is at most twice the best possible (Gonzalez, "Clustering to minimize the maximum intercluster distance", Theoretical
//! Computer Science 38, 1985); PatchCore's algorithm 1 is this.
//!
//! One pass over the points per centre keeps, of every point, the squared distance to its nearest centre and which one that
//! is. A point is passed over without a look at it where the triangle inequality says that a new centre c cannot be nearer
//! than its own o: |x - o| <= |c - o| / 2. The margin for rounding makes that exact: the bits are those of the
//! plain algorithm. Work is cut by shape, so they do not depend on the number of threads either.

use rayon::prelude::*;

use super::{Progress, Watch};
use crate::device::cpu::simd::mul_add;
use crate::device::cpu::{simd, simd_fn};
use crate::{Error, Result};

/// Points of one task.
const TASK: usize = 2048;

/// Centres chosen between two calls of `watch`.
const STEPS: usize = 32;

/// Points chosen as centres.
#[derive(Debug, Clone, PartialEq)]
pub struct Coreset {
    /// Which points, in the order in which they were chosen; all different.
    pub indices: Vec<usize>,
    /// Covering radius after each of them.
    pub radii: Vec<f32>,
    /// Distances between points and centres that had to be computed, of `points * centres`.
    pub computed: u64,
}

/// Chooses `count` of the points `[n, dim]`, beginning with `start`. Fewer where every point coincides with a chosen one.
///
/// # Errors
/// [`Error::Shape`] when `points` is not a number of whole points, of which `start` is one; what `watch` returns.
pub fn greedy(points: &[f32], dim: usize, start: usize, count: usize, watch: Watch) -> Result<Coreset> {
    if dim == 0 || !points.len().is_multiple_of(dim) || start >= points.len() / dim {
        let what = format!("{} values, points of {dim}, the first being {start}", points.len());
        return Err(Error::Shape { op: "coreset", what });
    }
    let n = points.len() / dim;
    let count = count.min(n);
    let point = |i: usize| &points[i * dim..][..dim];
    let mut nearest = vec![Nearest { squared: f32::INFINITY, centre: 0 }; n];
    let mut coreset = Coreset { indices: vec![], radii: vec![], computed: 0 };
    let mut next = start;
    // Squared distances within which a point keeps its centre, by centre.
    let mut kept = vec![];
    while coreset.indices.len() < count {
        let k = coreset.indices.len();
        if k.is_multiple_of(STEPS) {
            watch(Progress { stage: "coreset", done: k, total: count })?;
        }
        let centre = point(next);
        coreset
            .indices
            .par_iter()
            .with_min_len(256)
            .map(|&c| squared_distance(simd(), centre, point(c)) * keep(dim))
            .collect_into_vec(&mut kept);
        kept.push(-1.0);
        coreset.indices.push(next);
        // It is its own centre, even where its distance to itself is not a number.
        nearest[next] = Nearest { squared: 0.0, centre: k as u32 };
        let (farthest, computed) = nearest
            .par_chunks_mut(TASK)
            .zip(points.par_chunks(TASK * dim))
            .enumerate()
            .map(|(task, (nearest, points))| {
                let (farthest, computed) = approach(simd(), nearest, points, centre, k as u32, &kept);
                ((farthest.0, task * TASK + farthest.1), computed)
            })
            .reduce(|| ((-1.0, usize::MAX), 0), |(a, m), (b, n)| (farther(a, b), m + n));
        coreset.computed += computed;
        coreset.radii.push(farthest.0.sqrt());
        next = farthest.1;
        if farthest.0 <= 0.0 {
            break;
        }
    }
    let done = coreset.indices.len();
    watch(Progress { stage: "coreset", done, total: done })?;
    Ok(coreset)
}

/// A point's nearest centre so far.
#[derive(Debug, Clone, Copy)]
struct Nearest {
    squared: f32,
    centre: u32,
}

/// The farther of two points with their distances, the lower index where they are as far.
fn farther(a: (f32, usize), b: (f32, usize)) -> (f32, usize) {
    if b.0 > a.0 || (b.0 == a.0 && b.1 < a.1) { b } else { a }
}

/// What the squared distance of two centres is multiplied by: a point of the one within that squared distance is nearer to it
/// than to the other by more than rounding can change.
fn keep(dim: usize) -> f32 {
    // A sum of `dim` squares is off by a factor of at most 1 ± g. With |x - o|² <= |c - o|² / (4 + 64 g), as computed, the
    // true |x - o| is at most (1 - 3 g) |c - o| / 2, so |x - c| is at least (1 + 3 g) |c - o| / 2, and stays larger as computed.
    let g = (dim + 4) as f32 * f32::EPSILON / 2.0;
    1.0 / (4.0 + 64.0 * g)
}

/// Σ (a - b)² over sums side by side.
#[inline(always)]
fn squared<const FMA: bool>(a: &[f32], b: &[f32]) -> f32 {
    const LANES: usize = 32;
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    let mut sums = [0.0f32; LANES];
    for (a, b) in a.iter().zip(b) {
        for lane in 0..LANES {
            let d = a[lane] - b[lane];
            sums[lane] = mul_add::<FMA>(d, d, sums[lane]);
        }
    }
    for ((sum, a), b) in sums.iter_mut().zip(a_rest).zip(b_rest) {
        *sum = mul_add::<FMA>(a - b, a - b, *sum);
    }
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            sums[lane] += sums[lane + width];
        }
        width /= 2;
    }
    sums[0]
}

simd_fn! {
    /// Σ (a - b)² of two points, straight from the differences: nothing cancels.
    pub(super) fn squared_distance<FMA>(a: &[f32], b: &[f32]) -> f32 {
        squared::<FMA>(a, b)
    }

    /// Brings a new centre into a task's points. Returns the farthest of them, and how many distances that took.
    fn approach<FMA>(
        nearest: &mut [Nearest],
        points: &[f32],
        centre: &[f32],
        number: u32,
        kept: &[f32],
    ) -> ((f32, usize), u64) {
        let (mut farthest, mut computed) = ((-1.0, 0), 0);
        for (i, (nearest, point)) in nearest.iter_mut().zip(points.chunks_exact(centre.len())).enumerate() {
            if nearest.squared > kept[nearest.centre as usize] {
                let squared = squared::<FMA>(point, centre);
                computed += 1;
                if squared < nearest.squared {
                    *nearest = Nearest { squared, centre: number };
                }
            }
            if nearest.squared > farthest.0 {
                farthest = (nearest.squared, i);
            }
        }
        (farthest, computed)
    }
}
