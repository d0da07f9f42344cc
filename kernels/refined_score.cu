// The raw anomaly score of a position, straight from a reconstruction: d = |1 - S| |f - x| over the channels, where S is what
// the refinement gate trusts x by. That is |y - x| for its result y = S x + (1 - S) f, which is stored nowhere.
//
//   f, x [positions, channels], d [positions]. A warp for every position.
#include "refinement.cuh"

template <bool VECTOR>
__device__ __forceinline__ float refined(const real* f, const real* x, uint32_t channels, double mse_coef,
                                         double mse_weight, double cos_weight) {
    const Sums s = sums_of<VECTOR>(f, x, nullptr, channels);
    const double trust = gate_of(s, channels, mse_coef, mse_weight, cos_weight).trust;
    return static_cast<float>(fabs(1.0 - trust) * sqrt(s.distance));
}

// SASS: LDG.128 (f32), LDG.64 (bf16)
extern "C" __global__ __launch_bounds__(256) void refined_score(const real* __restrict__ f, const real* __restrict__ x,
                                                                float* __restrict__ d, uint32_t positions,
                                                                uint32_t channels, double mse_coef, double mse_weight,
                                                                double cos_weight) {
    const uint32_t p = global_warp();
    if (p >= positions) return;
    const size_t at = static_cast<size_t>(p) * channels;
    const float score = channels % 4 == 0
                            ? refined<true>(f + at, x + at, channels, mse_coef, mse_weight, cos_weight)
                            : refined<false>(f + at, x + at, channels, mse_coef, mse_weight, cos_weight);
    if (lane_index() == 0) d[p] = score;
}
