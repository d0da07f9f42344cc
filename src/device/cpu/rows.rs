//! Row-wise loops over threads, and sums over columns: `sums[j] = Σ_i x[i, j]`.
//!
//! Work is cut into blocks of rows by shape alone, so that results do not depend on the number of threads.

use rayon::prelude::*;
use std::cell::Cell;
use std::ops::Range;

use crate::buffer::Doubles;

/// About how many floats one task should touch: large against the cost of a task, small against the L2 cache.
const TASK_FLOATS: usize = 32 * 1024;

/// Values of one task of an element-wise loop.
pub const CHUNK: usize = TASK_FLOATS;

/// `sum += x`, element by element.
pub fn add_assign(sum: &mut [f32], x: &[f32]) {
    sum.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).for_each(|(sum, x)| {
        sum.iter_mut().zip(x).for_each(|(s, &x)| *s += x);
    });
}

/// Column sums over `rows` rows, taken in f32 over a few rows at a time and from there in f64: overwrites `sums`, each of
/// one value a column.
///
/// `add(range of rows, sums)` adds those rows to f32 sums that start at zero.
///
/// # Panics
/// If the sums differ in length.
pub fn blocked_sums<const N: usize>(
    rows: usize,
    mut sums: [&mut [f64]; N],
    mut add: impl FnMut(Range<usize>, [&mut [f32]; N]),
) {
    const BLOCK: usize = 64;
    let width = sums[0].len();
    assert!(sums.iter().all(|s| s.len() == width), "blocked_sums: sums of different lengths");
    sums.iter_mut().for_each(|sum| sum.fill(0.0));
    if width == 0 {
        return;
    }
    with_scratch(N * width, |block| {
        for first in (0..rows).step_by(BLOCK) {
            block.fill(0.0);
            let mut blocks = block.chunks_exact_mut(width);
            add(first..(first + BLOCK).min(rows), std::array::from_fn(|_| blocks.next().expect("one for each sum")));
            for (sum, block) in sums.iter_mut().zip(block.chunks_exact(width)) {
                sum.iter_mut().zip(block).for_each(|(s, &b)| *s += f64::from(b));
            }
        }
    });
}

/// Rows of one task when each has `width` floats: at least 1.
pub fn rows_per_task(width: usize) -> usize {
    (TASK_FLOATS / width.max(1)).max(1)
}

/// Calls `f(first_row, rows)` on consecutive blocks of at least `min_rows` rows (the last may be shorter) of
/// `data: [rows, width]`, in parallel when there is more than one block.
///
/// # Panics
/// If `data` is not a whole number of rows.
pub fn par_rows(data: &mut [f32], width: usize, min_rows: usize, f: impl Fn(usize, &mut [f32]) + Sync) {
    if data.is_empty() {
        return;
    }
    assert!(width > 0 && data.len().is_multiple_of(width), "par_rows: {} floats, rows of {width}", data.len());
    let block = min_rows.max(rows_per_task(width));
    chunks(data.len() > block * width, data, block * width, |i, rows| f(i * block, rows));
}

/// Sum of every column of `x: [rows, c]`, in f64: blocks of rows are summed in parallel, then added in order.
///
/// # Panics
/// If `x` is not a whole number of rows.
pub fn column_sums(x: &[f32], c: usize) -> Doubles {
    if c == 0 || x.is_empty() {
        return Doubles::zeros(c);
    }
    assert!(x.len().is_multiple_of(c), "column_sums: {} floats, rows of {c}", x.len());
    let block = rows_per_task(c).max(64) * c;
    let sum = |(rows, sums): (&[f32], &mut [f64])| {
        sums.fill(0.0);
        for row in rows.chunks_exact(c) {
            sums.iter_mut().zip(row).for_each(|(s, &v)| *s += f64::from(v));
        }
    };
    let mut partials = Doubles::scratch(x.len().div_ceil(block) * c);
    if x.len() <= block {
        sum((x, &mut partials));
        return partials;
    }
    x.par_chunks(block).zip(partials.par_chunks_mut(c)).for_each(sum);
    let mut total = Doubles::zeros(c);
    for partial in partials.chunks_exact(c) {
        total.iter_mut().zip(partial).for_each(|(s, v)| *s += v);
    }
    total
}

/// `f(index, chunk)` on every chunk of `size` floats, over threads if `parallel`.
pub(super) fn chunks(parallel: bool, data: &mut [f32], size: usize, f: impl Fn(usize, &mut [f32]) + Sync) {
    if parallel {
        data.par_chunks_mut(size).enumerate().for_each(|(i, chunk)| f(i, chunk));
    } else {
        data.chunks_mut(size).enumerate().for_each(|(i, chunk)| f(i, chunk));
    }
}

