// Sums over the rows of a matrix [rows, channels], channel by channel, in one block: s[c] = sum over r of term(r, c).
//
// A block of 256 threads has COLUMNS channels: short rows of threads read neighbouring channels, and every such row has
// its own share of the matrix rows. Four terms are added in f32, everything else in f64 and in a fixed order.
#pragma once

#include "vector.cuh"

constexpr uint32_t COLUMNS = 16;

// The sum of channel `first_channel + threadIdx.x` for the first COLUMNS threads; the others receive no sum.
// `term(r, c)` gives V neighbouring terms as Floats<V>; `channels` is a multiple of V.
template <uint32_t V, typename Term>
__device__ __forceinline__ double column_sum(uint32_t rows, uint32_t channels, uint32_t first_channel, Term term) {
    constexpr uint32_t LANES = COLUMNS / V, SHARES = 256 / LANES, RUN = 4;
    SHARED(double, sums, [SHARES * COLUMNS]);
    const uint32_t share = threadIdx.x / LANES, column = threadIdx.x % LANES * V, c = first_channel + column;
    double total[V] = {};
    if (c < channels) {
        uint32_t r = share;
        for (; r + (RUN - 1) * SHARES < rows; r += RUN * SHARES) {
            Floats<V> run = term(r, c);
#pragma unroll
            for (uint32_t k = 1; k < RUN; k++) {
                run = zip([](float a, float b) { return a + b; }, run, term(r + k * SHARES, c));
            }
#pragma unroll
            for (uint32_t k = 0; k < V; k++) total[k] += run.at[k];
        }
        for (; r < rows; r += SHARES) {
            const Floats<V> last = term(r, c);
#pragma unroll
            for (uint32_t k = 0; k < V; k++) total[k] += last.at[k];
        }
    }
#pragma unroll
    for (uint32_t k = 0; k < V; k++) sums[share * COLUMNS + column + k] = total[k];
    for (uint32_t half = SHARES / 2; half > 0; half /= 2) {
        __syncthreads();
        for (uint32_t i = threadIdx.x; i < half * COLUMNS; i += 256) sums[i] += sums[half * COLUMNS + i];
    }
    __syncthreads();
    return threadIdx.x < COLUMNS ? sums[threadIdx.x] : 0.0;
}
