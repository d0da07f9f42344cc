// y[r] = (a[r], b[r]): rows of `a_channels` and of `b_channels` values become rows of both. Backward is the way back; a
// gradient that nobody asked for is null.
#include "vector.cuh"

template <uint32_t V>
__device__ __forceinline__ void join(const real* a, const real* b, real* y, uint32_t a_channels, uint32_t b_channels,
                                     uint32_t n) {
    const uint32_t i = (blockIdx.x * blockDim.x + threadIdx.x) * V;
    if (i >= n) return;
    const uint32_t channels = a_channels + b_channels, row = i / channels, c = i % channels;
    const real* from = c < a_channels ? a + row * a_channels + c : b + row * b_channels + (c - a_channels);
    store(y + i, load<V>(from));
}

// Grid: a thread for each of the n values of y, or for four of them where both channel counts are multiples of 4.
// SASS: LDG.128 (f32), LDG.64 (bf16), STG.128 (f32), STG.64 (bf16)
extern "C" __global__ __launch_bounds__(256) void concat_forward(const real* __restrict__ a, const real* __restrict__ b,
                                                                 real* __restrict__ y, uint32_t a_channels,
                                                                 uint32_t b_channels, uint32_t n) {
    if (a_channels % 4 == 0 && b_channels % 4 == 0) join<4>(a, b, y, a_channels, b_channels, n);
    else join<1>(a, b, y, a_channels, b_channels, n);
}

template <uint32_t V>
__device__ __forceinline__ void split(const real* dy, real* da, real* db, uint32_t a_channels, uint32_t b_channels,
                                      uint32_t n) {
    const uint32_t i = (blockIdx.x * blockDim.x + threadIdx.x) * V;
    if (i >= n) return;
    const uint32_t channels = a_channels + b_channels, row = i / channels, c = i % channels;
    if (c < a_channels) {
        if (da) store(da + row * a_channels + c, load<V>(dy + i));
    } else {
        if (db) store(db + row * b_channels + (c - a_channels), load<V>(dy + i));
    }
}

// Grid: as forward, n counts the values of dy.
// SASS: LDG.128 (f32), LDG.64 (bf16), STG.128 (f32), STG.64 (bf16)
extern "C" __global__ __launch_bounds__(256) void concat_backward(const real* __restrict__ dy,
                                                                  real* __restrict__ da_or_null,
                                                                  real* __restrict__ db_or_null, uint32_t a_channels,
                                                                  uint32_t b_channels, uint32_t n) {
    if (a_channels % 4 == 0 && b_channels % 4 == 0) split<4>(dy, da_or_null, db_or_null, a_channels, b_channels, n);
    else split<1>(dy, da_or_null, db_or_null, a_channels, b_channels, n);
}
