// V neighbouring values, as floats: the unit in which the memory-bound kernels read and write.
//
// V is 4 where the number of channels allows it (one access of 16 bytes, 8 in bf16) and 1 elsewhere. T is `real` or
// `float`.
#pragma once

#include "common.cuh"

template <uint32_t V> struct Floats {
    float at[V];
};

template <uint32_t V, typename T> __device__ __forceinline__ Floats<V> load(const T* p) {
    if constexpr (V == 4) {
        float4 v;
        if constexpr (sizeof(T) == sizeof(float)) v = load4(p);
        else v = load_reals4(p);
        return {{v.x, v.y, v.z, v.w}};
    } else if constexpr (sizeof(T) == sizeof(float)) {
        return {{*p}};
    } else {
        return {{to_float(*p)}};
    }
}

template <uint32_t V, typename T> __device__ __forceinline__ void store(T* p, Floats<V> v) {
    if constexpr (V == 4) {
        const float4 all = make_float4(v.at[0], v.at[1], v.at[2], v.at[3]);
        if constexpr (sizeof(T) == sizeof(float)) store4(p, all);
        else store_reals4(p, all);
    } else if constexpr (sizeof(T) == sizeof(float)) {
        *p = v.at[0];
    } else {
        *p = to_real(v.at[0]);
    }
}

// f(a), f(a, b), value by value.
template <uint32_t V, typename F, typename... X>
__device__ __forceinline__ Floats<V> zip(F f, Floats<V> a, X... more) {
    Floats<V> y;
#pragma unroll
    for (uint32_t k = 0; k < V; k++) y.at[k] = f(a.at[k], more.at[k]...);
    return y;
}
