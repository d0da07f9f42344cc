// What happens to finished values of a matrix product on their way to memory, V neighbours of a row at a time.
//
//   BiasActivation   y = act(z + bias + residual), or with dy: y = dy act'(..), the gradient before the activation
//   Plain            f32 sums as they are
//   Added            y = z + more
#pragma once

#include "activation.cuh"
#include "vector.cuh"

struct BiasActivation {
    static constexpr bool SUMS = false;
    const float* bias_or_null;
    const real* dy_or_null;
    real* y;
    uint32_t n, act;
    const real* residual_or_null = nullptr;

    template <uint32_t V>
    __device__ __forceinline__ void operator()(uint32_t row, uint32_t column, Floats<V> z) const {
        const uint32_t at = row * n + column;
        if (bias_or_null != nullptr) {
            // One by one: a bias is a stretch of a long list of parameters and may start anywhere.
#pragma unroll
            for (uint32_t i = 0; i < V; ++i) z.at[i] += bias_or_null[column + i];
        }
        if (residual_or_null != nullptr) {
            z = zip([](float v, float r) { return v + r; }, z, load<V>(residual_or_null + at));
        }
        if (dy_or_null != nullptr) {
            const auto gradient = [&](float v, float dy) { return dy * act_slope(act, v); };
            z = zip(gradient, z, load<V>(dy_or_null + at));
        } else {
            z = zip([&](float v) { return act_value(act, v); }, z);
        }
        store<V>(y + at, z);
    }
};

struct Plain {
    static constexpr bool SUMS = false;
    float* y;
    uint32_t n;

    template <uint32_t V>
    __device__ __forceinline__ void operator()(uint32_t row, uint32_t column, Floats<V> sums) const {
        store<V>(y + row * n + column, sums);
    }
};

// To what a product gives, `more` is added.
struct Added {
    static constexpr bool SUMS = false;
    const real* more;
    real* y;
    uint32_t n;

    template <uint32_t V>
    __device__ __forceinline__ void operator()(uint32_t row, uint32_t column, Floats<V> z) const {
        const uint32_t at = row * n + column;
        store<V>(y + at, zip([](float a, float b) { return a + b; }, z, load<V>(more + at)));
    }
};
