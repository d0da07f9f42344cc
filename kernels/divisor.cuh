// Division by a number that is known to the launch but not to the compiler.
#pragma once

#include "common.cuh"

// x / d for any x below 2^31 by one multiplication. Source: Granlund and Montgomery, "Division by invariant integers using
// multiplication" (1994), figure 4.1.
struct Divisor {
    uint32_t d, multiplier, shift;
    __device__ explicit Divisor(uint32_t divisor) : d(divisor), shift(d > 1 ? 32 - __clz(d - 1) : 0) {
        multiplier = static_cast<uint32_t>((((uint64_t{1} << shift) - d) << 32) / d + 1);
    }
    __device__ __forceinline__ uint32_t quotient(uint32_t x) const { return (__umulhi(multiplier, x) + x) >> shift; }
};
