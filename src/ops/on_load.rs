//! What a product makes on the way: operands that are computed where they are packed, and sums over rows that are taken
//! where those are finished. Neither costs a walk over memory.
//!
//! ```text
//! Activated    h = hswish(a x + b)      what follows a BatchNorm, gate and all
//! Changed      a dz + e x + f           the gradient of a BatchNorm's input
//! ```
//! x, dz: `[N·P, C]`; a, b, e, f: tables `[T, C]` with a line for each of the N images, or for each ghost group.

use std::ops::Range;
use std::sync::Mutex;

use super::activation::Kind;
use super::normalise::{Sums, group_images, group_of, merge_moments};
use crate::device::cpu::{MAX_DEPTH, PackA, PackB, fetch_share, interleave, mul_add, row_block, simd, simd_fn};

/// Which line of a table a row of `[N·P, C]` reads.
#[derive(Clone, Copy)]
pub(super) struct Lines {
    pub images: usize,
    /// Rows of an image.
    pub positions: usize,
    /// Lines of the table: images, or ghost groups.
    pub tables: usize,
}

impl Lines {
    fn of(self, row: usize) -> usize {
        group_of(self.images, self.tables, row / self.positions)
    }

    /// The rows that read a line.
    fn rows(self, table: usize) -> Range<usize> {
        let images = group_images(self.images, self.tables, table);
        images.start * self.positions..images.end * self.positions
    }

    /// Consecutive rows cut where the line changes: line, and rows.
    fn runs(self, rows: Range<usize>) -> impl Iterator<Item = (usize, Range<usize>)> {
        let mut at = rows.start;
        std::iter::from_fn(move || {
            let table = (at < rows.end).then(|| self.of(at))?;
            let run = at..rows.end.min(self.rows(table).end);
            at = run.end;
            Some((table, run))
        })
    }
}

/// A matrix whose values are computed where they are read.
pub(super) trait Made: Sync {
    /// `dst[i * width + j]` is the value at row `rows.start + i`, column `cols.start + j`; zero where `cols` ends before
    /// `width` does.
    fn make(&self, rows: Range<usize>, cols: Range<usize>, width: usize, dst: &mut [f32]);

    /// As [`PackA::fetch`].
    fn fetch(&self, rows: Range<usize>, cols: Range<usize>, share: usize, shares: usize);
}

/// `hswish(a x + b)`.
pub(super) struct Activated<'a> {
    pub x: &'a [f32],
    pub a: &'a [f32],
    pub b: &'a [f32],
    pub lines: Lines,
}

impl Made for Activated<'_> {
    fn make(&self, rows: Range<usize>, cols: Range<usize>, width: usize, dst: &mut [f32]) {
        let (c, first) = (self.a.len() / self.lines.tables, rows.start);
        for (table, run) in self.lines.runs(rows) {
            let line = table * c + cols.start..table * c + cols.end;
            let dst = &mut dst[(run.start - first) * width..(run.end - first) * width];
            activated(
                simd(),
                &self.x[run.start * c + cols.start..],
                c,
                &self.a[line.clone()],
                &self.b[line],
                width,
                dst,
            );
        }
    }

    fn fetch(&self, rows: Range<usize>, cols: Range<usize>, share: usize, shares: usize) {
        fetch_share(self.x, self.a.len() / self.lines.tables, rows, cols, share, shares);
    }
}

/// `a dz + e x + f`.
pub(super) struct Changed<'a> {
    pub dz: &'a [f32],
    pub x: &'a [f32],
    pub a: &'a [f32],
    pub e: &'a [f32],
    pub f: &'a [f32],
    pub lines: Lines,
}

impl Made for Changed<'_> {
    fn make(&self, rows: Range<usize>, cols: Range<usize>, width: usize, dst: &mut [f32]) {
        let (c, first) = (self.a.len() / self.lines.tables, rows.start);
        for (table, run) in self.lines.runs(rows) {
            let line = table * c + cols.start..table * c + cols.end;
            let [a, e, f] = [self.a, self.e, self.f].map(|table| &table[line.clone()]);
            let dst = &mut dst[(run.start - first) * width..(run.end - first) * width];
            let at = run.start * c + cols.start;
            changed(simd(), &self.dz[at..], &self.x[at..], c, a, e, f, width, dst);
        }
    }

    fn fetch(&self, rows: Range<usize>, cols: Range<usize>, share: usize, shares: usize) {
        let c = self.a.len() / self.lines.tables;
        for values in [self.dz, self.x] {
            fetch_share(values, c, rows.clone(), cols.clone(), share, shares);
        }
    }
}

