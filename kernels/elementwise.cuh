// y[i] = f(a[i], b[i], ...) over n values, whatever their shape.
//
// A block takes 8 * blockDim.x values: ceil(n / 8) threads in all. A thread reads two groups of four neighbours before
// it writes any, so that enough bytes are on their way. The last block can be short, and a window into a larger array can
// start anywhere; then it goes value by value.
#pragma once

#include "vector.cuh"

template <typename T> __device__ __forceinline__ bool starts_four(const T* p) {
    return reinterpret_cast<size_t>(p) % (4 * sizeof(T)) == 0;
}

template <typename Y, typename F, typename... X>
__device__ __forceinline__ void map(Y* y, uint32_t n, F f, const X*... x) {
    const uint32_t width = 4 * blockDim.x, first = blockIdx.x * 2 * width;
    if (first >= n) return;
    if (n - first >= 2 * width && starts_four(y) && (starts_four(x) && ...)) {
        const uint32_t i = first + 4 * threadIdx.x, j = i + width;
        const Floats<4> near = zip(f, load<4>(x + i)...), far = zip(f, load<4>(x + j)...);
        store(y + i, near);
        store(y + j, far);
    } else {
        for (uint32_t i = first + threadIdx.x; i < n; i += blockDim.x) store(y + i, zip(f, load<1>(x + i)...));
    }
}
