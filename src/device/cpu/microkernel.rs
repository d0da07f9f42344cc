//! The register tile: `c[MR, NR] (+)= a[MR, k] · b[k, NR]` on packed panels.
//!
//! Each level keeps the whole tile in vector registers: 8 x 48 floats are 24 of the 32 registers of AVX-512, 4 x 16
//! are 8 of the 16 of AVX2, as many as hide the latency of a multiply-add; with 12, 3 of B and 2 of A there is one too few, and
//! a sum goes to memory and back in each step. Both widths divide 432 and 864, so the layers of
//! GRAD and CRAD leave no ragged edge. The tile of `vdpbf16ps` is that of AVX-512, two products at a time; the one of AMX is
//! 32 x 32 (`amx.rs`).

use super::amx;
use super::pack::{PackA, PackB};
use super::panel::Form;
use super::products::{Products, Unit};
use super::simd::{Level, PORTABLE_FMA, Simd, mul_add};
use crate::device::cuda::Precision;
use std::ops::Range;

/// `(a, b, c, ldc, accumulate)`: panels `a` of MR rows and `b` of `width` columns, rows of `width` floats in `c`, `ldc`
/// apart, that are added to or overwritten. The CPU must have the instructions of the tile, and their registers be ready.
type Run = unsafe fn(&[f32], &[f32], &mut [f32], usize, bool);

/// The tile of one way to multiply.
#[derive(Clone, Copy)]
pub struct Tile {
    /// Rows.
    pub mr: usize,
    /// Columns of a full tile.
    pub nr: usize,
    /// Floats of a vector: narrower tiles are a multiple of it.
    pub lanes: usize,
    /// How panels are stored.
    pub form: Form,
    /// The level that packs them.
    simd: Simd,
    unit: Unit,
    /// By number of vectors in a row, less one.
    run: &'static [Run],
}

impl Tile {
    /// The tile that multiplies so.
    pub fn of(products: Products) -> Self {
        let (simd, unit) = (products.simd(), products.unit());
        let terms = products.terms();
        let of = |mr, nr, lanes, form, run| Tile { mr, nr, lanes, form, simd, unit, run };
        #[allow(unused)] // on other processors, where the emulator is left out
        let tiles = |run| of(amx::SIZE, amx::SIZE, amx::SIDE, Form::Tiles { terms }, run);
        match unit {
            #[cfg(target_arch = "x86_64")]
            Unit::Amx if terms == 2 => tiles(&[amx::hardware::run::<1, 2>, amx::hardware::run::<2, 2>]),
            #[cfg(target_arch = "x86_64")]
            Unit::Amx => tiles(&[amx::hardware::run::<1, 1>, amx::hardware::run::<2, 1>]),
            #[cfg(any(test, feature = "emulator"))]
            Unit::AmxModel if terms == 2 => tiles(&[amx::model::<1, 2>, amx::model::<2, 2>]),
            #[cfg(any(test, feature = "emulator"))]
            Unit::AmxModel => tiles(&[amx::model::<1, 1>, amx::model::<2, 1>]),
            #[cfg(target_arch = "x86_64")]
            Unit::Avx512Bf16 => {
                of(8, 48, 16, Form::Pairs, &[x86::avx512bf16::<1>, x86::avx512bf16::<2>, x86::avx512bf16::<3>])
            }
            _ => {
                let form = if products.precision() == Precision::Bf16 { Form::Rounded } else { Form::F32 };
                match simd.level() {
                    #[cfg(target_arch = "x86_64")]
                    Level::Avx512 => of(8, 48, 16, form, &[x86::avx512::<1>, x86::avx512::<2>, x86::avx512::<3>]),
                    #[cfg(target_arch = "x86_64")]
                    Level::Avx2 => of(4, 16, 8, form, &[x86::avx2::<1>, x86::avx2::<2>]),
                    _ => of(PORTABLE_MR, 8, 8, form, &[portable]),
                }
            }
        }
    }

    /// Packs up to `mr` rows of A over `ks`.
    #[inline]
    pub fn pack_a(&self, a: &impl PackA, rows: Range<usize>, ks: Range<usize>, panel: &mut [f32]) {
        self.form.pack_a(self.simd, a, rows, ks, self.mr, panel);
    }

