// What happens to finished values of a matrix product on their way to memory, 4 neighbours of a row at a time, or 1.
//
//   BiasActivation   y = act(z + bias), or with dy: y = dy act'(z + bias), the gradient before the activation
//   Plain            f32 sums as they are
#pragma once

#include "activation.cuh"
#include "common.cuh"

__device__ __forceinline__ void load_floats(float (&v)[1], const float* p) { v[0] = *p; }
__device__ __forceinline__ void load_floats(float (&v)[4], const float* p) {
    const float4 four = load4(p);
    v[0] = four.x, v[1] = four.y, v[2] = four.z, v[3] = four.w;
}
__device__ __forceinline__ void load_values(float (&v)[1], const real* p) { v[0] = to_float(*p); }
__device__ __forceinline__ void load_values(float (&v)[4], const real* p) {
    const float4 four = load_reals4(p);
    v[0] = four.x, v[1] = four.y, v[2] = four.z, v[3] = four.w;
}
__device__ __forceinline__ void store_values(real* p, const float (&v)[1]) { *p = to_real(v[0]); }
__device__ __forceinline__ void store_values(real* p, const float (&v)[4]) {
    store_reals4(p, make_float4(v[0], v[1], v[2], v[3]));
}
__device__ __forceinline__ void store_floats(float* p, const float (&v)[1]) { *p = v[0]; }
__device__ __forceinline__ void store_floats(float* p, const float (&v)[4]) {
    store4(p, make_float4(v[0], v[1], v[2], v[3]));
}
__device__ __forceinline__ void store_pair(float* p, float first, float second) {
    store8(p, make_uint2(__float_as_uint(first), __float_as_uint(second)));
}

struct BiasActivation {
    const float* bias_or_null;
    const real* dy_or_null;
    real* y;
    uint32_t n, act;

    template <uint32_t W>
    __device__ __forceinline__ void operator()(uint32_t row, uint32_t column, float (&z)[W]) const {
        const uint32_t at = row * n + column;
        float dy[W];
        if (dy_or_null != nullptr) load_values(dy, dy_or_null + at);
#pragma unroll
        for (uint32_t i = 0; i < W; ++i) {
            // One by one: a bias is a stretch of a long list of parameters and may start anywhere.
            if (bias_or_null != nullptr) z[i] += bias_or_null[column + i];
            z[i] = dy_or_null != nullptr ? dy[i] * act_slope(act, z[i]) : act_value(act, z[i]);
        }
        store_values(y + at, z);
    }
};

struct Plain {
    float* y;
    uint32_t n;

    template <uint32_t W>
    __device__ __forceinline__ void operator()(uint32_t row, uint32_t column, const float (&sums)[W]) const {
        store_floats(y + row * n + column, sums);
    }
};
