// What the versions of the backward pass share: the heads that a block works on, and the gradient of the scores.
// T tokens, Q query heads, K key/value heads, G = Q/K query heads a key/value head, H head dimension, n tokens of a sequence.
#pragma once
#include "attention/tile.cuh"
#include "params/attention.h"

namespace limo {

// One head's rows of a packed tensor: row i of the sequence is at [i].
template <typename T> struct HeadRows {
    T *first;
    uint64_t stride;
    __device__ __forceinline__ T *operator[](uint64_t i) const { return first + i * stride; }
};

// A query head and its key/value head within the sequence that starts at token `begin`.
template <int H> struct HeadPair {
    HeadRows<const bf16> q_gmem, k_gmem, v_gmem, dout_gmem; // [n, H] each
    HeadRows<bf16> dq_gmem, dk_gmem, dv_gmem;
    HeadRows<float> dq_sum_gmem;
    const float *lse_gmem, *delta_gmem; // [n]

    __device__ __forceinline__ HeadPair(const AttentionBackwardParams &p, uint64_t begin, uint32_t head) {
        const uint32_t key = p.query_heads + head / (p.query_heads / p.kv_heads), value = key + p.kv_heads;
        const uint64_t fused = uint64_t(p.query_heads + 2 * p.kv_heads) * H, row = begin * fused; // [Q + 2K, H] a token
        q_gmem = {p.qkv + row + uint64_t(head) * H, fused};
        k_gmem = {p.qkv + row + uint64_t(key) * H, fused};
        v_gmem = {p.qkv + row + uint64_t(value) * H, fused};
        dq_gmem = {p.dqkv + row + uint64_t(head) * H, fused};
        dk_gmem = {p.dqkv + row + uint64_t(key) * H, fused};
        dv_gmem = {p.dqkv + row + uint64_t(value) * H, fused};
        dout_gmem = {p.dout + (begin * p.query_heads + head) * H, uint64_t(p.query_heads) * H};
        dq_sum_gmem = {p.dq + (begin * p.query_heads + head) * H, uint64_t(p.query_heads) * H};
        lse_gmem = p.lse + head * p.tokens + begin;
        delta_gmem = p.delta + head * p.tokens + begin;
    }
};

// Rows of a tile that begins at row `first` of `length`: the last tile of a sequence may be shorter.
template <int ROWS> __device__ __forceinline__ uint32_t rows_of_tile(uint32_t first, uint32_t length) {
    return length - first < uint32_t(ROWS) ? length - first : uint32_t(ROWS);
}

// Starts copying the rows of a tile that begins at row `first` of `length`; zeros behind them.
template <int THREADS, typename Tile>
__device__ __forceinline__ void copy_rows_async(Tile tile, HeadRows<const bf16> rows_gmem, uint32_t first, uint32_t length) {
    copy_tile_async<THREADS>(tile, rows_gmem[first], rows_gmem.stride, rows_of_tile<Tile::ROWS>(first, length));
}

// A score and the gradient that reaches its probability become the probability and the gradient of the score:
//     p = exp(scale · s − lse) = 2^(s · scale · log₂e − lse · log₂e)        ds = p · (dp − delta)
// `scale_log2` and `lse_log2` hold the factor log₂e already. A score that is masked has neither. Rows past the end of a sequence have zeros
// in q, dout, lse and delta: p is then 1, which meets a dout of zero, and ds is 0. Keys past the end are masked, because all queries come
// before.
__device__ __forceinline__ void score_gradient(float &s, float &dp, float scale_log2, float lse_log2, float delta, bool visible) {
    s = visible ? exp2_approximate(multiply_add(s, scale_log2, -lse_log2)) : 0.0f;
    dp = s * (dp - delta);
}

// lse · log₂e and delta of a lane's rows, `row` + g and `row` + g + 8; past the sequence zero.
template <int H>
__device__ __forceinline__ void load_statistics(const HeadPair<H> &from, uint32_t row, uint32_t length, float (&lse_log2)[2],
                                                float (&delta)[2]) {
    for (uint32_t half = 0; half < 2; ++half) {
        const uint32_t at = row + uint32_t(lane_index()) / 4 + 8 * half;
        lse_log2[half] = at < length ? from.lse_gmem[at] * LOG2_E : 0.0f;
        delta[half] = at < length ? from.delta_gmem[at] : 0.0f;
    }
}

// One ticket for the whole block; `ticket_smem` has room for it.
__device__ __forceinline__ uint32_t take_block_ticket(uint32_t *counter_gmem, uint32_t *ticket_smem) {
    if (threadIdx.x == 0) *ticket_smem = take_ticket(counter_gmem);
    block_barrier(); // without it others would read what shared memory held before
    return *ticket_smem;
}

// The scores of a warp: 16 queries from `query` on, keys from `key` on. `lse_log2` and `delta` are those of its lanes' rows.
template <int N>
__device__ __forceinline__ void score_gradients(Accumulator<1, N> &s, Accumulator<1, N> &dp, float scale_log2, const float (&lse_log2)[2],
                                                const float (&delta)[2], uint32_t query, uint32_t key) {
    const uint32_t g = uint32_t(lane_index()) / 4, c = uint32_t(lane_index()) % 4;
#pragma unroll
    for (uint32_t n = 0; n < N; ++n) {
#pragma unroll
        for (uint32_t i = 0; i < 4; ++i) {
            const bool visible = key + 8 * n + 2 * c + i % 2 <= query + g + 8 * (i / 2);
            score_gradient(s.at[0][n][i], dp.at[0][n][i], scale_log2, lse_log2[i / 2], delta[i / 2], visible);
        }
    }
}

// lse · log₂e and delta of a tile of queries in shared memory; past the sequence zero.
struct QueryStatistics {
    float *lse_log2_smem, *delta_smem; // [ROWS]

