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
#include "common.cuh"
#include "quad.cuh"

// Smallest product of two norms that a cosine divides by.
constexpr double COSINE_GUARD = 1e-8;

// Sums over the channels of one position.
struct Sums {
    double distance, product, ff, xx;
    // dy . (x - f)
    double slope;
};

// The same in every lane; without dy its product stays zero.
template <bool VECTOR>
__device__ __forceinline__ Sums sums_of(const real* f, const real* x, const real* dy_or_null, uint32_t channels) {
    float distance = 0.0f, product = 0.0f, ff = 0.0f, xx = 0.0f, slope = 0.0f;
    for (uint32_t from = 0; from < channels; from += SPAN) {
        const float4 a = load_quad<VECTOR>(f, from, channels), b = load_quad<VECTOR>(x, from, channels);
        const float4 r = difference4(a, b);
        distance = dot4(r, r, distance);
        product = dot4(a, b, product);
        ff = dot4(a, a, ff);
        xx = dot4(b, b, xx);
        if (dy_or_null != nullptr) slope = dot4(load_quad<VECTOR>(dy_or_null, from, channels), r, slope);
    }
    Sums s;
    s.distance = warp_sum(static_cast<double>(distance));
    s.product = warp_sum(static_cast<double>(product));
    s.ff = warp_sum(static_cast<double>(ff));
    s.xx = warp_sum(static_cast<double>(xx));
    s.slope = dy_or_null != nullptr ? -warp_sum(static_cast<double>(slope)) : 0.0;
    return s;
}

struct Gate {
    // S.
    double trust;
    double cosine;
    // |f| |x|, kept from zero.
    double norms;
};

__device__ __forceinline__ Gate gate_of(const Sums& s, uint32_t channels, double mse_coef, double mse_weight,
                                        double cos_weight) {
    const bool inside = s.distance / channels * mse_coef <= 0.5;
    const double root = sqrt(s.ff * s.xx), norms = root > COSINE_GUARD ? root : COSINE_GUARD;
    const double cosine = s.product / norms;
    double step = inside ? mse_weight : 0.0;
    // A NaN must not look like a position beyond the threshold.
    if (isnan(s.distance)) step = s.distance;
    return {step + cos_weight * cosine, cosine, norms};
}

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
