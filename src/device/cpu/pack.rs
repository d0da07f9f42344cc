//! How a matrix product reads its operands: gathered into panels, `dst[k][lane]`.
//!
//! A panel holds a few rows of A, or a few columns of B ("lanes"), for a run of the summed index `k`, in the order in
//! which the register tile consumes them. Because operands are only ever read through [`PackA`] and [`PackB`], a
//! transposed matrix or the patches of a convolution cost no copy in memory.

use std::ops::Range;

use super::fetch::fetch_share;
#[cfg(target_arch = "x86_64")]
use super::simd::{Level, simd};

/// The left operand, `[m, k]`, of a matrix product.
pub trait PackA: Sync {
    /// `dst[(k - ks.start) * width + (row - rows.start)] = a[row, k]` for `rows.len() <= width <= 8` rows, zero in the
    /// lanes beyond them. `width` is a multiple of 4, `dst` has `ks.len() * width` floats, `ks.len() <= MAX_DEPTH`.
    fn pack_a(&self, rows: Range<usize>, ks: Range<usize>, width: usize, dst: &mut [f32]);

    /// Asks for the memory that [`Self::pack_a`] will read of `a[rows, ks]`, without waiting for it: share number `share`
    /// of `shares`. Whoever multiplies spreads the shares over the products before, which leave the memory idle.
    fn fetch(&self, _rows: Range<usize>, _ks: Range<usize>, _share: usize, _shares: usize) {}
}

/// The right operand, `[k, n]`, of a matrix product.
pub trait PackB: Sync {
    /// `dst[(k - ks.start) * width + (col - cols.start)] = b[k, col]` for `cols.len() <= width` columns, zero in the
    /// lanes beyond them. `width` is a multiple of 4, `dst` has `ks.len() * width` floats, `ks.len() <= MAX_DEPTH`.
    fn pack_b(&self, ks: Range<usize>, cols: Range<usize>, width: usize, dst: &mut [f32]);
}

/// The longest run of `k` in one panel.
pub const MAX_DEPTH: usize = 256;

/// What a patch holds where it hangs over the border.
pub(super) static ZEROS: [f32; MAX_DEPTH] = [0.0; MAX_DEPTH];

/// A matrix in a slice: element `(row, col)` is `data[row * row_stride + col * col_stride]`.
#[derive(Debug, Clone, Copy)]
pub struct Matrix<'a> {
    data: &'a [f32],
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

impl<'a> Matrix<'a> {
    /// A contiguous row-major `[rows, cols]` matrix.
    ///
    /// # Panics
    /// If `data` has another length than `rows * cols`.
    pub fn new(data: &'a [f32], rows: usize, cols: usize) -> Self {
        assert_eq!(data.len(), rows * cols, "Matrix::new: not {rows} x {cols}");
        Self { data, rows, cols, row_stride: cols, col_stride: 1 }
    }

    /// A matrix with any strides, for one that lies within a larger one.
    ///
    /// # Panics
    /// If its last element lies outside `data`.
    pub fn strided(data: &'a [f32], rows: usize, cols: usize, row_stride: usize, col_stride: usize) -> Self {
        let last = rows.saturating_sub(1) * row_stride + cols.saturating_sub(1) * col_stride;
        assert!(rows * cols == 0 || last < data.len(), "Matrix::strided: {rows} x {cols} ends outside the slice");
        Self { data, rows, cols, row_stride, col_stride }
    }

    /// The transpose: the same data, read the other way.
    pub fn t(self) -> Self {
        Self {
            data: self.data,
            rows: self.cols,
            cols: self.rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
        }
    }

    /// Number of rows and of columns.
    pub fn shape(&self) -> (usize, usize) {
        (self.rows, self.cols)
    }
}

impl PackA for Matrix<'_> {
    fn pack_a(&self, rows: Range<usize>, ks: Range<usize>, width: usize, dst: &mut [f32]) {
        assert!(rows.end <= self.rows && ks.end <= self.cols, "gemm: A is {:?}", self.shape());
        pack_strided(self.data, rows, self.row_stride, ks, self.col_stride, width, dst);
    }

    fn fetch(&self, rows: Range<usize>, ks: Range<usize>, share: usize, shares: usize) {
        if self.col_stride == 1 {
            fetch_share(self.data, self.row_stride, rows, ks, share, shares);
        } else if self.row_stride == 1 {
            fetch_share(self.data, self.col_stride, ks, rows, share, shares);
        }
    }
}

impl PackB for Matrix<'_> {
    fn pack_b(&self, ks: Range<usize>, cols: Range<usize>, width: usize, dst: &mut [f32]) {
        assert!(ks.end <= self.rows && cols.end <= self.cols, "gemm: B is {:?}", self.shape());
        pack_strided(self.data, cols, self.col_stride, ks, self.row_stride, width, dst);
    }
}

