// Eight neighbours a lane, in and out of whatever stores them. `begin` is a multiple of eight; `there` of the eight exist. Those that do not
// read as zero and are not stored. STREAM: nobody reads them again soon.
#pragma once
#include "adamw/update.cuh"
#include "common/row.cuh"

namespace limo {

// How many of the elements from `begin` on exist, at most eight.
__device__ __forceinline__ uint32_t elements_there(uint64_t begin, uint64_t count) {
    if (begin >= count) return 0;
    return count - begin < CHUNK ? uint32_t(count - begin) : CHUNK;
}

__device__ __forceinline__ bf16x8 load8_packed(const bf16 *x_gmem, uint32_t there) {
    return there == CHUNK ? load_chunk<true>(x_gmem, 0, CHUNK) : load_chunk<false>(x_gmem, 0, there);
}

__device__ __forceinline__ f32x8 load8(const bf16 *x_gmem, uint32_t there) { return to_float(load8_packed(x_gmem, there)); }

__device__ __forceinline__ f32x8 load8(const float *x_gmem, uint32_t there) {
    return there == CHUNK ? load_chunk<true>(x_gmem, 0, CHUNK) : load_chunk<false>(x_gmem, 0, there);
}

template <bool STREAM> __device__ __forceinline__ void store8(bf16 *x_gmem, uint32_t there, const bf16x8 &packed) {
    if (there < CHUNK) return store_chunk<false>(x_gmem, 0, there, packed);
    STREAM ? st128_stream(x_gmem, packed.words) : st128(x_gmem, packed.words);
}

template <bool STREAM> __device__ __forceinline__ void store8(float *x_gmem, uint32_t there, const f32x8 &values) {
    if (there < CHUNK) return store_chunk<false>(x_gmem, 0, there, values);
#pragma unroll
    for (int half = 0; half < 8; half += 4) {
        vec128 words;
#pragma unroll
        for (int i = 0; i < 4; ++i) words.at[i] = float_as_bits(values.at[half + i]);
        STREAM ? st128_stream(x_gmem + half, words) : st128(x_gmem + half, words);
    }
}

// The masters of bf16 parameters with remainders.
__device__ __forceinline__ f32x8 load8_masters(const AdamWParams &p, uint64_t begin, uint32_t there) {
    const bf16x8 param = load8_packed(p.param + begin, there);
    const bf16x8 remainder = load8_packed(reinterpret_cast<const bf16 *>(p.remainder + begin), there);
    f32x8 masters;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        const int shift = 16 * (i % 2);
        masters.at[i] = join_master(param.words.at[i / 2] >> shift & 0xffff, remainder.words.at[i / 2] >> shift & 0xffff);
    }
    return masters;
}

template <bool STREAM>
__device__ __forceinline__ void store8_masters(const AdamWParams &p, uint64_t begin, uint32_t there, const f32x8 &masters) {
    bf16x8 param, remainder;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const uint32_t low = master_bits(masters.at[2 * i]), high = master_bits(masters.at[2 * i + 1]);
        param.words.at[i] = rounded_half(low) | rounded_half(high) << 16;
        remainder.words.at[i] = (low & 0xffff) | high << 16;
    }
    store8<STREAM>(p.param + begin, there, param);
    store8<STREAM>(reinterpret_cast<bf16 *>(p.remainder + begin), there, remainder);
}

// The random bits of eight elements: of element i, 16 for the parameter, 16 for m, 16 for v.
struct Draws {
    uint32_t words[16];
    __device__ __forceinline__ uint32_t param(int i) const { return words[2 * i] & 0xffff; }
    __device__ __forceinline__ uint32_t m(int i) const { return words[2 * i] >> 16; }
    __device__ __forceinline__ uint32_t v(int i) const { return words[2 * i + 1] & 0xffff; }
};

__device__ __forceinline__ Draws draw8(const AdamWParams &p, uint64_t begin) {
    Draws draws;
#pragma unroll
    for (int pair = 0; pair < 4; ++pair) {
        const Draw draw = pair_bits(p.seed, p.step, p.first + begin + 2 * pair);
#pragma unroll
        for (int i = 0; i < 4; ++i) draws.words[4 * pair + i] = draw.at[i];
    }
    return draws;
}

} // namespace limo
