// Rows cut into chunks of eight columns. VECTORS: the width is a multiple of eight and every row starts at a multiple of 16 bytes, so
// a chunk of bf16 is one access. Otherwise elements go one by one, and columns past the width read as zero and are not stored.
#pragma once
#include "common/types.cuh"

namespace limo {

constexpr uint32_t CHUNK = 8;

template <bool VECTORS> __device__ __forceinline__ bf16x8 load_chunk(const bf16 *row_gmem, uint32_t column, uint32_t width) {
    bf16x8 chunk = {};
    if constexpr (VECTORS) {
        if (column < width) chunk.words = ld128(row_gmem + column);
    } else {
#pragma unroll
        for (uint32_t i = 0; i < CHUNK; ++i) {
            if (column + i < width) chunk.words.at[i / 2] |= uint32_t(row_gmem[column + i].bits) << 16 * (i % 2);
        }
    }
    return chunk;
}

// For rows that nobody writes during the kernel and nobody reads again soon.
template <bool VECTORS> __device__ __forceinline__ bf16x8 load_chunk_stream(const bf16 *row_gmem, uint32_t column, uint32_t width) {
    if constexpr (VECTORS) {
        bf16x8 chunk = {};
        if (column < width) chunk.words = ld128_stream(row_gmem + column);
        return chunk;
    } else {
        return load_chunk<false>(row_gmem, column, width);
    }
}

template <bool VECTORS>
__device__ __forceinline__ void store_chunk(bf16 *row_gmem, uint32_t column, uint32_t width, const bf16x8 &chunk) {
    if constexpr (VECTORS) {
        if (column < width) st128(row_gmem + column, chunk.words);
    } else {
#pragma unroll
        for (uint32_t i = 0; i < CHUNK; ++i) {
            if (column + i < width) row_gmem[column + i] = {uint16_t(chunk.words.at[i / 2] >> 16 * (i % 2))};
        }
    }
}

// To global memory, by one instruction whatever surrounds it (see st128_global).
template <bool VECTORS>
__device__ __forceinline__ void store_chunk_global(bf16 *row_gmem, uint32_t column, uint32_t width, const bf16x8 &chunk) {
    if constexpr (VECTORS) {
        if (column < width) st128_global(row_gmem + column, chunk.words);
    } else {
        store_chunk<false>(row_gmem, column, width, chunk);
    }
}

template <bool VECTORS> __device__ __forceinline__ f32x8 load_chunk(const float *row, uint32_t column, uint32_t width) {
    f32x8 chunk = {};
    if constexpr (VECTORS) {
        if (column < width) {
#pragma unroll
            for (uint32_t half = 0; half < CHUNK; half += 4) {
                const vec128 words = ld128(row + column + half);
#pragma unroll
                for (uint32_t i = 0; i < 4; ++i) chunk.at[half + i] = bits_as_float(words.at[i]);
            }
        }
    } else {
#pragma unroll
        for (uint32_t i = 0; i < CHUNK; ++i) {
            if (column + i < width) chunk.at[i] = row[column + i];
        }
    }
    return chunk;
}

template <bool VECTORS> __device__ __forceinline__ void store_chunk(float *row, uint32_t column, uint32_t width, const f32x8 &chunk) {
    if constexpr (VECTORS) {
        if (column < width) {
#pragma unroll
            for (uint32_t half = 0; half < CHUNK; half += 4) {
                vec128 words;
#pragma unroll
                for (uint32_t i = 0; i < 4; ++i) words.at[i] = float_as_bits(chunk.at[half + i]);
                st128(row + column + half, words);
            }
        }
    } else {
#pragma unroll
        for (uint32_t i = 0; i < CHUNK; ++i) {
            if (column + i < width) row[column + i] = chunk.at[i];
        }
    }
}

} // namespace limo
