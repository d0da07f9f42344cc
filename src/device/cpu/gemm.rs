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

use super::microkernel::{MAX_MR, MAX_NR, Tile};
pub use super::pack::Matrix;
use super::pack::{MAX_DEPTH, PackA, PackB};
use super::rows::{chunks, with_scratch};
use super::simd::{Simd, simd};

/// Floats of packed B that are used before more are packed: 8 MiB.
const PACKED_B: usize = 2 << 20;

/// Products below this many multiplications run on the calling thread: about 30 microseconds of work.
const SERIAL: usize = 1 << 20;

/// Rows of one block of C, which is what the epilogue gets at a time: a function of the shape alone.
pub fn row_block(m: usize, n: usize) -> usize {
    // Enough blocks to share out evenly, few enough that B is not streamed too often, and C within L2.
    let shared = m.div_ceil(16).next_multiple_of(MAX_MR);
    let cached = ((128 << 10) / n.max(1)).max(1).next_multiple_of(MAX_MR);
    shared.min(cached).clamp(MAX_MR, 192)
}

/// For a product whose rows need no more work.
pub fn no_epilogue(_first_row: usize, _rows: &mut [f32]) {}

/// `c = a · b` with `a: [m, k]`, `b: [k, n]` and `c: [m, n]` row-major; what `c` held is overwritten.
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
    gemm_at(simd(), [m, n, k], a, b, c, epilogue);
}

/// [`gemm`] at a given SIMD level.
pub(super) fn gemm_at(
    level: Simd,
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
    let tile = Tile::of(level);
    let n_packed = n.next_multiple_of(tile.lanes);
    let kc = k.div_ceil(k.div_ceil(MAX_DEPTH));
    let stretch = (PACKED_B / (n_packed * kc)).max(1) * kc;
    for start in (0..k).step_by(stretch) {
        let end = k.min(start + stretch);
        with_scratch((end - start) * n_packed, |packed_b| {
            chunks(parallel, packed_b, kc * n_packed, |i, block| {
                let k0 = start + i * kc;
                let depth = block.len() / n_packed;
                chunks(parallel, block, depth * tile.nr, |j, panel| {
                    let cols = j * tile.nr..n.min((j + 1) * tile.nr);
                    b.pack_b(k0..k0 + depth, cols, panel.len() / depth, panel);
                });
            });
            let packed_b = &*packed_b;
            chunks(parallel, c, rows * n, |i, c| {
                let first = i * rows;
                for (i, b) in packed_b.chunks(kc * n_packed).enumerate() {
                    let k0 = start + i * kc;
                    multiply_rows(tile, first, n, k0..k0 + b.len() / n_packed, a, b, c);
                }
                if end == k {
                    epilogue(first, c);
                }
            });
        });
    }
}

/// Adds `a[rows, ks] · b[ks, n]` to a block of rows of C (overwrites it for the first `ks`); `b` is packed.
fn multiply_rows(
    tile: Tile,
    first: usize,
    n: usize,
    ks: std::ops::Range<usize>,
    a: &impl PackA,
    b: &[f32],
    c: &mut [f32],
) {
    let (rows, depth, accumulate) = (c.len() / n, ks.len(), ks.start > 0);
    let panel = depth * tile.mr;
    with_scratch(rows.next_multiple_of(tile.mr) * depth, |packed_a| {
        for (i, panel) in packed_a.chunks_exact_mut(panel).enumerate() {
            let row = i * tile.mr;
            a.pack_a(first + row..first + rows.min(row + tile.mr), ks.clone(), tile.mr, panel);
        }
        let mut b_panels = b.chunks(depth * tile.nr).enumerate().peekable();
        while let Some((j, b)) = b_panels.next() {
            let (col, width) = (j * tile.nr, b.len() / depth);
            let next = b_panels.peek().map_or(&[][..], |(_, next)| next);
            let mut ahead = next.chunks(next.len().div_ceil(packed_a.len() / panel).max(1));
            for (i, a) in packed_a.chunks_exact(panel).enumerate() {
                // B comes from the last-level cache: each tile fetches its share of the next panel.
                prefetch(ahead.next().unwrap_or(&[]));
                let row = i * tile.mr;
                if row + tile.mr <= rows && col + width <= n {
                    tile.run(width, a, b, &mut c[row * n + col..], n, accumulate);
                } else {
                    let c = &mut c[row * n..rows.min(row + tile.mr) * n];
                    edge(tile, width, a, b, c, n, col, accumulate);
                }
            }
        }
    });
}

