// Two sets of registers for rows that are changed on their way to the tensor cores: while the products of a slot run, the next
// slot is made, so that a warpgroup need not wait for its own products. Lost to one set (kernels/hopper/changed.cuh): sums take
// 108 of the 168 registers that a thread of 384 may have, and what is being multiplied must not be touched. The compiler finds
// no room, and has every product wait for the one before.
//
// Shows: sm_90a bf16, C7512
#include "changed.cuh"

struct ChangedAhead : Changed {
    static constexpr bool WAITS = false; // but for the group before the last, behind its own
    using Changed::Changed;

    template <uint32_t N>
    __device__ __forceinline__ void multiply(float (&sums)[SUMS], uint32_t slot, uint32_t channel) const {
        const uint32_t lane = threadIdx.x % WARP;
        uint32_t a[N][4];
#pragma unroll
        for (uint32_t i = 0; i < N; ++i) {
            ldmatrix_x4_at(a[i], slot + from + ((2 * i + lane / 16) ^ lane % 8) * 16);
#pragma unroll
            for (uint32_t half = 0; half < 2; ++half) {
                const uint32_t c = channel + 16 * i + 8 * half;
                a[i][2 * half] = change(a[i][2 * half], pair(upper + c), pair(upper + k + c));
                a[i][2 * half + 1] = change(a[i][2 * half + 1], pair(lower + c), pair(lower + k + c));
            }
        }
        multiply_group<N, NEXT_ALONG_K>(sums, a, operand(slot + FORWARD_ROWS * ROW_BYTES, 16));
    }
};

extern "C" __global__ __launch_bounds__(384, 1) void changed_two_sets(
    const __grid_constant__ TensorMap x, const __grid_constant__ TensorMap w, const float* __restrict__ table,
    real* __restrict__ y, uint32_t m, uint32_t n, uint32_t k, uint32_t positions, uint32_t tables) {
    DYNAMIC_SHARED(unsigned char, shared);
    if (threadIdx.x == 0) prefetch(x), prefetch(w);
    const ForwardTile place(n);
    const ChangedAhead h(table, place.row, m, k, positions, m / positions, tables);
    forward(shared, place, w, 1, k, Lines(x, place), h, Bias{nullptr, nullptr, nullptr, y, m, n, IDENTITY});
}
