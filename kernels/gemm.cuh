// One tile of a matrix product on tensor cores: C[m, n] = sum over k of A[m, k] B[k, n], one tile of C a block.
//
//   global memory --cp.async--> ring of STAGES slots in shared memory --ldmatrix--> registers --mma--> sums in registers
//
// A slot holds STEP values of k of both operands. While the warps multiply one slot, the copies of the next three are on
// their way; one barrier a step. At the end the tile goes through shared memory, so that rows leave in 16-byte accesses.
//
// Where an operand lies in memory is the business of a view, such as `Matrix` below:
//   Row, Column                               what the place of an element owes to its row and to its column
//   row(r), column(c), at(Row, Column)        the place; a row or column beyond the end gives zeros
// With CHANGES a view also turns what arrives into what is meant (see normalise_on_load.cuh). A thread changes the chunks that
// it copied itself, which it may touch after its own wait; the barrier that every step has anyway shows them to the others.
// MORE further arrays, read at the same places, lie beside the operands in chunks that only their thread touches: thread
// after thread, free of bank conflicts.
//
// Whichever of Row and Column stays the same from step to step is computed once. With VECTOR, CHUNK neighbours of a row
// from a multiple of CHUNK on must be neighbours in memory, aligned to 16 bytes, and all be there or all be zero. Without
// it elements come one by one: right for any sizes, and slow.
//
// Tiles are 112 columns wide because the networks have 216, 432, 864 and 1728 channels: 2, 4, 8 and 16 tiles that are
// 96 % full. A tile of 128 would waste a sixth.
#pragma once

#include "common.cuh"
#include "gemm_epilogue.cuh"
#include "gemm_fragments.cuh"
#include "gemm_sums.cuh"

constexpr uint32_t STEP = 2 * PIECE;
constexpr uint32_t STAGES = 4;

// ROWS x COLUMNS of C, over warps; a warp computes DOWN x ACROSS fragments of 16 x 8.
template <uint32_t ROWS_, uint32_t COLUMNS_, uint32_t WARPS_DOWN, uint32_t WARPS_ACROSS_> struct Tile {
    static constexpr uint32_t ROWS = ROWS_, COLUMNS = COLUMNS_, WARPS_ACROSS = WARPS_ACROSS_;
    static constexpr uint32_t THREADS = WARPS_DOWN * WARPS_ACROSS * WARP;
    static constexpr uint32_t DOWN = ROWS / WARPS_DOWN / 16, ACROSS = COLUMNS / WARPS_ACROSS / 8;
    static_assert(DOWN * WARPS_DOWN * 16 == ROWS && ACROSS * WARPS_ACROSS * 8 == COLUMNS, "warps share a tile evenly");
};
using LargeTile = Tile<128, 112, 2, 2>; // for products that fill the device
using SmallTile = Tile<64, 56, 4, 1>;   // for the others: four times as many blocks

// How a launch wants its product done; the host chooses, and gives the shared memory (Tiling in src/ops/pointwise_conv.rs).
constexpr uint32_t ONE_BY_ONE = 0, SMALL = 1, LARGE = 2; // ONE_BY_ONE: small tiles without VECTOR
template <class T> constexpr uint32_t SHARED_BYTES = T::ROWS == 128 ? 71680 : 34816;

constexpr uint32_t GEMM_THREADS = 128;
static_assert(LargeTile::THREADS == GEMM_THREADS && SmallTile::THREADS == GEMM_THREADS, "a launch has one block size");

// First row and column of this block's tile. Neighbouring blocks read the same rows of A.
template <class T> struct Place {
    uint32_t row, column;
    __device__ explicit Place(uint32_t n) {
        const uint32_t across = (n + T::COLUMNS - 1) / T::COLUMNS;
        row = blockIdx.x / across * T::ROWS;
        column = blockIdx.x % across * T::COLUMNS;
    }
};

// The place of an element in memory. Where it is not `there`, a zero is meant, and `offset` is still one of the array.
struct Spot {
    uint32_t offset;
    bool there;
};