/// `f(i, part i of each array)` for `i` in `range`, over threads. Part i begins `start(i) - start(range.start)` floats into
/// its array and ends where the next begins. Arrays are halved on the way, so nothing is listed.
pub(super) fn par_parts<const N: usize>(
    range: Range<usize>,
    mut arrays: [&mut [f32]; N],
    start: &(impl Fn(usize) -> usize + Sync),
    f: &(impl Fn(usize, [&mut [f32]; N]) + Sync),
) {
    match range.len() {
        0 => {}
        1 => f(range.start, arrays),
        len => {
            let middle = range.start + len / 2;
            let at = start(middle) - start(range.start);
            let first = arrays.each_mut().map(|array| array.split_off_mut(..at).expect("parts end within their array"));
            let halves = [(range.start..middle, first), (middle..range.end, arrays)];
            let [first, second] = halves.map(|(range, arrays)| || par_parts(range, arrays, start, f));
            rayon::join(first, second);
        }
    }
}

/// The first `N` chunks of `size` floats.
///
/// # Panics
/// If there are fewer.
pub(super) fn first_chunks<const N: usize>(data: &mut [f32], size: usize) -> [&mut [f32]; N] {
    let mut chunks = data.chunks_exact_mut(size);
    std::array::from_fn(|_| chunks.next().expect("as many chunks as are asked for"))
}

/// One cache line, so that buffers start on one.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([f32; 16]);

// SAFETY: 16 floats and nothing else: any bits are a value, and 64 bytes need no padding.
unsafe impl bytemuck::Zeroable for Line {}
// SAFETY: as above.
unsafe impl bytemuck::Pod for Line {}

thread_local! {
    /// Buffers that earlier calls on this thread gave back.
    static SPARE: Cell<Vec<Vec<Line>>> = const { Cell::new(Vec::new()) };
}

/// Lends `f` a buffer of `len` floats that starts on a cache line and holds whatever was left in it. Buffers are kept
/// for the next call: pages that the system has to clear cost as much as the packing they are used for.
pub(super) fn with_scratch<R>(len: usize, f: impl FnOnce(&mut [f32]) -> R) -> R {
    let mut spare = SPARE.take();
    let mut buffer = spare.pop().unwrap_or_default();
    SPARE.set(spare);
    let lines = len.div_ceil(16);
    if buffer.len() < lines {
        buffer.resize(lines, Line([0.0; 16]));
    }
    let result = f(&mut bytemuck::cast_slice_mut(&mut buffer)[..len]);
    let mut spare = SPARE.take();
    spare.push(buffer);
    // The largest goes first next time, so that buffers do not all grow to the largest size.
    spare.sort_by_key(Vec::len);
    SPARE.set(spare);
    result
}

#[cfg(test)]
mod tests {
    use super::super::testing::{random, same_bits_for_1_and_2_threads};
    use super::*;

    #[test]
    fn rows_are_visited_once_each() {
        for (rows, width) in [(1, 1), (1000, 433), (7, 100_000), (0, 5)] {
            let mut data = vec![f32::NAN; rows * width];
            par_rows(&mut data, width, 3, |first, block| {
                for (i, row) in block.chunks_exact_mut(width).enumerate() {
                    row.fill((first + i) as f32);
                }
            });
            assert!(data.iter().enumerate().all(|(i, &v)| v == (i / width) as f32));
        }
    }

    #[test]
    fn every_part_of_every_array_is_visited_once() {
        // Part i has i + 1 floats.
        let start = |i: usize| i * (i + 1) / 2;
        for range in [0..0, 0..1, 3..4, 0..7, 2..13] {
            let mut data = [(); 2].map(|()| vec![f32::NAN; start(range.end) - start(range.start)]);
            par_parts(range.clone(), data.each_mut().map(|array| &mut array[..]), &start, &|i, parts| {
                for (k, part) in parts.into_iter().enumerate() {
                    assert!(part.len() == i + 1 && part.iter().all(|v| v.is_nan()));
                    part.fill((2 * i + k) as f32);
                }
            });
            for (k, array) in data.iter().enumerate() {
                let expected = range.clone().flat_map(|i| vec![(2 * i + k) as f32; i + 1]);
                assert_eq!(*array, expected.collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn column_sums_are_right_and_reproducible() {
        for (rows, c) in [(1, 1), (1000, 433), (5000, 7), (3, 0), (0, 4)] {
            let x = random(rows * c, 3);
            let sums = same_bits_for_1_and_2_threads(|| column_sums(&x, c).to_vec());
            assert_eq!(sums.len(), c);
            for (j, &s) in sums.iter().enumerate() {
                let want: f64 = (0..rows).map(|i| f64::from(x[i * c + j])).sum();
                assert!((s - want).abs() <= 1e-10 * (rows as f64), "{rows}x{c}");
            }
        }
    }

    #[test]
    fn scratch_starts_on_a_cache_line_and_nests() {
        with_scratch(100, |a| {
            a.fill(1.0);
            with_scratch(1000, |b| b.fill(2.0));
            assert!(a.len() == 100 && a.iter().all(|&v| v == 1.0) && a.as_ptr().addr().is_multiple_of(64));
        });
    }
}
