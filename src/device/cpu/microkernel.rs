//! The register tile: `c[MR, NR] (+)= a[MR, k] · b[k, NR]` on packed panels.
//!
//! Each level keeps the whole tile in vector registers: 8 x 48 floats are 24 of the 32 registers of AVX-512, 4 x 16
//! are 8 of the 16 of AVX2, as many as hide the latency of a multiply-add; with 12, 3 of B and 2 of A there is one too few, and
//! a sum that goes to memory and back in each step takes twice the time. Both widths divide 432 and 864, so the layers of
//! GRAD and CRAD leave no ragged edge.

use super::simd::{Level, PORTABLE_FMA, Simd, mul_add};

/// Most rows and columns of any tile.
pub const MAX_MR: usize = 8;
/// See [`MAX_MR`].
pub const MAX_NR: usize = 48;

/// `(a, b, c, ldc, accumulate)`: panels `a: [k, MR]` and `b: [k, width]`, rows of `width` floats in `c`, `ldc` apart,
/// that are added to or overwritten. The CPU must have the instructions of the level.
type Run = unsafe fn(&[f32], &[f32], &mut [f32], usize, bool);

/// The tile of one SIMD level.
#[derive(Clone, Copy)]
pub struct Tile {
    /// Rows.
    pub mr: usize,
    /// Columns of a full tile.
    pub nr: usize,
    /// Floats of a vector: narrower tiles are a multiple of it.
    pub lanes: usize,
    /// By number of vectors in a row, less one.
    run: &'static [Run],
}

impl Tile {
    /// The tile that `simd` runs.
    pub fn of(simd: Simd) -> Self {
        match simd.level() {
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => {
                Tile { mr: 8, nr: 48, lanes: 16, run: &[x86::avx512::<1>, x86::avx512::<2>, x86::avx512::<3>] }
            }
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => Tile { mr: 4, nr: 16, lanes: 8, run: &[x86::avx2::<1>, x86::avx2::<2>] },
            _ => Tile { mr: PORTABLE_MR, nr: 8, lanes: 8, run: &[portable] },
        }
    }

    /// `c (+)= a · b` on a full tile or one of fewer vectors: `width` columns in `b` and `c`.
    #[inline]
    pub fn run(&self, width: usize, a: &[f32], b: &[f32], c: &mut [f32], ldc: usize, accumulate: bool) {
        debug_assert!(width.is_multiple_of(self.lanes) && a.len() / self.mr * width == b.len());
        let run = self.run[width / self.lanes - 1];
        // SAFETY: `of` takes this table only for a `Simd` that the CPU has; lengths are checked by the kernel itself.
        unsafe { run(a, b, c, ldc, accumulate) }
    }
}

/// 32 vector registers on aarch64 hold twice the tile that 16 do.
const PORTABLE_MR: usize = if cfg!(target_arch = "aarch64") { 8 } else { 4 };

fn portable(a: &[f32], b: &[f32], c: &mut [f32], ldc: usize, accumulate: bool) {
    const MR: usize = PORTABLE_MR;
    let mut acc = [[0.0f32; 8]; MR];
    for (a, b) in a.as_chunks::<MR>().0.iter().zip(b.as_chunks::<8>().0) {
        for (acc, &a) in acc.iter_mut().zip(a) {
            for (acc, &b) in acc.iter_mut().zip(b) {
                *acc = mul_add::<PORTABLE_FMA>(a, b, *acc);
            }
        }
    }
    for (i, acc) in acc.iter().enumerate() {
        let c = &mut c[i * ldc..i * ldc + 8];
        for (c, acc) in c.iter_mut().zip(acc) {
            *c = if accumulate { *c + acc } else { *acc };
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    macro_rules! tile {
        ($name:ident, $features:literal, $mr:literal, $lanes:literal, $zero:ident, $load:ident, $store:ident, $set1:ident, $fma:ident, $add:ident) => {
            /// An `MR` x `V` vectors tile.
            ///
            /// # Safety
            /// The CPU has the features named.
            #[target_feature(enable = $features)]
            pub unsafe fn $name<const V: usize>(a: &[f32], b: &[f32], c: &mut [f32], ldc: usize, accumulate: bool) {
                const MR: usize = $mr;
                let depth = a.len() / MR;
                assert!(b.len() == depth * V * $lanes && c.len() >= (MR - 1) * ldc + V * $lanes);
                let (mut a, mut b, c) = (a.as_ptr(), b.as_ptr(), c.as_mut_ptr());
                // SAFETY: `a` steps `depth` times over MR floats, `b` over V vectors, row i of `c` starts at i * ldc:
                // all within the lengths asserted above.
                unsafe {
                    let mut acc = [[$zero(); V]; MR];
                    for _ in 0..depth {
                        let row: [_; V] = std::array::from_fn(|v| $load(b.add(v * $lanes)));
                        for i in 0..MR {
                            let a = $set1(*a.add(i));
                            for v in 0..V {
                                acc[i][v] = $fma(a, row[v], acc[i][v]);
                            }
                        }
                        a = a.add(MR);
                        b = b.add(V * $lanes);
                    }
                    for (i, acc) in acc.into_iter().enumerate() {
                        for (v, mut sum) in acc.into_iter().enumerate() {
                            let c = c.add(i * ldc + v * $lanes);
                            if accumulate {
                                sum = $add($load(c), sum);
                            }
                            $store(c, sum);
                        }
                    }
                }
            }
        };
    }

    tile!(
        avx512,
        "avx512f",
        8,
        16,
        _mm512_setzero_ps,
        _mm512_loadu_ps,
        _mm512_storeu_ps,
        _mm512_set1_ps,
        _mm512_fmadd_ps,
        _mm512_add_ps
    );
    tile!(
        avx2,
        "avx2,fma",
        4,
        8,
        _mm256_setzero_ps,
        _mm256_loadu_ps,
        _mm256_storeu_ps,
        _mm256_set1_ps,
        _mm256_fmadd_ps,
        _mm256_add_ps
    );
}

#[cfg(test)]
mod tests {
    use super::super::testing::random;
    use super::*;

    #[test]
    fn every_tile_width_matches_a_plain_loop() {
        for level in Simd::available() {
            let tile = Tile::of(level);
            for width in (tile.lanes..=tile.nr).step_by(tile.lanes) {
                for (depth, accumulate) in [(0, true), (0, false), (1, false), (77, true), (256, false)] {
                    let (a, b) = (random(depth * tile.mr, 1), random(depth * width, 2));
                    let ldc = width + 5;
                    let before = if accumulate { random(tile.mr * ldc, 3) } else { vec![f32::NAN; tile.mr * ldc] };
                    let mut c = before.clone();
                    tile.run(width, &a, &b, &mut c, ldc, accumulate);
                    for i in 0..tile.mr {
                        for j in 0..ldc {
                            let (was, is) = (before[i * ldc + j], c[i * ldc + j]);
                            if j >= width {
                                assert_eq!(was.to_bits(), is.to_bits(), "wrote outside the tile");
                                continue;
                            }
                            let product = |k| f64::from(a[k * tile.mr + i]) * f64::from(b[k * width + j]);
                            let want =
                                (0..depth).map(product).sum::<f64>() + if accumulate { f64::from(was) } else { 0.0 };
                            assert!((f64::from(is) - want).abs() <= 2e-6 * (1.0 + depth as f64).sqrt(), "{level:?}");
                        }
                    }
                }
            }
        }
    }
}
