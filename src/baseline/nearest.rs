//! The nearest of many points, exactly: found by a matrix product, decided by differences.
//!
//! ```text
//! |x - b|² = |x|² + 2 a(x, b),   a(x, b) = |b|² / 2 - x · b     one product [n, c] · [c, rows] for all x and b
//! ```
//! That form loses digits where x and b are long and near each other. So it only picks who is looked at: with b_0 the nearest
//! found so far, every b with `a(x, b) <= a(x, b_0) + 2 δ`, where δ bounds the rounding of a, is measured again as Σ (x - b)². The
//! nearest by that is the answer, the lowest index where several are as near. x and the bank are moved by the bank's mean first, which makes δ
//! small and few of them looked at twice.

use rayon::prelude::*;

use super::coreset::squared_distance;
use crate::device::cpu::{Matrix, gemm, no_epilogue, simd, simd_fn};

/// Points of the bank in one product.
const BLOCK: usize = 1024;

/// Points to search, `[rows, c]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Bank {
    channels: usize,
    /// Mean of the points, `[c]`.
    mean: Vec<f32>,
    /// The points less their mean, `[rows, c]`.
    points: Vec<f32>,
    /// |b|² / 2 of each.
    halves: Vec<f32>,
    /// The largest |b|.
    longest: f64,
}

/// The point of a bank that is nearest.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Neighbour {
    /// Which one.
    pub index: usize,
    /// How far it is.
    pub distance: f32,
}

impl Bank {
    /// A bank of points of `channels` values each, of which there is at least one.
    pub fn new(mut points: Vec<f32>, channels: usize) -> Self {
        let rows = points.len() / channels;
        let mut sums = vec![0.0f64; channels];
        for point in points.chunks_exact(channels) {
            sums.iter_mut().zip(point).for_each(|(sum, &v)| *sum += f64::from(v));
        }
        let mean: Vec<f32> = sums.iter().map(|sum| (sum / rows as f64) as f32).collect();
        points.par_chunks_exact_mut(channels).for_each(|point| subtract(point, &mean));
        let squares: Vec<f64> = points.par_chunks_exact(channels).map(length_squared).collect();
        let longest = squares.iter().copied().fold(0.0, f64::max).sqrt();
        Bank { channels, mean, points, halves: squares.iter().map(|s| (s / 2.0) as f32).collect(), longest }
    }

    /// Number of points.
    pub fn len(&self) -> usize {
        self.halves.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.halves.is_empty()
    }

    /// Bytes that it keeps.
    pub fn bytes(&self) -> usize {
        4 * (self.mean.len() + self.points.len() + self.halves.len())
    }

    pub(super) fn point(&self, i: usize) -> &[f32] {
        &self.points[i * self.channels..][..self.channels]
    }

    /// Points `[n, c]`, moved as those of the bank are.
    pub fn moved(&self, mut points: Vec<f32>) -> Vec<f32> {
        points.par_chunks_exact_mut(self.channels).for_each(|point| subtract(point, &self.mean));
        points
    }

    /// The nearest point of the bank to each of `x: [n, c]`, which [`Self::moved`] has moved.
    pub fn nearest(&self, x: &[f32]) -> Vec<Neighbour> {
        let (c, n) = (self.channels, x.len() / self.channels);
        let mut searches: Vec<Search> = x.par_chunks_exact(c).map(|x| Search::new(x, self)).collect();
        let mut products = vec![0.0; n * BLOCK.min(self.len())];
        for (block, points) in self.points.chunks(BLOCK * c).enumerate() {
            let rows = points.len() / c;
            let (x, b, products) = (Matrix::new(x, n, c), Matrix::new(points, rows, c).t(), &mut products[..n * rows]);
            gemm(n, rows, c, &x, &b, products, no_epilogue);
            let searched = searches.par_iter_mut().zip(products.par_chunks_exact_mut(rows));
            searched.for_each(|(search, products)| search.look(self, block * BLOCK, products));
        }
        searches.iter().map(|s| Neighbour { index: s.index, distance: s.squared.sqrt() }).collect()
    }

