// Rows read and written by a warp: four values a lane, SPAN neighbouring values of a row together.
//
// VECTOR: lane l holds the values from + 4 l .. from + 4 l + 3, in one access of 16 bytes (f32) or 8 (bf16); the length
// n of the row must be a multiple of 4 and its start aligned. Otherwise lane l holds from + l, from + l + 32,
// from + l + 64 and from + l + 96: neighbouring lanes still read neighbouring values, whatever the length.
// Beyond the end of the row a load gives zeros, a store writes nothing.
#pragma once
#include "common.cuh"

constexpr uint32_t SPAN = 4 * WARP;

__device__ __forceinline__ float4 load_four(const float* p) { return load4(p); }
__device__ __forceinline__ void store_four(float* p, float4 v) { store4(p, v); }
__device__ __forceinline__ float widen(float v) { return v; }
__device__ __forceinline__ void narrow(float* p, float v) { *p = v; }
#ifdef FLAVOUR_BF16
__device__ __forceinline__ float4 load_four(const real* p) { return load_reals4(p); }
__device__ __forceinline__ void store_four(real* p, float4 v) { store_reals4(p, v); }
__device__ __forceinline__ float widen(real v) { return to_float(v); }
__device__ __forceinline__ void narrow(real* p, float v) { *p = to_real(v); }
#endif

// The warp of this thread, counted over the whole launch, and the place of the thread in it.
__device__ __forceinline__ uint32_t global_warp() { return blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP; }
__device__ __forceinline__ uint32_t lane_index() { return threadIdx.x % WARP; }

template <bool VECTOR, typename T>
__device__ __forceinline__ float4 load_quad(const T* row, uint32_t from, uint32_t n) {
    if (VECTOR) {
        const uint32_t i = from + 4 * lane_index();
        return i < n ? load_four(row + i) : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    }
    const uint32_t i = from + lane_index();
    float4 v;
    v.x = i < n ? widen(row[i]) : 0.0f;
    v.y = i + WARP < n ? widen(row[i + WARP]) : 0.0f;
    v.z = i + 2 * WARP < n ? widen(row[i + 2 * WARP]) : 0.0f;
    v.w = i + 3 * WARP < n ? widen(row[i + 3 * WARP]) : 0.0f;
    return v;
}

template <bool VECTOR, typename T>
__device__ __forceinline__ void store_quad(T* row, uint32_t from, uint32_t n, float4 v) {
    if (VECTOR) {
        const uint32_t i = from + 4 * lane_index();
        if (i < n) store_four(row + i, v);
        return;
    }
    const uint32_t i = from + lane_index();
    if (i < n) narrow(row + i, v.x);
    if (i + WARP < n) narrow(row + i + WARP, v.y);
    if (i + 2 * WARP < n) narrow(row + i + 2 * WARP, v.z);
    if (i + 3 * WARP < n) narrow(row + i + 3 * WARP, v.w);
}

// a b + c, where a is the same for all four.
__device__ __forceinline__ float4 fma4(float a, float4 b, float4 c) {
    return make_float4(fmaf(a, b.x, c.x), fmaf(a, b.y, c.y), fmaf(a, b.z, c.z), fmaf(a, b.w, c.w));
}

__device__ __forceinline__ float4 scale4(float a, float4 b) { return make_float4(a * b.x, a * b.y, a * b.z, a * b.w); }

__device__ __forceinline__ float4 difference4(float4 a, float4 b) {
    return make_float4(a.x - b.x, a.y - b.y, a.z - b.z, a.w - b.w);
}

// Sum over the four of a b, added to c.
__device__ __forceinline__ float dot4(float4 a, float4 b, float c) {
    return fmaf(a.w, b.w, fmaf(a.z, b.z, fmaf(a.y, b.y, fmaf(a.x, b.x, c))));
}
