// The element-wise non-linearities, as in src/ops/activation.rs: value act(z) and derivative act'(z).
//
// The kinds are numbered as the variants of `Kind` there. Comparisons are written so that a NaN comes out as a NaN, which
// fminf and fmaxf would swallow. At a kink the derivative is the one that `Kind::slope` chooses.
#pragma once

#include "common.cuh"

constexpr uint32_t IDENTITY = 0, RELU = 1, RELU6 = 2, HARD_SIGMOID = 3, HARD_SWISH = 4, SIGMOID = 5, SWISH = 6, TANH = 7;

__device__ __forceinline__ float relu(float z) { return z < 0.0f ? 0.0f : z; }
__device__ __forceinline__ float relu6(float z) { return z > 6.0f ? 6.0f : relu(z); }
__device__ __forceinline__ float hard_sigmoid(float z) { return relu6(z + 3.0f) * (1.0f / 6.0f); }
__device__ __forceinline__ float sigmoid(float z) { return 1.0f / (1.0f + expf(-z)); }

// The kind known to the compiler.
template <uint32_t KIND> __device__ __forceinline__ float act_value(float z) {
    if constexpr (KIND == RELU) return relu(z);
    if constexpr (KIND == RELU6) return relu6(z);
    if constexpr (KIND == HARD_SIGMOID) return hard_sigmoid(z);
    if constexpr (KIND == HARD_SWISH) return z * hard_sigmoid(z);
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

// The kind known at run time; it must be the same for all threads of a block.
__device__ __forceinline__ float act_value(uint32_t kind, float z) {
    switch (kind) {
    case RELU: return act_value<RELU>(z);
    case RELU6: return act_value<RELU6>(z);
    case HARD_SIGMOID: return act_value<HARD_SIGMOID>(z);
    case HARD_SWISH: return act_value<HARD_SWISH>(z);
    case SIGMOID: return act_value<SIGMOID>(z);
    case SWISH: return act_value<SWISH>(z);
    case TANH: return act_value<TANH>(z);
    default: return z;
    }
}

__device__ __forceinline__ float act_slope(uint32_t kind, float z) {
    switch (kind) {
    case RELU: return act_slope<RELU>(z);
    case RELU6: return act_slope<RELU6>(z);
    case HARD_SIGMOID: return act_slope<HARD_SIGMOID>(z);
    case HARD_SWISH: return act_slope<HARD_SWISH>(z);
    case SIGMOID: return act_slope<SIGMOID>(z);
    case SWISH: return act_slope<SWISH>(z);
    case TANH: return act_slope<TANH>(z);
    default: return 1.0f;
    }
}
