// The splits of last tokens put together: weights and sums of each split count from its own highest score, here they come to count from the
// sequence's. A thread eight columns of a query head, which adds the splits in order. Sequences of one split are done already.
// S sequences, Q query heads, H head dimension.
#include "attention/softmax.cuh"
#include "params/paged_attention.h"

namespace limo {

template <int DIM> __device__ __forceinline__ void paged_combine(const PagedAttentionParams &p) {
    constexpr uint32_t CHUNKS = DIM / CHUNK;
    const uint64_t thread = uint64_t(blockIdx.x) * blockDim.x + threadIdx.x, head = thread / CHUNKS;
    const uint32_t column = uint32_t(thread % CHUNKS) * CHUNK;
    if (head >= uint64_t(p.sequences) * p.query_heads) return;
    const uint32_t length = uint32_t(p.lengths[head / p.query_heads]), splits = (length + PAGED_SPLIT - 1) / PAGED_SPLIT;
    if (splits <= 1) return;
    const float *sums_gmem = p.sums + head * p.splits * 2, *partial_gmem = p.partial + head * p.splits * DIM;

    float highest = minus_infinity(), sum = 0;
    for (uint32_t split = 0; split < splits; ++split) highest = maximum(highest, sums_gmem[2 * split]);
    f32x8 values = {};
#pragma unroll 4 // loads of four splits on their way
    for (uint32_t split = 0; split < splits; ++split) {
        const float weight = exp2_approximate(sums_gmem[2 * split] - highest);
        sum = multiply_add(weight, sums_gmem[2 * split + 1], sum);
        const f32x8 part = load_chunk<true>(partial_gmem + uint64_t(split) * DIM, column, DIM);
#pragma unroll
        for (int i = 0; i < 8; ++i) values.at[i] = multiply_add(weight, part.at[i], values.at[i]);
    }
    const float share = reciprocal_approximate(sum);
#pragma unroll
    for (int i = 0; i < 8; ++i) values.at[i] *= share;
    st128_global(p.out + head * DIM + column, to_bf16(values).words);
}

} // namespace limo

using namespace limo;

extern "C" __global__ void __launch_bounds__(256) paged_combine_64(const __grid_constant__ PagedAttentionParams p) { paged_combine<64>(p); }

extern "C" __global__ void __launch_bounds__(256) paged_combine_128(const __grid_constant__ PagedAttentionParams p) { paged_combine<128>(p); }
