// Attention over a key/value cache: `append` copies the keys and values of new tokens to their slots, `attend` then reads everything in the slot.
// Idea: simple and exact; it serves the few sequences that are sampled during training. A warp a (token, query head) walks the cached tokens in order
// with a running softmax (Milakov & Gimelshein 2018, arXiv 1805.02867), so the order of every sum is fixed. No ladder.
// T new tokens, S sequences, Q query heads, K key/value heads, H head dimension.
#include "common/warp.cuh"
#include "params/cached_attention.h"

namespace limo {

// Where a new token's key and value are in the cache.
struct Place {
    uint64_t slot;     // row of its slot's first token
    uint32_t position; // of the token in the slot
};

__device__ __forceinline__ Place place(const CachedAttentionParams &p, uint32_t token) {
    uint32_t sequence = 0;
    while (uint32_t(p.cu_seqlens[sequence + 1]) <= token) ++sequence; // sequences without new tokens are passed over
    const uint32_t offset = token - uint32_t(p.cu_seqlens[sequence]);
    return {uint64_t(p.slots[sequence]) * p.capacity, uint32_t(p.cached[sequence]) + offset};
}

} // namespace limo

using namespace limo;

// A block a new token.
extern "C" __global__ void __launch_bounds__(256) cached_attention_append(const __grid_constant__ CachedAttentionParams p) {
    const Place at = place(p, blockIdx.x);
    const uint32_t row = p.kv * p.dim;
    const bf16 *keys_gmem = p.qkv + (uint64_t(blockIdx.x) * (p.query + 2 * p.kv) + p.query) * p.dim, *values_gmem = keys_gmem + row;
    const uint64_t to = (at.slot + at.position) * row;
    for (uint32_t i = threadIdx.x; i < row; i += blockDim.x) {
        p.keys[to + i] = keys_gmem[i];
        p.values[to + i] = values_gmem[i];
    }
}

// A warp a query head of a new token; lane l holds elements l, l + 32, … of the head.
extern "C" __global__ void __launch_bounds__(256) cached_attention_attend(const __grid_constant__ CachedAttentionParams p) {
    constexpr int PARTS = CACHED_ATTENTION_WIDEST / WARP;
    const uint64_t index = uint64_t(blockIdx.x) * (blockDim.x / WARP) + threadIdx.x / WARP;
    if (index >= uint64_t(p.rows) * p.query) return;
    const uint32_t token = uint32_t(index / p.query), head = uint32_t(index - uint64_t(token) * p.query);
    const Place at = place(p, token);
    const uint64_t step = uint64_t(p.kv) * p.dim; // from a cached token to the next
    const uint64_t first = at.slot * step + head / (p.query / p.kv) * p.dim;
    const bf16 *query_gmem = p.qkv + (uint64_t(token) * (p.query + 2 * p.kv) + head) * p.dim;
    bf16 *out_gmem = p.out + index * p.dim;
    const auto element = [&](int part) { return uint32_t(part * WARP + lane_index()); };
    const auto load = [&](const bf16 *head_gmem, int part) { return element(part) < p.dim ? to_float(head_gmem[element(part)]) : 0.0f; };

    float query_rmem[PARTS], out_rmem[PARTS] = {};
#pragma unroll
    for (int part = 0; part < PARTS; ++part) query_rmem[part] = load(query_gmem, part);
    float largest = -bits_as_float(0x7f800000); // −∞
    float sum = 0;
    for (uint32_t u = 0; u <= at.position; ++u) {
        const bf16 *key_gmem = p.keys + first + u * step, *value_gmem = p.values + first + u * step;
        float dot = 0;
#pragma unroll
        for (int part = 0; part < PARTS; ++part) dot = multiply_add(query_rmem[part], load(key_gmem, part), dot);
        const float score = warp_sum(dot) * p.scale;
        const float before = largest;
        largest = maximum(largest, score);
        const float shrink = exp2_approximate(before - largest), weight = exp2_approximate(score - largest);
        sum = multiply_add(sum, shrink, weight);
#pragma unroll
        for (int part = 0; part < PARTS; ++part) {
            out_rmem[part] = multiply_add(weight, load(value_gmem, part), out_rmem[part] * shrink);
        }
    }
    const float scale = 1.0f / sum;
#pragma unroll
    for (int part = 0; part < PARTS; ++part) {
        if (element(part) < p.dim) out_gmem[element(part)] = to_bf16(out_rmem[part] * scale);
    }
}
