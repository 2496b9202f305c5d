// Attention of last tokens over pages, version 1: naive.
// Idea: a warp a query head. It walks its sequence token by token with a running softmax; a lane holds every 32nd element of the head.
// Gain: the baseline. Not yet measured on a GPU.
// S sequences, Q query heads, K key/value heads, H head dimension.
#include "attention/softmax.cuh"
#include "params/paged_attention.h"

namespace limo {

template <int DIM> __device__ __forceinline__ void paged_decode_naive(const PagedAttentionParams &p) {
    constexpr int PARTS = DIM / WARP;
    const uint64_t index = uint64_t(blockIdx.x) * (blockDim.x / WARP) + threadIdx.x / WARP;
    if (index >= uint64_t(p.sequences) * p.query_heads) return;
    const uint32_t sequence = uint32_t(index / p.query_heads), head = uint32_t(index % p.query_heads), lane = uint32_t(lane_index());
    const bf16 *q_gmem = p.qkv + (uint64_t(sequence) * (p.query_heads + 2 * p.kv_heads) + head) * DIM + lane;
    const uint64_t keys = uint64_t(head / (p.query_heads / p.kv_heads)) * PAGED_PAGE * DIM, values = uint64_t(p.kv_heads) * PAGED_PAGE * DIM;
    const uint32_t length = uint32_t(p.lengths[sequence]);

    float q_rmem[PARTS], out_rmem[PARTS] = {};
#pragma unroll
    for (int part = 0; part < PARTS; ++part) q_rmem[part] = to_float(q_gmem[part * WARP]);
    float highest = minus_infinity(), sum = 0;
    for (uint32_t u = 0; u < length; ++u) {
        const uint64_t page = uint64_t(p.pages[uint64_t(sequence) * p.width + u / PAGED_PAGE]);
        const bf16 *k_gmem = p.cache + page * p.page_stride + keys + u % PAGED_PAGE * DIM + lane, *v_gmem = k_gmem + values;
        float dot = 0;
#pragma unroll
        for (int part = 0; part < PARTS; ++part) dot = multiply_add(q_rmem[part], to_float(k_gmem[part * WARP]), dot);
        const float score = warp_sum(dot) * p.scale, before = highest;
        highest = maximum(highest, score);
        const float rescale = exp2_approximate(before - highest), weight = exp2_approximate(score - highest);
        sum = multiply_add(sum, rescale, weight);
#pragma unroll
        for (int part = 0; part < PARTS; ++part) {
            out_rmem[part] = multiply_add(weight, to_float(v_gmem[part * WARP]), out_rmem[part] * rescale);
        }
    }
    const float share = length == 0 ? 0.0f : reciprocal_approximate(sum);
#pragma unroll
    for (int part = 0; part < PARTS; ++part) p.out[index * DIM + part * WARP + lane] = to_bf16(out_rmem[part] * share);
}

} // namespace limo

using namespace limo;

extern "C" __global__ void __launch_bounds__(256) paged_decode_1_64(const __grid_constant__ PagedAttentionParams p) { paged_decode_naive<64>(p); }

extern "C" __global__ void __launch_bounds__(256) paged_decode_1_128(const __grid_constant__ PagedAttentionParams p) { paged_decode_naive<128>(p); }
