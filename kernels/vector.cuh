// V neighbouring values, as floats: the unit in which the memory-bound kernels read and write.
//
// V is 4 where the number of channels allows it (one access of 16 bytes, 8 in bf16) and 1 elsewhere. T is `real` or
// `float`.
//
// A warp that goes along a row takes SPAN neighbouring values of it together, four a lane. VECTOR: lane l holds the values
// from + 4 l .. from + 4 l + 3, in one access; the length n of the row must be a multiple of 4 and its start aligned.
// Otherwise lane l holds from + l, from + l + 32, from + l + 64 and from + l + 96: neighbouring lanes still read neighbouring
// values, whatever the length. Beyond the end of the row a load gives zeros, a store writes nothing.
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

// a b + c, where a is the same for all.
template <uint32_t V> __device__ __forceinline__ Floats<V> fma_all(float a, Floats<V> b, Floats<V> c) {
    return zip([a](float b, float c) { return fmaf(a, b, c); }, b, c);
}
template <uint32_t V> __device__ __forceinline__ Floats<V> scaled(float a, Floats<V> b) {
    return zip([a](float b) { return a * b; }, b);
}
template <uint32_t V> __device__ __forceinline__ Floats<V> difference(Floats<V> a, Floats<V> b) {
    return zip([](float a, float b) { return a - b; }, a, b);
}
// Sum of a b, added to c in order.
template <uint32_t V> __device__ __forceinline__ float dot_product(Floats<V> a, Floats<V> b, float c) {
#pragma unroll
    for (uint32_t k = 0; k < V; k++) c = fmaf(a.at[k], b.at[k], c);
    return c;
}

constexpr uint32_t SPAN = 4 * WARP;

// The warp of this thread, counted over the whole launch, and the place of the thread in it.
__device__ __forceinline__ uint32_t global_warp() { return blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP; }
__device__ __forceinline__ uint32_t lane_index() { return threadIdx.x % WARP; }

template <bool VECTOR, typename T>
__device__ __forceinline__ Floats<4> load_span(const T* row, uint32_t from, uint32_t n) {
    Floats<4> v = {};
    if constexpr (VECTOR) {
        const uint32_t i = from + 4 * lane_index();
        if (i < n) v = load<4>(row + i);
    } else {
#pragma unroll
        for (uint32_t k = 0; k < 4; k++) {
            const uint32_t i = from + k * WARP + lane_index();
            if (i < n) v.at[k] = load<1>(row + i).at[0];
        }
    }
    return v;
}

template <bool VECTOR, typename T>
__device__ __forceinline__ void store_span(T* row, uint32_t from, uint32_t n, Floats<4> v) {
    if constexpr (VECTOR) {
        const uint32_t i = from + 4 * lane_index();
        if (i < n) store<4>(row + i, v);
    } else {
#pragma unroll
        for (uint32_t k = 0; k < 4; k++) {
            const uint32_t i = from + k * WARP + lane_index();
            if (i < n) store<1>(row + i, Floats<1>{{v.at[k]}});
        }
    }
}
