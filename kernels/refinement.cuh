// What the refinement gate knows of a position: sums over the channels of f and x, and how far x is trusted.
//
//   e = mean (f - x)^2, m = 1 where k e <= 0.5 and 0 beyond, c = f.x / (|f| |x|), S = mse_weight m + cos_weight c
//
// Each lane of a warp sums a few channels in f32, the lanes are added in f64: e decides a step, and a position must not
// change sides by the rounding of a sum.
#pragma once

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
