// Products of mobile_bottleneck.cu by the copy engine and warpgroups, for sm_90a: channels in multiples of 8, bf16.
//
//   y1 = x w1               and its moments        mobile_bottleneck_wgmma_expand
//   y3 = h2 w3              and its moments        mobile_bottleneck_wgmma_project; h2 is made in registers, k a multiple of 16
//   du = dz3 w3' hswish'    and its sums           mobile_bottleneck_wgmma_project_gradient
//
// dz3 and dz1 are in memory here, by batch_norm.cu: made of two arrays on load they would need a slot of 76 KiB, of which no
// three fit. dx is then pointwise_conv_wgmma_forward with dy as residual. Weights [1, n, k]. Clusters of one or two; n a
// multiple of 216 in clusters of two. Sums are taken piece by piece of an image and added in order, see gemm_sums.cuh: a tile
// of 192 rows is a run.
#include "changed.cuh"
#include "gemm_sums.cuh"

// A finished tile that is also added up.
template <class Put> struct Summed {
    Put put;
    uint32_t m;
    __device__ __forceinline__ void operator()(float* tile, const ForwardTile& place) const {
        static_assert(FORWARD_ROWS * PRODUCT_COLUMNS * sizeof(float) + SUM_BYTES<ForwardTile, 4> <= STAGES * ForwardRing::SLOT,
                      "the sums fit");
        put_and_sum<ForwardTile, 4>(tile, PRODUCT_COLUMNS, tile + FORWARD_ROWS * PRODUCT_COLUMNS, place.row, place.column, m,
                                    put.n, put);
    }
};

// y [m, n] = x [m, k] w; partial [N, slabs, 2, n]: the moments of y.
// SASS: HGMMA.64x216x16, UTMALDG.MULTICAST, STG.64
extern "C" __global__ __launch_bounds__(384, 1) void mobile_bottleneck_wgmma_expand(
    const __grid_constant__ TensorMap x, const __grid_constant__ TensorMap w, real* __restrict__ y,
    double* __restrict__ partial, uint32_t m, uint32_t n, uint32_t k, uint32_t positions, uint32_t slabs) {
    DYNAMIC_SHARED(unsigned char, shared);
    if (threadIdx.x == 0) prefetch(x), prefetch(w);
    const ForwardTile place(n);
    forward(shared, place, w, 1, k, Lines(x, place), AsStored(), Summed<StoredMoments>{{y, partial, n, positions, slabs}, m});
}

// y [m, n] = h w, h = hswish(a x + b) with a table [tables, 2, k]; partial as above.
// SASS: HGMMA.64x216x16, UTMALDG.MULTICAST, LDSM, STG.64
extern "C" __global__ __launch_bounds__(384, 1) void mobile_bottleneck_wgmma_project(
    const __grid_constant__ TensorMap x, const __grid_constant__ TensorMap w, const float* __restrict__ table,
    real* __restrict__ y, double* __restrict__ partial, uint32_t m, uint32_t n, uint32_t k, uint32_t positions,
    uint32_t tables, uint32_t slabs) {
    DYNAMIC_SHARED(unsigned char, shared);
    if (threadIdx.x == 0) prefetch(x), prefetch(w);
    const ForwardTile place(n);
    const Changed h(table, place.row, m, k, positions, m / positions, tables);
    forward(shared, place, w, 1, k, Lines(x, place), h, Summed<StoredMoments>{{y, partial, n, positions, slabs}, m});
}

// du [m, n] = dz [m, k] w hswish'(A x + B) with x [m, n]; and its sums, partial [N, slabs, 2, n]. x_table [N, 2, n], x_mean
// [groups, n].
// SASS: HGMMA.64x216x16, UTMALDG.MULTICAST, STG.64
extern "C" __global__ __launch_bounds__(384, 1) void mobile_bottleneck_wgmma_project_gradient(
    const __grid_constant__ TensorMap dz, const __grid_constant__ TensorMap w, const real* __restrict__ x,
    const float* __restrict__ x_table, const float* __restrict__ x_mean, real* __restrict__ du, double* __restrict__ partial,
    uint32_t m, uint32_t n, uint32_t k, uint32_t positions, uint32_t groups, uint32_t slabs) {
    DYNAMIC_SHARED(unsigned char, shared);
    if (threadIdx.x == 0) prefetch(dz), prefetch(w);
    const ForwardTile place(n);
    const uint32_t images = m / positions;
    const SlopeSums<HARD_SWISH> put{x, x_table, x_mean, du, partial, n, positions, slabs, images, images, groups};
    forward(shared, place, w, 1, k, Lines(dz, place), AsStored(), Summed<SlopeSums<HARD_SWISH>>{put, m});
}
