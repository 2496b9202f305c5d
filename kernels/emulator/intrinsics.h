// common/ptx.cuh for a host compiler: the same names and the same bits. What needs other threads or the checker is asked of
// src/device/emulator (Rust).
#pragma once

extern "C" {
unsigned char *limo_shared_base();
void limo_block_barrier();
void limo_named_barrier(int id, int threads);
void limo_warp_barrier();
uint32_t limo_shuffle(uint32_t value, uint32_t source_lane);
void limo_misaligned(const void *address);
uint32_t limo_ballot(uint32_t condition);
uint32_t limo_atomic_add(uint32_t *word, uint32_t value);
uint32_t limo_take_ticket(uint32_t *counter);
void limo_ordered_wait(const uint32_t *turn_address, uint32_t turn);
void limo_pass_turn(uint32_t *turn_address, uint32_t turn);
void limo_copy_async(void *to, const void *from, uint32_t bytes);
void limo_copy_async_commit();
void limo_copy_async_wait(uint32_t pending);
// By value, so that fragments stay in registers.
struct LimoSums {
    float at[4];
};
LimoSums limo_mma_m16n8k16(float d0, float d1, float d2, float d3, uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
                           uint32_t b1);
struct LimoFragment {
    uint32_t at[4];
};
LimoFragment limo_ldmatrix_x4(const void *row, uint32_t transposed);
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

inline uint32_t multiply_high(uint32_t a, uint32_t b) { return uint32_t(uint64_t(a) * b >> 32); }
inline float square_root(float value) { return __builtin_sqrtf(value); }
inline float maximum(float a, float b) {
    if (a != a || b != b) return a != a ? a : b;
    if (a == b) return bits_as_float(float_as_bits(a) & float_as_bits(b)); // +0 is larger than -0
    return a > b ? a : b;
}

// A zero of the same sign for a subnormal number.
inline float flushed(float value) {
    const uint32_t bits = float_as_bits(value);
    return (bits & 0x7f800000) == 0 ? bits_as_float(bits & 0x80000000) : value;
}
inline float exp2_approximate(float value) { return flushed(__builtin_exp2f(value)); }
inline float log2_approximate(float value) { return __builtin_log2f(flushed(value)); }
inline float reciprocal_approximate(float value) { return flushed(1.0f / flushed(value)); }

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

inline void st128_stream(void *address, const vec128 &value) { st128(address, value); }
inline void st128_global(void *address, const vec128 &value) { st128(address, value); }

inline unsigned char *shared_base() { return limo_shared_base(); }
inline void block_barrier() { limo_block_barrier(); }
inline void named_barrier(int id, int threads) { limo_named_barrier(id, threads); }
inline void warp_barrier() { limo_warp_barrier(); }

inline float shuffle_xor(float value, int mask) {
    return bits_as_float(limo_shuffle(float_as_bits(value), threadIdx.x % WARP ^ uint32_t(mask)));
}

inline uint32_t shuffle_from(uint32_t value, int lane) { return limo_shuffle(value, uint32_t(lane)); }
inline uint32_t warp_ballot(bool condition) { return limo_ballot(condition); }
inline uint32_t atomic_add_shared(uint32_t *word_smem, uint32_t value) { return limo_atomic_add(word_smem, value); }
inline uint32_t take_ticket(uint32_t *counter) { return limo_take_ticket(counter); }
inline void ordered_wait(const uint32_t *turn_address, uint32_t turn) { limo_ordered_wait(turn_address, turn); }
inline void pass_turn(uint32_t *turn_address, uint32_t turn) { limo_pass_turn(turn_address, turn); }

inline void copy_async(void *to, const void *from, bool valid = true) { limo_copy_async(to, from, valid ? 16 : 0); }
inline void copy_async_commit() { limo_copy_async_commit(); }
template <int PENDING> void copy_async_wait() { limo_copy_async_wait(PENDING); }

inline void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    const LimoSums sums = limo_mma_m16n8k16(d[0], d[1], d[2], d[3], a[0], a[1], a[2], a[3], b[0], b[1]);
    for (int i = 0; i < 4; ++i) d[i] = sums.at[i];
}

inline void load_fragment(uint32_t (&fragment)[4], const void *row, uint32_t transposed) {
    expect_aligned(row);
    const LimoFragment loaded = limo_ldmatrix_x4(row, transposed);
    for (int i = 0; i < 4; ++i) fragment[i] = loaded.at[i];
}
inline void ldmatrix_x4(uint32_t (&fragment)[4], const void *row) { load_fragment(fragment, row, 0); }
inline void ldmatrix_x4_transposed(uint32_t (&fragment)[4], const void *row) { load_fragment(fragment, row, 1); }

} // namespace limo
