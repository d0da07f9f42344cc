//! Asking for memory ahead of its use, so that it comes while something else is computed.
//!
//! The processor runs ahead by itself where whole rows follow each other. Panels and walks read a part of each row: 192
//! bytes, a few kilobytes from the next. Lines go to L2.

use std::ops::Range;

/// Floats of a cache line.
const LINE: usize = 16;

/// Asks for share number `share` of `shares` of the columns `cols` of some rows, `pitch` floats apart, without waiting.
pub(crate) fn fetch_share(
    data: &[f32],
    pitch: usize,
    rows: Range<usize>,
    cols: Range<usize>,
    share: usize,
    shares: usize,
) {
    let across = cols.len().div_ceil(LINE);
    let lines = rows.len() * across;
    let (first, end) = (lines * share / shares, lines * (share + 1) / shares);
    if first == end {
        return;
    }
    let (mut row, mut line) = (rows.start + first / across, first % across);
    for _ in first..end {
        prefetch_line(data, row * pitch + cols.start + line * LINE);
        line += 1;
        if line == across {
            (row, line) = (row + 1, 0);
        }
    }
}

/// Asks for the cache lines of `data`, without waiting for them.
#[inline(always)]
pub(super) fn prefetch(data: &[f32]) {
    (0..data.len()).step_by(LINE).for_each(|at| prefetch_line(data, at));
}

/// Asks for the cache line that holds `data[at]`.
#[inline(always)]
fn prefetch_line(data: &[f32], at: usize) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        // SAFETY: a hint, which no address makes fail.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(data.as_ptr().wrapping_add(at).cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (data, at);
}
