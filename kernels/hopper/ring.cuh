// A tile of a matrix product by warpgroups: a ring of slots that the copy engine fills and the tensor cores empty.
//
//   thread 0        waits until a slot is empty in all blocks of the cluster, announces its bytes, sends for its boxes
//   all warpgroups  wait until a slot is full, multiply it, and say so once the products of the step before are done
//
// There is no warp that only copies: 64 x 216 sums take 108 registers of a thread, and with a fourth warpgroup the compiler
// may give a thread 128 registers, which do not hold them. So thread 0, with its own products on their way, sends for the
// step that comes STAGES - 1 steps later.
#pragma once

#include "wgmma.cuh"

constexpr uint32_t STAGES = 4;
// Values of k in a slot.
constexpr uint32_t DEPTH = 64;
static_assert(DEPTH * sizeof(__nv_bfloat16) == ROW_BYTES, "along k, a slot is one row wide");
constexpr uint32_t BOX_BYTES = DEPTH * ROW_BYTES; // of 64 rows

// What a block of WARPGROUPS needs, with slots of SLOT bytes; TOGETHER: the blocks of a cluster fill each other's slots. The
// host gives as much shared memory, see src/device/cuda/wgmma.rs.
template <uint32_t WARPGROUPS_, uint32_t SLOT_, bool TOGETHER> struct Ring {
    static constexpr uint32_t WARPGROUPS = WARPGROUPS_, SLOT = SLOT_, THREADS = WARPGROUPS * WARPGROUP;
    static constexpr uint32_t ROWS = WARPGROUPS * PRODUCT_ROWS;
    // Slots begin at a multiple of the swizzle's period; the barriers come last.
    static constexpr uint32_t SHARED = SWIZZLE_BYTES + STAGES * SLOT + 2 * STAGES * 8;
    static_assert(SLOT % SWIZZLE_BYTES == 0 && SHARED <= 232448, "a multiprocessor gives a block 227 KiB");
    static_assert(ROWS * PRODUCT_COLUMNS * sizeof(float) <= STAGES * SLOT, "the finished tile fits");

    uint32_t slots, blocks; // address of the first slot; size of the cluster

    __device__ __forceinline__ explicit Ring(const unsigned char* shared) : blocks(cluster_size()) {
        slots = (shared_address(shared) + SWIZZLE_BYTES - 1) / SWIZZLE_BYTES * SWIZZLE_BYTES;
        if (threadIdx.x == 0) {
            for (uint32_t i = 0; i < STAGES; ++i) {
                barrier_init(full(i), 1);
                barrier_init(empty(i), (TOGETHER ? blocks : 1) * WARPGROUPS * 4);
            }
            publish_barriers();
        }
        __syncwarp();
        cluster_sync();
    }
    __device__ __forceinline__ uint32_t slot(uint32_t step) const { return slots + step % STAGES * SLOT; }
    __device__ __forceinline__ uint32_t full(uint32_t step) const { return slots + STAGES * SLOT + step % STAGES * 8; }
    __device__ __forceinline__ uint32_t empty(uint32_t step) const { return full(step) + STAGES * 8; }

    // sums += the products of all steps. fetch(slot, barrier), called by thread 0 for one step after the other, sends for
    // SLOT bytes, of which other blocks of the cluster may send a part; products(slot) multiplies a slot, as one group.
    // There is at least one step; TOGETHER: as many in all blocks of the cluster.
    template <class Fetch, class Products>
    __device__ __forceinline__ void run(uint32_t steps, Fetch fetch, Products products) const {
        const auto send = [&](uint32_t step) {
            barrier_expect(full(step), SLOT);
            fetch(slot(step), full(step));
        };
        if (threadIdx.x == 0) {
            for (uint32_t step = 0; step < STAGES && step < steps; ++step) send(step);
        }
        __syncwarp();
        uint32_t step = 0;
        do {
            barrier_wait(full(step), step / STAGES % 2);
            products(slot(step));
            products_wait<1>();
            // The slot of the step before has been multiplied. Nobody asks whether the last ones have.
            const uint32_t next = step + STAGES - 1;
            if (step > 0 && next < steps) {
                // Every warp says so, to all that fill the slot: it knows of its own products only.
                const uint32_t lane = threadIdx.x % WARP;
                if (lane < (TOGETHER ? blocks : 1)) barrier_arrive(empty(step - 1), TOGETHER ? lane : cluster_rank());
                if (threadIdx.x == 0) {
                    barrier_wait(empty(step - 1), (step - 1) / STAGES % 2);
                    send(next);
                }
                __syncwarp();
            }
        } while (++step < steps);
        products_wait<0>();
        // The slots may be used for something else: all blocks have all their boxes, and have multiplied them.
        cluster_sync();
    }

    // Lays the sums of this thread into the ring, as [ROWS, PRODUCT_COLUMNS] of f32. A line is 24 banks longer than a
    // multiple of 32: the four lines that are written at once lie in different banks.
    __device__ __forceinline__ void lay_down(float* tile, const float (&sums)[SUMS]) const {
        const uint32_t lane = threadIdx.x % WARP, row = threadIdx.x / WARP * 16 + lane / 4;
        float* to = tile + row * PRODUCT_COLUMNS + lane % 4 * 2;
#pragma unroll
        for (uint32_t j = 0; j < SUMS / 4; ++j) {
            const uint2 upper = make_uint2(__float_as_uint(sums[4 * j]), __float_as_uint(sums[4 * j + 1]));
            const uint2 lower = make_uint2(__float_as_uint(sums[4 * j + 2]), __float_as_uint(sums[4 * j + 3]));
            store8(to + 8 * j, upper);
            store8(to + 8 * j + 8 * PRODUCT_COLUMNS, lower);
        }
    }
};

// The pixel of position p of a picture of `width` x `height` pixels, as the first base pixel of a column; `left` and `top`
// are the lower corner.
__device__ __forceinline__ Pixels base_pixel(uint32_t p, uint32_t width, uint32_t height, int32_t left, int32_t top) {
    const uint32_t line = p / width, picture = line / height;
    const int32_t x = static_cast<int32_t>(p - line * width), y = static_cast<int32_t>(line - picture * height);
    return {x + left, y + top, static_cast<int32_t>(picture), 0, 0};
}