    /// Packs up to `width` columns of B over `ks`.
    #[inline]
    pub fn pack_b(&self, b: &impl PackB, ks: Range<usize>, cols: Range<usize>, width: usize, panel: &mut [f32]) {
        self.form.pack_b(self.simd, b, ks, cols, width, panel);
    }

    /// Makes the registers of this thread ready for [`Self::run`], for as long as the result lives.
    pub fn registers(&self) -> Option<impl Sized + use<>> {
        // SAFETY: the unit was found on this machine.
        #[cfg(target_arch = "x86_64")]
        return (self.unit == Unit::Amx).then(|| unsafe { amx::hardware::Configured::new() });
        #[cfg(not(target_arch = "x86_64"))]
        None::<()>
    }

    /// `c (+)= a · b` on a full tile or one of fewer vectors: `width` columns in `b` and `c`.
    ///
    /// # Safety
    /// What [`Self::registers`] gave lives on this thread.
    #[inline]
    pub unsafe fn run(&self, width: usize, a: &[f32], b: &[f32], c: &mut [f32], ldc: usize, accumulate: bool) {
        debug_assert!(width.is_multiple_of(self.lanes) && a.len() / self.mr * width == b.len());
        let run = self.run[width / self.lanes - 1];
        // SAFETY: `of` takes this table only for what the CPU has; lengths are checked by the kernel itself; registers are
        // ready.
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

    /// `vdpbf16ps`: both products of each pair, added to `c`.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bf16")]
    fn dot(a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: both types are 64 bytes of any content.
        let [a, b] = unsafe { std::mem::transmute::<[__m512; 2], [__m512bh; 2]>([a, b]) };
        _mm512_dpbf16_ps(c, a, b)
    }

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
        avx512bf16,
        "avx512f,avx512bf16",
        8,
        16,
        _mm512_setzero_ps,
        _mm512_loadu_ps,
        _mm512_storeu_ps,
        _mm512_set1_ps,
        dot,
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
    use super::super::gemm::Matrix;
    use super::super::testing::{product, random};
    use super::*;

    #[test]
    fn every_tile_width_matches_a_plain_loop() {
        for products in Products::all() {
            let tile = Tile::of(products);
            let _registers = tile.registers();
            for width in (tile.lanes..=tile.nr).step_by(tile.lanes) {
                for (depth, accumulate) in [(1, true), (1, false), (77, true), (256, false)] {
                    let (a, b) = (random(tile.mr * depth, 1), random(depth * width, 2));
                    let words = tile.form.words(depth);
                    let (mut a_panel, mut b_panel) = (vec![f32::NAN; words * tile.mr], vec![f32::NAN; words * width]);
                    tile.pack_a(&Matrix::new(&a, tile.mr, depth), 0..tile.mr, 0..depth, &mut a_panel);
                    tile.pack_b(&Matrix::new(&b, depth, width), 0..depth, 0..width, width, &mut b_panel);
                    let ldc = width + 5;
                    let before = if accumulate { random(tile.mr * ldc, 3) } else { vec![f32::NAN; tile.mr * ldc] };
                    let mut c = before.clone();
                    // SAFETY: the registers live until the end of the block.
                    unsafe { tile.run(width, &a_panel, &b_panel, &mut c, ldc, accumulate) };
                    for i in 0..tile.mr {
                        for j in 0..ldc {
                            let (was, is) = (before[i * ldc + j], c[i * ldc + j]);
                            if j >= width {
                                assert_eq!(was.to_bits(), is.to_bits(), "wrote outside the tile");
                                continue;
                            }
                            let product = |k| product(products, a[i * depth + k], b[k * width + j]);
                            let want =
                                (0..depth).map(product).sum::<f64>() + if accumulate { f64::from(was) } else { 0.0 };
                            let allowed = 2e-6 * (1.0 + depth as f64).sqrt();
                            assert!((f64::from(is) - want).abs() <= allowed, "{products:?}");
                        }
                    }
                }
            }
        }
    }
}
