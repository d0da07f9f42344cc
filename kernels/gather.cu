// Batches from the features that stay on the device.
//
//   features [pictures, values], order: pictures of the steps to come, `batch` for each, at [1]: the step that comes next
//   y [images, values]: y[i] = features[order[at batch + i]]
//
// A warp copies 128 values of a picture, a thread four of them.
#include "common.cuh"
#include "quad.cuh"

// A thread for every four values of an image, each image rounded up to whole warps of 128.
// SASS: LDG.128 (f32), LDG.64 (bf16), STG.128 (f32), STG.64 (bf16)
extern "C" __global__ __launch_bounds__(256) void gather_pictures(const real* __restrict__ features,
                                                                  const uint32_t* __restrict__ order,
                                                                  const uint32_t* __restrict__ at, real* __restrict__ y,
                                                                  uint32_t batch, uint32_t images, uint32_t values) {
    const uint32_t spans = (values + SPAN - 1) / SPAN;
    const uint32_t image = global_warp() / spans, from = global_warp() % spans * SPAN;
    if (image >= images) return;
    const real* picture = features + static_cast<size_t>(order[at[0] * batch + image]) * values;
    real* to = y + static_cast<size_t>(image) * values;
    if (values % 4 == 0) {
        store_quad<true>(to, from, values, load_quad<true>(picture, from, values));
    } else {
        store_quad<false>(to, from, values, load_quad<false>(picture, from, values));
    }
}
