//! The index arithmetic of `kernels/hopper/` on a model of the hardware, written from its documentation and not from the
//! kernels: the copy engine's walk, the swizzle, what a descriptor names, and in which order blocks share a product. Whole
//! products of such boxes are compared with plain sums, value by value.
//!
//! A model can be wrong where the documentation is misread; that the instructions do what is modelled here, a device shows.

use super::*;
use crate::rng::Rng;

/// `operand` of `kernels/hopper/wgmma.cuh`.
fn operand(begin: usize, leading: usize) -> u64 {
    1 << 62 | 64 << 32 | (leading as u64 >> 4) << 16 | begin as u64 >> 4
}
const NEXT_ALONG_K: u64 = 2;
const NEXT_ACROSS_K: u64 = 128;
const BOX: usize = 64 * 128;

/// The 128-byte swizzle: bits 4 to 6 of an address are exchanged by bits 7 to 9.
fn swizzled(address: usize) -> usize {
    address ^ (address >> 7 & 7) << 4
}

/// Shared memory from a multiple of 1024 on, a value for every two bytes; NaN where nothing was written.
struct Shared(Vec<f64>);

impl Shared {
    /// What a copy of `lines` rows of 64 values does.
    fn fill(&mut self, to: usize, lines: usize, value: impl Fn(usize, usize) -> f64) {
        assert_eq!(to % 1024, 0, "a box begins where the swizzle does");
        for (line, column) in (0..lines).flat_map(|l| (0..64).map(move |c| (l, c))) {
            self.0[swizzled(to + line * 128 + column * 2) / 2] = value(line, column);
        }
    }

    /// Value (i, k) of an operand: PTX ISA, canonical layouts with 128-byte swizzle; i is m or n.
    fn value(&self, descriptor: u64, across: bool, i: usize, k: usize) -> f64 {
        assert_eq!(descriptor >> 62, 1, "128-byte swizzle");
        let bits = |first: u32| (descriptor >> first & 0x3fff) as usize * 16;
        let (begin, leading, stride) = (bits(0), bits(16), bits(32));
        let address = match across {
            false => begin + i / 8 * stride + i % 8 * 128 + k * 2,
            true => begin + i / 64 * leading + i % 64 * 2 + k / 8 * stride + k % 8 * 128,
        };
        self.0[swizzled(address) / 2]
    }

    /// `sums [64, 216] += a [64, 16] b [16, 216]`.
    fn multiply(&self, sums: &mut [f64], a: u64, b: u64, across: bool) {
        for k in 0..16 {
            let line: Vec<f64> = (0..216).map(|j| self.value(b, across, j, k)).collect();
            for i in 0..64 {
                let left = self.value(a, across, i, k);
                sums[i * 216..][..216].iter_mut().zip(&line).for_each(|(s, right)| *s += left * right);
            }
        }
    }
}

/// The pixels that a copy in im2col mode reads, `None` outside of the picture: PTX ISA, "im2col mode".
fn column(walk: &Walk, [mut x, mut y, mut n]: [i32; 3], [right, down]: [i32; 2]) -> Vec<Option<[usize; 3]>> {
    let Pattern::Patches { lower, upper, pixels } = &walk.pattern else { panic!("{walk:?} has no pixels") };
    let [w, h, pictures] = [1, 2, 3].map(|i| walk.sizes[i] as i32);
    let mut read = vec![];
    for _ in 0..*pixels {
        let at = [n, y + down, x + right];
        let inside = (0..pictures).contains(&n) && (0..h).contains(&at[1]) && (0..w).contains(&at[2]);
        read.push(inside.then(|| at.map(|v| v as usize)));
        x += 1;
        if x >= w + upper[0] {
            (x, y) = (lower[0], y + 1);
        }
        if y >= h + upper[1] {
            (y, n) = (lower[1], n + 1);
        }
    }
    read
}

/// `base_pixel` of `kernels/hopper/ring.cuh`.
fn base_pixel(p: usize, [height, width]: [usize; 2], lower: [i32; 2]) -> [i32; 3] {
    let (line, x) = (p / width, p % width);
    [x as i32 + lower[0], (line % height) as i32 + lower[1], (line / height) as i32]
}

