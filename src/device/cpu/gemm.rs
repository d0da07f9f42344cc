//! `c[m, n] = a[m, k] · b[k, n]`: blocks for the caches, panels for the registers, rows over threads.
//!
//! ```text
//! for each stretch of k whose packed B stays in the last-level cache      (one stretch for every layer but gradients)
//!   pack B, in parallel                                                   [k block][column panel][k][NR]
//!   for each block of rows, in parallel                                   its part of C stays in L2
//!     for each block of KC of k: pack A                                   [row panel][k][MR]
//!       for each column panel, for each row panel: register tile
//!     if this was the last stretch: epilogue(rows of C)
//! ```
//! Every element of C is one sum in one order, whatever the number of threads.

use super::fetch::prefetch;
use super::microkernel::Tile;
pub use super::pack::Matrix;
use super::pack::{PackA, PackB};
use super::products::{Products, products};
use super::rows::{chunks, with_scratch};
use super::simd::simd;
use std::ops::Range;

/// Words of packed B that are used before more are packed: 8 MiB.
const PACKED_B: usize = 2 << 20;

/// Products below this many multiplications run on the calling thread: about 30 microseconds of work.
const SERIAL: usize = 1 << 20;

/// Rows of one block of C, which is what the epilogue gets at a time: a function of the shape alone.
pub fn row_block(m: usize, n: usize) -> usize {
    /// Rows of the largest tile of vectors.
    const MR: usize = 8;
    // Enough blocks to share out evenly, few enough that B is not streamed too often, and C within L2.
    let shared = m.div_ceil(16).next_multiple_of(MR);
    let cached = ((128 << 10) / n.max(1)).max(1).next_multiple_of(MR);
    shared.min(cached).clamp(MR, 192)
}

/// For a product whose rows need no more work.
pub fn no_epilogue(_first_row: usize, _rows: &mut [f32]) {}

/// `c = a · b` with `a: [m, k]`, `b: [k, n]` and `c: [m, n]` row-major; what `c` held is overwritten. Factors are rounded,
/// or not, as [`products`] of this thread says.
///
/// `epilogue(first_row, rows)` is called once for every block of [`row_block`] finished rows (the last may be
/// shorter), in any order and from any thread, while they are still in cache: block number `first_row / row_block(m, n)`.
///
/// # Panics
/// If `c` has another length than `m * n`, or an operand is smaller than the product.
pub fn gemm(
    m: usize,
    n: usize,
    k: usize,
    a: &impl PackA,
    b: &impl PackB,
    c: &mut [f32],
    epilogue: impl Fn(usize, &mut [f32]) + Sync,
) {
    gemm_at(products(), [m, n, k], a, b, c, epilogue);
}

/// [`gemm`] in f32 on every thread: for what is no layer's product, and must not be rounded.
///
/// # Panics
/// As [`gemm`].
pub fn gemm_f32(
    m: usize,
    n: usize,
    k: usize,
    a: &impl PackA,
    b: &impl PackB,
    c: &mut [f32],
    epilogue: impl Fn(usize, &mut [f32]) + Sync,
) {
    gemm_at(simd(), [m, n, k], a, b, c, epilogue);
}

