// The squeeze-excite gate of a network whose weights do not change, as src/nn/frozen.rs defines it:
//
//   mean [N, C] of x over the positions    hidden = a(mean w1 + b1) [N, S]    gate = b(hidden w2 + b2) [N, C]
//   y = act(x gate)
//
// x, y: [N, positions, C], stored as activations are. What belongs to an image is f32 in every precision, and every sum of
// an image is added in an order that does not depend on the images beside it.
#include "activation.cuh"
#include "column_sum.cuh"

template <uint32_t V>
__device__ __forceinline__ void mean_of(const real* x, float* mean, uint32_t positions, uint32_t channels) {
    const uint32_t groups = (channels + COLUMNS - 1) / COLUMNS;
    const uint32_t image = blockIdx.x / groups, first = blockIdx.x % groups * COLUMNS;
    x += static_cast<size_t>(image) * positions * channels;
    const double sum = column_sum<V>(positions, channels, first, [=](uint32_t p, uint32_t c) {
        return load<V>(x + p * channels + c);
    });
    const uint32_t c = first + threadIdx.x;
    if (threadIdx.x < COLUMNS && c < channels) mean[image * channels + c] = static_cast<float>(sum / positions);
}

// Grid: N * ceil(channels / 16) blocks.
// SASS: LDG.128 (f32), LDG.64 (bf16)
extern "C" __global__ __launch_bounds__(256) void frozen_gate_mean(const real* __restrict__ x, float* __restrict__ mean,
                                                                   uint32_t positions, uint32_t channels) {
    if (channels % 4 == 0) mean_of<4>(x, mean, positions, channels);
    else mean_of<1>(x, mean, positions, channels);
}

constexpr uint32_t PARTS = 16;  // warps of a block: each adds a sixteenth of the inner dimension
constexpr uint32_t IMAGES = 4;  // rows of x that a block holds

// y [N, J] = act(x [N, K] w [K, J] + bias). Block (32 columns, 4 images); the sixteenths are added in f64, in order.
extern "C" __global__ __launch_bounds__(512) void frozen_gate_product(const float* __restrict__ x,
                                                                      const float* __restrict__ w,
                                                                      const float* __restrict__ bias,
                                                                      float* __restrict__ y, uint32_t act,
                                                                      uint32_t images, uint32_t inner,
                                                                      uint32_t columns) {
    SHARED(float, partial, [PARTS][IMAGES][WARP]);
    const uint32_t part = threadIdx.x / WARP, lane = threadIdx.x % WARP, first = blockIdx.y * IMAGES;
    const uint32_t column = min(blockIdx.x * WARP + lane, columns - 1);
    float sum[IMAGES] = {};
    const uint32_t end = (part + 1) * inner / PARTS;
#pragma unroll 8
    for (uint32_t k = part * inner / PARTS; k < end; ++k) {
        const float weight = w[k * columns + column];
#pragma unroll
        for (uint32_t i = 0; i < IMAGES; ++i) sum[i] += x[min(first + i, images - 1) * inner + k] * weight;
    }
#pragma unroll
    for (uint32_t i = 0; i < IMAGES; ++i) partial[part][i][lane] = sum[i];
    __syncthreads();
    // One warp per image.
    const uint32_t image = first + part;
    if (part >= IMAGES || image >= images || blockIdx.x * WARP + lane >= columns) return;
    double total = 0.0;
    for (uint32_t p = 0; p < PARTS; ++p) total += partial[p][part][lane];
    y[image * columns + column] = act_value(act, static_cast<float>(total) + bias[column]);
}

template <uint32_t V>
__device__ __forceinline__ void gate(const real* x, const float* gates, real* y, uint32_t act, uint32_t positions,
                                     uint32_t channels, uint32_t n) {
    const uint32_t i = (blockIdx.x * blockDim.x + threadIdx.x) * V;
    if (i >= n) return;
    const uint32_t image = i / (positions * channels), c = i % channels;
    const Floats<V> a = load<V>(x + i), g = load<V>(gates + image * channels + c);
    store(y + i, with_kind(act, [=](auto k) {
        return zip([](float x, float g) { return act_value<decltype(k)::kind>(x * g); }, a, g);
    }));
}

// Grid: a thread for each of the n values of y, or for four of them where channels % 4 == 0.
// SASS: LDG.128 (f32), LDG.64 (bf16), STG.128 (f32), STG.64 (bf16)
extern "C" __global__ __launch_bounds__(256) void frozen_gate_apply(const real* __restrict__ x,
                                                                    const float* __restrict__ gates,
                                                                    real* __restrict__ y, uint32_t act,
                                                                    uint32_t positions, uint32_t channels, uint32_t n) {
    if (channels % 4 == 0) gate<4>(x, gates, y, act, positions, channels, n);
    else gate<1>(x, gates, y, act, positions, channels, n);
}
