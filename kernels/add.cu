// y = a + b: n values each, any shape. And sum += x, by which the tape adds up the gradients of a value used twice, for
// both types that a gradient can have.
#include "elementwise.cuh"

// SASS: LDG.128 (f32), LDG.64 (bf16), STG.128 (f32), STG.64 (bf16)
extern "C" __global__ __launch_bounds__(256) void add_forward(const real* __restrict__ a, const real* __restrict__ b,
                                                              real* __restrict__ y, uint32_t n) {
    map(y, n, [](float a, float b) { return a + b; }, a, b);
}

// SASS: LDG.128 (f32), LDG.64 (bf16), STG.128 (f32), STG.64 (bf16)
extern "C" __global__ __launch_bounds__(256) void add_assign_reals(const real* __restrict__ x, real* __restrict__ sum,
                                                                   uint32_t n) {
    map(sum, n, [](float x, float sum) { return sum + x; }, x, sum);
}

// SASS: LDG.128, STG.128
extern "C" __global__ __launch_bounds__(256) void add_assign_floats(const float* __restrict__ x,
                                                                    float* __restrict__ sum, uint32_t n) {
    map(sum, n, [](float x, float sum) { return sum + x; }, x, sum);
}