/// [`gemm`] by a given way to multiply, or in f32 at a given vector level.
pub(super) fn gemm_at(
    products: impl Into<Products>,
    [m, n, k]: [usize; 3],
    a: &impl PackA,
    b: &impl PackB,
    c: &mut [f32],
    epilogue: impl Fn(usize, &mut [f32]) + Sync,
) {
    assert_eq!(c.len(), m * n, "gemm: c is not {m} x {n}");
    if c.is_empty() {
        return;
    }
    let parallel = m.saturating_mul(n).saturating_mul(k) > SERIAL;
    let rows = row_block(m, n);
    if k == 0 {
        return chunks(false, c, rows * n, |i, c| {
            c.fill(0.0);
            epilogue(i * rows, c);
        });
    }
    let tile = Tile::of(products.into());
    let n_packed = n.next_multiple_of(tile.lanes);
    let kc = tile.form.depth(k);
    let block = tile.form.words(kc) * n_packed;
    let stretch = (PACKED_B / block).max(1) * kc;
    for start in (0..k).step_by(stretch) {
        let end = k.min(start + stretch);
        let part = |i: usize| start + i * kc..end.min(start + (i + 1) * kc);
        let whole = (end - start) / kc;
        with_scratch(whole * block + tile.form.words((end - start) % kc) * n_packed, |packed_b| {
            chunks(parallel, packed_b, block, |i, block| {
                let words = block.len() / n_packed;
                chunks(parallel, block, words * tile.nr, |j, panel| {
                    let cols = j * tile.nr..n.min((j + 1) * tile.nr);
                    tile.pack_b(b, part(i), cols, panel.len() / words, panel);
                });
            });
            let packed_b = &*packed_b;
            chunks(parallel, c, rows * n, |i, c| {
                let first = i * rows;
                let (here, below) = (first..m.min(first + rows), m.min(first + rows)..m.min(first + 2 * rows));
                let mut blocks = packed_b.chunks(block).enumerate().peekable();
                while let Some((i, b)) = blocks.next() {
                    // What this thread will most likely pack next.
                    let next =
                        if blocks.peek().is_some() { [here.clone(), part(i + 1)] } else { [below.clone(), part(0)] };
                    multiply_rows(tile, n, [here.clone(), part(i)], a, next, b, c);
                }
                if end == k {
                    epilogue(first, c);
                }
            });
        });
    }
}

/// Adds `a[rows, ks] · b[ks, n]` to a block of rows of C (overwrites it for the first `ks`); `b` is packed. Meanwhile the
/// part `next` of A is fetched.
fn multiply_rows(
    tile: Tile,
    n: usize,
    [at, ks]: [Range<usize>; 2],
    a: &impl PackA,
    next: [Range<usize>; 2],
    b: &[f32],
    c: &mut [f32],
) {
    let (rows, words, accumulate) = (at.len(), tile.form.words(ks.len()), ks.start > 0);
    let panel = words * tile.mr;
    with_scratch(rows.next_multiple_of(tile.mr) * words, |packed_a| {
        for (i, panel) in packed_a.chunks_exact_mut(panel).enumerate() {
            let row = i * tile.mr;
            tile.pack_a(a, at.start + row..at.end.min(at.start + row + tile.mr), ks.clone(), panel);
        }
        let _registers = tile.registers();
        let (row_panels, col_panels) = (packed_a.len() / panel, n.div_ceil(tile.nr));
        let mut b_panels = b.chunks(words * tile.nr).enumerate().peekable();
        while let Some((j, b)) = b_panels.next() {
            let (col, width) = (j * tile.nr, b.len() / words);
            let next_b = b_panels.peek().map_or(&[][..], |(_, next)| next);
            let mut ahead = next_b.chunks(next_b.len().div_ceil(row_panels).max(1));
            for (i, packed_a) in packed_a.chunks_exact(panel).enumerate() {
                // B comes from the last-level cache and A from memory: each tile fetches its share of what is next.
                prefetch(ahead.next().unwrap_or(&[]));
                let [next_rows, next_ks] = next.clone();
                a.fetch(next_rows, next_ks, j * row_panels + i, row_panels * col_panels);
                let row = i * tile.mr;
                if row + tile.mr <= rows && col + width <= n {
                    // SAFETY: the registers live until the end of the block.
                    unsafe { tile.run(width, packed_a, b, &mut c[row * n + col..], n, accumulate) };
                } else {
                    let c = &mut c[row * n..rows.min(row + tile.mr) * n];
                    with_scratch(tile.mr * width, |sums| {
                        // SAFETY: as above.
                        unsafe { tile.run(width, packed_a, b, sums, width, false) };
                        edge(sums, width, c, n, col, accumulate);
                    });
                }
            }
        }
    });
}

