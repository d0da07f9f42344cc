// The convolutions of conv2d.cu by the copy engine and warpgroups, for sm_90a: stride 1, any kernel and padding, channels in
// multiples of 8, bf16.
//
// The engine's im2col mode gathers patches: a map knows the picture that is read and the corners between which base pixels
// lie, one for each pixel that is written; a copy names the first of them and the tap. Written (x, y) reads
//
//                      lower corner          from base pixel to tap (ky, kx)          upper corner
//   y, and dw from x   -pad (left, top)      ky, kx                                   from the sizes of both sides, such that
//   dx                 pad - (size - 1)      size - 1 - ky, size - 1 - kx             there are as many base pixels as written ones
//
// Weights as pointwise_conv.cu lays them out: [taps, n, k], lines padded to 16 bytes. Both kernels are second implementations
// of those in conv2d.cu, and src/device/cuda/chosen.rs says when they are taken.
#include "forward.cuh"
#include "weight_gradient.cuh"

// y [m, n] = act(patches of x times weights + bias), or dy act'(..); k channels are read, `direction` is 1 or -1. `left` and
// `top` are the lower corner. Clusters of one or two; n a multiple of 216 in clusters of two.
// SASS: HGMMA.64x216x16, UTMALDG.IM2COL.MULTICAST, STG.128
extern "C" __global__ __launch_bounds__(384, 1) void conv2d_wgmma_forward(
    const __grid_constant__ TensorMap x, const __grid_constant__ TensorMap w, const float* __restrict__ bias_or_null,
    const real* __restrict__ dy_or_null, real* __restrict__ y, uint32_t m, uint32_t n, uint32_t k, uint32_t out_height,
    uint32_t out_width, uint32_t taps_down, uint32_t taps_across, int32_t direction, int32_t top, int32_t left, uint32_t act) {
    DYNAMIC_SHARED(unsigned char, shared);
    if (threadIdx.x == 0) prefetch(x), prefetch(w);
    const ForwardTile place(n);
    const uint32_t rank = cluster_rank(), blocks = cluster_size();
    // Rows beyond the end are never written: they may hold anything.
    const uint32_t row = place.row + rank * place.share;
    Pixels from = base_pixel(row < m ? row : 0, out_width, out_height, left, top);
    const auto rows = [&](uint32_t to, uint32_t barrier, int32_t channel, uint32_t tap) {
        const uint32_t ky = tap / taps_across, kx = tap - ky * taps_across;
        from.down = static_cast<uint16_t>(direction > 0 ? ky : taps_down - 1 - ky);
        from.right = static_cast<uint16_t>(direction > 0 ? kx : taps_across - 1 - kx);
        if (blocks == 1) copy_pixels(to, x, barrier, channel, from);
        else copy_pixels_to_all(to + rank * place.share * ROW_BYTES, x, barrier, channel, from, (1u << blocks) - 1);
    };
    forward(shared, place, w, taps_down * taps_across, k, {bias_or_null, dy_or_null, y, m, n, act}, rows);
}

// dw [taps, k, n] = (patches of x)T dz over all m positions of dz. A cluster for each tile of three times 64 rows and 216
// columns; no more blocks in it than slots of 64 positions.
// SASS: HGMMA.64x216x16, UTMALDG.IM2COL
extern "C" __global__ __launch_bounds__(384, 1) void conv2d_wgmma_weight_gradient(
    const __grid_constant__ TensorMap x, const __grid_constant__ TensorMap dz, float* __restrict__ dw, uint32_t m, uint32_t n,
    uint32_t k, uint32_t out_height, uint32_t out_width, uint32_t taps, uint32_t taps_across, int32_t top, int32_t left) {
    DYNAMIC_SHARED(unsigned char, shared);
    if (threadIdx.x == 0) prefetch(x), prefetch(dz);
    const auto rows = [&](uint32_t to, uint32_t barrier, uint32_t position, uint32_t tap, int32_t channel) {
        Pixels from = base_pixel(position, out_width, out_height, left, top);
        const uint32_t ky = tap / taps_across;
        from.down = static_cast<uint16_t>(ky), from.right = static_cast<uint16_t>(tap - ky * taps_across);
        copy_pixels(to, x, barrier, channel, from);
    };
    weight_gradient<3>(shared, dz, dw, m, taps, k, n, rows);
}
