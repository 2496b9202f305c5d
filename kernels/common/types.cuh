// The element types of kernels: bf16 storage, f32 arithmetic, vectors of 16 bytes.
#pragma once
#include "common/ptx.cuh"

namespace limo {

// e^x = 2^(x · log₂ e), and ln x = ln 2 · log₂ x: the hardware has powers and logarithms of two only.
constexpr float LOG2_E = 1.4426950408889634f, LN_2 = 0.6931471805599453f;

// A brain float as it is stored: the upper half of an f32.
struct bf16 {
    uint16_t bits;
};

// Exact.
__device__ __forceinline__ float to_float(bf16 value) { return bits_as_float(uint32_t(value.bits) << 16); }

// Rounds to nearest, ties to even.
__device__ __forceinline__ bf16 to_bf16(float value) { return {uint16_t(pack_bf16x2(value, 0.0f))}; }

// What storing `value` as bf16 and loading it again gives.
__device__ __forceinline__ float round_to_bf16(float value) { return to_float(to_bf16(value)); }

// Eight neighbours of a row in one 16-byte register group: element 2i is the lower half of word i.
struct alignas(16) bf16x8 {
    vec128 words;
};

// Eight f32 in registers.
struct f32x8 {
    float at[8];
};

__device__ __forceinline__ f32x8 to_float(const bf16x8 &packed) {
    f32x8 wide;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        wide.at[2 * i] = bits_as_float(packed.words.at[i] << 16);
        wide.at[2 * i + 1] = bits_as_float(packed.words.at[i] & 0xffff0000u);
    }
    return wide;
}

// Rounds to nearest, ties to even.
__device__ __forceinline__ bf16x8 to_bf16(const f32x8 &wide) {
    bf16x8 packed;
#pragma unroll
    for (int i = 0; i < 4; ++i) packed.words.at[i] = pack_bf16x2(wide.at[2 * i], wide.at[2 * i + 1]);
    return packed;
}

// A device address in a parameter block; the Rust twin is `Ptr` of src/ops/cuda/params. Null: the operand is absent.
template <typename T> struct Ptr {
    uint64_t address;
    __device__ __forceinline__ operator T *() const { return reinterpret_cast<T *>(address); }
};

} // namespace limo