// A row-major matrix whose lines lie `pitch` values apart.
struct Matrix {
    static constexpr bool CHANGES = false;
    const real* data;
    uint32_t rows, columns, pitch;
    using Row = Spot;
    using Column = Spot;
    __device__ __forceinline__ Row row(uint32_t r) const { return {r < rows ? r * pitch : 0, r < rows}; }
    __device__ __forceinline__ Column column(uint32_t c) const { return {c < columns ? c : 0, c < columns}; }
    __device__ __forceinline__ Spot at(Row r, Column c) const { return {r.offset + c.offset, r.there && c.there}; }
};

__device__ __forceinline__ void store_pair(float* p, float first, float second) {
    store8(p, make_uint2(__float_as_uint(first), __float_as_uint(second)));
}

template <class View> __device__ __forceinline__ void copy_chunk(real* to, const View& view, Spot from) {
    cp_async16_zfill(to, view.data + from.offset, from.there);
}

// LINES x RUN elements of a view from (line, run) on, one by one.
template <uint32_t LINES, uint32_t RUN, class View>
__device__ __forceinline__ void copy_singly(real* to, uint32_t pitch, const View& view, uint32_t line, uint32_t run) {
    for (uint32_t i = threadIdx.x; i < LINES * RUN; i += GEMM_THREADS) {
        const Spot from = view.at(view.row(line + i / RUN), view.column(run + i % RUN));
        real value = to_real(0.0f);
        if (from.there) {
            if constexpr (View::CHANGES) value = to_real(view.value(view.row(line + i / RUN), view.column(run + i % RUN)));
            else value = view.data[from.offset];
        }
        to[i / RUN * pitch + i % RUN] = value;
    }
}

// Values of further arrays that the copies of one step bring.
template <class View> constexpr uint32_t more_values(uint32_t copies) {
    if constexpr (View::CHANGES) return View::MORE * copies * GEMM_THREADS * CHUNK;
    else return 0;
}
// Where copy i of this thread lies among them.
__device__ __forceinline__ uint32_t own_chunk(uint32_t i) { return (i * GEMM_THREADS + threadIdx.x) * CHUNK; }

template <class View>
__device__ __forceinline__ void copy_chunks(real* to, real* more, uint32_t i, const View& view, Spot from) {
    copy_chunk(to, view, from);
    if constexpr (View::CHANGES) {
        if constexpr (View::MORE > 0) cp_async16_zfill(more + own_chunk(i), view.more + from.offset, from.there);
    }
}

// Operand A of a view [m, k], whose rows are rows of C.
template <class T, bool VECTOR, class View> struct AlongK {
    // An odd number of 16 bytes: the 8 rows of an ldmatrix lie in different banks.
    static constexpr uint32_t PITCH = STEP + CHUNK, SLOT = T::ROWS * PITCH;
    static constexpr uint32_t CHUNKS = STEP / CHUNK, LINES = GEMM_THREADS / CHUNKS, COPIES = T::ROWS / LINES;
    static constexpr uint32_t MORE = VECTOR ? more_values<View>(COPIES) : 0;
    View view;
    uint32_t first, line, run;
    typename View::Row rows[COPIES];

    __device__ __forceinline__ AlongK(const View& v, uint32_t first_row)
        : view(v), first(first_row), line(threadIdx.x / CHUNKS), run(threadIdx.x % CHUNKS * CHUNK) {
        if constexpr (VECTOR) {
#pragma unroll
            for (uint32_t i = 0; i < COPIES; ++i) rows[i] = view.row(first + line + i * LINES);
        }
    }
    __device__ __forceinline__ void fetch(real* to, real* more, uint32_t k) const {
        if constexpr (VECTOR) {
            const typename View::Column column = view.column(k + run);
            to += line * PITCH + run;
#pragma unroll
            for (uint32_t i = 0; i < COPIES; ++i) {
                copy_chunks(to + i * LINES * PITCH, more, i, view, view.at(rows[i], column));
            }
        } else {
            copy_singly<T::ROWS, STEP>(to, PITCH, view, first, k);
        }
    }
    __device__ __forceinline__ void change(real* to, const real* more, uint32_t k) const {
        if constexpr (VECTOR && View::CHANGES) {
            const typename View::Column column = view.column(k + run);
            typename View::Held held;
            to += line * PITCH + run;
#pragma unroll
            for (uint32_t i = 0; i < COPIES; ++i) {
                view.change(to + i * LINES * PITCH, more + own_chunk(i), rows[i], column, held);
            }
        }
    }
    static __device__ __forceinline__ void fragment(uint32_t (&a)[4], const real* slot, uint32_t m, uint32_t k) {
        fragment_along_k(a, slot + m * PITCH + k, PITCH);
    }
};

