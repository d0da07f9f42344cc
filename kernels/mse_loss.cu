// Mean squared error over everything: loss = mean (a - b)^2 [+ other], da = 2 (a - b) dloss / n.
//
//   a, b, da [n]; loss, other and dloss [1]
//
// The sum runs over parts of fixed size, then over the parts in a fixed order, so it is the same on every device: f32
// within four values, f64 from there on.
#include "common.cuh"
#include "quad.cuh"

constexpr uint32_t WARPS = 8;
// Values that a block adds up.
constexpr uint32_t PART = WARPS * 8 * SPAN;

// Sum over the block, in the order of the warps; only thread 0 receives it.
__device__ __forceinline__ double block_sum(double sum, double* shared) {
    sum = warp_sum(sum);
    if (lane_index() == 0) shared[threadIdx.x / WARP] = sum;
    __syncthreads();
    if (threadIdx.x == 0) {
        for (uint32_t w = 1; w < WARPS; w++) sum += shared[w];
    }
    return sum;
}

template <bool VECTOR> __device__ __forceinline__ double squares(const real* a, const real* b, uint32_t n) {
    const uint32_t first = blockIdx.x * PART + threadIdx.x / WARP * SPAN;
    double sum = 0.0;
#pragma unroll
    for (uint32_t k = 0; k < PART; k += WARPS * SPAN) {
        const float4 r = difference4(load_quad<VECTOR>(a, first + k, n), load_quad<VECTOR>(b, first + k, n));
        sum += static_cast<double>(dot4(r, r, 0.0f));
    }
    return sum;
}

// sums [n / PART, rounded up]: a block for every part.
// SASS: LDG.128 (f32), LDG.64 (bf16)
extern "C" __global__ __launch_bounds__(256) void mse_loss_forward(const real* __restrict__ a,
                                                                   const real* __restrict__ b,
                                                                   double* __restrict__ sums, uint32_t n) {
    SHARED(double, shared, [WARPS]);
    const double sum = block_sum(n % 4 == 0 ? squares<true>(a, b, n) : squares<false>(a, b, n), shared);
    if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

// The mean from the sums of the parts: one block.
extern "C" __global__ __launch_bounds__(256) void mse_loss_forward_sum(const double* __restrict__ sums,
                                                                       const float* __restrict__ other_or_null,
                                                                       float* __restrict__ loss, uint32_t parts,
                                                                       uint32_t n) {
    SHARED(double, shared, [WARPS]);
    double sum = 0.0;
    for (uint32_t part = threadIdx.x; part < parts; part += blockDim.x) sum += sums[part];
    sum = block_sum(sum, shared);
    if (threadIdx.x == 0) *loss = static_cast<float>(sum / n + (other_or_null == nullptr ? 0.0 : *other_or_null));
}

template <bool VECTOR>
__device__ __forceinline__ void scaled_difference(const real* a, const real* b, real* da, float scale, uint32_t n) {
    const uint32_t from = global_warp() * SPAN;
    const float4 r = difference4(load_quad<VECTOR>(a, from, n), load_quad<VECTOR>(b, from, n));
    store_quad<VECTOR>(da, from, n, scale4(scale, r));
}

// A thread for every four values.
// SASS: LDG.128 (f32), LDG.64 (bf16), STG.128 (f32), STG.64 (bf16)
extern "C" __global__ __launch_bounds__(256) void mse_loss_backward(const real* __restrict__ a,
                                                                    const real* __restrict__ b,
                                                                    const float* __restrict__ dloss,
                                                                    real* __restrict__ da, uint32_t n) {
    const float scale = 2.0f * *dloss / static_cast<float>(n);
    if (n % 4 == 0) {
        scaled_difference<true>(a, b, da, scale, n);
    } else {
        scaled_difference<false>(a, b, da, scale, n);
    }
}
