// The refinement gate: how much of the input is trusted at each position.
//
//   f, x, y, dy, df [positions, channels]; per position, sums over the channels:
//   e = mean (f - x)^2, m = 1 where k e <= 0.5 and 0 beyond, c = f.x / (|f| |x|), S = mse_weight m + cos_weight c
//   y  = S x + (1 - S) f
//   df = (1 - S) dy + (dy . (x - f)) cos_weight dc/df,  dc/df = x / (|f| |x|) - c f / |f|^2
//
// A warp for every position. Each lane sums a few channels in f32, the lanes are added in f64: e decides a step, and a
// position must not change sides by the rounding of a sum. The second pass over the channels finds them in L1.
// Source: arXiv 2402.18293, the similarity-guided refinement.
#include "refinement.cuh"

template <bool VECTOR>
__device__ __forceinline__ void refine(const real* f, const real* x, real* y, uint32_t channels, double mse_coef,
                                       double mse_weight, double cos_weight) {
    const Sums s = sums_of<VECTOR>(f, x, nullptr, channels);
    const float trust = static_cast<float>(gate_of(s, channels, mse_coef, mse_weight, cos_weight).trust);
    for (uint32_t from = 0; from < channels; from += SPAN) {
        const float4 a = load_quad<VECTOR>(f, from, channels), b = load_quad<VECTOR>(x, from, channels);
        store_quad<VECTOR>(y, from, channels, fma4(trust, b, scale4(1.0f - trust, a)));
    }
}

// A warp for every position.
// SASS: LDG.128 (f32), LDG.64 (bf16), STG.128 (f32), STG.64 (bf16)
extern "C" __global__ __launch_bounds__(256) void refinement_gate_forward(const real* __restrict__ f,
                                                                          const real* __restrict__ x,
                                                                          real* __restrict__ y, uint32_t positions,
                                                                          uint32_t channels, double mse_coef,
                                                                          double mse_weight, double cos_weight) {
    if (global_warp() >= positions) return;
    const size_t at = static_cast<size_t>(global_warp()) * channels;
    if (channels % 4 == 0) {
        refine<true>(f + at, x + at, y + at, channels, mse_coef, mse_weight, cos_weight);
    } else {
        refine<false>(f + at, x + at, y + at, channels, mse_coef, mse_weight, cos_weight);
    }
}

template <bool VECTOR>
__device__ __forceinline__ void refine_gradient(const real* f, const real* x, const real* dy, real* df,
                                                uint32_t channels, double mse_coef, double mse_weight,
                                                double cos_weight) {
    const Sums s = sums_of<VECTOR>(f, x, dy, channels);
    const Gate g = gate_of(s, channels, mse_coef, mse_weight, cos_weight);
    const double d = cos_weight * s.slope;
    // Below the guard the norms are a constant, and the cosine is linear in f.
    const bool bent = g.norms > COSINE_GUARD && s.ff != 0.0;
    const float of_dy = static_cast<float>(1.0 - g.trust), of_x = static_cast<float>(d / g.norms);
    const float of_f = bent ? static_cast<float>(-d * (g.cosine / s.ff)) : 0.0f;
    for (uint32_t from = 0; from < channels; from += SPAN) {
        const float4 a = load_quad<VECTOR>(f, from, channels), b = load_quad<VECTOR>(x, from, channels);
        const float4 up = load_quad<VECTOR>(dy, from, channels);
        store_quad<VECTOR>(df, from, channels, fma4(of_dy, up, fma4(of_x, b, scale4(of_f, a))));
    }
}

// A warp for every position.
// SASS: LDG.128 (f32), LDG.64 (bf16), STG.128 (f32), STG.64 (bf16)
extern "C" __global__ __launch_bounds__(256) void refinement_gate_backward(
    const real* __restrict__ f, const real* __restrict__ x, const real* __restrict__ dy, real* __restrict__ df,
    uint32_t positions, uint32_t channels, double mse_coef, double mse_weight, double cos_weight) {
    if (global_warp() >= positions) return;
    const size_t at = static_cast<size_t>(global_warp()) * channels;
    if (channels % 4 == 0) {
        refine_gradient<true>(f + at, x + at, dy + at, df + at, channels, mse_coef, mse_weight, cos_weight);
    } else {
        refine_gradient<false>(f + at, x + at, dy + at, df + at, channels, mse_coef, mse_weight, cos_weight);
    }
}
