// A tile of 128 x 144 for the products of gemm_tilings.cuh: all 432 columns in three, a warp's 64 x 72 read from shared memory
// 11 % less often than 48 x 72. Lost to WIDE and FLAT: 12544 x 432 are 294 tiles, which 132 multiprocessors do in 2.23 rounds,
// three, 74 % full, where WIDE is 99 % full; and its 144 sums a thread take registers of which a multiprocessor has room for two
// blocks, where the other tiles let three live.
//
// Shows: sm_90 bf16, registers above 168
#include "gemm_tilings.cuh"

using SquareTile = Tile<128, 144, 2, 2>;

extern "C" __global__ __launch_bounds__(128) void square_tile(const real* __restrict__ x, const real* __restrict__ w,
                                                              real* __restrict__ y, uint32_t m, uint32_t n, uint32_t k,
                                                              uint32_t pitch) {
    DYNAMIC_SHARED(unsigned char, shared);
    by_tiles<SquareTile, true>(Matrix{x, m, k, k}, Matrix{w, k, pitch, pitch}, 0,
                               BiasActivation{nullptr, nullptr, y, n, IDENTITY}, shared);
}