// An operand of a view [k, m] or [k, n]: A when its columns are rows of C, or B. WIDTH columns of it meet the tile.
template <uint32_t WIDTH, bool VECTOR, class View> struct AcrossK {
    // 8 more than a multiple of 16: conflict-free for the 8 rows of an ldmatrix and for single f32 values alike.
    static constexpr uint32_t PITCH = WIDTH + (24 - WIDTH % 16) % 16, SLOT = STEP * PITCH;
    // A thread stays in one column. With 28 or 14 chunks in a line, 16 of the 128 threads have nothing to copy.
    static constexpr uint32_t CHUNKS = WIDTH / CHUNK, LINES = power_of_two(GEMM_THREADS / CHUNKS), COPIES = STEP / LINES;
    static constexpr uint32_t MORE = VECTOR ? more_values<View>(COPIES) : 0;
    View view;
    uint32_t first, line, run;
    typename View::Column column;

    __device__ __forceinline__ AcrossK(const View& v, uint32_t first_column)
        : view(v), first(first_column), line(threadIdx.x / CHUNKS), run(threadIdx.x % CHUNKS * CHUNK),
          column(view.column(first + run)) {}
    __device__ __forceinline__ void fetch(real* to, real* more, uint32_t k) const {
        if constexpr (VECTOR) {
            if (line >= LINES) return;
            to += line * PITCH + run;
#pragma unroll
            for (uint32_t i = 0; i < COPIES; ++i) {
                copy_chunks(to + i * LINES * PITCH, more, i, view, view.at(view.row(k + line + i * LINES), column));
            }
        } else {
            copy_singly<STEP, WIDTH>(to, PITCH, view, k, first);
        }
    }
    __device__ __forceinline__ void change(real* to, const real* more, uint32_t k) const {
        if constexpr (VECTOR && View::CHANGES) {
            if (line >= LINES) return;
            typename View::Held held;
            to += line * PITCH + run;
#pragma unroll
            for (uint32_t i = 0; i < COPIES; ++i) {
                view.change(to + i * LINES * PITCH, more + own_chunk(i), view.row(k + line + i * LINES), column, held);
            }
        }
    }
    static __device__ __forceinline__ void fragment(uint32_t (&a)[4], const real* slot, uint32_t m, uint32_t k) {
        fragment_across_k(a, slot + k * PITCH + m, PITCH);
    }
    template <uint32_t N>
    static __device__ __forceinline__ void fragments(uint32_t (&b)[N][2], const real* slot, uint32_t n, uint32_t k) {
        fragments_of_b(b, slot + k * PITCH + n, PITCH);
    }
};

template <uint32_t N> struct Width {
    static constexpr uint32_t VALUE = N;
};