impl Product {
    /// Value of `lines` rows from `row` on, 64 channels from `channel` on, as one copy of a tap brings them.
    fn rows<'a>(
        &self,
        x: &'a [f64],
        lines: usize,
        row: usize,
        channel: usize,
        tap: usize,
    ) -> impl Fn(usize, usize) -> f64 + use<'a> {
        let [m, _, k, _] = self.shape;
        let read: Vec<Option<usize>> = match &self.rows {
            Rows::Lines => (row..row + lines).map(|r| (r < m).then_some(r)).collect(),
            Rows::Patches { kernel: [down, across], written, lower, read: [h, w, _], direction, .. } => {
                let (ky, kx) = (tap / across, tap % across);
                let tap = if *direction > 0 { [kx, ky] } else { [across - 1 - kx, down - 1 - ky] };
                let first = base_pixel(if row < m { row } else { 0 }, *written, *lower);
                let pixels = column(&self.read_walk(lines), first, tap.map(|t| t as i32));
                pixels.into_iter().map(|p| p.map(|[n, y, x]| (n * h + y) * w + x)).collect()
            }
        };
        move |line, c| read[line].filter(|_| channel + c < k).map_or(0.0, |r| x[r * k + channel + c])
    }

    /// y as `kernels/hopper/forward.cuh` finds it.
    fn modelled_forward(&self, x: &[f64], w: &[f64]) -> Vec<f64> {
        let ([m, n, k, taps], [cluster, blocks]) = (self.shape, self.forward_grid());
        let (across, share, slots) = (n.div_ceil(216), 192 / cluster, k.div_ceil(64));
        assert!(blocks % cluster == 0 && (cluster == 1 || across % cluster == 0), "a cluster has the same rows");
        let mut y = vec![f64::NAN; m * n];
        for block in 0..blocks {
            let (row, first) = (block / across * 192, block % across * 216);
            let mut sums = vec![0.0; 192 * 216];
            for (tap, slot) in (0..taps).flat_map(|t| (0..slots).map(move |s| (t, s))) {
                let mut shared = Shared(vec![f64::NAN; FORWARD_SHARED / 2]);
                for rank in 0..cluster {
                    let from = row + rank * share;
                    shared.fill(rank * share * 128, share, self.rows(x, share, from, slot * 64, tap));
                }
                shared.fill(192 * 128, 216, |line, c| {
                    let (j, c) = (first + line, slot * 64 + c);
                    if j < n && c < k { w[(tap * n + j) * k + c] } else { 0.0 }
                });
                let products = if slot + 1 < slots { 4 } else { (k - slot * 64).div_ceil(16) };
                for (group, sums) in sums.chunks_exact_mut(64 * 216).enumerate() {
                    let (a, b) = (operand(group * 64 * 128, 16), operand(192 * 128, 16));
                    for i in 0..products as u64 {
                        shared.multiply(sums, a + i * NEXT_ALONG_K, b + i * NEXT_ALONG_K, false);
                    }
                }
            }
            for (i, sum) in sums.into_iter().enumerate().filter(|(i, _)| row + i / 216 < m && first + i % 216 < n) {
                y[(row + i / 216) * n + first + i % 216] = sum;
            }
        }
        y
    }

    /// dw as `kernels/hopper/weight_gradient.cuh` finds it.
    fn modelled_gradient(&self, x: &[f64], dz: &[f64], multiprocessors: usize) -> Vec<f64> {
        let ([m, n, k, taps], [cluster, blocks]) = (self.shape, self.gradient_grid(multiprocessors));
        let (across, parts, height) = (n.div_ceil(216), k.div_ceil(64), self.groups());
        let (groups, slots) = (taps * parts, m.div_ceil(64));
        assert!(cluster <= slots && blocks % cluster == 0, "every block has something to do");
        let mut dw = vec![f64::NAN; taps * k * n];
        for tile in 0..blocks / cluster {
            let (first, from) = (tile % across * 216, tile / across * height);
            let mut sums = vec![0.0; height * 64 * 216];
            for slot in (0..cluster).flat_map(|rank| slots * rank / cluster..slots * (rank + 1) / cluster) {
                let mut shared = Shared(vec![f64::NAN; gradient_shared(height) / 2]);
                for g in 0..height {
                    let group = (from + g).min(groups - 1);
                    let rows = self.rows(x, 64, slot * 64, group % parts * 64, group / parts);
                    shared.fill(g * BOX, 64, rows);
                }
                for j in 0..4 {
                    shared.fill((height + j) * BOX, 64, |line, c| {
                        let (p, c) = (slot * 64 + line, first + 64 * j + c);
                        if p < m && c < n { dz[p * n + c] } else { 0.0 }
                    });
                }
                for (g, sums) in sums.chunks_exact_mut(64 * 216).enumerate() {
                    let (a, b) = (operand(g * BOX, BOX), operand(height * BOX, BOX));
                    for i in 0..4 {
                        shared.multiply(sums, a + i * NEXT_ACROSS_K, b + i * NEXT_ACROSS_K, true);
                    }
                }
            }
            for (i, sum) in sums.into_iter().enumerate() {
                let (group, c) = (from + i / 216 / 64, first + i % 216);
                let channel = group % parts * 64 + i / 216 % 64;
                if group < groups && channel < k && c < n {
                    dw[(group / parts * k + channel) * n + c] = sum;
                }
            }
        }
        dw
    }
}

