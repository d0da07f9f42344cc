// The patches of a picture as a view [positions, taps * channels] for gemm.cuh: nothing is stored, each element knows where
// it comes from.
//
// Position p is pixel (py, px) of the side that is written; column k is channel k % channels of tap (ky, kx). It comes from
// pixel (py * stride + direction * ky + top) / apart of the side that is read, likewise in x; where that is no whole number
// or no pixel, there is a zero.
//
//                      read    written   stride   apart    direction   top, left
//   y, and dw from x   x       y         stride   1        +1          -pad
//   dx                 dy      x         1        stride   -1          +pad
#pragma once

#include "common.cuh"
#include "divisor.cuh"
#include "gemm.cuh"

struct Geometry {
    uint32_t height, width, channels; // of the side that is read
    uint32_t out_height, out_width;   // of the side that is written
    uint32_t taps, taps_across;
    uint32_t stride, apart;
    int32_t direction, top, left;
};

// SPREAD: apart may be more than 1.
template <bool SPREAD> struct Patches {
    static constexpr bool CHANGES = false;
    const real* data;
    uint32_t rows, columns; // positions and taps * channels
    Geometry g;
    Divisor picture, line, tap, tap_line;

    // Outside, whatever is added.
    static constexpr int32_t FAR = -(1 << 30);
    struct Row {
        uint32_t offset; // of its first tap, modulo 2^32: may lie before the array
        int32_t y, x;
    };
    struct Column {
        uint32_t offset; // from the first tap
        int32_t y, x;
    };

    __device__ Patches(const real* from, uint32_t positions, const Geometry& geometry)
        : data(from), rows(positions), columns(geometry.taps * geometry.channels), g(geometry),
          picture(g.out_height * g.out_width), line(g.out_width), tap(g.channels), tap_line(g.taps_across) {}

    __device__ __forceinline__ uint32_t pixel(int32_t y, int32_t x) const { return (y * g.width + x) * g.channels; }

    __device__ __forceinline__ Row row(uint32_t r) const {
        if (r >= rows) return {0, FAR, FAR};
        const uint32_t n = picture.quotient(r), p = r - n * picture.d, py = line.quotient(p), px = p - py * line.d;
        const int32_t y = static_cast<int32_t>(py * g.stride) + g.top, x = static_cast<int32_t>(px * g.stride) + g.left;
        const uint32_t first = n * g.height * g.width * g.channels;
        return {SPREAD ? first : first + pixel(y, x), y, x};
    }
    __device__ __forceinline__ Column column(uint32_t c) const {
        if (c >= columns) return {0, FAR, FAR};
        const uint32_t t = tap.quotient(c), ky = tap_line.quotient(t), kx = t - ky * tap_line.d, channel = c - t * tap.d;
        const int32_t y = g.direction * static_cast<int32_t>(ky), x = g.direction * static_cast<int32_t>(kx);
        return {SPREAD ? channel : channel + pixel(y, x), y, x};
    }
    __device__ __forceinline__ Spot at(const Row& r, const Column& c) const {
        int32_t y = r.y + c.y, x = r.x + c.x;
        uint32_t offset = r.offset + c.offset;
        bool there = true;
        if constexpr (SPREAD) {
            const int32_t apart = static_cast<int32_t>(g.apart);
            there = y % apart == 0 && x % apart == 0;
            y /= apart, x /= apart;
            offset += pixel(y, x);
        }
        // As unsigned numbers, those below zero are beyond the size too.
        there = there && static_cast<uint32_t>(y) < g.height && static_cast<uint32_t>(x) < g.width;
        return {there ? offset : 0, there};
    }
};
