// The products of pointwise_conv.cu by the copy engine and warpgroups, for sm_90a: channels in multiples of 8, bf16.
//
// As conv2d_wgmma.cu with one tap, and with plain boxes of rows in place of patches.
#include "forward.cuh"
#include "weight_gradient.cuh"

// y [m, n] = act(x [m, k] w + bias), or dy act'(..); weights [1, n, k]. Clusters of one or two; n a multiple of 216 in
// clusters of two.
// SASS: HGMMA.64x216x16, UTMALDG.MULTICAST, STG.128
extern "C" __global__ __launch_bounds__(384, 1) void pointwise_conv_wgmma_forward(
    const __grid_constant__ TensorMap x, const __grid_constant__ TensorMap w, const float* __restrict__ bias_or_null,
    const real* __restrict__ dy_or_null, real* __restrict__ y, uint32_t m, uint32_t n, uint32_t k, uint32_t act) {
    DYNAMIC_SHARED(unsigned char, shared);
    if (threadIdx.x == 0) prefetch(x), prefetch(w);
    const ForwardTile place(n);
    const uint32_t rank = cluster_rank(), blocks = cluster_size();
    const int32_t row = static_cast<int32_t>(place.row + rank * place.share);
    const auto rows = [&](uint32_t to, uint32_t barrier, int32_t channel, uint32_t) {
        if (blocks == 1) copy_box(to, x, barrier, channel, row);
        else copy_box_to_all(to + rank * place.share * ROW_BYTES, x, barrier, channel, row, (1u << blocks) - 1);
    };
    forward(shared, place, w, 1, k, {bias_or_null, dy_or_null, y, m, n, act}, rows);
}

// dw [k, n] = xT dz over all m positions. A cluster for each tile of twice 64 rows and 216 columns; no more blocks in it than
// slots of 64 positions.
// SASS: HGMMA.64x216x16, UTMALDG
extern "C" __global__ __launch_bounds__(256, 1) void pointwise_conv_wgmma_weight_gradient(
    const __grid_constant__ TensorMap x, const __grid_constant__ TensorMap dz, float* __restrict__ dw, uint32_t m, uint32_t n,
    uint32_t k) {
    DYNAMIC_SHARED(unsigned char, shared);
    if (threadIdx.x == 0) prefetch(x), prefetch(dz);
    const auto rows = [&](uint32_t to, uint32_t barrier, uint32_t position, uint32_t, int32_t channel) {
        copy_box(to, x, barrier, channel, static_cast<int32_t>(position));
    };
    weight_gradient<2>(shared, dz, dw, m, 1, k, n, rows);
}
