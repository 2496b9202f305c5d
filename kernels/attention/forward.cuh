// What the versions of the forward pass share: where a block reads and writes, the running softmax, the last step.
#pragma once
#include "attention/tile.cuh"
#include "params/attention.h"

namespace limo {

__device__ __forceinline__ float minus_infinity() { return bits_as_float(0xff800000u); }

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

// The running softmax of the 16 M rows of a warp's accumulators. The four lanes of a quad share a row: all know its highest score, each has
// the sum over its own columns.
template <int M> struct RunningSoftmax {
    float highest[M][2], sum[M][2];

    __device__ __forceinline__ RunningSoftmax() {
#pragma unroll
        for (int m = 0; m < M; ++m) {
#pragma unroll
            for (int half = 0; half < 2; ++half) highest[m][half] = minus_infinity(), sum[m][half] = 0;
        }
    }

    // Takes in the next keys' scores, which `scale` turns into exponents of two, and leaves their weights: two to the power of how far an
    // exponent is above the highest so far. `out` is scaled to the new highest. Each row sees a key among the first that it is given.
    template <int N, int D> __device__ __forceinline__ void update(Accumulator<M, N> &s, Accumulator<M, D> &out, float scale = 1.0f) {
#pragma unroll
        for (int m = 0; m < M; ++m) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                float now = minus_infinity();
#pragma unroll
                for (int n = 0; n < N; ++n) now = maximum(now, maximum(s.at[m][n][2 * half], s.at[m][n][2 * half + 1]));
                now = maximum(now, shuffle_xor(now, 1));
                now = maximum(now, shuffle_xor(now, 2));
                now = maximum(highest[m][half], now * scale);
                const float rescale = exp2_approximate(highest[m][half] - now); // 0 the first time
                highest[m][half] = now;
                float added = 0;
#pragma unroll
                for (int n = 0; n < N; ++n) {
#pragma unroll
                    for (int i = 2 * half; i < 2 * half + 2; ++i) {
                        s.at[m][n][i] = exp2_approximate(multiply_add(s.at[m][n][i], scale, -now));
                        added += s.at[m][n][i];
                    }
                }
                sum[m][half] = multiply_add(sum[m][half], rescale, added);
#pragma unroll
                for (int n = 0; n < D; ++n) {
#pragma unroll
                    for (int i = 2 * half; i < 2 * half + 2; ++i) out.at[m][n][i] *= rescale;
                }
            }
        }
    }
};

// Divides a warp's rows by their sums and stores them and their log-sum-exps. `row` is the warp's first within the tile of queries. Its own
// queries, which only it reads, leave their place in shared memory to results, so that fragments become whole rows of 16-byte chunks.
template <int M, int D, int ROWS, int DIM, typename Own>
__device__ __forceinline__ void finish(const AttentionForwardParams &p, const ForwardWork<ROWS, DIM> &work, Accumulator<M, D> &out,
                                       const RunningSoftmax<M> &softmax, Own own, uint32_t row) {
    const uint32_t lane = uint32_t(lane_index());
#pragma unroll
    for (int m = 0; m < M; ++m) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            float sum = softmax.sum[m][half];
            sum += shuffle_xor(sum, 1);
            sum += shuffle_xor(sum, 2);
            const uint32_t query = row + 16 * m + 8 * half + lane / 4;
            if (lane % 4 == 0 && query < work.queries) {
                *work.lse_gmem(p, query) = log_sum_exp(softmax.highest[m][half], sum);
            }
            const float share = reciprocal_approximate(sum);
#pragma unroll
            for (int n = 0; n < D; ++n) {
#pragma unroll
                for (int i = 2 * half; i < 2 * half + 2; ++i) out.at[m][n][i] *= share;
            }
        }
    }
    warp_barrier(); // without it a lane could overwrite queries that another has yet to load
    out.store(own, 0, 0);
    warp_barrier(); // without it a lane would store chunks that others have not filled
    const uint32_t valid = work.queries > row ? work.queries - row : 0;
    store_tile<WARP>(lane, own, work.out_gmem(p, row), work.out_stride(p), valid);
}

} // namespace limo