// The product of one tile over k in [begin, end); views must be zero from `end` on. `shared` is the dynamic shared
// memory; `put(row, column, Floats<V>)` is called with every value of C that exists, V of them at a time. A `put` with SUMS
// also adds them up, see gemm_sums.cuh.
template <class T, class A, class B, class Put>
__device__ __forceinline__ void multiply(const A& a, const B& b, uint32_t begin, uint32_t end, unsigned char* shared,
                                         const Place<T>& place, uint32_t m, uint32_t n, const Put& put) {
    constexpr uint32_t PITCH = T::COLUMNS + (24 - T::COLUMNS % 16) % 16;
    constexpr uint32_t OPERANDS = A::SLOT + B::SLOT, SLOT = OPERANDS + A::MORE + B::MORE;
    static_assert(STAGES * OPERANDS * sizeof(real) <= SHARED_BYTES<T>, "the slots fit");
    static_assert(T::ROWS * PITCH * sizeof(float) <= SHARED_BYTES<T>, "the finished tile fits");
    real* ring = reinterpret_cast<real*>(shared);
    const uint32_t steps = (end - begin + STEP - 1) / STEP;
    const auto fetch = [&](uint32_t step) {
        if (step < steps) {
            real* slot = ring + step % STAGES * SLOT;
            a.fetch(slot, slot + OPERANDS, begin + step * STEP);
            b.fetch(slot + A::SLOT, slot + OPERANDS + A::MORE, begin + step * STEP);
        }
        cp_async_commit(); // also when empty: waits count groups
    };

    const uint32_t warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const uint32_t m0 = warp / T::WARPS_ACROSS * T::DOWN * 16, n0 = warp % T::WARPS_ACROSS * T::ACROSS * 8;
    float sums[T::DOWN][T::ACROSS][4] = {};

    for (uint32_t step = 0; step + 1 < STAGES; ++step) fetch(step);
    for (uint32_t step = 0; step < steps; ++step) {
        cp_async_wait<STAGES - 2>();
        real* slot = ring + step % STAGES * SLOT;
        a.change(slot, slot + OPERANDS, begin + step * STEP);
        b.change(slot + A::SLOT, slot + OPERANDS + A::MORE, begin + step * STEP);
        __syncthreads(); // this slot has arrived for every thread, and every warp has done with the one before
        fetch(step + STAGES - 1);
#pragma unroll(PIECES_AT_ONCE)
        for (uint32_t k = 0; k < STEP; k += PIECE) {
            uint32_t a_part[T::DOWN][4], b_part[T::ACROSS][2];
#pragma unroll
            for (uint32_t i = 0; i < T::DOWN; ++i) A::fragment(a_part[i], slot, m0 + 16 * i, k);
            B::fragments(b_part, slot + A::SLOT, n0, k);
            multiply_fragments(sums, a_part, b_part);
        }
    }
    cp_async_wait<0>();
    __syncthreads();

    // A lane holds columns 2 (lane % 4) and the next of rows lane / 4 and 8 more, of each fragment.
    float* tile = reinterpret_cast<float*>(shared);
#pragma unroll
    for (uint32_t i = 0; i < T::DOWN; ++i) {
#pragma unroll
        for (uint32_t j = 0; j < T::ACROSS; ++j) {
            const uint32_t to = (m0 + 16 * i + lane / 4) * PITCH + n0 + 8 * j + lane % 4 * 2;
            store_pair(tile + to, sums[i][j][0], sums[i][j][1]);
            store_pair(tile + to + 8 * PITCH, sums[i][j][2], sums[i][j][3]);
        }
    }
    __syncthreads();
    const auto put_all = [&](auto width) {
        constexpr uint32_t V = decltype(width)::VALUE;
        if constexpr (Put::SUMS) {
            static_assert(T::ROWS * PITCH * sizeof(float) + SUM_BYTES<T, V> <= SHARED_BYTES<T>, "the sums fit");
            put_and_sum<T, V>(tile, PITCH, tile + T::ROWS * PITCH, place.row, place.column, m, n, put);
        } else {
            for (uint32_t i = threadIdx.x; i < T::ROWS * T::COLUMNS / V; i += GEMM_THREADS) {
                const uint32_t r = i / (T::COLUMNS / V), c = i % (T::COLUMNS / V) * V;
                if (place.row + r >= m || place.column + c >= n) continue;
                put(place.row + r, place.column + c, load<V>(tile + r * PITCH + c));
            }
        }
    };
    if (n % 4 == 0) put_all(Width<4>());
    else put_all(Width<1>());
}
