// The matrix products of a mobile bottleneck in training, x [M, C] to y [M, C] by way of [M, E] (M counts the pixels of all
// images). Only raw outputs of convolutions, y1, y2 [M, E] and y3 [M, C], are ever written; what follows them is made on load.
//
//   y1 = x w1                                     and its moments        mobile_bottleneck_product
//   y2 = depthwise(h1), h1 = hswish(a1 y1 + b1)   and its moments        mobile_bottleneck_depthwise.cu
//   y3 = h2 w3, h2 = hswish(a2 y2 + b2)           and its moments        mobile_bottleneck_product; a2, b2 have the gate
//   y  = BN(y3) + x                                                      batch_norm.cu
//
//   dz3 = a dy + e y3 + f
//   dw3 = h2' dz3                                                        mobile_bottleneck_weight_gradient
//   du  = dz3 w3' hswish'(a2 y2 + b2)             and what BN 2 needs    mobile_bottleneck_project_gradient
//   dz2 = a du + e y2 + f
//   dt  = depthwise'(dz2) hswish'(a1 y1 + b1)     and what BN 1 needs    mobile_bottleneck_depthwise.cu
//   dz1 = a dt + e y1 + f
//   dw1 = x' dz1                                                         mobile_bottleneck_weight_gradient
//   dx  = dz1 w1' + dy                                                   mobile_bottleneck_expand_gradient
//
// Source: the definition in src/ops/mobile_bottleneck.rs; tables of coefficients by batch_norm_statistics.cu.
#include "gemm_tilings.cuh"
#include "normalise_on_load.cuh"

// y [m, n] = h w, where h [m, k] is x, or hswish(a x + b) with a table [tables, 2, k]; w [k, pitch] as laid out by
// pointwise_conv.cu. partial [N, slabs, 2, n]: the moments of y. One block a tile.
// SASS: HMMA, LDGSTS
extern "C" __global__ __launch_bounds__(128) void mobile_bottleneck_product(
    const real* __restrict__ x, const float* __restrict__ table_or_null, const real* __restrict__ w, real* __restrict__ y,
    double* __restrict__ partial, uint32_t m, uint32_t n, uint32_t k, uint32_t pitch, uint32_t positions, uint32_t tables,
    uint32_t slabs, uint32_t tiling) {
    DYNAMIC_SHARED(unsigned char, shared);
    const TableRows of(positions, m / positions, tables);
    product(Normalised<HARD_SWISH>(x, table_or_null, m, k, of), Matrix{w, k, pitch, pitch},
            StoredMoments{y, partial, n, positions, slabs}, tiling, shared);
}

// du [m, n] = (a dy + e y + f) w hswish'(A x + B), with y [m, k], w [k, pitch] the transposed weights, x [m, n]; and its sums,
// partial [N, slabs, 2, n]. table [groups, 3, k], x_table [N, 2, n], x_mean [groups, n].
// SASS: HMMA, LDGSTS
extern "C" __global__ __launch_bounds__(128) void mobile_bottleneck_project_gradient(
    const real* __restrict__ dy, const real* __restrict__ y, const float* __restrict__ table, const real* __restrict__ w,
    const real* __restrict__ x, const float* __restrict__ x_table, const float* __restrict__ x_mean,
    real* __restrict__ du, double* __restrict__ partial, uint32_t m, uint32_t n, uint32_t k, uint32_t pitch,
    uint32_t positions, uint32_t groups, uint32_t slabs, uint32_t tiling) {
    DYNAMIC_SHARED(unsigned char, shared);
    const uint32_t images = m / positions;
    product(Gradient(dy, y, table, m, k, TableRows(positions, images, groups)), Matrix{w, k, pitch, pitch},
            SlopeSums<HARD_SWISH>{x, x_table, x_mean, du, partial, n, positions, slabs, images, images, groups}, tiling,
            shared);
}

// dx [m, n] = (a dt + e y + f) w + dy, with dt, y [m, k] and w [k, pitch] the transposed weights. table [groups, 3, k].
// SASS: HMMA, LDGSTS
extern "C" __global__ __launch_bounds__(128) void mobile_bottleneck_expand_gradient(
    const real* __restrict__ dt, const real* __restrict__ y, const float* __restrict__ table, const real* __restrict__ w,
    const real* __restrict__ dy, real* __restrict__ dx, uint32_t m, uint32_t n, uint32_t k, uint32_t pitch,
    uint32_t positions, uint32_t groups, uint32_t tiling) {
    DYNAMIC_SHARED(unsigned char, shared);
    product(Gradient(dt, y, table, m, k, TableRows(positions, m / positions, groups)), Matrix{w, k, pitch, pitch},
            Added{dy, dx, n}, tiling, shared);
}

template <class T, bool VECTOR>
__device__ __forceinline__ void weight_gradient(const Normalised<HARD_SWISH>& x, const Gradient& dz, uint32_t begin,
                                                float* partial, unsigned char* shared) {
    const Place<T> place(dz.columns);
    multiply<T>(AcrossK<T::ROWS, VECTOR, Normalised<HARD_SWISH>>(x, place.row),
                AcrossK<T::COLUMNS, VECTOR, Gradient>(dz, place.column), begin, x.rows, shared, place, x.columns, dz.columns,
                Plain{partial, dz.columns});
}

// partial [slab, a, b] = h' (a dz + e y + f) over the positions of each slab; h [m, a] as in mobile_bottleneck_product, dz and
// y [m, b]. Grid (tiles, slabs).
// SASS: HMMA, LDGSTS
extern "C" __global__ __launch_bounds__(128) void mobile_bottleneck_weight_gradient(
    const real* __restrict__ x, const float* __restrict__ x_table_or_null, const real* __restrict__ dz,
    const real* __restrict__ y, const float* __restrict__ table, float* __restrict__ partial, uint32_t m, uint32_t a,
    uint32_t b, uint32_t positions, uint32_t x_tables, uint32_t groups, uint32_t slab, uint32_t tiling) {
    DYNAMIC_SHARED(unsigned char, shared);
    const uint32_t begin = blockIdx.y * slab, end = min(m, begin + slab), images = m / positions;
    const Normalised<HARD_SWISH> x_view(x, x_table_or_null, end, a, TableRows(positions, images, x_tables));
    const Gradient dz_view(dz, y, table, end, b, TableRows(positions, images, groups));
    partial += blockIdx.y * a * b;
    if (tiling == LARGE) weight_gradient<LargeTile, true>(x_view, dz_view, begin, partial, shared);
    else if (tiling == SMALL) weight_gradient<SmallTile, true>(x_view, dz_view, begin, partial, shared);
    else weight_gradient<SmallTile, false>(x_view, dz_view, begin, partial, shared);
}
