// y[n, c] = mean over the positions p of x[n, p, c], dx[n, p, c] = dy[n, c] / positions.
// x, dx: [N, positions, channels]; y, dy: [N, channels].
#include "column_sum.cuh"

template <uint32_t V>
__device__ __forceinline__ void average(const real* x, real* y, uint32_t positions, uint32_t channels) {
    const uint32_t groups = (channels + COLUMNS - 1) / COLUMNS;
    const uint32_t image = blockIdx.x / groups, first = blockIdx.x % groups * COLUMNS;
    x += static_cast<size_t>(image) * positions * channels;
    const double sum = column_sum<V>(positions, channels, first, [=](uint32_t p, uint32_t c) {
        return load<V>(x + p * channels + c);
    });
    const uint32_t c = first + threadIdx.x;
    if (threadIdx.x < COLUMNS && c < channels) {
        y[image * channels + c] = to_real(static_cast<float>(sum / positions));
    }
}

// Grid: N * ceil(channels / 16) blocks.
// SASS: LDG.128 (f32), LDG.64 (bf16)
extern "C" __global__ __launch_bounds__(256) void global_avg_pool_forward(const real* __restrict__ x,
                                                                          real* __restrict__ y, uint32_t positions,
                                                                          uint32_t channels) {
    if (channels % 4 == 0) average<4>(x, y, positions, channels);
    else average<1>(x, y, positions, channels);
}

template <uint32_t V>
__device__ __forceinline__ void spread(const real* dy, real* dx, uint32_t positions, uint32_t channels, uint32_t n) {
    const uint32_t i = (blockIdx.x * blockDim.x + threadIdx.x) * V;
    if (i >= n) return;
    const uint32_t image = i / (positions * channels), c = i % channels;
    const float count = static_cast<float>(positions);
    store(dx + i, zip([=](float dy) { return dy / count; }, load<V>(dy + image * channels + c)));
}

// Grid: a thread for each of the n values of dx, or for four of them where channels % 4 == 0.
// SASS: LDG.128 (f32), LDG.64 (bf16), STG.128 (f32), STG.64 (bf16)
extern "C" __global__ __launch_bounds__(256) void global_avg_pool_backward(const real* __restrict__ dy,
                                                                           real* __restrict__ dx, uint32_t positions,
                                                                           uint32_t channels, uint32_t n) {
    if (channels % 4 == 0) spread<4>(dy, dx, positions, channels, n);
    else spread<1>(dy, dx, positions, channels, n);
}
