//! How matrix products are cut into tiles, and long sums into slabs: the host's half of `kernels/gemm_tilings.cuh`.
//!
//! Of the tilings whose memory a device has, the one is taken that should need the fewest clocks. They are counted:
//!
//! ```text
//! clocks of a tile   for each k, the larger of  rows * columns / rate      products of bf16 that tensor cores do in a clock
//!                                          and  bytes / 128                of shared memory: both operands written once,
//!                                                                          and read by every warp that needs them
//! clocks             ceil(tiles / multiprocessors) times that: the multiprocessor that has the most decides
//! slabs              for each, 8 bytes of every value of a tile: written, and read to be added, at 13 bytes a clock
//! ```
//! The rate is 1024 a clock, 512 on 8.6 and 8.9; f32 does three products for one. It says which tiling suits a shape and a
//! device, not how long it takes. Bytes a clock: 2 TB/s of 108 multiprocessors at 1.41 GHz, 3 TB/s of 132 at 1.7 GHz.

use super::driver::Facts;
use super::{Gpu, Grid, Precision, SliceMut, launch};
use crate::error::Result;

/// Tiles, and whether 16 bytes of an operand are copied at once. Numbered as in `kernels/gemm_tilings.cuh`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tiling {
    /// As [`Self::Small`], values copied one by one.
    OneByOne,
    Small,
    Large,
    Wide,
    Flat,
}

/// Which operand is made from two arrays: room for the second lies beside it, see `more_values` in `kernels/gemm.cuh`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Two {
    /// None.
    Neither,
    /// The first, whose lines run along k.
    Rows,
    /// The second, of two whose lines run across k.
    Columns,
}

/// Slots of the ring, and bytes of a line of k in it.
const STAGES: usize = 4;
const LINE: usize = 64;
/// Bytes of a slab's value, written and read, by bytes of a clock.
const SLAB: f64 = 8.0 / 13.0;
/// Fewest positions of a slab.
const LEAST: usize = 256;

impl Tiling {
    /// Those with 16 bytes at once that a device can run; of equals the first is taken.
    fn at_once(device: &Facts, precision: Precision, two: Two) -> impl Iterator<Item = Self> {
        let all = [Tiling::Large, Tiling::Wide, Tiling::Flat, Tiling::Small];
        // The kernels of f32 have but the last two.
        all.into_iter()
            .skip(if precision == Precision::F32 { 2 } else { 0 })
            .filter(move |tiling| tiling.fits(device, two))
    }

    /// For `c [m, n]`. `lines`: lengths of the lines of both operands; 16 bytes of them are copied at once if all lines begin
    /// at a multiple of 16 bytes.
    pub fn new(gpu: &Gpu, lines: &[usize], size: [usize; 2], two: Two) -> Self {
        Self::chosen(gpu.facts(), gpu.precision(), lines, size, two)
    }

    fn chosen(device: &Facts, precision: Precision, lines: &[usize], size: [usize; 2], two: Two) -> Self {
        if !begin_together(precision, lines) {
            return Tiling::OneByOne;
        }
        let clocks = |tiling: Tiling| {
            tiling.tiles(size).div_ceil(device.multiprocessors) as f64 * tiling.clocks(device, precision)
        };
        fewest(Self::at_once(device, precision, two).map(|t| (clocks(t), t)))
    }

    /// For a sum over many positions, also cut into slabs.
    fn chosen_with_slabs(
        device: &Facts,
        precision: Precision,
        lines: &[usize],
        size: [usize; 2],
        positions: usize,
        two: Two,
    ) -> (Self, Slabs) {
        if !begin_together(precision, lines) {
            return (Tiling::OneByOne, Slabs::of(device, positions, Tiling::OneByOne.tiles(size), LEAST));
        }
        let multiprocessors = device.multiprocessors;
        let counted = Self::at_once(device, precision, two).flat_map(|tiling| {
            let (tiles, [rows, columns]) = (tiling.tiles(size).max(1), tiling.size());
            // From about two blocks for each multiprocessor on: one has nobody to go on while it waits.
            let most = positions.div_ceil(LEAST).max(1);
            let first = (4 * multiprocessors / tiles).div_ceil(2).clamp(1, most);
            (first..=most).map(move |count| {
                let slabs = Slabs::cut(positions, count, LEAST);
                let each = slabs.size as f64 * tiling.clocks(device, precision) + (rows * columns) as f64 * SLAB;
                ((tiles * slabs.count).div_ceil(multiprocessors) as f64 * each, (tiling, slabs))
            })
        });
        fewest(counted)
    }

    /// Rows and columns of a tile.
    fn size(self) -> [usize; 2] {
        match self {
            Tiling::OneByOne | Tiling::Small => [64, 56],
            Tiling::Large => [128, 112],
            Tiling::Wide => [96, 144],
            Tiling::Flat => [64, 144],
        }
    }

    /// Rows of a tile.
    pub fn rows(self) -> usize {
        self.size()[0]
    }

    fn tiles(self, [m, n]: [usize; 2]) -> usize {
        let [rows, columns] = self.size();
        m.div_ceil(rows) * n.div_ceil(columns)
    }