/// A made matrix as an operand of `gemm`.
pub(super) struct OnLoad<T>(pub T);

/// Its transpose, on the left.
pub(super) struct Transposed<T>(pub T);

impl<T: Made> PackA for OnLoad<T> {
    fn pack_a(&self, rows: Range<usize>, ks: Range<usize>, width: usize, dst: &mut [f32]) {
        let (count, len) = (rows.len(), ks.len());
        let mut made = [0.0; 8 * MAX_DEPTH];
        self.0.make(rows, ks, len, &mut made[..count * len]);
        interleave(count, len, |i| &made[i * len..(i + 1) * len], width, dst);
    }

    fn fetch(&self, rows: Range<usize>, ks: Range<usize>, share: usize, shares: usize) {
        self.0.fetch(rows, ks, share, shares);
    }
}

impl<T: Made> PackB for OnLoad<T> {
    fn pack_b(&self, ks: Range<usize>, cols: Range<usize>, width: usize, dst: &mut [f32]) {
        /// Rows that are asked for before those before them are made: a panel's part of a row is too short for the
        /// processor to run ahead by itself.
        const STEP: usize = 16;
        for (first, dst) in ks.clone().step_by(STEP).zip(dst.chunks_mut(STEP * width)) {
            let next = |at: usize| ks.end.min(at + STEP);
            self.0.fetch(next(first)..next(next(first)), cols.clone(), 0, 1);
            self.0.make(first..next(first), cols.clone(), width, dst);
        }
    }
}

impl<T: Made> PackA for Transposed<T> {
    fn pack_a(&self, rows: Range<usize>, ks: Range<usize>, width: usize, dst: &mut [f32]) {
        self.0.make(ks, rows, width, dst);
    }

    fn fetch(&self, rows: Range<usize>, ks: Range<usize>, share: usize, shares: usize) {
        self.0.fetch(ks, rows, share, shares);
    }
}

simd_fn! {
    /// `dst = hswish(a x + b)` on rows that are `pitch` apart in x and `width` in dst; zero beyond the columns of a.
    pub(super) fn activated<FMA>(x: &[f32], pitch: usize, a: &[f32], b: &[f32], width: usize, dst: &mut [f32]) {
        for (i, dst) in dst.chunks_exact_mut(width).enumerate() {
            let x = &x[i * pitch..][..a.len()];
            let done = activated_lanes::<FMA, 16>(0, x, a, b, dst);
            let done = activated_lanes::<FMA, 8>(done, x, a, b, dst);
            let done = activated_lanes::<FMA, 1>(done, x, a, b, dst);
            dst[done..].fill(0.0);
        }
    }

    /// `dst = a dz + e x + f`, as [`activated`].
    pub(super) fn changed<FMA>(
        dz: &[f32], x: &[f32], pitch: usize, a: &[f32], e: &[f32], f: &[f32], width: usize, dst: &mut [f32],
    ) {
        for (i, dst) in dst.chunks_exact_mut(width).enumerate() {
            let at = i * pitch..i * pitch + a.len();
            let (dz, x) = (&dz[at.clone()], &x[at]);
            let done = changed_lanes::<FMA, 16>(0, dz, x, a, e, f, dst);
            let done = changed_lanes::<FMA, 8>(done, dz, x, a, e, f, dst);
            let done = changed_lanes::<FMA, 1>(done, dz, x, a, e, f, dst);
            dst[done..].fill(0.0);
        }
    }
}

