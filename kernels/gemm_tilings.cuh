// The tiles of matrix products, and products in the tiling that the host has chosen.
//
// The networks have 216, 432, 864 and 1728 channels: multiples of 72 and 144, which waste nothing, and nearly of 112. Four
// warps share a tile; what a warp computes decides how often a value is read from shared memory (src/device/cuda/tiling.rs
// counts that, and how evenly the tiles of a product load the multiprocessors):
//
//             tile         warp       sums of a thread    12544 x 432 are
//   LARGE     128 x 112    64 x 56    112                 392 tiles, 96.4 % full
//   WIDE      96 x 144     48 x 72    108                 393, 99.7 %
//   FLAT      64 x 144     32 x 72    72                  588, 100 %
//   SMALL     64 x 56      16 x 56    28                  1568, 96.4 %
//
// FLAVOUR_F32 multiplies three times and is bound by that with any of them: it has the last two alone, which leave it half of
// the registers. ONE_BY_ONE is SMALL without VECTOR. Sizes and numbers as in `Tiling` of src/device/cuda/tiling.rs.
#pragma once

#include "gemm.cuh"

constexpr uint32_t ONE_BY_ONE = 0, SMALL = 1, LARGE = 2, WIDE = 3;
// Blocks of a product that a multiprocessor has room for, at least, for __launch_bounds__. Left alone, the compiler spills
// for the sake of a third where an operand is changed on load, and takes what a third would need where none is.
#ifdef FLAVOUR_F32
constexpr uint32_t PLAIN_AT_ONCE = 2;
#else
constexpr uint32_t PLAIN_AT_ONCE = 3;
#endif
constexpr uint32_t CHANGED_AT_ONCE = 2;

using SmallTile = Tile<64, 56, 4, 1>;
using LargeTile = Tile<128, 112, 2, 2>;
using WideTile = Tile<96, 144, 2, 2>;
using FlatTile = Tile<64, 144, 2, 2>;

// A tile of rows of x times laid-out weights, over k in [begin, x.columns).
template <class T, bool VECTOR, class X, class Put>
__device__ __forceinline__ void by_tiles(const X& x, const Matrix& w, uint32_t begin, const Put& put, unsigned char* shared) {
    const Place<T> place(put.n);
    multiply<T>(AlongK<T, VECTOR, X>(x, place.row), AcrossK<T::COLUMNS, true, Matrix>(w, place.column), begin, x.columns,
                shared, place, x.rows, put.n, put);
}

// In the tilings with VECTOR.
template <class X, class Put>
__device__ __forceinline__ void product_of_chunks(const X& x, const Matrix& w, uint32_t begin, const Put& put,
                                                  uint32_t tiling, unsigned char* shared) {
    switch (tiling) {
    case SMALL: by_tiles<SmallTile, true>(x, w, begin, put, shared); break;
#ifndef FLAVOUR_F32
    case LARGE: by_tiles<LargeTile, true>(x, w, begin, put, shared); break;
    case WIDE: by_tiles<WideTile, true>(x, w, begin, put, shared); break;
#endif
    default: by_tiles<FlatTile, true>(x, w, begin, put, shared);
    }
}

template <class X, class Put>
__device__ __forceinline__ void product(const X& x, const Matrix& w, uint32_t begin, const Put& put, uint32_t tiling,
                                        unsigned char* shared) {
    if (tiling == ONE_BY_ONE) by_tiles<SmallTile, false>(x, w, begin, put, shared);
    else product_of_chunks(x, w, begin, put, tiling, shared);
}

template <class T, bool VECTOR, class X, class Dz>
__device__ __forceinline__ void gradient_by_tiles(const X& x, const Dz& dz, uint32_t begin, float* partial,
                                                  unsigned char* shared) {
    const Place<T> place(dz.columns);
    multiply<T>(AcrossK<T::ROWS, VECTOR, X>(x, place.row), AcrossK<T::COLUMNS, VECTOR, Dz>(dz, place.column), begin, x.rows,
                shared, place, x.columns, dz.columns, Plain{partial, dz.columns});
}

// partial [x.columns, dz.columns] = xT dz over the rows from `begin` on: the gradient of weights, of one slab of positions.
template <class X, class Dz>
__device__ __forceinline__ void weight_gradient(const X& x, const Dz& dz, uint32_t begin, float* partial, uint32_t tiling,
                                                unsigned char* shared) {
    switch (tiling) {
    case ONE_BY_ONE: gradient_by_tiles<SmallTile, false>(x, dz, begin, partial, shared); break;
    case SMALL: gradient_by_tiles<SmallTile, true>(x, dz, begin, partial, shared); break;
#ifndef FLAVOUR_F32
    case LARGE: gradient_by_tiles<LargeTile, true>(x, dz, begin, partial, shared); break;
    case WIDE: gradient_by_tiles<WideTile, true>(x, dz, begin, partial, shared); break;
#endif
    default: gradient_by_tiles<FlatTile, true>(x, dz, begin, partial, shared);
    }
}