/// Multiples of 1/64 below 1: their products sum up exactly in any order.
fn draw(rng: &mut Rng, len: usize) -> Vec<f64> {
    (0..len).map(|_| f64::from((rng.uniform_in(-1.0, 1.0) * 64.0).round()) / 64.0).collect()
}

fn geometry(n: usize, [h, w]: [usize; 2], [ci, co]: [usize; 2], [kh, kw]: [usize; 2], pad: [usize; 4]) -> ConvGeometry {
    ConvGeometry { n, h, w, ci, co, kh, kw, stride: 1, pad }
}

/// Kernels of all kinds, paddings that differ from side to side, one larger than the kernel.
fn geometries() -> Vec<ConvGeometry> {
    vec![
        geometry(2, [9, 11], [8, 16], [3, 3], [1, 1, 1, 1]),
        geometry(3, [7, 8], [24, 8], [3, 3], [0, 0, 0, 0]),
        geometry(1, [12, 6], [8, 8], [5, 3], [2, 1, 0, 2]),
        geometry(2, [5, 5], [8, 8], [2, 4], [0, 1, 3, 1]),
        geometry(5, [4, 3], [8, 8], [1, 1], [0, 0, 0, 0]),
        geometry(1, [3, 3], [8, 8], [2, 2], [3, 2, 2, 3]),
        geometry(1, [1, 1], [8, 8], [3, 3], [1, 1, 1, 1]),
    ]
}

/// `f(position written, tap, position read)` for all three that belong together, by the definition of `conv_patches.cuh`.
fn for_each_patch(g: &ConvGeometry, forward: bool, mut f: impl FnMut(usize, usize, usize)) {
    let (oh, ow) = (g.out_h(), g.out_w());
    for (o, tap) in (0..g.n * oh * ow).flat_map(|o| (0..g.kh * g.kw).map(move |t| (o, t))) {
        let (n, oy, ox) = (o / (oh * ow), o / ow % oh, o % ow);
        let (y, x) = ((oy + tap / g.kw).wrapping_sub(g.pad[0]), (ox + tap % g.kw).wrapping_sub(g.pad[2]));
        if y < g.h && x < g.w {
            let i = (n * g.h + y) * g.w + x;
            if forward { f(o, tap, i) } else { f(i, tap, o) }
        }
    }
}

/// Every row that a copy brings, for every tap, from every place where one begins.
#[test]
fn columns_of_pixels_are_the_patches() {
    for (g, forward) in geometries().iter().flat_map(|g| [(g, true), (g, false)]) {
        let product = Product::patches(g, forward).unwrap();
        let Rows::Patches { read: [h, w, k], .. } = product.rows else { panic!("these are patches") };
        let [m, _, _, taps] = product.shape;
        let mut truth = vec![None; m * taps];
        for_each_patch(g, forward, |to, tap, from| truth[to * taps + tap] = Some(from));
        // The number of a pixel, from 1 on, in its first channel.
        let numbers: Vec<f64> =
            (0..g.n * h * w * k).map(|i| if i % k == 0 { (i / k + 1) as f64 } else { 0.0 }).collect();
        for lines in [192, 96, 64] {
            for (first, tap) in (0..m).step_by(lines).flat_map(|r| (0..taps).map(move |t| (r, t))) {
                let rows = product.rows(&numbers, lines, first, 0, tap);
                for line in 0..lines {
                    let expected =
                        truth.get((first + line) * taps + tap).copied().flatten().map_or(0.0, |i| (i + 1) as f64);
                    assert_eq!(rows(line, 0), expected, "{g:?}, forward {forward}: row {first} + {line}, tap {tap}");
                }
            }
        }
    }
}

#[test]
fn products_of_boxes_are_convolutions() {
    let rng = &mut Rng::new(11, 0);
    let small = geometries().into_iter().take(3);
    for (g, forward) in small.flat_map(|g| [(g, true), (g, false)]) {
        let product = Product::patches(&g, forward).unwrap();
        let [m, n, k, taps] = product.shape;
        let pixels = if forward { g.n * g.h * g.w } else { g.n * g.out_h() * g.out_w() };
        let (x, w, dz) = (draw(rng, pixels * k), draw(rng, taps * n * k), draw(rng, m * n));
        let (mut y, mut dw) = (vec![0.0; m * n], vec![0.0; taps * k * n]);
        for_each_patch(&g, forward, |to, tap, from| {
            for (i, j) in (0..k).flat_map(|i| (0..n).map(move |j| (i, j))) {
                y[to * n + j] += x[from * k + i] * w[(tap * n + j) * k + i];
                dw[(tap * k + i) * n + j] += x[from * k + i] * dz[to * n + j];
            }
        });
        assert!(product.modelled_forward(&x, &w) == y, "{g:?}, forward {forward}");
        if forward {
            assert!(product.modelled_gradient(&x, &dz, 132) == dw, "{g:?}");
        }
    }
}

