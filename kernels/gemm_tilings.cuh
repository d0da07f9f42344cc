// A product of a view [m, k] and laid-out weights in the tiling that the host has chosen.
#pragma once

#include "gemm.cuh"

// Tile by tile.
template <class T, bool VECTOR, class X, class Put>
__device__ __forceinline__ void by_tiles(const X& x, const Matrix& w, const Put& put, unsigned char* shared) {
    const Place<T> place(put.n);
    multiply<T>(AlongK<T, VECTOR, X>(x, place.row), AcrossK<T::COLUMNS, true, Matrix>(w, place.column), 0, x.columns, shared,
                place, x.rows, put.n, put);
}

template <class X, class Put>
__device__ __forceinline__ void product(const X& x, const Matrix& w, const Put& put, uint32_t tiling,
                                        unsigned char* shared) {
    if (tiling == LARGE) by_tiles<LargeTile, true>(x, w, put, shared);
    else if (tiling == SMALL) by_tiles<SmallTile, true>(x, w, put, shared);
    else by_tiles<SmallTile, false>(x, w, put, shared);
}