fn pack_strided(
    data: &[f32],
    lanes: Range<usize>,
    lane_stride: usize,
    ks: Range<usize>,
    k_stride: usize,
    width: usize,
    dst: &mut [f32],
) {
    let count = lanes.len();
    if lane_stride == 1 && count == width && width == 8 {
        // The panels of a transposed A: copies of unknown length would take longer than what they copy.
        for (k, dst) in ks.zip(dst.as_chunks_mut::<8>().0) {
            *dst = *data[k * k_stride + lanes.start..].first_chunk().expect("within the matrix");
        }
    } else if lane_stride == 1 {
        for (k, dst) in ks.zip(dst.chunks_exact_mut(width)) {
            let start = k * k_stride + lanes.start;
            dst[..count].copy_from_slice(&data[start..start + count]);
            dst[count..].fill(0.0);
        }
    } else if k_stride == 1 {
        let lane = |i: usize| &data[(lanes.start + i) * lane_stride + ks.start..][..ks.len()];
        interleave(count, ks.len(), lane, width, dst);
    } else {
        for (k, dst) in ks.zip(dst.chunks_exact_mut(width)) {
            for (lane, dst) in lanes.clone().zip(&mut dst[..count]) {
                *dst = data[lane * lane_stride + k * k_stride];
            }
            dst[count..].fill(0.0);
        }
    }
}

/// `dst[k * width + i] = lane(i)[k]` for `i < count` and `k < len`, zero for `count <= i < width`.
#[inline]
pub(crate) fn interleave<'a>(
    count: usize,
    len: usize,
    lane: impl Fn(usize) -> &'a [f32],
    width: usize,
    dst: &mut [f32],
) {
    debug_assert!(width.is_multiple_of(4) && dst.len() == len * width);
    let lane = |i: usize| if i < count { &lane(i)[..len] } else { &ZEROS[..len] };
    #[cfg(target_arch = "x86_64")]
    if width == 8 && simd().level() >= Level::Avx2 {
        // SAFETY: the level is the proof.
        return unsafe { interleave8(std::array::from_fn(lane), dst) };
    }
    for first in (0..width).step_by(4) {
        interleave4(std::array::from_fn(|i| lane(first + i)), &mut dst[first..], width);
    }
}

/// Four lanes, in blocks of 4 x 4 and a remainder one by one.
fn interleave4(lanes: [&[f32]; 4], dst: &mut [f32], stride: usize) {
    let len = lanes[0].len();
    let lanes = lanes.map(|lane| &lane[..len]);
    let blocks = len / 4 * 4;
    for k in (0..blocks).step_by(4) {
        let rows = lanes.map(|lane| *lane[k..].first_chunk::<4>().expect("a whole block"));
        for (j, column) in transpose4(rows).into_iter().enumerate() {
            dst[(k + j) * stride..][..4].copy_from_slice(&column);
        }
    }
    for k in blocks..len {
        dst[k * stride..][..4].copy_from_slice(&lanes.map(|lane| lane[k]));
    }
}

/// Eight lanes side by side, in blocks of 8 x 4 and a remainder one by one.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn interleave8(lanes: [&[f32]; 8], dst: &mut [f32]) {
    use std::arch::x86_64::*;
    let len = lanes[0].len();
    let lanes = lanes.map(|lane| &lane[..len]);
    let (blocks, rest) = dst.as_chunks_mut::<8>().0.split_at_mut(len / 4 * 4);
    for (k, columns) in blocks.as_chunks_mut::<4>().0.iter_mut().enumerate() {
        // Lanes i and i + 4 in the halves of a vector, which are transposed at once.
        let both = |i: usize| {
            let [low, high] = [i, i + 4].map(|i| lanes[i][4 * k..].first_chunk::<4>().expect("a whole block"));
            // SAFETY: 4 floats each.
            unsafe { _mm256_loadu2_m128(high.as_ptr(), low.as_ptr()) }
        };
        let [a, b, c, d] = [both(0), both(1), both(2), both(3)];
        let (ab, ab_high) = (_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
        let (cd, cd_high) = (_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d));
        let transposed = [
            _mm256_shuffle_ps::<0x44>(ab, cd),
            _mm256_shuffle_ps::<0xEE>(ab, cd),
            _mm256_shuffle_ps::<0x44>(ab_high, cd_high),
            _mm256_shuffle_ps::<0xEE>(ab_high, cd_high),
        ];
        for (column, transposed) in columns.iter_mut().zip(transposed) {
            // SAFETY: a column has 8 floats.
            unsafe { _mm256_storeu_ps(column.as_mut_ptr(), transposed) };
        }
    }
    for (column, k) in rest.iter_mut().zip(len / 4 * 4..) {
        *column = lanes.map(|lane| lane[k]);
    }
}

/// Rows of four become columns.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(super) fn transpose4(rows: [[f32; 4]; 4]) -> [[f32; 4]; 4] {
    use std::arch::x86_64::*;
    // SAFETY: SSE is part of x86-64; a vector and an array of 4 floats hold the same 16 bytes.
    unsafe {
        let [a, b, c, d]: [__m128; 4] = std::mem::transmute(rows);
        let (ab, ab_high) = (_mm_unpacklo_ps(a, b), _mm_unpackhi_ps(a, b));
        let (cd, cd_high) = (_mm_unpacklo_ps(c, d), _mm_unpackhi_ps(c, d));
        std::mem::transmute([
            _mm_movelh_ps(ab, cd),
            _mm_movehl_ps(cd, ab),
            _mm_movelh_ps(ab_high, cd_high),
            _mm_movehl_ps(cd_high, ab_high),
        ])
    }
}

#[cfg(not(target_arch = "x86_64"))]
#[inline(always)]
pub(super) fn transpose4(rows: [[f32; 4]; 4]) -> [[f32; 4]; 4] {
    std::array::from_fn(|j| std::array::from_fn(|i| rows[i][j]))
}