/// The kernels assert the same number.
#[test]
fn descriptors_are_those_of_the_kernels() {
    assert_eq!(operand(1024, 8192), 0x4000_0040_0200_0040);
}

/// More than a tile, ends of all kinds, clusters of every size.
#[test]
fn products_of_boxes_are_products() {
    let rng = &mut Rng::new(12, 0);
    for ([m, n, k], cluster) in [([200, 432, 72], 2), ([65, 224, 136], 1), ([130, 8, 8], 1)] {
        let product = Product::lines([m, n, k]).unwrap();
        assert_eq!(product.forward_grid()[0], cluster);
        let (x, w, dz) = (draw(rng, m * k), draw(rng, n * k), draw(rng, m * n));
        let (mut y, mut dw) = (vec![0.0; m * n], vec![0.0; k * n]);
        for (p, j) in (0..m).flat_map(|p| (0..n).map(move |j| (p, j))) {
            for i in 0..k {
                y[p * n + j] += x[p * k + i] * w[j * k + i];
                dw[i * n + j] += x[p * k + i] * dz[p * n + j];
            }
        }
        assert!(product.modelled_forward(&x, &w) == y, "{m} x {n} x {k}");
        for multiprocessors in [1, 8, 132] {
            assert!(product.modelled_gradient(&x, &dz, multiprocessors) == dw, "{m} x {n} x {k}, {multiprocessors}");
        }
    }
}

/// Thread t of a warpgroup and register r hold what PTX ISA says, and `lay_down` puts them there: every value once.
#[test]
fn registers_are_laid_down_once_each() {
    let mut seen = vec![0; 192 * 216];
    for (thread, j) in (0..384).flat_map(|t| (0..27).map(move |j| (t, j))) {
        let (lane, row) = (thread % 32, thread / 32 * 16 + thread % 32 / 4);
        for (r, c) in [(0, 0), (0, 1), (8, 0), (8, 1)] {
            seen[(row + r) * 216 + 8 * j + lane % 4 * 2 + c] += 1;
        }
    }
    assert!(seen.iter().all(|&n| n == 1));
}

/// The shapes of the networks on 132 multiprocessors, as `kernels/LOG.md` has them.
#[test]
fn the_networks_fill_the_device() {
    let conv = |n| Product::patches(&geometry(n, [28, 28], [432, 432], [3, 3], [1; 4]), true).unwrap();
    assert_eq!((conv(16).forward_grid(), conv(64).forward_grid()), ([2, 132], [2, 524]));
    assert_eq!((conv(16).gradient_grid(132), conv(64).gradient_grid(132)), ([3, 126], [3, 126]));
    let lines = |n, k| Product::lines([12544, n, k]).unwrap();
    assert_eq!((lines(864, 432).forward_grid(), lines(432, 864).forward_grid()), ([2, 264], [2, 132]));
    assert_eq!((lines(864, 432).gradient_grid(132), lines(432, 864).gradient_grid(132)), ([8, 128], [8, 112]));
    assert!([FORWARD_SHARED, gradient_shared(3), gradient_shared(2)].iter().all(|&bytes| bytes <= 232_448));
}

#[test]
fn what_they_cannot_do_is_left_to_others() {
    let good = geometry(2, [9, 11], [8, 16], [3, 3], [1; 4]);
    assert!(Product::patches(&good, true).is_some());
    for bad in [
        ConvGeometry { stride: 2, ..good },
        ConvGeometry { ci: 3, ..good },
        ConvGeometry { co: 12, ..good },
        ConvGeometry { n: 0, ..good },
        ConvGeometry { kh: 12, kw: 129, pad: [0, 8, 129, 129], ..good },
        ConvGeometry { pad: [1, 1, 131, 1], ..good },
    ] {
        assert!(Product::patches(&bad, true).is_none(), "{bad:?}");
        assert!(Product::patches(&bad, false).is_none(), "{bad:?}");
    }
    assert!(Product::lines([7, 8, 8]).is_some());
    for bad in [[7, 9, 8], [7, 8, 4], [0, 8, 8], [1 << 28, 8, 16]] {
        assert!(Product::lines(bad).is_none(), "{bad:?}");
    }
}
