// The element-wise non-linearities, as in src/ops/activation.rs: value act(z) and derivative act'(z).
//
// The kinds are numbered as the variants of `Kind` there. Comparisons are written so that a NaN comes out as a NaN,
// which fminf and fmaxf would swallow. At a kink the derivative is the one that `Kind::slope` chooses.
#pragma once

#include "common.cuh"

constexpr uint32_t IDENTITY = 0, RELU = 1, RELU6 = 2, HARD_SIGMOID = 3;
constexpr uint32_t HARD_SWISH = 4, SIGMOID = 5, SWISH = 6, TANH = 7;

__device__ __forceinline__ float relu(float z) { return z < 0.0f ? 0.0f : z; }
__device__ __forceinline__ float relu6(float z) { return z > 6.0f ? 6.0f : relu(z); }
__device__ __forceinline__ float hard_sigmoid(float z) { return relu6(z + 3.0f) * (1.0f / 6.0f); }
__device__ __forceinline__ float sigmoid(float z) { return 1.0f / (1.0f + expf(-z)); }

// The kind known to the compiler.
template <uint32_t KIND> __device__ __forceinline__ float act_value(float z) {
    if constexpr (KIND == RELU) return relu(z);
    if constexpr (KIND == RELU6) return relu6(z);
    if constexpr (KIND == HARD_SIGMOID) return hard_sigmoid(z);
    // Two instructions: a NaN that the saturation swallows comes back by the product.
    if constexpr (KIND == HARD_SWISH) return z * __saturatef(fmaf(z, 1.0f / 6.0f, 0.5f));
    if constexpr (KIND == SIGMOID) return sigmoid(z);
    if constexpr (KIND == SWISH) return z * sigmoid(z);
    if constexpr (KIND == TANH) return tanhf(z);
    return z;
}

template <uint32_t KIND> __device__ __forceinline__ float act_slope(float z) {
    if constexpr (KIND == RELU) return z > 0.0f ? 1.0f : 0.0f;
    if constexpr (KIND == RELU6) return z > 0.0f && z < 6.0f ? 1.0f : 0.0f;
    if constexpr (KIND == HARD_SIGMOID) return z > -3.0f && z < 3.0f ? 1.0f / 6.0f : 0.0f;
    if constexpr (KIND == HARD_SWISH) {
        const float inside = (z + z + 3.0f) * (1.0f / 6.0f);
        return z <= -3.0f ? 0.0f : z >= 3.0f ? 1.0f : inside;
    }
    if constexpr (KIND == SIGMOID) {
        const float s = sigmoid(z);
        return s * (1.0f - s);
    }
    if constexpr (KIND == SWISH) {
        const float s = sigmoid(z);
        return s * (1.0f + z * (1.0f - s));
    }
    if constexpr (KIND == TANH) {
        const float t = tanhf(z);
        return 1.0f - t * t;
    }
    return 1.0f;
}

// Calls `f` with the kind as a type, so that loops inside it are compiled for one kind:
//     with_kind(kind, [&](auto k) { y = act_value<decltype(k)::kind>(z); });
// The kind must be the same for all threads of a block.
template <uint32_t KIND> struct KindTag {
    static constexpr uint32_t kind = KIND;
};
template <typename F> __device__ __forceinline__ auto with_kind(uint32_t kind, F f) {
    switch (kind) {
    case RELU: return f(KindTag<RELU>{});
    case RELU6: return f(KindTag<RELU6>{});
    case HARD_SIGMOID: return f(KindTag<HARD_SIGMOID>{});
    case HARD_SWISH: return f(KindTag<HARD_SWISH>{});
    case SIGMOID: return f(KindTag<SIGMOID>{});
    case SWISH: return f(KindTag<SWISH>{});
    case TANH: return f(KindTag<TANH>{});
    default: return f(KindTag<IDENTITY>{});
    }
}

// The kind known at run time.
__device__ __forceinline__ float act_value(uint32_t kind, float z) {
    return with_kind(kind, [=](auto k) { return act_value<decltype(k)::kind>(z); });
}
__device__ __forceinline__ float act_slope(uint32_t kind, float z) {
    return with_kind(kind, [=](auto k) { return act_slope<decltype(k)::kind>(z); });
}
