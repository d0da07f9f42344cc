// A mix of all entries of a memory: weights [M, K] = softmax(x keysT / sqrt(C)), y [M, D] = weights values.
//
//   x keysT, dy valuesT     attention_memory_dots, over C or D in slabs that pointwise_conv_add_slabs adds in order
//   y                       pointwise_conv_forward on the weights
//   dvalues = weightsT dy   pointwise_conv_weight_gradient
//   ds                      attention_memory_backward_likeness
//   dkeys = dsT x           pointwise_conv_weight_gradient
//   dx = ds keys            pointwise_conv_forward
//
// Source: the definition in src/ops/attention_memory.rs.
#include "gemm.cuh"
#include "quad.cuh"

template <class T, bool VECTOR>
__device__ __forceinline__ void dots(const Matrix& a, const Matrix& b, uint32_t begin, const Plain& put,
                                     unsigned char* shared) {
    const Place<T> place(put.n);
    multiply<T>(AlongK<T, VECTOR, Matrix>(a, place.row), AcrossK<T::COLUMNS, true, Matrix>(b, place.column), begin,
                a.columns, shared, place, a.rows, put.n, put);
}

// partial [slab, m, n] = a [m, d] b [d, n] over the slab's part of d; b as LaidOut has it, lines `pitch` apart. Grid
// (tiles, slabs).
// SASS: HMMA, LDGSTS
extern "C" __global__ __launch_bounds__(128) void attention_memory_dots(const real* __restrict__ a,
                                                                        const real* __restrict__ b,
                                                                        float* __restrict__ partial, uint32_t m,
                                                                        uint32_t n, uint32_t d, uint32_t pitch,
                                                                        uint32_t slab, uint32_t tiling) {
    DYNAMIC_SHARED(unsigned char, shared);
    const uint32_t begin = blockIdx.y * slab, end = min(d, begin + slab);
    const Matrix a_view{a, m, end, d}, b_view{b, end, pitch, pitch};
    const Plain put{partial + blockIdx.y * m * n, n};
    if (tiling == LARGE) dots<LargeTile, true>(a_view, b_view, begin, put, shared);
    else if (tiling == SMALL) dots<SmallTile, true>(a_view, b_view, begin, put, shared);
    else dots<SmallTile, false>(a_view, b_view, begin, put, shared);
}

__device__ __forceinline__ float warp_max(float v) {
    for (uint32_t step = WARP / 2; step > 0; step /= 2) v = fmaxf(v, __shfl_xor_sync(ALL_LANES, v, step));
    return v;
}

// weights [rows, entries] = softmax(scale likeness). A warp for each row.
extern "C" __global__ __launch_bounds__(256) void attention_memory_weights(const float* __restrict__ likeness,
                                                                           real* __restrict__ weights, uint32_t rows,
                                                                           uint32_t entries, double scale) {
    const uint32_t m = global_warp(), lane = lane_index();
    if (m >= rows) return;
    likeness += static_cast<size_t>(m) * entries;
    weights += static_cast<size_t>(m) * entries;
    const float factor = static_cast<float>(scale);
    float highest = likeness[0] * factor;
    for (uint32_t k = lane; k < entries; k += WARP) highest = fmaxf(highest, likeness[k] * factor);
    highest = warp_max(highest);
    float total = 0.0f;
    for (uint32_t k = lane; k < entries; k += WARP) total += expf(likeness[k] * factor - highest);
    total = warp_sum(total);
    for (uint32_t k = lane; k < entries; k += WARP) weights[k] = to_real(expf(likeness[k] * factor - highest) / total);
}

// ds [rows, entries] = scale weights (dw - sum of weights dw over the row). A warp for each row.
extern "C" __global__ __launch_bounds__(256) void attention_memory_backward_likeness(
    const real* __restrict__ weights, const float* __restrict__ dw, real* __restrict__ ds, uint32_t rows,
    uint32_t entries, double scale) {
    const uint32_t m = global_warp(), lane = lane_index();
    if (m >= rows) return;
    const size_t at = static_cast<size_t>(m) * entries;
    weights += at;
    dw += at;
    ds += at;
    float mean = 0.0f;
    for (uint32_t k = lane; k < entries; k += WARP) mean = fmaf(widen(weights[k]), dw[k], mean);
    mean = warp_sum(mean);
    const float factor = static_cast<float>(scale);
    for (uint32_t k = lane; k < entries; k += WARP) ds[k] = to_real(widen(weights[k]) * (dw[k] - mean) * factor);
}
