// A tile of 128 x 112 in FLAVOUR_F32, for a weight gradient whose rows are normalised on load. Lost to FLAT: three products for
// each keep the tensor cores three times as long, so that fewer reads of shared memory gain nothing; 112 sums, their 16 x 8
// pieces and both parts of every operand leave no register free, so that two blocks live on a multiprocessor and each change of
// the code around them spills. FLAT needs 200 registers at most, and its finer tiles share out better.
//
// Shows: sm_90 f32, registers above 240
#include "gemm_tilings.cuh"
#include "normalise_on_load.cuh"

extern "C" __global__ __launch_bounds__(128) void f32_large_tile(const real* __restrict__ x, const float* __restrict__ table,
                                                                 const real* __restrict__ dz, float* __restrict__ partial,
                                                                 uint32_t m, uint32_t a, uint32_t b, uint32_t positions,
                                                                 uint32_t tables, uint32_t slab) {
    DYNAMIC_SHARED(unsigned char, shared);
    const uint32_t begin = blockIdx.y * slab, end = min(m, begin + slab);
    const Normalised<RELU> x_view(x, table, end, a, TableRows(positions, m / positions, tables));
    gradient_by_tiles<Tile<128, 112, 2, 2>, true>(x_view, Matrix{dz, end, b, b}, begin, partial + blockIdx.y * a * b, shared);
}
