// Rows of a product that are not in memory: h = hswish(a x + b) is made of the raw x in registers, from where the tensor cores
// take it. BatchNorm and a squeeze-excite gate are in a and b, a table [tables, 2, k].
//
//   slot --ldmatrix--> 64 rows x 16 values of x of a warpgroup --> h --> wgmma with a in registers
//
// A warp holds 16 rows: thread t columns 2 (t % 4), the next, and both 8 further on, of rows t / 4 and 8 more. Each 16 columns
// are on their way to the tensor cores while the next are made. The products of the slot before must be done before the
// first: a second set of registers, which would let them run on, there is not. Other warpgroups have the tensor cores
// meanwhile.
//
// k is a multiple of 16: no product reads a column that has no coefficients.
#pragma once

#include "forward.cuh"
#include "parts.cuh"

struct Changed {
    static constexpr bool WAITS = true;
    const float* table;
    uint32_t k, upper, lower, from; // coefficients of row t / 4 of this warp, of 8 rows further; bytes from the slot to the row

    __device__ __forceinline__ Changed(const float* table_, uint32_t first_row, uint32_t m, uint32_t k_, uint32_t positions,
                                       uint32_t images, uint32_t tables)
        : table(table_), k(k_) {
        const uint32_t lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
        // Rows beyond the end are zeros of the engine, and never written: any coefficients will do.
        const auto of = [&](uint32_t row) {
            const uint32_t image = min(first_row + row, m - 1) / positions;
            return part_of(image, tables, images) * 2 * k + lane % 4 * 2;
        };
        upper = of(warp * 16 + lane / 4);
        lower = of(warp * 16 + lane / 4 + 8);
        from = (warp * 16 + lane % 16) * ROW_BYTES;
    }

    // Two neighbours of a row.
    static __device__ __forceinline__ uint32_t change(uint32_t x, float2 a, float2 b) {
        const float first = act_value<HARD_SWISH>(fmaf(__uint_as_float(x << 16), a.x, b.x));
        const float second = act_value<HARD_SWISH>(fmaf(__uint_as_float(x & 0xffff0000u), a.y, b.y));
        return bf16_bits(first) | bf16_bits(second) << 16;
    }
    __device__ __forceinline__ float2 pair(uint32_t at) const { return *reinterpret_cast<const float2*>(table + at); }

    template <uint32_t N>
    __device__ __forceinline__ void multiply(float (&sums)[SUMS], uint32_t slot, uint32_t channel) const {
        const uint32_t lane = threadIdx.x % WARP;
        const uint64_t b = operand(slot + FORWARD_ROWS * ROW_BYTES, 16);
        uint32_t a[N][1][4];
#pragma unroll
        for (uint32_t i = 0; i < N; ++i) {
            // Swizzled: the row's number in its eight is exclusive-ored into the number of the 16 bytes.
            ldmatrix_x4_at(a[i][0], slot + from + ((2 * i + lane / 16) ^ lane % 8) * 16);
#pragma unroll
            for (uint32_t half = 0; half < 2; ++half) {
                const uint32_t c = channel + 16 * i + 8 * half;
                a[i][0][2 * half] = change(a[i][0][2 * half], pair(upper + c), pair(upper + k + c));
                a[i][0][2 * half + 1] = change(a[i][0][2 * half + 1], pair(lower + c), pair(lower + k + c));
            }
            multiply_group<1, NEXT_ALONG_K>(sums, a[i], b + i * NEXT_ALONG_K);
        }
    }
};
