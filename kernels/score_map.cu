// Distance between a picture's features and their refined reconstruction: d_p = |a_p - b_p| over the channels.
//
//   a, b, da [positions, channels], d, dd [positions]; da = dd (a - b) / d, zero where d is zero.
//
// A warp for every position.
#include "vector.cuh"

template <bool VECTOR> __device__ __forceinline__ double squares(const real* a, const real* b, uint32_t channels) {
    float sum = 0.0f;
    for (uint32_t from = 0; from < channels; from += SPAN) {
        const Floats<4> r = difference(load_span<VECTOR>(a, from, channels), load_span<VECTOR>(b, from, channels));
        sum = dot_product(r, r, sum);
    }
    return warp_sum(static_cast<double>(sum));
}

// SASS: LDG.128 (f32), LDG.64 (bf16)
extern "C" __global__ __launch_bounds__(256) void score_map_forward(const real* __restrict__ a,
                                                                    const real* __restrict__ b,
                                                                    float* __restrict__ d, uint32_t positions,
                                                                    uint32_t channels) {
    const uint32_t p = global_warp();
    if (p >= positions) return;
    const size_t at = static_cast<size_t>(p) * channels;
    const double sum =
        channels % 4 == 0 ? squares<true>(a + at, b + at, channels) : squares<false>(a + at, b + at, channels);
    if (lane_index() == 0) d[p] = static_cast<float>(sqrt(sum));
}

template <bool VECTOR>
__device__ __forceinline__ void direction(const real* a, const real* b, real* da, float scale, uint32_t channels) {
    for (uint32_t from = 0; from < channels; from += SPAN) {
        const Floats<4> r = difference(load_span<VECTOR>(a, from, channels), load_span<VECTOR>(b, from, channels));
        store_span<VECTOR>(da, from, channels, scaled(scale, r));
    }
}

// Four blocks: the compiler would spill for the sake of eight.
// SASS: LDG.128 (f32), LDG.64 (bf16), STG.128 (f32), STG.64 (bf16)
extern "C" __global__ __launch_bounds__(256, 4) void score_map_backward(const real* __restrict__ a,
                                                                     const real* __restrict__ b,
                                                                     const float* __restrict__ d,
                                                                     const float* __restrict__ dd,
                                                                     real* __restrict__ da, uint32_t positions,
                                                                     uint32_t channels) {
    const uint32_t p = global_warp();
    if (p >= positions) return;
    const size_t at = static_cast<size_t>(p) * channels;
    const float scale = d[p] > 0.0f ? dd[p] / d[p] : 0.0f;
    if (channels % 4 == 0) {
        direction<true>(a + at, b + at, da + at, scale, channels);
    } else {
        direction<false>(a + at, b + at, da + at, scale, channels);
    }
}
