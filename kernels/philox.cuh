// Philox4x32-10, the counter-based generator of src/rng.rs: word(seed, stream, position) of a run's random sequences.
//
//   block(seed, stream, i) = ten rounds over the counter (i, stream) with the key seed: four words
// Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
#pragma once
#include "common.cuh"

struct Philox {
    uint32_t seed_low, seed_high, stream_low, stream_high;
};

// The word at `position` of the sequence.
__device__ __forceinline__ uint32_t philox_word(const Philox& rng, uint64_t position) {
    const uint64_t block = position / 4;
    uint32_t c0 = static_cast<uint32_t>(block), c1 = static_cast<uint32_t>(block >> 32);
    uint32_t c2 = rng.stream_low, c3 = rng.stream_high;
    uint32_t k0 = rng.seed_low, k1 = rng.seed_high;
#pragma unroll
    for (uint32_t round = 0; round < 10; round++) {
        const uint32_t high0 = __umulhi(0xD2511F53u, c0), low0 = 0xD2511F53u * c0;
        const uint32_t high1 = __umulhi(0xCD9E8D57u, c2), low1 = 0xCD9E8D57u * c2;
        c0 = high1 ^ c1 ^ k0;
        c1 = low1;
        c2 = high0 ^ c3 ^ k1;
        c3 = low0;
        // The golden ratio and sqrt(3) - 1.
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    const uint32_t word = static_cast<uint32_t>(position % 4);
    return word == 0 ? c0 : word == 1 ? c1 : word == 2 ? c2 : c3;
}

// A multiple of 2^-24 in [0, 1).
__device__ __forceinline__ float uniform_of(uint32_t word) {
    return static_cast<float>(word >> 8) * (1.0f / 16777216.0f);
}

// Value `half` (0 or 1) of the pair of standard normal values that two words give, by Box and Muller in f64.
__device__ __forceinline__ float normal_of(uint32_t word0, uint32_t word1, uint32_t half) {
    // Half a step off the grid: the logarithm never sees 0.
    const double u = (static_cast<double>(word0) + 0.5) / 4294967296.0;
    const double v = (static_cast<double>(word1) + 0.5) / 4294967296.0;
    const double radius = sqrt(-2.0 * log(u));
    double sine, cosine;
#ifdef EMULATED
    sincos(6.283185307179586476925286766559 * v, &sine, &cosine);
#else
    // The same angle; for sincos of an angle that might be huge the compiler would set aside local memory.
    sincospi(2.0 * v, &sine, &cosine);
#endif
    return static_cast<float>(radius * (half == 0 ? cosine : sine));
}
