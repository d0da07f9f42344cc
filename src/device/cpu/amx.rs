//! AMX: products of bf16 tiles, `c[32, 32] (+)= a[32, k] · b[k, 32]`.
//!
//! A tile register holds 16 rows of 16 words; a word is an f32, or a pair of bf16 (`bf16.rs`). With A as rows of pairs along
//! k, and B as rows of pairs, one instruction adds sixteen pairs of k to 16 x 16 sums:
//!
//! ```text
//! a: [32][k / 2]     tiles 4, 5                c:  0 1     tiles 0 and 2: the first 16 columns
//! b: [k / 2][32]     tiles 6, 7                    2 3     k is padded with zeros to a multiple of 32
//! ```
//!
//! With two terms for each factor (hi, lo), panels hold the one after the other, and the sum is
//! lo·hi + hi·hi + hi·lo: of factors of 16 bits, all but the product of both small terms.
//!
//! The compiler's own functions for AMX are not stable, so six instructions are written in assembly here; nothing else
//! touches tile registers in a program that is compiled without AMX. All that is above them runs on [`Model`] too, which is
//! written from the pseudo-code of Intel's Software Developer's Manual (TDPBF16PS): tests run it everywhere. The machine
//! code of the six runs in tests too, trapped and decoded where there is no AMX (`amx/tests/trapped.rs`). A machine that has
//! AMX multiplies once by both, and goes without AMX if the results differ ([`state`]).

// Elsewhere only tests, and the emulator's builds, run the model.
#![cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]

#[cfg(target_arch = "x86_64")]
pub mod hardware;

use std::sync::OnceLock;

use super::pack::transpose4;

/// Rows of a register tile of C, and columns of one with two tiles in a row.
pub const SIZE: usize = 32;
/// Rows of a tile, and words of a row.
pub const SIDE: usize = 16;

/// The tile registers and what is done with them.
trait Tiles {
    /// `tilezero`.
    fn zero<const T: usize>(&mut self);
    /// `tileloadd`: 16 rows of 16 words, `stride` words apart.
    fn load<const T: usize>(&mut self, from: &[f32], stride: usize);
    /// `tdpbf16ps`: C += A · B.
    fn dot<const C: usize, const A: usize, const B: usize>(&mut self);
    /// `tilestored`.
    fn store<const T: usize>(&mut self, to: &mut [f32], stride: usize);
}

/// The part `k` of two tiles of A, each row `words` long.
#[inline(always)]
fn load_a(tiles: &mut impl Tiles, a: &[f32], words: usize) {
    tiles.load::<4>(a, words);
    tiles.load::<5>(&a[SIDE * words..], words);
}

#[inline(always)]
fn load_b<const V: usize>(tiles: &mut impl Tiles, b: &[f32]) {
    tiles.load::<6>(b, V * SIDE);
    if V == 2 {
        tiles.load::<7>(&b[SIDE..], V * SIDE);
    }
}

#[inline(always)]
fn dots<const V: usize>(tiles: &mut impl Tiles) {
    tiles.dot::<0, 4, 6>();
    tiles.dot::<2, 5, 6>();
    if V == 2 {
        tiles.dot::<1, 4, 7>();
        tiles.dot::<3, 5, 7>();
    }
}

/// `c (+)= a · b` on `V` tiles a row: panels of `TERMS` terms, rows of C `ldc` floats apart.
#[inline(always)]
fn multiply<const V: usize, const TERMS: usize>(
    tiles: &mut impl Tiles,
    a: &[f32],
    b: &[f32],
    c: &mut [f32],
    ldc: usize,
    accumulate: bool,
) {
    let (words, width) = (a.len() / (SIZE * TERMS), V * SIDE);
    assert!(words.is_multiple_of(SIDE) && a.len() == SIZE * TERMS * words && b.len() == TERMS * words * width);
    let lower = SIDE * ldc;
    if accumulate {
        tiles.load::<0>(c, ldc);
        tiles.load::<2>(&c[lower..], ldc);
        if V == 2 {
            tiles.load::<1>(&c[SIDE..], ldc);
            tiles.load::<3>(&c[lower + SIDE..], ldc);
        }
    } else {
        tiles.zero::<0>();
        tiles.zero::<1>();
        tiles.zero::<2>();
        tiles.zero::<3>();
    }
    for k in (0..words).step_by(SIDE) {
        let (a, b) = (&a[k..], &b[k * width..]);
        if TERMS == 2 {
            load_a(tiles, &a[SIZE * words..], words);
            load_b::<V>(tiles, b);
            dots::<V>(tiles);
        }
        load_a(tiles, a, words);
        if TERMS == 1 {
            load_b::<V>(tiles, b);
        }
        dots::<V>(tiles);
        if TERMS == 2 {
            load_b::<V>(tiles, &b[words * width..]);
            dots::<V>(tiles);
        }
    }
    tiles.store::<0>(c, ldc);
    tiles.store::<2>(&mut c[lower..], ldc);
    if V == 2 {
        tiles.store::<1>(&mut c[SIDE..], ldc);
        tiles.store::<3>(&mut c[lower + SIDE..], ldc);
    }
}

