// How images are put into ghost groups, and positions into the pieces that partial sums are taken over.
#pragma once

#include "common.cuh"

// Where part i of `parts` nearly equal parts of `whole` begins: positions of a slab, images of a ghost group.
__device__ __forceinline__ uint32_t part_start(uint32_t i, uint32_t parts, uint32_t whole) {
    return static_cast<uint32_t>(static_cast<uint64_t>(i) * whole / parts);
}

// The part that holds element i: the largest g with g whole / parts <= i, rounded down.
__device__ __forceinline__ uint32_t part_of(uint32_t i, uint32_t parts, uint32_t whole) {
    return static_cast<uint32_t>((static_cast<uint64_t>(i + 1) * parts - 1) / whole);
}

// The pieces of each image that partial sums [N, slabs, 2, C] are taken over: `slabs` nearly equal parts of its positions,
// of which `unit` stay together; or, where `run` is not 0, what lies in each run of so many positions of all images on end,
// as the rows of a matrix product do. An image then meets up to `slabs` runs, and what lies behind its last is not written.
struct Pieces {
    uint32_t slabs, positions, unit, run;

    __device__ __forceinline__ uint32_t count(uint32_t image) const {
        return run == 0 ? slabs : ((image + 1) * positions - 1) / run - image * positions / run + 1;
    }
    // Positions of a piece.
    __device__ __forceinline__ uint32_t size(uint32_t image, uint32_t slab) const {
        if (run == 0) {
            const uint32_t units = positions / unit;
            return (part_start(slab + 1, slabs, units) - part_start(slab, slabs, units)) * unit;
        }
        const uint32_t first = image * positions, start = (first / run + slab) * run;
        return min(start + run, first + positions) - max(start, first);
    }
};
