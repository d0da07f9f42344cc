// y[n, p, c] = x[n, p, c] g[n, c]; dx = dy g, which is the same product; dg[n, c] = sum over the positions p of dy x.
// x, y, dx, dy: [N, positions, channels]; g, dg: [N, channels].
#include "column_sum.cuh"

template <uint32_t V>
__device__ __forceinline__ void scale(const real* x, const real* g, real* y, uint32_t positions, uint32_t channels,
                                      uint32_t n) {
    const uint32_t i = (blockIdx.x * blockDim.x + threadIdx.x) * V;
    if (i >= n) return;
    const uint32_t image = i / (positions * channels), c = i % channels;
    store(y + i, zip([](float x, float g) { return x * g; }, load<V>(x + i), load<V>(g + image * channels + c)));
}

// Grid: a thread for each of the n values of y, or for four of them where channels % 4 == 0.
// SASS: LDG.128 (f32), LDG.64 (bf16), STG.128 (f32), STG.64 (bf16)
extern "C" __global__ __launch_bounds__(256) void channel_scale_forward(const real* __restrict__ x,
                                                                        const real* __restrict__ g,
                                                                        real* __restrict__ y, uint32_t positions,
                                                                        uint32_t channels, uint32_t n) {
    if (channels % 4 == 0) scale<4>(x, g, y, positions, channels, n);
    else scale<1>(x, g, y, positions, channels, n);
}

template <uint32_t V>
__device__ __forceinline__ void gate_gradient(const real* x, const real* dy, real* dg, uint32_t positions,
                                              uint32_t channels) {
    const uint32_t groups = (channels + COLUMNS - 1) / COLUMNS;
    const uint32_t image = blockIdx.x / groups, first = blockIdx.x % groups * COLUMNS;
    x += static_cast<size_t>(image) * positions * channels;
    dy += static_cast<size_t>(image) * positions * channels;
    const double sum = column_sum<V>(positions, channels, first, [=](uint32_t p, uint32_t c) {
        const uint32_t i = p * channels + c;
        return zip([](float x, float dy) { return x * dy; }, load<V>(x + i), load<V>(dy + i));
    });
    const uint32_t c = first + threadIdx.x;
    if (threadIdx.x < COLUMNS && c < channels) dg[image * channels + c] = to_real(static_cast<float>(sum));
}

// Grid: N * ceil(channels / 16) blocks.
// SASS: LDG.128 (f32), LDG.64 (bf16)
extern "C" __global__ __launch_bounds__(256) void channel_scale_backward_g(const real* __restrict__ x,
                                                                           const real* __restrict__ dy,
                                                                           real* __restrict__ dg, uint32_t positions,
                                                                           uint32_t channels) {
    if (channels % 4 == 0) gate_gradient<4>(x, dy, dg, positions, channels);
    else gate_gradient<1>(x, dy, dg, positions, channels);
}