/// Columns `from..` of a row, `L` at a time; returns the first that is left.
#[inline(always)]
fn activated_lanes<const FMA: bool, const L: usize>(
    from: usize,
    x: &[f32],
    a: &[f32],
    b: &[f32],
    dst: &mut [f32],
) -> usize {
    let mut at = from;
    while at + L <= a.len() {
        let [x, a, b] = [x, a, b].map(|v| lanes::<L>(v, at));
        let dst = &mut dst[at..at + L];
        for l in 0..L {
            dst[l] = Kind::HardSwish.fast_value(mul_add::<FMA>(x[l], a[l], b[l]));
        }
        at += L;
    }
    at
}

/// As [`activated_lanes`].
#[inline(always)]
fn changed_lanes<const FMA: bool, const L: usize>(
    from: usize,
    dz: &[f32],
    x: &[f32],
    a: &[f32],
    e: &[f32],
    f: &[f32],
    dst: &mut [f32],
) -> usize {
    let mut at = from;
    while at + L <= a.len() {
        let [dz, x, a, e, f] = [dz, x, a, e, f].map(|v| lanes::<L>(v, at));
        let dst = &mut dst[at..at + L];
        for l in 0..L {
            dst[l] = mul_add::<FMA>(a[l], dz[l], mul_add::<FMA>(e[l], x[l], f[l]));
        }
        at += L;
    }
    at
}

/// `L` values from `at` on.
#[inline(always)]
pub(super) fn lanes<const L: usize>(values: &[f32], at: usize) -> &[f32; L] {
    values[at..].first_chunk().expect("within the row")
}

/// Pairs of sums over the rows of a product's result `[rows, n]`, taken in its epilogue for the images, or the groups of
/// them, that `lines` tells apart.
///
/// A block of rows and a line that has rows in it share a slot, number block + line: walking down the rows, one of the two
/// goes up with every slot. What is summed in a slot, and the order of slots, follow from the shape alone.
pub(super) struct Slots {
    lines: Lines,
    block: usize,
    rows: usize,
    sums: Sums,
}

impl Slots {
    pub fn new(lines: Lines, n: usize) -> Self {
        let rows = lines.images * lines.positions;
        let block = row_block(rows, n);
        Slots { lines, block, rows, sums: Sums::new(rows.div_ceil(block) + lines.tables, n) }
    }

    /// Lends `product` the epilogue of its blocks, which calls `sum(first row, rows, sums)` for every slot.
    pub fn fill(
        &mut self,
        sum: impl Fn(usize, &mut [f32], [&mut [f64]; 2]) + Sync,
        product: impl FnOnce(&(dyn Fn(usize, &mut [f32]) + Sync)),
    ) {
        let (lines, block) = (self.lines, self.block);
        let slots = Mutex::new(&mut self.sums);
        product(&|first, rows| {
            let n = rows.len() / block.min(self.rows - first);
            // Summed aside and put in their slot when they are done: no thread waits for more than a copy.
            let mut found = Sums::new(1, n);
            for (line, run) in lines.runs(first..first + rows.len() / n) {
                sum(run.start, &mut rows[(run.start - first) * n..(run.end - first) * n], found.part_mut(0));
                let mut slots = slots.lock().expect("no panic while the lock is held");
                let slot = slots.part_mut(first / block + line);
                slot.into_iter().zip(found.of(0)).for_each(|(slot, found)| slot.copy_from_slice(found));
            }
        });
    }

    /// Number of rows and sums of each slot of a line, in order.
    fn of(&self, line: usize) -> impl Iterator<Item = (usize, [&[f64]; 2])> {
        let rows = self.lines.rows(line);
        (rows.start / self.block..rows.end.div_ceil(self.block)).map(move |b| {
            let run = rows.start.max(b * self.block)..rows.end.min((b + 1) * self.block);
            (run.len(), self.sums.of(b + line))
        })
    }

    /// Mean and biased variance `[lines, n]` where the sums are moments.
    pub fn statistics(&self, mean: &mut [f32], var: &mut [f32]) {
        let n = mean.len() / self.lines.tables;
        for (line, (mean, var)) in mean.chunks_exact_mut(n).zip(var.chunks_exact_mut(n)).enumerate() {
            merge_moments(self.of(line), mean, var);
        }
    }

