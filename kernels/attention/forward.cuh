// What the versions of the forward pass share: where a block reads and writes, the last step.
#pragma once
#include "attention/softmax.cuh"
#include "params/attention.h"

namespace limo {

// The hardware has powers of two only, and e^x = 2^(x log2 e). So scores count in exponents of two: this times a product of query and key.
__device__ __forceinline__ float exponent_scale(const AttentionForwardParams &p) { return p.scale * LOG2_E; }

// The natural logarithm of `sum` times two to the power of `highest`.
__device__ __forceinline__ float log_sum_exp(float highest, float sum) { return (highest + log2_approximate(sum)) * LN_2; }

// One head of a run of ROWS queries of a sequence: a block's work. Blocks of one head follow one another, so that the heads of a group
// find their common keys and values in the L2 cache; late queries, which see most keys, come first, so that the last blocks to start
// are short ones.
template <int ROWS, int DIM> struct ForwardWork {
    const bf16 *q_gmem, *k_gmem, *v_gmem; // q: the first query; k and v: the first token of the sequence
    uint64_t qkv_stride;                  // elements from token to token
    uint64_t begin;                       // the first token of the sequence in the batch
    uint32_t first;                       // the first query's place in the sequence
    uint32_t queries;                     // at most ROWS; 0 in a slot without work
    uint32_t keys;                        // what the last query sees

    __device__ __forceinline__ ForwardWork(const AttentionForwardParams &p, uint32_t slot) {
        const SequenceTile tile = find_tile<ROWS>(p.cu_seqlens, p.sequences, slot);
        begin = tile.begin;
        first = (tile.count - 1 - tile.index) * ROWS;
        keys = first + ROWS < tile.length ? first + ROWS : tile.length;
        queries = tile.index < tile.count ? keys - first : 0;

        const uint32_t head = blockIdx.y, kv_head = head / (p.query_heads / p.kv_heads);
        qkv_stride = uint64_t(p.query_heads + 2 * p.kv_heads) * DIM;
        const bf16 *sequence_gmem = p.qkv + begin * qkv_stride;
        q_gmem = sequence_gmem + first * qkv_stride + head * DIM;
        k_gmem = sequence_gmem + (p.query_heads + kv_head) * DIM;
        v_gmem = k_gmem + p.kv_heads * DIM;
    }

    // Where results go, computed when they are there: until then it would cost registers.
    static __device__ __forceinline__ uint64_t out_stride(const AttentionForwardParams &p) { return uint64_t(p.query_heads) * DIM; }
    __device__ __forceinline__ bf16 *out_gmem(const AttentionForwardParams &p, uint32_t query) const {
        return p.out + (begin + first + query) * out_stride(p) + blockIdx.y * DIM;
    }
    __device__ __forceinline__ float *lse_gmem(const AttentionForwardParams &p, uint32_t query) const {
        return p.lse + blockIdx.y * p.tokens + begin + first + query;
    }
};

// Divides a warp's rows by their sums and stores them and their log-sum-exps. `row` is the warp's first within the tile of queries.
template <int M, int D, int ROWS, int DIM, typename Own>
__device__ __forceinline__ void finish(const AttentionForwardParams &p, const ForwardWork<ROWS, DIM> &work, Accumulator<M, D> &out,
                                       const RunningSoftmax<M> &softmax, Own own, uint32_t row) {
    softmax.divide(out, [&](uint32_t i, float highest, float sum) {
        if (row + i < work.queries) *work.lse_gmem(p, row + i) = log_sum_exp(highest, sum);
    });
    const uint32_t valid = work.queries > row ? work.queries - row : 0;
    store_rows(out, own, work.out_gmem(p, row), work.out_stride(p), valid);
}

} // namespace limo
