// common/ptx.cuh for a host compiler: the same names and the same bits. What needs other threads or the checker is asked of
// src/device/emulator (Rust).
#pragma once

extern "C" {
unsigned char *limo_shared_base();
void limo_block_barrier();
void limo_named_barrier(int id, int threads);
void limo_warp_barrier();
uint32_t limo_shuffle(uint32_t value, int source_lane);
void limo_misaligned(const void *address);
}

namespace limo {

inline float bits_as_float(uint32_t bits) { return __builtin_bit_cast(float, bits); }
inline uint32_t float_as_bits(float value) { return __builtin_bit_cast(uint32_t, value); }

inline uint32_t bf16_bits(float value) {
    if (value != value) return 0x7fff;
    uint32_t bits = float_as_bits(value);
    return (bits + 0x7fff + ((bits >> 16) & 1)) >> 16; // half of the last kept bit, a little less where that bit is even
}

inline uint32_t pack_bf16x2(float low, float high) { return bf16_bits(low) | bf16_bits(high) << 16; }

inline float multiply_add(float a, float b, float c) { return __builtin_fmaf(a, b, c); }

inline float reciprocal_sqrt(float value) { return 1.0f / __builtin_sqrtf(value); }

inline void forget(vec128 &) {}

inline void expect_aligned(const void *address) {
    if (reinterpret_cast<uintptr_t>(address) % 16 != 0) limo_misaligned(address);
}

inline vec128 ld128(const void *address) {
    expect_aligned(address);
    return *static_cast<const vec128 *>(address);
}

inline vec128 ld128_stream(const void *address) { return ld128(address); }

inline void st128(void *address, const vec128 &value) {
    expect_aligned(address);
    *static_cast<vec128 *>(address) = value;
}

inline unsigned char *shared_base() { return limo_shared_base(); }
inline void block_barrier() { limo_block_barrier(); }
inline void named_barrier(int id, int threads) { limo_named_barrier(id, threads); }
inline void warp_barrier() { limo_warp_barrier(); }

inline float shuffle_xor(float value, int mask) {
    return bits_as_float(limo_shuffle(float_as_bits(value), int(threadIdx.x % WARP) ^ mask));
}

} // namespace limo