    /// The sums of each line.
    pub fn totals(&self, n: usize) -> Sums {
        let mut totals = Sums::new(self.lines.tables, n);
        for (line, total) in totals.parts_mut().enumerate() {
            let [s, t] = total;
            s.fill(0.0);
            t.fill(0.0);
            for (_, [more_s, more_t]) in self.of(line) {
                s.iter_mut().zip(more_s).for_each(|(s, more)| *s += more);
                t.iter_mut().zip(more_t).for_each(|(t, more)| *t += more);
            }
        }
        totals
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINES: Lines = Lines { images: 5, positions: 7, tables: 3 };
    /// More columns than a panel is deep.
    const C: usize = 300;

    fn values(len: usize, step: usize) -> Vec<f32> {
        (0..len).map(|i| (i * step % 1009) as f32 / 252.0 - 2.0).collect()
    }

    /// What `make` promises, value by value, for panels of every width that a product asks for.
    fn judge(made: &impl Made, at: impl Fn(usize, usize) -> f64) {
        for (rows, cols, width) in [
            (0..35, 0..256, 256),
            (3..4, 256..300, 44),
            (6..29, 40..48, 8),
            (13..35, 297..300, 4),
            (0..30, 240..288, 48),
            (1..2, 299..300, 8),
        ] {
            let mut dst = vec![f32::NAN; rows.len() * width];
            made.make(rows.clone(), cols.clone(), width, &mut dst);
            for (i, &found) in dst.iter().enumerate() {
                let (row, col) = (rows.start + i / width, cols.start + i % width);
                let want = if col < cols.end { at(row, col) } else { 0.0 };
                // A few roundings of values up to 10.
                assert!((f64::from(found) - want).abs() <= 20.0 * f64::from(f32::EPSILON), "{row}, {col}: {found}");
            }
        }
    }

    /// Images 0, 1 and 2, 3 and 4 have a line each.
    fn line(row: usize) -> usize {
        [0, 1, 1, 2, 2][row / 7]
    }

    #[test]
    fn values_are_made_with_the_line_of_their_image() {
        let (x, dz) = (values(35 * C, 31), values(35 * C, 17));
        let [a, e, f] = [7, 11, 13].map(|step| values(3 * C, step));
        let made = Changed { dz: &dz, x: &x, a: &a, e: &e, f: &f, lines: LINES };
        judge(&made, |row, col| {
            let (i, j) = (row * C + col, line(row) * C + col);
            let [dz, x, a, e, f] = [dz[i], x[i], a[j], e[j], f[j]].map(f64::from);
            a * dz + e * x + f
        });
        let made = Activated { x: &x, a: &a, b: &f, lines: LINES };
        judge(&made, |row, col| {
            let j = line(row) * C + col;
            Kind::HardSwish.value(f64::from(x[row * C + col]) * f64::from(a[j]) + f64::from(f[j]))
        });
    }

    #[test]
    fn slots_add_up_to_their_lines_whatever_the_blocks() {
        for (images, positions, tables) in [(5, 7, 3), (3, 81, 2), (1, 200, 1), (40, 1, 40), (7, 33, 7)] {
            let lines = Lines { images, positions, tables };
            let (rows, n) = (images * positions, 3);
            let block = row_block(rows, n);
            let mut data = values(rows * n, 29);
            let mut slots = Slots::new(lines, n);
            let sum = |first: usize, rows: &mut [f32], [s, t]: [&mut [f64]; 2]| {
                s.fill(0.0);
                t.fill(0.0);
                for (i, row) in rows.chunks_exact(n).enumerate() {
                    row.iter().zip(s.iter_mut()).for_each(|(&v, s)| *s += f64::from(v));
                    t.fill(t[0] + (first + i) as f64);
                }
            };
            slots.fill(sum, |epilogue| {
                data.chunks_mut(block * n).enumerate().for_each(|(i, rows)| epilogue(i * block, rows));
            });
            let totals = slots.totals(n);
            for table in 0..tables {
                let [s, t] = totals.of(table);
                let range = lines.rows(table);
                for k in 0..n {
                    let want: f64 = range.clone().map(|row| f64::from(data[row * n + k])).sum();
                    assert!((s[k] - want).abs() <= 1e-12 * rows as f64, "{images} {positions} {tables}");
                    assert_eq!(t[k], range.clone().map(|row| row as f64).sum::<f64>());
                }
            }
        }
    }
}