/// What a tile that hangs over the lower or right edge of C has there.
fn edge(sums: &[f32], width: usize, c: &mut [f32], n: usize, col: usize, accumulate: bool) {
    for (c, sums) in c.chunks_exact_mut(n).zip(sums.chunks_exact(width)) {
        for (c, sum) in c[col..].iter_mut().zip(sums) {
            *c = if accumulate { *c + sum } else { *sum };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_close, channels, product, random, same_bits_for_1_and_2_threads, shapes};
    use super::*;
    use crate::device::cuda::Precision;
    use proptest::prelude::*;
    use std::sync::Mutex;

    /// Plain loops over what `way` makes of two factors: f32, f64, and the sum of absolute products.
    fn plain(way: Products, [m, n, k]: [usize; 3], a: &[f32], b: &[f32]) -> (Vec<f32>, Vec<f64>, Vec<f64>) {
        let (mut low, mut high, mut scale) = (vec![0.0f32; m * n], vec![0.0f64; m * n], vec![0.0f64; m * n]);
        for i in 0..m {
            for l in 0..k {
                for j in 0..n {
                    let product = product(way, a[i * k + l], b[l * n + j]);
                    low[i * n + j] += product as f32;
                    high[i * n + j] += product;
                    scale[i * n + j] += product.abs();
                }
            }
        }
        (low, high, scale)
    }

    fn transposed(x: &[f32], rows: usize, cols: usize) -> Vec<f32> {
        (0..rows * cols).map(|i| x[i % rows * cols + i / rows]).collect()
    }

    /// Every way to multiply matches plain loops, and gives the same bits for operands that are stored transposed.
    fn judge([m, n, k]: [usize; 3]) {
        let (a, b) = (random(m * k, 1), random(k * n, 2));
        let (at, bt) = (transposed(&a, m, k), transposed(&b, k, n));
        for way in Products::all() {
            let (low, high, scale) = plain(way, [m, n, k], &a, &b);
            let run = |a: Matrix, b: Matrix| {
                let mut c = vec![f32::NAN; m * n];
                gemm_at(way, [m, n, k], &a, &b, &mut c, no_epilogue);
                c
            };
            let what = format!("{m}x{n}x{k} {way:?}");
            let (am, bm) = (Matrix::new(&a, m, k), Matrix::new(&b, k, n));
            let c = same_bits_for_1_and_2_threads(|| run(am, bm));
            assert_close(&c, &low, &high, &scale, &what);
            let from_transposed = run(Matrix::new(&at, k, m).t(), Matrix::new(&bt, n, k).t());
            assert_eq!(c, from_transposed, "{what}: strides must not change the result");
        }
    }

    #[test]
    fn every_way_and_shape_matches_plain_loops() {
        let shapes = [
            (1, 1, 1),
            (2, 3, 0),
            (0, 3, 2),
            (3, 0, 2),
            (16, 216, 54),
            (333, 2, 217),
            (97, 1, 31),
            (5, 49, 1),
            (101, 433, 7),
            (13, 47, 600),
            (300, 65, 257),
            (8, 48, 256),
            (200, 131, 111),
        ];
        for (m, n, k) in shapes {
            judge([m, n, k]);
        }
    }

    proptest! {
        #![proptest_config(shapes(24))]
        #[test]
        fn any_shape_matches_plain_loops(m in channels(), n in channels(), k in channels(), rows in 1..5_usize) {
            prop_assume!(rows * m * n * k <= 400_000);
            judge([rows * m, n, k]);
        }
    }

    #[test]
    fn long_sums_are_packed_in_stretches() {
        // 18000 x 240 factors of B exceed the packed buffer, even as bf16.
        let (m, n, k) = (5, 240, 18000);
        let (a, b) = (random(m * k, 5), random(k * n, 6));
        for way in Products::all() {
            let (low, high, scale) = plain(way, [m, n, k], &a, &b);
            let c = same_bits_for_1_and_2_threads(|| {
                let calls = Mutex::new(0);
                let mut c = vec![f32::NAN; m * n];
                gemm_at(way, [m, n, k], &Matrix::new(&a, m, k), &Matrix::new(&b, k, n), &mut c, |_, _| {
                    *calls.lock().unwrap() += 1;
                });
                assert_eq!(calls.into_inner().unwrap(), m.div_ceil(row_block(m, n)));
                c
            });
            assert_close(&c, &low, &high, &scale, &format!("{way:?}"));
        }
    }

    #[test]
    fn a_matrix_within_a_larger_one() {
        let data = random(40 * 30, 9);
        let (m, n, k) = (9, 11, 6);
        // Every second column of rows 3.., and a block of columns.
        let (a, b) = (Matrix::strided(&data[90..], m, k, 30, 2), Matrix::strided(&data[7..], k, n, 60, 1));
        let dense_a: Vec<f32> = (0..m * k).map(|i| data[90 + i / k * 30 + i % k * 2]).collect();
        let dense_b: Vec<f32> = (0..k * n).map(|i| data[7 + i / n * 60 + i % n]).collect();
        for way in Products::all() {
            let (low, high, scale) = plain(way, [m, n, k], &dense_a, &dense_b);
            let mut c = vec![f32::NAN; m * n];
            gemm_at(way, [m, n, k], &a, &b, &mut c, no_epilogue);
            assert_close(&c, &low, &high, &scale, &format!("{way:?}"));
        }
    }

    #[test]
    fn the_epilogue_sees_every_finished_row_once() {
        for (m, n, k) in [(1000, 33, 65), (10, 5, 3), (7, 4, 0), (40, 3000, 20)] {
            let (a, b) = (random(m * k, 1), random(k * n, 2));
            let (am, bm) = (Matrix::new(&a, m, k), Matrix::new(&b, k, n));
            let mut want = vec![f32::NAN; m * n];
            gemm(m, n, k, &am, &bm, &mut want, no_epilogue);
            let seen = Mutex::new(vec![0; m]);
            let mut c = vec![f32::NAN; m * n];
            gemm(m, n, k, &am, &bm, &mut c, |first, rows| {
                assert!(first.is_multiple_of(row_block(m, n)) && rows.len().is_multiple_of(n));
                assert_eq!(rows, &want[first * n..first * n + rows.len()]);
                for row in first..first + rows.len() / n {
                    seen.lock().unwrap()[row] += 1;
                }
                rows.iter_mut().for_each(|v| *v += 1.0);
            });
            assert!(seen.into_inner().unwrap().iter().all(|&s| s == 1));
            assert!(c.iter().zip(&want).all(|(&c, &w)| c == w + 1.0));
        }
    }

    #[test]
    fn a_nan_in_an_operand_reaches_its_row_and_column_only() {
        let (m, n, k) = (20, 50, 30);
        let (mut a, b) = (random(m * k, 1), random(k * n, 2));
        a[7 * k + 3] = f32::NAN;
        for way in Products::all() {
            let mut c = vec![0.0; m * n];
            gemm_at(way, [m, n, k], &Matrix::new(&a, m, k), &Matrix::new(&b, k, n), &mut c, no_epilogue);
            assert!(c.chunks(n).enumerate().all(|(i, row)| row.iter().all(|v| v.is_nan() == (i == 7))));
        }
    }

    #[test]
    fn factors_in_two_terms_are_good_to_sixteen_bits() {
        let (m, n, k) = (40, 33, 700);
        let (a, b) = (random(m * k, 1), random(k * n, 2));
        let (_, truth, scale) = plain(simd().into(), [m, n, k], &a, &b);
        for way in Products::available(Precision::Tf32).into_iter().filter(|way| way.terms() == 2) {
            let mut c = vec![f32::NAN; m * n];
            gemm_at(way, [m, n, k], &Matrix::new(&a, m, k), &Matrix::new(&b, k, n), &mut c, no_epilogue);
            let error = |i: usize| f64::from(c[i]) - truth[i];
            // Each factor is off by 2^-18 of it where its first term is, and 2^-18 of the product is left out. Roundings
            // of sums are small beside that.
            let bound = 3.0 / 262_144.0 + 1e-6;
            assert!((0..m * n).all(|i| error(i).abs() <= bound * scale[i]), "{way:?}");
            let norm = |v: &dyn Fn(usize) -> f64| (0..m * n).map(|i| v(i) * v(i)).sum::<f64>().sqrt();
            let relative = norm(&error) / norm(&|i| truth[i]);
            println!("{}: relative error {relative:.2e}", way.describe());
            assert!(relative <= bound, "{way:?}: {relative:e}");
        }
    }
}
