// Operands of gemm.cuh that are not in memory: what a product reads is made from raw convolution outputs on the way.
//
//   Normalised   act(a x + b)           BatchNorm and its activation, and a squeeze-excite gate where a and b have it
//   Gradient     a dz + e x + f         the gradient of BatchNorm's input, from dz and x
//
// The coefficients are tables [T, 2 or 3, channels], one row per ghost group, or per image where there is a gate. A thread
// changes chunks of CHUNK channels that are its own (see gemm.cuh) and reads their coefficients once for all rows of
// a step, unless an image ends in between. Rows and columns that are not there stay zero: the padding of a product.
#pragma once

#include "divisor.cuh"
#include "gemm.cuh"
#include "parts.cuh"

// Which row of a table belongs to a row of a matrix [images * positions, ..].
struct TableRows {
    Divisor positions;
    uint32_t images, tables;
    __device__ TableRows(uint32_t positions_, uint32_t images_, uint32_t tables_)
        : positions(positions_), images(images_), tables(tables_) {}
    __device__ __forceinline__ uint32_t of(uint32_t row) const {
        if (tables == 1) return 0;
        const uint32_t image = positions.quotient(row);
        return tables == images ? image : part_of(image, tables, images);
    }
};

__device__ __forceinline__ Floats<CHUNK> load_chunk(const real* p) {
    const uint4 raw = load16(p);
    const uint32_t words[4] = {raw.x, raw.y, raw.z, raw.w};
    Floats<CHUNK> v;
#pragma unroll
    for (uint32_t i = 0; i < 4; ++i) {
#ifdef FLAVOUR_BF16
        v.at[2 * i] = __uint_as_float(words[i] << 16);
        v.at[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
#else
        v.at[i] = __uint_as_float(words[i]);
#endif
    }
    return v;
}

__device__ __forceinline__ void store_chunk(real* p, const Floats<CHUNK>& v) {
    uint32_t words[4];
#pragma unroll
    for (uint32_t i = 0; i < 4; ++i) {
#ifdef FLAVOUR_BF16
        words[i] = bf16_bits(v.at[2 * i]) | bf16_bits(v.at[2 * i + 1]) << 16;
#else
        words[i] = __float_as_uint(v.at[i]);
#endif
    }
    store16(p, make_uint4(words[0], words[1], words[2], words[3]));
}

__device__ __forceinline__ Floats<CHUNK> load_coefficients(const float* p) {
    Floats<CHUNK> v;
#pragma unroll
    for (uint32_t i = 0; i < CHUNK; i += 4) {
        const float4 four = load4(p + i);
        v.at[i] = four.x, v.at[i + 1] = four.y, v.at[i + 2] = four.z, v.at[i + 3] = four.w;
    }
    return v;
}

// A row-major matrix [rows, columns] and a table of COEFFICIENTS per column.
template <uint32_t COEFFICIENTS> struct Tabled {
    static constexpr bool CHANGES = true;
    const real* data;
    const float* table;
    uint32_t rows, columns;
    TableRows rows_of;

    // Where its row of the table lies, or the number of the row: with two coefficients it is worked out when it is needed,
    // which saves the one register that the f32 flavour would have to spill on sm_80. With three the other way does, but not
    // on sm_100.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
    static constexpr bool LATE = true;
#else
    static constexpr bool LATE = COEFFICIENTS == 2;
#endif
    struct Row {
        uint32_t offset, table;
        bool there;
    };
    using Column = Spot;
    // The coefficients of a chunk of columns, and the table row they are from.
    struct Held {
        uint32_t table = 0xffffffffu;
        Floats<CHUNK> k[COEFFICIENTS];
    };
    __device__ __forceinline__ Row row(uint32_t r) const {
        if (r >= rows) return {0, 0, false};
        return {r * columns, LATE ? r : first_of(r), true};
    }
    __device__ __forceinline__ Column column(uint32_t c) const { return {c < columns ? c : 0, c < columns}; }
    __device__ __forceinline__ Spot at(const Row& r, const Column& c) const {
        return {r.offset + c.offset, r.there && c.there};
    }
    __device__ __forceinline__ uint32_t first_of(uint32_t row) const { return rows_of.of(row) * COEFFICIENTS * columns; }
    __device__ __forceinline__ uint32_t table_at(const Row& r) const { return LATE ? first_of(r.table) : r.table; }
    __device__ __forceinline__ void hold(Held& held, const Row& r, const Column& c) const {
        const uint32_t at = table_at(r);
        if (held.table == at) return;
        held.table = at;
#pragma unroll
        for (uint32_t i = 0; i < COEFFICIENTS; ++i) held.k[i] = load_coefficients(table + at + i * columns + c.offset);
    }
    __device__ __forceinline__ float coefficient(uint32_t i, const Row& r, const Column& c) const {
        return table[table_at(r) + i * columns + c.offset];
    }
};

// Without a table the matrix as it is stored.
template <uint32_t KIND> struct Normalised : Tabled<2> {
    static constexpr uint32_t MORE = 0;
    __device__ Normalised(const real* x, const float* table_or_null, uint32_t rows, uint32_t columns, TableRows of)
        : Tabled<2>{x, table_or_null, rows, columns, of} {}

    static __device__ __forceinline__ float of(float x, float a, float b) { return act_value<KIND>(fmaf(x, a, b)); }

    __device__ __forceinline__ void change(real* to, const real*, const Row& r, const Column& c, Held& held) const {
        if (table == nullptr || !r.there || !c.there) return;
        hold(held, r, c);
        Floats<CHUNK> v = load_chunk(to);
#pragma unroll
        for (uint32_t i = 0; i < CHUNK; ++i) v.at[i] = of(v.at[i], held.k[0].at[i], held.k[1].at[i]);
        store_chunk(to, v);
    }
    __device__ __forceinline__ float value(const Row& r, const Column& c) const {
        const float x = to_float(data[r.offset + c.offset]);
        return table == nullptr ? x : of(x, coefficient(0, r, c), coefficient(1, r, c));
    }
};

// `data` is dz, `more` is x.
struct Gradient : Tabled<3> {
    static constexpr uint32_t MORE = 1;
    const real* more;
    __device__ Gradient(const real* dz, const real* x, const float* table, uint32_t rows, uint32_t columns, TableRows of)
        : Tabled<3>{dz, table, rows, columns, of}, more(x) {}

    static __device__ __forceinline__ float of(float dz, float x, float a, float e, float f) {
        return fmaf(a, dz, fmaf(e, x, f));
    }

    __device__ __forceinline__ void change(real* to, const real* own, const Row& r, const Column& c, Held& held) const {
        if (!r.there || !c.there) return;
        hold(held, r, c);
        const Floats<CHUNK> x = load_chunk(own);
        Floats<CHUNK> v = load_chunk(to);
#pragma unroll
        for (uint32_t i = 0; i < CHUNK; ++i) {
            v.at[i] = of(v.at[i], x.at[i], held.k[0].at[i], held.k[1].at[i], held.k[2].at[i]);
        }
        store_chunk(to, v);
    }
    __device__ __forceinline__ float value(const Row& r, const Column& c) const {
        const uint32_t i = r.offset + c.offset;
        return of(to_float(data[i]), to_float(more[i]), coefficient(0, r, c), coefficient(1, r, c), coefficient(2, r, c));
    }
};
