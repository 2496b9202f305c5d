// Stochastic rounding to bf16: up or down as often as keeps the mean. src/ops/cpu/moments.rs computes the same bits.
#pragma once
#include "common/philox.cuh"
#include "common/types.cuh"

namespace limo {

// What is no number is stored as this, or its upper half: cutting or adding to another NaN could leave something that looks like a number.
constexpr uint32_t QUIET_NAN = 0x7fc00000;

// 16 random bits are added below what bf16 keeps, and carry as often as the lower half is large.
__device__ __forceinline__ uint32_t round_stochastically(float value, uint32_t random16) {
    return (value == value ? float_as_bits(value) + random16 : QUIET_NAN) >> 16;
}

// Eight values; `random(i)` are the 16 bits of element i.
template <typename Random> __device__ __forceinline__ bf16x8 round8_stochastically(const f32x8 &values, Random random) {
    bf16x8 packed;
#pragma unroll
    for (int i = 0; i < 8; i += 2) {
        const uint32_t low = round_stochastically(values.at[i], random(i));
        packed.words.at[i / 2] = low | round_stochastically(values.at[i + 1], random(i + 1)) << 16;
    }
    return packed;
}

} // namespace limo
