// Noise for the local coordinates of a step: each ghost group flips a coin; on heads its images get Gaussian noise.
//
//   noise [images, values]; group g holds the images g images / groups up to (g + 1) images / groups
//
// The same numbers as one sequential generator would give: per group one word for the coin, then, on heads, two words
// for every pair of normal values, the pairs running on from group to group. Given the coins of the groups before, the
// words of a value are known in closed form, so every thread draws for itself.
// Source: arXiv 2402.18293, the jitter of coordinates.
#include "common.cuh"
#include "philox.cuh"

// A thread for every value. The seed and the numbers of the streams, streams [steps, 2], come as two words each; at [1] is
// the step that comes next.
extern "C" __global__ __launch_bounds__(256) void jitter(real* __restrict__ noise, const uint32_t* __restrict__ at,
                                                         const uint32_t* __restrict__ streams, uint32_t images,
                                                         uint32_t groups, uint32_t values, uint32_t seed_low,
                                                         uint32_t seed_high, double probability, float deviation) {
    const uint64_t i = static_cast<uint64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= static_cast<uint64_t>(images) * values) return;
    const Philox rng = {seed_low, seed_high, streams[2 * at[0]], streams[2 * at[0] + 1]};
    // Normal values drawn before group g, and coins flipped when the last of their pairs was drawn.
    uint64_t drawn = 0, coins = 0;
    for (uint64_t g = 0;; g++) {
        const uint64_t start = g * images / groups * values, end = (g + 1) * images / groups * values;
        // A pair whose second value is not used yet has cost both words.
        const uint64_t pairs = (drawn + 1) / 2;
        const bool heads = static_cast<double>(uniform_of(philox_word(rng, g + 2 * pairs))) < probability;
        if (i < end) {
            float value = 0.0f;
            if (heads) {
                const uint64_t k = drawn + (i - start), pair = k / 2;
                // A pair that an earlier group began was drawn before this group's coin.
                const uint64_t position = 2 * pair + (pair < pairs ? coins : g + 1);
                value = deviation * normal_of(philox_word(rng, position), philox_word(rng, position + 1), k % 2);
            }
            noise[i] = to_real(value);
            return;
        }
        if (heads && end > start) {
            drawn += end - start;
            if ((drawn + 1) / 2 > pairs) coins = g + 1;
        }
    }
}