/// Eight tiles, and their instructions as the manual defines them.
struct Model([[[u32; SIDE]; SIDE]; 8]);

impl Model {
    fn new() -> Self {
        Model([[[0; SIDE]; SIDE]; 8])
    }

    /// `a * b + c` for factors of bf16, with one rounding, to nearest even; what is subnormal counts and results as zero.
    #[inline(always)]
    fn fma(a: f32, b: f32, c: f32) -> f32 {
        let normal = |v: f32| if v.abs() < f32::MIN_POSITIVE { 0.0f32.copysign(v) } else { v };
        // The product of two bf16 is exact. f64 has more than twice the digits of f32: rounding a sum to it first changes
        // nothing.
        normal((f64::from(normal(a)) * f64::from(normal(b)) + f64::from(normal(c))) as f32)
    }
}

impl Tiles for Model {
    fn zero<const T: usize>(&mut self) {
        self.0[T] = [[0; SIDE]; SIDE];
    }

    fn load<const T: usize>(&mut self, from: &[f32], stride: usize) {
        for (i, row) in self.0[T].iter_mut().enumerate() {
            *row = std::array::from_fn(|j| from[i * stride + j].to_bits());
        }
    }

    fn dot<const C: usize, const A: usize, const B: usize>(&mut self) {
        let halves = |word: u32| [f32::from_bits(word << 16), f32::from_bits(word & 0xffff_0000)];
        for m in 0..SIDE {
            // Sums over even and over odd k, from zero; then both together, and that to C.
            let mut sums = [[0.0f32; 2]; SIDE];
            for k in 0..SIDE {
                let a = halves(self.0[A][m][k]);
                for (sums, &b) in sums.iter_mut().zip(&self.0[B][k]) {
                    let b = halves(b);
                    *sums = [Self::fma(a[0], b[0], sums[0]), Self::fma(a[1], b[1], sums[1])];
                }
            }
            for (c, [even, odd]) in self.0[C][m].iter_mut().zip(sums) {
                *c = Self::fma(1.0, f32::from_bits(*c), Self::fma(1.0, even, odd)).to_bits();
            }
        }
    }

    fn store<const T: usize>(&mut self, to: &mut [f32], stride: usize) {
        for (i, row) in self.0[T].iter().enumerate() {
            to[i * stride..i * stride + SIDE].copy_from_slice(&row.map(f32::from_bits));
        }
    }
}

/// A register tile by [`Model`].
pub fn model<const V: usize, const TERMS: usize>(a: &[f32], b: &[f32], c: &mut [f32], ldc: usize, accumulate: bool) {
    multiply::<V, TERMS>(&mut Model::new(), a, b, c, ldc, accumulate);
}

/// A panel of words, `[k / 2][8]`, as 8 rows of a tile of A: row `i` begins at `rows[i * stride]`.
pub fn into_rows(words: &[f32], rows: &mut [f32], stride: usize) {
    for (k, block) in words.as_chunks::<8>().0.as_chunks::<4>().0.iter().enumerate() {
        for half in [0, 4] {
            let columns = block.map(|word| std::array::from_fn(|i| word[half + i]));
            for (i, row) in transpose4(columns).into_iter().enumerate() {
                rows[(half + i) * stride + 4 * k..][..4].copy_from_slice(&row);
            }
        }
    }
}

/// Whether products may use AMX here, or why not. Asks the system for it, once.
pub fn state() -> Result<(), &'static str> {
    static STATE: OnceLock<Result<(), &'static str>> = OnceLock::new();
    *STATE.get_or_init(|| {
        #[cfg(target_arch = "x86_64")]
        {
            hardware::request()?;
            // SAFETY: the processor has the instructions, and the system lets this process use them.
            let agrees = agrees_with_model(|a, b, c, ldc| unsafe {
                let _configured = hardware::Configured::new();
                hardware::run::<2, 2>(a, b, c, ldc, true);
            });
            if agrees { Ok(()) } else { Err("its products differ from what the manual says") }
        }
        #[cfg(not(target_arch = "x86_64"))]
        Err("the processor does not have it")
    })
}

/// Whether one product on all eight tiles, of small whole numbers, which no order of sums rounds, is that of the model.
fn agrees_with_model(run: impl Fn(&[f32], &[f32], &mut [f32], usize)) -> bool {
    let (words, ldc) = (3 * SIDE, SIZE + 5);
    let number = |i: usize| ((i as u64 * 2_654_435_761) >> 7) % 17;
    // Two whole numbers from -8 to 8 in each word.
    let half = |i: usize| (number(i) as f32 - 8.0).to_bits() >> 16;
    let panel = |seed: usize| -> Vec<f32> {
        (0..2 * SIZE * words).map(|i| f32::from_bits(half(seed + 2 * i) | half(seed + 2 * i + 1) << 16)).collect()
    };
    let (a, b) = (panel(1), panel(1_000_003));
    let mut found: Vec<f32> = (0..SIZE * ldc).map(|i| number(i) as f32).collect();
    let mut expected = found.clone();
    model::<2, 2>(&a, &b, &mut expected, ldc, true);
    run(&a, &b, &mut found, ldc);
    found == expected
}

#[cfg(test)]
mod tests;