    /// Clocks of a multiprocessor for one k of a tile; see the head of this file.
    fn clocks(self, device: &Facts, precision: Precision) -> f64 {
        let [rows, columns] = self.size();
        // Warps down and across.
        let warps = if self.rows() == 64 && columns == 56 { [4, 1] } else { [2, 2] };
        let rate = if matches!(device.architecture, [8, 6] | [8, 9]) { 512.0 } else { 1024.0 };
        // TF32 has half the rate, and twice the bytes: the same of both in clocks of bf16.
        let products = if precision == Precision::F32 { 3.0 } else { 1.0 };
        let values = rows + columns + rows * warps[1] + columns * warps[0];
        ((rows * columns) as f64 * products / rate).max((values * 2) as f64 / 128.0)
    }

    /// Bytes of dynamic shared memory: `SHARED_BYTES` of `kernels/gemm.cuh`, and room for a second array.
    fn shared(self, two: Two) -> usize {
        let [rows, columns] = self.size();
        let padded = |width: usize| width + (24 - width % 16) % 16;
        let more = match (self, two) {
            (Tiling::OneByOne, _) | (_, Two::Neither) => 0,
            (_, Two::Rows) => rows * LINE,
            (_, Two::Columns) => columns * LINE,
        };
        STAGES * (rows * (LINE + 16) + padded(columns) * LINE + more)
    }

    /// Whether a block may have as much shared memory. Source: CUDA programming guide, "Compute Capabilities".
    fn fits(self, device: &Facts, two: Two) -> bool {
        let most = match device.architecture {
            [8, 0] | [8, 7] => 163,
            [9, _] | [10, _] | [11, _] => 227,
            _ => 99,
        };
        self.shared(two) <= most << 10
    }

    /// One block for each tile and slab.
    pub fn grid(self, size: [usize; 2], slabs: usize, two: Two) -> Grid {
        Grid::blocks2(self.tiles(size), slabs).shared(self.shared(two))
    }
}

/// `total [m, n]`, a product whose sum runs over many positions: cut into slabs too, which are added in order. `fill(grid,
/// partial, positions of a slab, tiling)` launches the kernel, one block for each tile and slab.
///
/// # Errors
/// [`crate::Error::Device`] when the device refuses.
pub(crate) fn sum_in_slabs(
    gpu: &Gpu,
    lines: &[usize],
    size: [usize; 2],
    positions: usize,
    two: Two,
    total: &mut SliceMut<f32>,
    fill: impl FnOnce(Grid, &mut SliceMut<f32>, usize, usize) -> Result<()>,
) -> Result<()> {
    let (tiling, slabs) = Tiling::chosen_with_slabs(gpu.facts(), gpu.precision(), lines, size, positions, two);
    let grid = tiling.grid(size, slabs.count, two);
    slabs.sum(gpu, size[0] * size[1], total, |partial, slab| fill(grid, partial, slab, tiling as usize))
}

/// Whether 16 bytes of lines of these lengths can be copied at once.
fn begin_together(precision: Precision, lines: &[usize]) -> bool {
    let together = if precision == Precision::Bf16 { 8 } else { 4 };
    lines.iter().all(|line| line % together == 0)
}

/// The first of those with the fewest clocks.
fn fewest<T>(counted: impl Iterator<Item = (f64, T)>) -> T {
    let best = counted.reduce(|best, next| if next.0 < best.0 { next } else { best });
    best.expect("small tiles fit every device").1
}

/// A sum over positions in parts: every slab is summed by itself, then the slabs are added in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Slabs {
    pub count: usize,
    /// Positions of a slab.
    size: usize,
}

impl Slabs {
    /// As many slabs of `blocks` blocks as give every multiprocessor up to two, but none of less than `least` positions.
    pub fn new(gpu: &Gpu, positions: usize, blocks: usize, least: usize) -> Self {
        Self::of(gpu.facts(), positions, blocks, least)
    }

    fn of(device: &Facts, positions: usize, blocks: usize, least: usize) -> Self {
        Self::cut(positions, (2 * device.multiprocessors / blocks.max(1)).max(1), least)
    }

    /// About so many.
    fn cut(positions: usize, wanted: usize, least: usize) -> Self {
        let size = positions.div_ceil(wanted).max(least).next_multiple_of(32);
        Slabs { count: positions.div_ceil(size), size }
    }

