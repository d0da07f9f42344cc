//! How a matrix product reads its operands: gathered into panels, `dst[k][lane]`.
//!
//! A panel holds a few rows of A, or a few columns of B ("lanes"), for a run of the summed index `k`, in the order in
//! which the register tile consumes them. Because operands are only ever read through [`PackA`] and [`PackB`], a
//! transposed matrix or the patches of a convolution cost no copy in memory.

use super::simd::{simd, simd_fn};
use std::ops::Range;

/// The left operand, `[m, k]`, of a matrix product.
pub trait PackA: Sync {
    /// `dst[(k - ks.start) * width + (row - rows.start)] = a[row, k]` for `rows.len() <= width <= 8` rows, zero in the
    /// lanes beyond them. `width` is a multiple of 4, `dst` has `ks.len() * width` floats, `ks.len() <= MAX_DEPTH`.
    fn pack_a(&self, rows: Range<usize>, ks: Range<usize>, width: usize, dst: &mut [f32]);
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
    if lane_stride == 1 {
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
pub(super) fn interleave<'a>(
    count: usize,
    len: usize,
    lane: impl Fn(usize) -> &'a [f32],
    width: usize,
    dst: &mut [f32],
) {
    let level = simd();
    let lane = |i: usize| if i < count { &lane(i)[..len] } else { &ZEROS[..len] };
    let mut first = 0;
    while first + 8 <= width {
        interleave8(level, std::array::from_fn(|i| lane(first + i)), &mut dst[first..], width);
        first += 8;
    }
    if first + 4 <= width {
        interleave4(level, std::array::from_fn(|i| lane(first + i)), &mut dst[first..], width);
        first += 4;
    }
    debug_assert_eq!(first, width, "widths are multiples of 4");
}

simd_fn! {
    fn interleave8<FMA>(lanes: [&[f32]; 8], dst: &mut [f32], stride: usize) {
        transpose::<8>(lanes, dst, stride);
    }
    fn interleave4<FMA>(lanes: [&[f32]; 4], dst: &mut [f32], stride: usize) {
        transpose::<4>(lanes, dst, stride);
    }
}

/// Square blocks go through registers; the remainder one by one.
#[inline(always)]
fn transpose<const N: usize>(lanes: [&[f32]; N], dst: &mut [f32], stride: usize) {
    let len = lanes[0].len();
    let blocks = len / N * N;
    for k in (0..blocks).step_by(N) {
        let mut block = [[0.0; N]; N];
        for (row, lane) in block.iter_mut().zip(lanes) {
            row.copy_from_slice(&lane[k..k + N]);
        }
        for j in 0..N {
            let dst = &mut dst[(k + j) * stride..(k + j) * stride + N];
            for i in 0..N {
                dst[i] = block[i][j];
            }
        }
    }
    for k in blocks..len {
        for (dst, lane) in dst[k * stride..k * stride + N].iter_mut().zip(lanes) {
            *dst = lane[k];
        }
    }
}
