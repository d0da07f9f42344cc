// What every kernel starts from: the storage type of a run, its conversions, and the size of a warp.
//
// A kernel file is compiled once per flavour; its source is the same.
//   FLAVOUR_F32    values stored as f32, matrix products split into three TF32 products (as accurate as f32)
//   FLAVOUR_TF32   values stored as f32, matrix products in TF32
//   FLAVOUR_BF16   values stored as bf16, matrix products of bf16
// `real` is the type in which activations and their gradients are stored. Parameters, their gradients, statistics and
// losses are f32 in every flavour; sums run in f32 or f64, never in bf16.
#pragma once

#ifndef EMULATED
#include "intrinsics.cuh"
#endif

#ifdef FLAVOUR_BF16
using real = __nv_bfloat16;
__device__ __forceinline__ float to_float(real x) { return __bfloat162float(x); }
__device__ __forceinline__ real to_real(float x) { return __float2bfloat16_rn(x); }
#else
using real = float;
__device__ __forceinline__ float to_float(real x) { return x; }
__device__ __forceinline__ real to_real(float x) { return x; }
#endif

// Four neighbouring values in one access; the address must be aligned to four values.
__device__ __forceinline__ float4 load_reals4(const real* p) {
#ifdef FLAVOUR_BF16
    const uint2 raw = load8(p);
    return make_float4(__uint_as_float(raw.x << 16), __uint_as_float(raw.x & 0xffff0000u),
                       __uint_as_float(raw.y << 16), __uint_as_float(raw.y & 0xffff0000u));
#else
    return load4(p);
#endif
}

__device__ __forceinline__ void store_reals4(real* p, float4 v) {
#ifdef FLAVOUR_BF16
    const uint32_t x = bf16_bits(v.x) | bf16_bits(v.y) << 16, y = bf16_bits(v.z) | bf16_bits(v.w) << 16;
    store8(p, make_uint2(x, y));
#else
    store4(p, v);
#endif
}

constexpr uint32_t WARP = 32;
constexpr uint32_t ALL_LANES = 0xffffffffu;

// Sum over a warp, the same in every lane and in the same order every time.
template <typename T> __device__ __forceinline__ T warp_sum(T v) {
    for (uint32_t step = WARP / 2; step > 0; step /= 2) v += __shfl_xor_sync(ALL_LANES, v, step);
    return v;
}