    /// `total = Σ partial[slab]`, which `fill(partial, positions of a slab)` computes.
    ///
    /// # Errors
    /// [`crate::Error::Device`] when the device refuses.
    pub fn sum(
        &self,
        gpu: &Gpu,
        n: usize,
        total: &mut SliceMut<f32>,
        fill: impl FnOnce(&mut SliceMut<f32>, usize) -> Result<()>,
    ) -> Result<()> {
        let mut partial = gpu.scratch(self.count * n)?;
        fill(&mut partial.slice_mut(), self.size)?;
        launch::pointwise_conv_add_slabs(gpu, Grid::blocks(n.div_ceil(32)), partial.slice(), total, self.count, n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(architecture: [usize; 2], multiprocessors: usize) -> Facts {
        Facts { name: "some device".into(), architecture, multiprocessors, memory: 0, driver: [13, 0] }
    }

    fn product(device: &Facts, m: usize, n: usize) -> Tiling {
        Tiling::chosen(device, Precision::Bf16, &[432], [m, n], Two::Neither)
    }

    /// The products of the networks, as `kernels/LOG.md` has them.
    #[test]
    fn the_networks_get_the_tiles_that_were_counted() {
        use Tiling::{Flat, Large, Small, Wide};
        let [h100, a100] = [device([9, 0], 132), device([8, 0], 108)];
        let [ada, ampere] = [device([8, 9], 128), device([8, 6], 84)];
        for (m, n, expected) in [
            (12544, 432, [Wide, Wide, Flat, Flat]),
            (12544, 864, [Wide, Flat, Small, Flat]),
            (12544, 216, [Wide, Large, Small, Small]),
            (50176, 432, [Wide, Wide, Flat, Flat]),
            (25088, 152, [Large, Large, Small, Small]),
            (784, 432, [Small, Small, Small, Small]),
        ] {
            let chosen = [&h100, &a100, &ada, &ampere].map(|d| product(d, m, n));
            assert_eq!(chosen, expected, "{m} x {n}");
        }
    }

    /// The sizes of `tests/fused.rs` on the emulated device.
    #[test]
    fn larger_tiles_are_judged_where_they_are_emulated() {
        let emulated = device([8, 0], 4);
        for (m, columns, expected) in
            [(500, [112, 104], Tiling::Large), (360, [144, 136], Tiling::Wide), (240, [144, 136], Tiling::Flat)]
        {
            for (precision, n, two) in Precision::ALL
                .into_iter()
                .flat_map(|p| columns.map(|n| (p, n)))
                .flat_map(|(p, n)| [Two::Neither, Two::Rows].map(|two| (p, n, two)))
            {
                let chosen = Tiling::chosen(&emulated, precision, &[n], [m, n], two);
                let f32_too = [Tiling::Flat, Tiling::Small].contains(&chosen) && precision == Precision::F32;
                assert!(chosen == expected || f32_too, "{precision:?}, {m} x {n}: {chosen:?}");
            }
        }
    }

    #[test]
    fn slabs_keep_every_multiprocessor_busy() {
        for ([rows, columns], sms, least) in
            [([3888, 432], 132, 0.82), ([3888, 432], 108, 0.74), ([432, 864], 132, 0.60), ([864, 432], 108, 0.70)]
        {
            let device = device(if sms == 132 { [9, 0] } else { [8, 0] }, sms);
            let (precision, lines) = (Precision::Bf16, [rows, columns]);
            let (tiling, slabs) = Tiling::chosen_with_slabs(&device, precision, &lines, lines, 12544, Two::Neither);
            let busiest = (tiling.tiles(lines) * slabs.count).div_ceil(sms) as f64;
            let [height, width] = tiling.size();
            let each = slabs.size as f64 * tiling.clocks(&device, precision) + (height * width) as f64 * SLAB;
            let share = (rows * columns * 12544) as f64 / 1024.0 / sms as f64 / (busiest * each);
            assert!(share >= least, "{rows} x {columns} on {sms}: {share:.3} by {tiling:?}, {slabs:?}");
            assert!(slabs.count * slabs.size >= 12544 && (slabs.count - 1) * slabs.size < 12544);
        }
    }

    /// RTX 30 and RTX 40 give a block 99 KiB.
    #[test]
    fn no_block_asks_for_more_memory_than_there_is() {
        for (architecture, most) in [([8, 0], 163), ([8, 6], 99), ([8, 9], 99), ([9, 0], 227), ([12, 0], 99)] {
            for (two, sms) in [Two::Neither, Two::Rows, Two::Columns].into_iter().flat_map(|t| [(t, 1), (t, 84)]) {
                let device = device(architecture, sms);
                let precision = Precision::Bf16;
                let plain = Tiling::chosen(&device, precision, &[432], [12544, 864], two);
                let (cut, _) = Tiling::chosen_with_slabs(&device, precision, &[432, 864], [432, 864], 12544, two);
                assert!(plain.shared(two) <= most << 10 && cut.shared(two) <= most << 10, "{architecture:?}, {two:?}");
            }
        }
        assert_eq!(Tiling::Large.shared(Two::Neither), 71_680);
        assert_eq!(Tiling::Large.shared(Two::Rows), 104_448);
    }

    #[test]
    fn lines_that_do_not_begin_at_sixteen_bytes_are_copied_one_by_one() {
        let device = device([8, 0], 4);
        let of = |precision, line| Tiling::chosen(&device, precision, &[432, line], [64, 56], Two::Rows);
        assert_eq!(of(Precision::Bf16, 12), Tiling::OneByOne);
        assert_ne!(of(Precision::F32, 12), Tiling::OneByOne);
        assert_eq!(Tiling::OneByOne.shared(Two::Rows), 34_816);
    }
}
