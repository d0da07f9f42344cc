// Running statistics of a BatchNorm after a step: running = keep running + share batch, each [n], in f64.
//
// src/nn/norm.rs: keep = 0.9; share = 0.1, for the variance times M / (M - 1), which makes it unbiased.
#include "common.cuh"

extern "C" __global__ __launch_bounds__(256) void running_statistics(float* __restrict__ running,
                                                                     const float* __restrict__ batch, double keep,
                                                                     double share, uint32_t n) {
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) running[i] = static_cast<float>(keep * running[i] + share * batch[i]);
}