    // Those from query `row` of the tile on.
    __device__ __forceinline__ QueryStatistics from(uint32_t row) const { return {lse_log2_smem + row, delta_smem + row}; }

    template <int ROWS, int THREADS, int H>
    __device__ __forceinline__ void load(const HeadPair<H> &from, uint32_t first, uint32_t length) const {
        for (uint32_t row = threadIdx.x; row < uint32_t(ROWS); row += THREADS) {
            const bool valid = first + row < length;
            lse_log2_smem[row] = valid ? from.lse_gmem[first + row] * LOG2_E : 0.0f;
            delta_smem[row] = valid ? from.delta_gmem[first + row] : 0.0f;
        }
    }
};

// The transposed scores of a warp, 16 keys from `key` on (rows) and queries from `query` on (columns). MASKED: some keys come after some
// queries.
template <bool MASKED = true, int N>
__device__ __forceinline__ void score_gradients_transposed(Accumulator<1, N> &s, Accumulator<1, N> &dp, float scale_log2,
                                                           const QueryStatistics &queries, uint32_t query, uint32_t key) {
    const uint32_t g = uint32_t(lane_index()) / 4, c = uint32_t(lane_index()) % 4;
#pragma unroll
    for (uint32_t n = 0; n < N; ++n) {
#pragma unroll
        for (uint32_t i = 0; i < 4; ++i) {
            const uint32_t row = g + 8 * (i / 2), column = 8 * n + 2 * c + i % 2;
            const float lse_log2 = queries.lse_log2_smem[column], delta = queries.delta_smem[column];
            score_gradient(s.at[0][n][i], dp.at[0][n][i], scale_log2, lse_log2, delta, !MASKED || key + row <= query + column);
        }
    }
}

// Rounds a warp's 16 rows of a gradient to bf16 and stores those from row `row` on that come before `length`.
template <int N>
__device__ __forceinline__ void store_gradient(const Accumulator<1, N> &gradient, float scale, HeadRows<bf16> to_gmem, uint32_t row,
                                               uint32_t length) {
    const uint32_t g = uint32_t(lane_index()) / 4, c = uint32_t(lane_index()) % 4;
#pragma unroll
    for (uint32_t half = 0; half < 2; ++half) {
        const uint32_t at = row + g + 8 * half;
        if (at >= length) continue;
#pragma unroll
        for (uint32_t n = 0; n < N; ++n) {
            const float *pair = &gradient.at[0][n][2 * half];
            *reinterpret_cast<uint32_t *>(to_gmem[at] + 8 * n + 2 * c) = pack_bf16x2(pair[0] * scale, pair[1] * scale);
        }
    }
}

// d += Xᵀ[row .. row + 16 M, :] · Y[:, column .. column + 8 N]: a warp's part of dQ = dS · K, where X holds dS transposed.
template <int M, int N, typename X, typename Y>
__device__ __forceinline__ void multiply_from_transposed(Accumulator<M, N> &d, X x, uint32_t row, Y y, uint32_t column) {
    static_assert(X::ROWS == Y::ROWS, "both have a row a key");
#pragma unroll
    for (int k = 0; k < X::ROWS; k += 16) {
        uint32_t a[M][4], b[2][2];
#pragma unroll
        for (int m = 0; m < M; ++m) load_a_transposed(a[m], x, k, row + 16 * m);
#pragma unroll
        for (int n = 0; n < N; n += 2) {
            load_b(b, y, k, column + 8 * n);
            multiply_step(d, n, a, b);
        }
    }
}

// Two neighbouring sums of a lane: one access of eight bytes.
struct alignas(8) FloatPair {
    float low, high;
};

// Calls f(sums, pair_gmem) for every pair of sums of a warp's part of dQ, from (row, column) on, that is within the sequence.
template <int M, int N, typename F>
__device__ __forceinline__ void for_each_pair(Accumulator<M, N> &dq, HeadRows<float> sum_gmem, uint32_t row, uint32_t column,
                                              uint32_t length, F f) {
    const uint32_t g = uint32_t(lane_index()) / 4, c = uint32_t(lane_index()) % 4;
#pragma unroll
    for (uint32_t half = 0; half < 2 * M; ++half) {
        const uint32_t at = row + g + 8 * half;
        if (at >= length) continue;
        FloatPair *pairs_gmem = reinterpret_cast<FloatPair *>(sum_gmem[at] + column + 2 * c);
#pragma unroll
        for (uint32_t n = 0; n < N; ++n) f(&dq.at[half / 2][n][2 * (half % 2)], pairs_gmem + 4 * n);
    }
}

// a += b.
template <int M, int N> __device__ __forceinline__ void add(Accumulator<M, N> &a, const Accumulator<M, N> &b) {
#pragma unroll
    for (int m = 0; m < M; ++m) {
#pragma unroll
        for (int n = 0; n < N; ++n) {
#pragma unroll
            for (int i = 0; i < 4; ++i) a.at[m][n][i] += b.at[m][n][i];
        }
    }
}

// What earlier tiles of keys have added to a warp's part of dQ; the first tile of a sequence finds nothing.
template <int M, int N>
__device__ __forceinline__ Accumulator<M, N> load_queries(HeadRows<float> sum_gmem, uint32_t row, uint32_t column, uint32_t length,
                                                          bool first) {
    Accumulator<M, N> dq = {};
    if (first) return dq;
    for_each_pair(dq, sum_gmem, row, column, length, [](float *pair, const FloatPair *pair_gmem) {
        const FloatPair sum = *pair_gmem;
        pair[0] = sum.low, pair[1] = sum.high;
    });
    return dq;
}

template <int M, int N>
__device__ __forceinline__ void store_queries(Accumulator<M, N> &dq, HeadRows<float> sum_gmem, uint32_t row, uint32_t column,
                                              uint32_t length) {
    for_each_pair(dq, sum_gmem, row, column, length,
                  [](const float *pair, FloatPair *pair_gmem) { *pair_gmem = FloatPair{pair[0], pair[1]}; });
}

} // namespace limo
