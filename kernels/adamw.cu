// AdamW over the trained part of the parameter arena, after a clip of the global norm (formulas: src/optim.rs).
//
// theta, g, m, v: [n] in f32, each starting on 16 bytes. The first `grids` values have rates of their own. The squares are
// added in f64 over chunks of a fixed size, in order: the same norm on every device. It stays on the device: the step needs
// no word from the host, which writes what many steps need ahead and reads what they found when all are done:
//
//   at [1]: the step that comes next       rows [steps, 5]: keep and rate of the grids, those of the network, correction
//   found [steps, 2]: loss, norm           current [6]: the factor of the gradients in this step, then its row
//
//   keep = 1 - rate decay, rate / (1 - beta1^t), correction = 1 / sqrt(1 - beta2^t)
//
// Bytes of a parameter: adamw_squares reads g, 4; adamw_update reads theta, g, m, v and writes theta, m, v, 28.
#include "common.cuh"

// Values of a block of adamw_squares: 16 accesses of each thread.
constexpr uint32_t CHUNK = 256 * 4 * 16;

// Sum over a block of 8 warps, in order; valid in thread 0.
__device__ __forceinline__ double block_sum(double v, double* warps) {
    v = warp_sum(v);
    if (threadIdx.x % WARP == 0) warps[threadIdx.x / WARP] = v;
    __syncthreads();
    double sum = 0.0;
    if (threadIdx.x == 0) {
        for (uint32_t w = 0; w < 8; ++w) sum += warps[w];
    }
    return sum;
}

__device__ __forceinline__ double square(float g) { return static_cast<double>(g) * g; }

// partial[b] = sum of the squares of chunk b. A block per chunk.
// SASS: LDG.128
extern "C" __global__ __launch_bounds__(256) void adamw_squares(const float* __restrict__ g, double* __restrict__ partial,
                                                                uint32_t n) {
    SHARED(double, warps, [8]);
    const uint32_t first = blockIdx.x * CHUNK, count = min(n - first, CHUNK), whole = count / 4 * 4;
    g += first;
    double sum = 0.0;
#pragma unroll 4
    for (uint32_t i = threadIdx.x * 4; i < whole; i += 256 * 4) {
        const float4 four = load4(g + i);
        sum += (square(four.x) + square(four.y)) + (square(four.z) + square(four.w));
    }
    if (whole + threadIdx.x < count) sum += square(g[whole + threadIdx.x]);
    sum = block_sum(sum, warps);
    if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

// The norm from partial [n]; what the step found; what its update needs; on to the next step. One block.
extern "C" __global__ __launch_bounds__(256) void adamw_norm(const double* __restrict__ partial,
                                                             const float* __restrict__ loss,
                                                             const float* __restrict__ rows,
                                                             uint32_t* __restrict__ at, double* __restrict__ found,
                                                             float* __restrict__ current, double clip, uint32_t n) {
    SHARED(double, warps, [8]);
    double sum = 0.0;
    for (uint32_t i = threadIdx.x; i < n; i += 256) sum += partial[i];
    sum = block_sum(sum, warps);
    if (threadIdx.x != 0) return;
    const double norm = sqrt(sum), factor = clip / (norm + 1e-6);
    const uint32_t step = at[0];
    found[2 * step] = loss[0];
    found[2 * step + 1] = norm;
    current[0] = factor < 1.0 ? static_cast<float>(factor) : 1.0f;
    for (uint32_t i = 0; i < 5; ++i) current[1 + i] = rows[5 * step + i];
    at[0] = step + 1;
}

// What is the same for every value of a step: a row, and the factor of the gradients.
struct Step {
    float clip, keep_grids, rate_grids, keep, rate, correction;
    uint32_t grids;

    __device__ __forceinline__ void update(uint32_t i, float& theta, float g, float& m, float& v) const {
        constexpr double BETA1 = 0.9, BETA2 = 0.999, EPS = 1e-8;
        // Chosen one by one: two structs to choose from would lie in local memory.
        const float k = i < grids ? keep_grids : keep, r = i < grids ? rate_grids : rate;
        g *= clip;
        m += (g - m) * static_cast<float>(1.0 - BETA1);
        v = v * static_cast<float>(BETA2) + g * g * static_cast<float>(1.0 - BETA2);
        // Off by 2 units in the last place of the change; the exact division is a call, around which registers are spilled.
        theta = theta * k - __fdividef(r * m, sqrtf(v) * correction + static_cast<float>(EPS));
    }
};

// A thread per four values.
// SASS: LDG.128, STG.128
extern "C" __global__ __launch_bounds__(256) void adamw_update(float* __restrict__ theta, const float* __restrict__ g,
                                                               float* __restrict__ m, float* __restrict__ v,
                                                               const float* __restrict__ current, uint32_t grids,
                                                               uint32_t n) {
    const uint32_t i = (blockIdx.x * blockDim.x + threadIdx.x) * 4;
    if (i >= n) return;
    const Step step = {current[0], current[1], current[2], current[3], current[4], current[5], grids};
    if (i + 4 <= n) {
        float4 t4 = load4(theta + i), m4 = load4(m + i), v4 = load4(v + i);
        const float4 g4 = load4(g + i);
        step.update(i, t4.x, g4.x, m4.x, v4.x);
        step.update(i + 1, t4.y, g4.y, m4.y, v4.y);
        step.update(i + 2, t4.z, g4.z, m4.z, v4.z);
        step.update(i + 3, t4.w, g4.w, m4.w, v4.w);
        store4(theta + i, t4);
        store4(m + i, m4);
        store4(v + i, v4);
    } else {
        for (uint32_t j = i; j < n; ++j) step.update(j, theta[j], g[j], m[j], v[j]);
    }
}
