// Finished tiles that are also added up: two sums per image and column, on the way to memory.
//
// A tile of rows [first, first + ROWS) may begin in one image and end in another. Its rows of image n are one piece of that
// image: piece first / ROWS - n positions / ROWS in partial [N, slabs, 2, C] (Pieces in normalise.cuh, run = ROWS). Within a
// piece a thread stays in V columns and takes every SHARES-th row, in f32; the threads are added in f64, in order.
#pragma once

#include "activation.cuh"
#include "parts.cuh"
#include "vector.cuh"

// The largest power of two up to x.
constexpr uint32_t power_of_two(uint32_t x) { return x < 2 ? 1 : 2 * power_of_two(x / 2); }

template <class T, uint32_t V> constexpr uint32_t SUM_SHARES = power_of_two(T::THREADS / (T::COLUMNS / V));
template <class T, uint32_t V> constexpr uint32_t SUM_BYTES = 2 * SUM_SHARES<T, V> * T::COLUMNS * sizeof(float);

// `put.start(image, column, first row of the piece)` gives what `put(row, column, value, that, s, t)` is given beside the
// value; it adds to s and t. `put.finish` has the sums of a whole piece.
template <class T, uint32_t V, class Put>
__device__ __forceinline__ void put_and_sum(const float* tile, uint32_t pitch, float* room, uint32_t first,
                                            uint32_t first_column, uint32_t m, uint32_t n, const Put& put) {
    constexpr uint32_t SHARES = SUM_SHARES<T, V>, ACROSS = T::COLUMNS / V;
    const uint32_t share = threadIdx.x / ACROSS, c = threadIdx.x % ACROSS * V, column = first_column + c;
    const uint32_t end = min(first + T::ROWS, m);
    for (uint32_t row = first; row < end;) {
        const uint32_t image = row / put.positions, stop = min(end, (image + 1) * put.positions);
        const float* piece = tile + (row - first) * pitch;
        if (share < SHARES && column < n) {
            const auto with = put.template start<V>(image, column, load<V>(piece + c));
            Floats<V> s = {}, t = {};
            for (uint32_t r = row + share; r < stop; r += SHARES) {
                put.template add<V>(r, column, load<V>(tile + (r - first) * pitch + c), with, s, t);
            }
            store<V>(room + share * T::COLUMNS + c, s);
            store<V>(room + (SHARES + share) * T::COLUMNS + c, t);
        }
        __syncthreads();
        if (threadIdx.x < T::COLUMNS && first_column + threadIdx.x < n) {
            double s = 0.0, t = 0.0;
            for (uint32_t i = 0; i < SHARES; ++i) {
                s += room[i * T::COLUMNS + threadIdx.x];
                t += room[(SHARES + i) * T::COLUMNS + threadIdx.x];
            }
            const uint32_t slab = first / T::ROWS - image * put.positions / T::ROWS;
            double* to = put.partial + static_cast<size_t>(image * put.slabs + slab) * 2 * n + first_column + threadIdx.x;
            put.finish(to, n, piece[threadIdx.x], stop - row, s, t);
        }
        __syncthreads();
        row = stop;
    }
}

// Stores y and sums up its moments: mean and squared deviations of every piece. Deviations are taken from the first row of
// the piece, so that a mean far from zero costs no digits.
struct StoredMoments {
    static constexpr bool SUMS = true;
    real* y;
    double* partial;
    uint32_t n, positions, slabs;

    template <uint32_t V>
    __device__ __forceinline__ Floats<V> start(uint32_t, uint32_t, Floats<V> first) const {
        return first;
    }
    template <uint32_t V>
    __device__ __forceinline__ void add(uint32_t row, uint32_t column, Floats<V> z, Floats<V> pivot, Floats<V>& s,
                                        Floats<V>& t) const {
        store<V>(y + row * n + column, z);
#pragma unroll
        for (uint32_t i = 0; i < V; ++i) {
            const float d = z.at[i] - pivot.at[i];
            s.at[i] += d;
            t.at[i] += d * d;
        }
    }
    __device__ __forceinline__ void finish(double* to, uint32_t stride, float pivot, uint32_t count, double s,
                                           double t) const {
        const double squares = t - s * s / count;
        to[0] = pivot + s / count;
        to[stride] = squares < 0.0 ? 0.0 : squares; // written so that a NaN stays one
    }
};

// The gradient of an activation before it: from dy, the product, to dz = dy act'(a x + b), stored, and the sums of dz and of
// dz (x - mean) that the BatchNorm which gave a x + b needs. table [T, 2, n] of a and b, mean [G, n].
template <uint32_t KIND> struct SlopeSums {
    static constexpr bool SUMS = true;
    const real* x;
    const float* table;
    const float* mean;
    real* dz;
    double* partial;
    uint32_t n, positions, slabs, images, tables, groups;

    template <uint32_t V> struct With {
        Floats<V> a, b, mean;
    };
    template <uint32_t V>
    __device__ __forceinline__ With<V> start(uint32_t image, uint32_t column, Floats<V>) const {
        const float* at = table + part_of(image, tables, images) * 2 * n + column;
        return {load<V>(at), load<V>(at + n), load<V>(mean + part_of(image, groups, images) * n + column)};
    }
    template <uint32_t V>
    __device__ __forceinline__ void add(uint32_t row, uint32_t column, Floats<V> dy, const With<V>& with, Floats<V>& s,
                                        Floats<V>& t) const {
        const Floats<V> v = load<V>(x + row * n + column);
#pragma unroll
        for (uint32_t i = 0; i < V; ++i) {
            dy.at[i] *= act_slope<KIND>(fmaf(v.at[i], with.a.at[i], with.b.at[i]));
            s.at[i] += dy.at[i];
            t.at[i] += dy.at[i] * (v.at[i] - with.mean.at[i]);
        }
        store<V>(dz + row * n + column, dy);
    }
    __device__ __forceinline__ void finish(double* to, uint32_t stride, float, uint32_t, double s, double t) const {
        to[0] = s;
        to[stride] = t;
    }
};
