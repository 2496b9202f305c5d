// Fill, add, copy, and conversions between f32 and bf16: kernels that do little but move elements.
// Idea: a thread takes eight elements, 16 to 64 bytes, and nothing else: with the 2048 threads of an SM that is enough on its way, so there is
// no loop and no ladder.
// Gain: not yet measured on a GPU.
#include "common/row.cuh"
#include "common/stochastic.cuh"
#include "params/elementwise.h"

namespace limo {

// The first of the eight elements of this thread.
__device__ __forceinline__ uint64_t first_element() { return (uint64_t(blockIdx.x) * blockDim.x + threadIdx.x) * CHUNK; }

// out = f(x, out), eight elements a thread. VECTORS: both start at a multiple of 16 bytes; then only the last chunk goes one by one.
template <bool VECTORS, typename From, typename To, typename F>
__device__ __forceinline__ void map_chunk(const From *x_gmem, To *out_gmem, uint64_t count, F f) {
    const uint64_t at = first_element();
    if (at >= count) return;
    x_gmem += at, out_gmem += at;
    if (VECTORS && count - at >= CHUNK) {
        store_chunk<VECTORS>(out_gmem, 0, CHUNK, f(load_chunk<VECTORS>(x_gmem, 0, CHUNK), out_gmem, CHUNK));
    } else {
        const uint32_t width = uint32_t(count - at < CHUNK ? count - at : CHUNK);
        store_chunk<false>(out_gmem, 0, width, f(load_chunk<false>(x_gmem, 0, width), out_gmem, width));
    }
}

// What `out` holds before: `width` elements of the chunk that map_chunk is at.
template <bool VECTORS, typename To> __device__ __forceinline__ auto load_out(const To *out_gmem, uint32_t width) {
    return VECTORS && width == CHUNK ? load_chunk<VECTORS>(out_gmem, 0, CHUNK) : load_chunk<false>(out_gmem, 0, width);
}

template <bool VECTORS> __device__ __forceinline__ void add(const ElementsParams &p) {
    map_chunk<VECTORS, float, float>(p.x, p.out, p.count, [](f32x8 x, const float *out_gmem, uint32_t width) {
        const f32x8 out = load_out<VECTORS>(out_gmem, width);
#pragma unroll
        for (uint32_t i = 0; i < CHUNK; ++i) x.at[i] += out.at[i];
        return x;
    });
}

// A contribution as it would arrive from another rank: rounded to bf16.
__device__ __forceinline__ f32x8 contribution(const f32x8 &x) { return to_float(to_bf16(x)); }
__device__ __forceinline__ f32x8 contribution(const bf16x8 &x) { return to_float(x); }

// out += x, the sum rounded stochastically. From: float or bf16.
template <bool VECTORS, typename From> __device__ __forceinline__ void accumulate(const AccumulateParams &p) {
    const From *x_gmem = reinterpret_cast<const From *>(p.x.address);
    map_chunk<VECTORS, From, bf16>(x_gmem, p.out, p.count, [&](const auto &x, const bf16 *out_gmem, uint32_t width) {
        const f32x8 added = contribution(x);
        f32x8 sum = to_float(load_out<VECTORS>(out_gmem, width));
        uint32_t random[CHUNK];
#pragma unroll
        for (uint32_t i = 0; i < CHUNK; i += 2) {
            const Draw draw = pair_bits(p.seed, p.draw, p.first + first_element() + i);
            random[i] = draw.at[0] & 0xffff, random[i + 1] = draw.at[2] & 0xffff;
        }
#pragma unroll
        for (uint32_t i = 0; i < CHUNK; ++i) sum.at[i] += added.at[i];
        return round8_stochastically(sum, [&](int i) { return random[i]; });
    });
}

template <bool VECTORS> __device__ __forceinline__ void copy(const ElementsParams &p) {
    map_chunk<VECTORS, float, float>(p.x, p.out, p.count, [](const f32x8 &x, const float *, uint32_t) { return x; });
}

template <bool VECTORS> __device__ __forceinline__ void to_bf16(const ToBf16Params &p) {
    map_chunk<VECTORS, float, bf16>(p.x, p.out, p.count, [](const f32x8 &x, const bf16 *, uint32_t) { return to_bf16(x); });
}

template <bool VECTORS> __device__ __forceinline__ void to_f32(const ToF32Params &p) {
    map_chunk<VECTORS, bf16, float>(p.x, p.out, p.count, [](const bf16x8 &x, const float *, uint32_t) { return to_float(x); });
}

} // namespace limo

using namespace limo;

// A thread an aligned 16 bytes; those that stick out at either end are stored in halves.
extern "C" __global__ void __launch_bounds__(256) elementwise_fill(const __grid_constant__ FillParams p) {
    constexpr uint64_t VECTOR = 16;
    const uint64_t begin = p.out.address, end = begin + p.bytes;
    const uint64_t at = begin / VECTOR * VECTOR + (uint64_t(blockIdx.x) * blockDim.x + threadIdx.x) * VECTOR;
    const uint32_t word = uint32_t(p.word);
    if (at >= begin && at + VECTOR <= end) {
        st128(reinterpret_cast<void *>(at), {{word, word, word, word}});
        return;
    }
    for (uint64_t half = at; half < at + VECTOR && half < end; half += 2) {
        if (half >= begin) *reinterpret_cast<uint16_t *>(half) = uint16_t(word >> 8 * (half % 4));
    }
}

extern "C" __global__ void __launch_bounds__(256) elementwise_add(const __grid_constant__ ElementsParams p) { add<true>(p); }

extern "C" __global__ void __launch_bounds__(256) elementwise_add_any(const __grid_constant__ ElementsParams p) { add<false>(p); }

extern "C" __global__ void __launch_bounds__(256) elementwise_accumulate_f32(const __grid_constant__ AccumulateParams p) {
    accumulate<true, float>(p);
}

extern "C" __global__ void __launch_bounds__(256) elementwise_accumulate_f32_any(const __grid_constant__ AccumulateParams p) {
    accumulate<false, float>(p);
}

extern "C" __global__ void __launch_bounds__(256) elementwise_accumulate_bf16(const __grid_constant__ AccumulateParams p) {
    accumulate<true, bf16>(p);
}

extern "C" __global__ void __launch_bounds__(256) elementwise_accumulate_bf16_any(const __grid_constant__ AccumulateParams p) {
    accumulate<false, bf16>(p);
}

extern "C" __global__ void __launch_bounds__(256) elementwise_copy(const __grid_constant__ ElementsParams p) { copy<true>(p); }

extern "C" __global__ void __launch_bounds__(256) elementwise_copy_any(const __grid_constant__ ElementsParams p) { copy<false>(p); }

extern "C" __global__ void __launch_bounds__(256) elementwise_to_bf16(const __grid_constant__ ToBf16Params p) { to_bf16<true>(p); }

extern "C" __global__ void __launch_bounds__(256) elementwise_to_bf16_any(const __grid_constant__ ToBf16Params p) { to_bf16<false>(p); }

extern "C" __global__ void __launch_bounds__(256) elementwise_to_f32(const __grid_constant__ ToF32Params p) { to_f32<true>(p); }

extern "C" __global__ void __launch_bounds__(256) elementwise_to_f32_any(const __grid_constant__ ToF32Params p) { to_f32<false>(p); }