    /// The `count` points nearest to point `i`, itself among them, nearest first, lower indices first where as near.
    pub fn neighbours(&self, i: usize, count: usize) -> Vec<usize> {
        let mut all: Vec<(f32, usize)> = (0..self.len()).map(|j| (self.distance(self.point(i), j), j)).collect();
        let by_distance = |a: &(f32, usize), b: &(f32, usize)| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1));
        if count < all.len() {
            all.select_nth_unstable_by(count, by_distance);
            all.truncate(count);
        }
        all.sort_unstable_by(by_distance);
        all.into_iter().map(|(_, j)| j).collect()
    }

    /// How far a moved point is from point `i`.
    pub fn distance(&self, x: &[f32], i: usize) -> f32 {
        squared_distance(simd(), x, self.point(i)).sqrt()
    }
}

fn subtract(point: &mut [f32], mean: &[f32]) {
    point.iter_mut().zip(mean).for_each(|(v, mean)| *v -= mean);
}

fn length_squared(x: &[f32]) -> f64 {
    x.iter().map(|&v| f64::from(v) * f64::from(v)).sum()
}

/// The search for the nearest of one point.
struct Search<'a> {
    x: &'a [f32],
    /// |x|².
    length_squared: f64,
    /// What `a(x, b)` may be wrong by.
    rounding: f64,
    index: usize,
    squared: f32,
}

impl<'a> Search<'a> {
    fn new(x: &'a [f32], bank: &Bank) -> Self {
        let length_squared = length_squared(x);
        // The sum of c products is off by at most c u |x| |b|, |b|² / 2 and the difference by u of their size, Σ (x - b)² by (c + 2) u
        // of its own, which is at most (|x| + |b|)²; u is half of EPSILON. Together less than (c + 8) u (|x| + |b|)².
        let reach = length_squared.sqrt() + bank.longest;
        let rounding = (x.len() + 8) as f64 * f64::from(f32::EPSILON) / 2.0 * reach * reach;
        Search { x, length_squared, rounding, index: 0, squared: f32::INFINITY }
    }

    /// Looks at the points from `first` on, whose products with x are given.
    fn look(&mut self, bank: &Bank, first: usize, products: &mut [f32]) {
        let smallest = halves_less_products(simd(), products, &bank.halves[first..]);
        let so_far = (f64::from(self.squared) - self.length_squared) / 2.0 + self.rounding;
        let limit = so_far.min(f64::from(smallest) + 2.0 * self.rounding);
        // Rounded up, so that nothing is lost.
        let limit = (limit as f32).next_up();
        if smallest > limit {
            return;
        }
        for (i, _) in products.iter().enumerate().filter(|(_, a)| **a <= limit) {
            let squared = squared_distance(simd(), self.x, bank.point(first + i));
            if squared < self.squared {
                (self.index, self.squared) = (first + i, squared);
            }
        }
    }
}

simd_fn! {
    /// `products = halves - products`; returns the smallest.
    fn halves_less_products<FMA>(products: &mut [f32], halves: &[f32]) -> f32 {
        const LANES: usize = 16;
        let halves = &halves[..products.len()];
        let mut smallest = [f32::INFINITY; LANES];
        let ((products, rest), (halves, halves_rest)) = (products.as_chunks_mut::<LANES>(), halves.as_chunks::<LANES>());
        for (products, halves) in products.iter_mut().zip(halves) {
            for lane in 0..LANES {
                products[lane] = halves[lane] - products[lane];
                smallest[lane] = if products[lane] < smallest[lane] { products[lane] } else { smallest[lane] };
            }
        }
        for (product, half) in rest.iter_mut().zip(halves_rest) {
            *product = half - *product;
            smallest[0] = if *product < smallest[0] { *product } else { smallest[0] };
        }
        smallest.into_iter().fold(f32::INFINITY, |smallest, v| if v < smallest { v } else { smallest })
    }
}