/// Asks for the cache lines of `data`, without waiting for them.
#[inline(always)]
pub(super) fn prefetch(data: &[f32]) {
    #[cfg(target_arch = "x86_64")]
    for line in data.chunks(16) {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        // SAFETY: a hint, about memory that is borrowed.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(line.as_ptr().cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = data;
}

/// A tile that hangs over the lower or right edge of C goes through a buffer.
#[allow(clippy::too_many_arguments)]
fn edge(tile: Tile, width: usize, a: &[f32], b: &[f32], c: &mut [f32], n: usize, col: usize, accumulate: bool) {
    let mut buffer = [0.0; MAX_MR * MAX_NR];
    tile.run(width, a, b, &mut buffer, width, false);
    for (c, sums) in c.chunks_exact_mut(n).zip(buffer.chunks_exact(width)) {
        for (c, sum) in c[col..].iter_mut().zip(sums) {
            *c = if accumulate { *c + sum } else { *sum };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_close, random, same_bits_for_1_and_2_threads};
    use super::*;
    use std::sync::Mutex;

    /// Plain loops: f32, f64, and the sum of absolute products.
    fn plain(m: usize, n: usize, k: usize, a: &[f32], b: &[f32]) -> (Vec<f32>, Vec<f64>, Vec<f64>) {
        let (mut low, mut high, mut scale) = (vec![0.0f32; m * n], vec![0.0f64; m * n], vec![0.0f64; m * n]);
        for i in 0..m {
            for l in 0..k {
                for j in 0..n {
                    let (x, y) = (a[i * k + l], b[l * n + j]);
                    low[i * n + j] += x * y;
                    high[i * n + j] += f64::from(x) * f64::from(y);
                    scale[i * n + j] += (f64::from(x) * f64::from(y)).abs();
                }
            }
        }
        (low, high, scale)
    }

    fn transposed(x: &[f32], rows: usize, cols: usize) -> Vec<f32> {
        (0..rows * cols).map(|i| x[i % rows * cols + i / rows]).collect()
    }

    #[test]
    fn every_level_and_shape_matches_plain_loops() {
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
            let (a, b) = (random(m * k, 1), random(k * n, 2));
            let (at, bt) = (transposed(&a, m, k), transposed(&b, k, n));
            let (low, high, scale) = plain(m, n, k, &a, &b);
            for level in Simd::available() {
                let run = |a: Matrix, b: Matrix| {
                    let mut c = vec![f32::NAN; m * n];
                    gemm_at(level, [m, n, k], &a, &b, &mut c, no_epilogue);
                    c
                };
                let what = format!("{m}x{n}x{k} {level:?}");
                let (am, bm) = (Matrix::new(&a, m, k), Matrix::new(&b, k, n));
                let c = same_bits_for_1_and_2_threads(|| run(am, bm));
                assert_close(&c, &low, &high, &scale, &what);
                let from_transposed = run(Matrix::new(&at, k, m).t(), Matrix::new(&bt, n, k).t());
                assert_eq!(c, from_transposed, "{what}: strides must not change the result");
            }
        }
    }

    #[test]
    fn long_sums_are_packed_in_stretches() {
        // 9000 x 240 floats of B exceed the packed buffer.
        let (m, n, k) = (20, 240, 9000);
        let (a, b) = (random(m * k, 5), random(k * n, 6));
        let (low, high, scale) = plain(m, n, k, &a, &b);
        for level in Simd::available() {
            let c = same_bits_for_1_and_2_threads(|| {
                let calls = Mutex::new(0);
                let mut c = vec![f32::NAN; m * n];
                gemm_at(level, [m, n, k], &Matrix::new(&a, m, k), &Matrix::new(&b, k, n), &mut c, |_, _| {
                    *calls.lock().unwrap() += 1;
                });
                assert_eq!(calls.into_inner().unwrap(), m.div_ceil(row_block(m, n)));
                c
            });
            assert_close(&c, &low, &high, &scale, &format!("{level:?}"));
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
        let (low, high, scale) = plain(m, n, k, &dense_a, &dense_b);
        for level in Simd::available() {
            let mut c = vec![f32::NAN; m * n];
            gemm_at(level, [m, n, k], &a, &b, &mut c, no_epilogue);
            assert_close(&c, &low, &high, &scale, &format!("{level:?}"));
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
        for level in Simd::available() {
            let mut c = vec![0.0; m * n];
            gemm_at(level, [m, n, k], &Matrix::new(&a, m, k), &Matrix::new(&b, k, n), &mut c, no_epilogue);
            assert!(c.chunks(n).enumerate().all(|(i, row)| row.iter().all(|v| v.is_nan() == (i == 7))));
        }
    }
}
