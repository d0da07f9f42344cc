// Pictures as a network is fed them: y[i] = table[colour of i][byte i], colours in turn.
//
//   bytes [n], four to a word, the first in the low bits    table [3, 256]: (v / 255 - mean) / std    y [n]
//
// The table is made on the host, so the values are those of the CPU to the bit, and a picture crosses the bus as bytes: a
// quarter of its size as f32.
#include "vector.cuh"

// A thread for every word. SASS: STG.128 (f32), STG.64 (bf16)
extern "C" __global__ __launch_bounds__(256) void prepare_pictures(const uint32_t* __restrict__ bytes,
                                                                   const float* __restrict__ table,
                                                                   real* __restrict__ y, uint32_t words) {
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= words) return;
    const uint32_t word = bytes[i];
    Floats<4> v;
#pragma unroll
    for (uint32_t k = 0; k < 4; ++k) v.at[k] = table[(4 * i + k) % 3 * 256 + (word >> 8 * k & 255)];
    store(y + 4 * i, v);
}
