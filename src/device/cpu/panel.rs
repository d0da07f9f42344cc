//! How panels are stored for each register tile: as f32, or as words of two bf16 (`bf16.rs`).
//!
//! | form | A | B |
//! | --- | --- | --- |
//! | f32, rounded or not | `[k][lane]` f32 | the same |
//! | pairs | `[k / 2][lane]` words | the same |
//! | tiles | `[term][lane][k / 2]` words | `[term][k / 2][lane]` words; k padded with zeros to a multiple of 32 |
//!
//! Operands give f32 ([`PackA`], [`PackB`]), which is converted while it lies in the nearest cache.

use std::ops::Range;

use super::amx;
use super::bf16::{pairs, round_all};
use super::pack::{MAX_DEPTH, PackA, PackB};
use super::rows::with_scratch;
use super::simd::Simd;

/// See the head of this file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// f32.
    F32,
    /// f32, rounded to bf16.
    Rounded,
    /// bf16.
    Pairs,
    /// bf16, in one term or two.
    Tiles {
        /// Terms of a factor.
        terms: usize,
    },
}

/// Numbers along k that are taken from B at a time.
const RUN: usize = 64;

/// Rows that are taken from A at a time.
const LANES: usize = 8;

impl Form {
    /// Words of one lane where `depth` products are summed.
    pub fn words(self, depth: usize) -> usize {
        match self {
            Form::F32 | Form::Rounded => depth,
            Form::Pairs => depth.div_ceil(2),
            Form::Tiles { terms } => depth.div_ceil(2).next_multiple_of(amx::SIDE) * terms,
        }
    }

    /// How much of `k` one panel holds; the last one may hold less.
    pub fn depth(self, k: usize) -> usize {
        let (most, multiple) = match self {
            Form::F32 | Form::Rounded => (MAX_DEPTH, 1),
            Form::Pairs => (2 * MAX_DEPTH, 2),
            Form::Tiles { terms } => (2 * MAX_DEPTH / terms, 2 * amx::SIDE),
        };
        k.div_ceil(k.div_ceil(most)).next_multiple_of(multiple)
    }

    /// Packs `rows` of A, at most `mr` of them, over `ks`: `panel` has `mr * words(ks.len())` words.
    pub fn pack_a(
        self,
        simd: Simd,
        a: &impl PackA,
        rows: Range<usize>,
        ks: Range<usize>,
        mr: usize,
        panel: &mut [f32],
    ) {
        let pack = |rows: Range<usize>, width: usize, numbers: &mut [f32]| {
            for (part, to) in runs(&ks, MAX_DEPTH).zip(numbers.chunks_mut(MAX_DEPTH * width)) {
                a.pack_a(rows.clone(), part, width, to);
            }
        };
        match self {
            Form::F32 => pack(rows, mr, panel),
            Form::Rounded => {
                pack(rows, mr, panel);
                round_all(simd, panel);
            }
            Form::Pairs => with_scratch(ks.len() * mr, |numbers| {
                pack(rows, mr, numbers);
                convert(simd, 0, numbers, mr, panel);
            }),
            Form::Tiles { terms } => {
                let words = panel.len() / (mr * terms);
                for first in (0..mr).step_by(LANES) {
                    let lanes = rows.end.min(rows.start + first)..rows.end.min(rows.start + first + LANES);
                    if lanes.is_empty() {
                        (0..terms).for_each(|term| panel[(term * mr + first) * words..][..LANES * words].fill(0.0));
                        continue;
                    }
                    with_scratch(LANES * (ks.len() + words), |both| {
                        let (numbers, converted) = both.split_at_mut(LANES * ks.len());
                        pack(lanes, LANES, numbers);
                        for term in 0..terms {
                            convert(simd, term, numbers, LANES, converted);
                            amx::into_rows(converted, &mut panel[(term * mr + first) * words..], words);
                        }
                    });
                }
            }
        }
    }

    /// Packs `cols` of B, at most `width` of them, over `ks`: `panel` has `width * words(ks.len())` words.
    pub fn pack_b(
        self,
        simd: Simd,
        b: &impl PackB,
        ks: Range<usize>,
        cols: Range<usize>,
        width: usize,
        panel: &mut [f32],
    ) {
        let terms = match self {
            Form::F32 | Form::Rounded => {
                b.pack_b(ks, cols, width, panel);
                return if self == Form::Rounded {
                    round_all(simd, panel)
                };
            }
            Form::Pairs => 1,
            Form::Tiles { terms } => terms,
        };
        let term_words = panel.len() / terms;
        with_scratch(RUN.min(ks.len()) * width, |numbers| {
            for part in runs(&ks, RUN) {
                let numbers = &mut numbers[..part.len() * width];
                let first = (part.start - ks.start) / 2 * width;
                let end = if part.end == ks.end { term_words } else { first + RUN / 2 * width };
                b.pack_b(part, cols.clone(), width, numbers);
                for (term, words) in panel.chunks_exact_mut(term_words).enumerate() {
                    convert(simd, term, numbers, width, &mut words[first..end]);
                }
            }
        });
    }
}

/// Consecutive parts of `ks`, `most` long, the last one shorter.
fn runs(ks: &Range<usize>, most: usize) -> impl Iterator<Item = Range<usize>> {
    let end = ks.end;
    ks.clone().step_by(most).map(move |first| first..end.min(first + most))
}

/// One term of `numbers: [k][width]` as words `[k / 2][width]`, with zeros after them.
fn convert(simd: Simd, term: usize, numbers: &[f32], width: usize, words: &mut [f32]) {
    let (words, zeros) = words.split_at_mut(numbers.len().div_ceil(2 * width) * width);
    let words = bytemuck::cast_slice_mut(words);
    if term == 0 {
        pairs::<0>(simd, numbers, width, words)
    } else {
        pairs::<1>(simd, numbers, width, words)
    }
    zeros.fill(0.0);
}
