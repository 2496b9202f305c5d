// Moments in 8 bits: a small float times the scale of its block of 256 elements, which is a power of two. m has a sign, 4 bits of exponent and
// 3 of mantissa; v is never below zero and has 5 and 3. The upper bits of an f32 are such a float already: the code is the f32, divided by
// the scale and moved to the bottom of f32's range, cut off below its third mantissa bit. A warp holds a block, eight elements a lane.
#pragma once
#include "adamw/storage.cuh"
#include "common/warp.cuh"

namespace limo {

static_assert(ADAMW_BLOCK == WARP * CHUNK, "a warp holds a block");

// Mantissa bits of an f32 that a code lacks.
constexpr int CUT = 20;

// Eight codes: one access. Code i is byte i % 4 of word i / 4.
struct alignas(8) codes8 {
    uint32_t words[2];
};

// SQUARE: of v; otherwise of m.
template <bool SQUARE> struct EightBits {
    static constexpr uint32_t LARGEST = SQUARE ? 0xff : 0x7f;
    // Powers of two between a code's own exponent and that of an f32 with the code as its upper bits.
    static constexpr uint32_t LIFT = SQUARE ? 96 : 112;

    static __device__ __forceinline__ float decode(uint32_t code, float scale) {
        const float magnitude = bits_as_float((code & LARGEST) << CUT) * bits_as_float((127 + LIFT) << 23) * scale;
        return bits_as_float(float_as_bits(magnitude) | (code & ~LARGEST) << 24);
    }

    static __device__ __forceinline__ uint32_t encode(float value, float inverse, uint32_t random16) {
        const float magnitude = bits_as_float(float_as_bits(value) & 0x7fffffff);
        const float small = magnitude * inverse * bits_as_float((127 - LIFT) << 23);
        // 20 random bits of 16: their mean is the middle.
        const uint32_t rounded = ((float_as_bits(small) & 0x7fffffff) + (random16 << 4 | 8)) >> CUT;
        const uint32_t code = rounded < LARGEST ? rounded : LARGEST; // the largest code for what is no number
        if (SQUARE) return code == 0 && value > 0.0f ? 1 : code;
        return value < 0.0f ? code | 0x80 : code;
    }
};

// The largest magnitude of the warp's block, NaN if there is one. Every lane calls it.
__device__ __forceinline__ float largest_of_block(const f32x8 &values) {
    float largest = 0;
#pragma unroll
    for (int i = 0; i < 8; ++i) largest = maximum(largest, bits_as_float(float_as_bits(values.at[i]) & 0x7fffffff));
    return warp_max(largest);
}

// The power of two that makes `largest` 1 to 1.875 after rounding up, at least 2^-126; NaN for what has no such power.
__device__ __forceinline__ float scale_of(float largest) {
    constexpr uint32_t LIMIT = (127 + 127) << 23, SMALLEST = 1 << 23;
    if (!(largest < bits_as_float(LIMIT))) return bits_as_float(QUIET_NAN);
    const uint32_t exponent = (float_as_bits(largest) + ((1 << CUT) - 1)) & 0x7f800000;
    return bits_as_float(exponent > SMALLEST ? exponent : SMALLEST);
}

__device__ __forceinline__ codes8 load8_codes(const uint8_t *codes_gmem, uint32_t there) {
    if (there == CHUNK) return *reinterpret_cast<const codes8 *>(codes_gmem);
    codes8 codes = {};
#pragma unroll
    for (uint32_t i = 0; i < CHUNK; ++i) {
        if (i < there) codes.words[i / 4] |= uint32_t(codes_gmem[i]) << 8 * (i % 4);
    }
    return codes;
}

template <bool SQUARE> __device__ __forceinline__ f32x8 decode8(const codes8 &codes, float scale) {
    f32x8 values;
#pragma unroll
    for (int i = 0; i < 8; ++i) values.at[i] = EightBits<SQUARE>::decode(codes.words[i / 4] >> 8 * (i % 4) & 0xff, scale);
    return values;
}

// Stores codes, and the block's scale; `random(i)` are the 16 bits of element i. Every lane calls it.
template <bool SQUARE, typename Random>
__device__ __forceinline__ void store8_codes(uint8_t *codes_gmem, float *scale_gmem, uint32_t there, const f32x8 &values, Random random) {
    const float scale = scale_of(largest_of_block(values));
    const float inverse = 1.0f / scale;
    codes8 codes = {};
#pragma unroll
    for (int i = 0; i < 8; ++i) codes.words[i / 4] |= EightBits<SQUARE>::encode(values.at[i], inverse, random(i)) << 8 * (i % 4);
    if (there == CHUNK) {
        *reinterpret_cast<codes8 *>(codes_gmem) = codes;
    } else {
#pragma unroll
        for (uint32_t i = 0; i < CHUNK; ++i) {
            if (i < there) codes_gmem[i] = uint8_t(codes.words[i / 4] >> 8 * (i % 4));
        }
    }
    if (lane_index() == 0) *scale_gmem = scale;
}

} // namespace limo
