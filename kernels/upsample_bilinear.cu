// Bilinear resampling with aligned corners, x: [N, H, W, C] to y: [N, H', W', C], and its transposed map.
//
// Output i of an axis lies at position i (in - 1) / (out - 1) of the input. That fraction is kept in integers: its
// whole part is the lower source, its rest the weight of the upper one, so that no position is a rounding off a whole
// one.
//
// A block has neighbouring values of one row of the map it writes; everything about the row is the same for all of it.
#include "vector.cuh"

struct Axis {
    uint32_t step, unit; // positions are multiples of step / unit
    uint32_t in, out;

    __device__ Axis(uint32_t in, uint32_t out) : step(in - 1), unit(out > 1 ? out - 1 : 1), in(in), out(out) {}

    // The sources of output i: `low` and, with weight `t`, `high`.
    __device__ void sources(uint32_t i, uint32_t& low, uint32_t& high, float& t) const {
        low = i * step / unit;
        high = low + 1 < in ? low + 1 : low;
        t = static_cast<float>(i * step % unit) / static_cast<float>(unit);
    }

    // The outputs that read source s: those less than one source away from it.
    __device__ void readers(uint32_t s, uint32_t& first, uint32_t& end) const {
        first = s == 0 || step == 0 ? 0 : (s - 1) * unit / step + 1;
        end = step == 0 ? out : (s + 1) * unit / step + ((s + 1) * unit % step != 0);
        end = end < out ? end : out;
    }

    // How much of source s is in output i, one of its readers.
    __device__ float weight(uint32_t i, uint32_t s) const {
        const uint32_t at = i * step, source = s * unit, distance = at > source ? at - source : source - at;
        return static_cast<float>(unit - distance) / static_cast<float>(unit);
    }
};

// This thread's place: V channels from c on, at one column of a row of one image.
struct Place {
    uint32_t image, row, column, c;
    bool inside;
};

template <uint32_t V> __device__ __forceinline__ Place place(uint32_t rows, uint32_t columns, uint32_t channels) {
    const uint32_t blocks = (columns * channels / V + blockDim.x - 1) / blockDim.x;
    const uint32_t line = blockIdx.x / blocks, i = (blockIdx.x % blocks * blockDim.x + threadIdx.x) * V;
    return {line / rows, line % rows, i / channels, i % channels, i < columns * channels};
}

template <uint32_t V>
__device__ __forceinline__ void resample(const real* x, real* y, Axis rows, Axis columns, uint32_t channels) {
    const Place at = place<V>(rows.out, columns.out, channels);
    if (!at.inside) return;
    uint32_t top, bottom, left, right;
    float down, across;
    rows.sources(at.row, top, bottom, down);
    columns.sources(at.column, left, right, across);
    x += static_cast<size_t>(at.image) * rows.in * columns.in * channels + at.c;
    const auto source = [=](uint32_t row, uint32_t column) {
        return load<V>(x + (row * columns.in + column) * channels);
    };
    const float a = (1.0f - down) * (1.0f - across), b = (1.0f - down) * across;
    const float c = down * (1.0f - across), d = down * across;
    const Floats<V> mixed = zip([=](float p, float q, float r, float s) { return a * p + b * q + c * r + d * s; },
                                source(top, left), source(top, right), source(bottom, left), source(bottom, right));
    const size_t line = static_cast<size_t>(at.image) * rows.out + at.row;
    store(y + (line * columns.out + at.column) * channels + at.c, mixed);
}

// Grid: N * H' * ceil(W' * channels / V / 256) blocks, V = 4 where channels % 4 == 0, else 1.
// SASS: LDG.128 (f32), LDG.64 (bf16), STG.128 (f32), STG.64 (bf16)
extern "C" __global__ __launch_bounds__(256) void upsample_bilinear_forward(const real* __restrict__ x,
                                                                            real* __restrict__ y, uint32_t h,
                                                                            uint32_t w, uint32_t h_out, uint32_t w_out,
                                                                            uint32_t channels) {
    if (channels % 4 == 0) resample<4>(x, y, Axis(h, h_out), Axis(w, w_out), channels);
    else resample<1>(x, y, Axis(h, h_out), Axis(w, w_out), channels);
}

template <uint32_t V>
__device__ __forceinline__ void gather(const real* dy, real* dx, Axis rows, Axis columns, uint32_t channels) {
    const Place at = place<V>(rows.in, columns.in, channels);
    if (!at.inside) return;
    uint32_t top, bottom, left, right;
    rows.readers(at.row, top, bottom);
    columns.readers(at.column, left, right);
    dy += static_cast<size_t>(at.image) * rows.out * columns.out * channels + at.c;
    Floats<V> sum = {};
    for (uint32_t i = top; i < bottom; i++) {
        const float down = rows.weight(i, at.row);
#pragma unroll 1
        for (uint32_t j = left; j < right; j++) {
            const float weight = down * columns.weight(j, at.column);
            sum = zip([=](float sum, float dy) { return sum + weight * dy; }, sum,
                      load<V>(dy + (i * columns.out + j) * channels));
        }
    }
    const size_t line = static_cast<size_t>(at.image) * rows.in + at.row;
    store(dx + (line * columns.in + at.column) * channels + at.c, sum);
}

// Grid: N * H * ceil(W * channels / V / 256) blocks.
// SASS: LDG.128 (f32), LDG.64 (bf16), STG.128 (f32), STG.64 (bf16)
extern "C" __global__ __launch_bounds__(256) void upsample_bilinear_backward(const real* __restrict__ dy,
                                                                             real* __restrict__ dx, uint32_t h,
                                                                             uint32_t w, uint32_t h_out,
                                                                             uint32_t w_out, uint32_t channels) {
    if (channels % 4 == 0) gather<4>(dy, dx, Axis(h, h_out), Axis(w, w_out), channels);
    else gather<1>(dy, dx, Axis(h, h_out), Axis(w, w_out), channels);
}
