// Philox4x32-10 (Salmon et al. 2011): random numbers without a state, a function of a counter and a key. src/ops/philox.rs is its twin.
#pragma once
#include "common/ptx.cuh"

namespace limo {

// 128 random bits.
struct Draw {
    uint32_t at[4];
};

__device__ __forceinline__ Draw philox4x32(uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3, uint32_t k0, uint32_t k1) {
    constexpr uint32_t FIRST = 0xd2511f53, SECOND = 0xcd9e8d57;
#pragma unroll
    for (int round = 0; round < 10; ++round) {
        const uint32_t first_high = multiply_high(c0, FIRST), first_low = c0 * FIRST;
        const uint32_t second_high = multiply_high(c2, SECOND), second_low = c2 * SECOND;
        c0 = second_high ^ c1 ^ k0;
        c1 = second_low;
        c2 = first_high ^ c3 ^ k1;
        c3 = first_low;
        k0 += 0x9e3779b9;
        k1 += 0xbb67ae85;
    }
    return {{c0, c1, c2, c3}};
}

// The 64 random bits of element `index` (words 0, 1) and of the next (words 2, 3) at `step`: an optimizer step, or which sum it is; `index` is even.
__device__ __forceinline__ Draw pair_bits(uint64_t seed, uint64_t step, uint64_t index) {
    const uint64_t pair = index / 2;
    return philox4x32(uint32_t(pair), uint32_t(pair >> 32), uint32_t(step), uint32_t(step >> 32), uint32_t(seed), uint32_t(seed >> 32));
}

} // namespace limo
