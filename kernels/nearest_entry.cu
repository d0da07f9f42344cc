// The entry nearest to each vector: index[m] = argmin over k of |x[m] - keys[k]|^2, of equals the first.
//
//   x [rows, channels], keys [entries, channels], index [rows]
//
// Distances are added up in f64 in every precision: a rounding error would be a wrong choice. That is a few per mille of
// the work of a step. Source: the definition in src/ops/nearest_entry.rs.
#include "common.cuh"
#include "quad.cuh"

// A warp for each vector, its lanes share the channels.
extern "C" __global__ __launch_bounds__(256) void nearest_entry_forward(const real* __restrict__ x,
                                                                        const float* __restrict__ keys,
                                                                        float* __restrict__ index, uint32_t rows,
                                                                        uint32_t entries, uint32_t channels) {
    const uint32_t m = global_warp();
    if (m >= rows) return;
    x += static_cast<size_t>(m) * channels;
    double best = 0.0;
    uint32_t found = 0;
    bool any = false;
    for (uint32_t k = 0; k < entries; ++k) {
        double sum = 0.0;
        for (uint32_t c = lane_index(); c < channels; c += WARP) {
            const double difference =
                static_cast<double>(widen(x[c])) - static_cast<double>(keys[static_cast<size_t>(k) * channels + c]);
            sum += difference * difference;
        }
        sum = warp_sum(sum);
        // Neither what is not a number nor what is infinitely far is near.
        if (sum - sum == 0.0 && (!any || sum < best)) {
            best = sum;
            found = k;
            any = true;
        }
    }
    if (lane_index() == 0) index[m] = static_cast<float>(found);
}
