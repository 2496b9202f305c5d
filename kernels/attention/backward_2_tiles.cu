// Attention backward, version 2: tiles.
// Idea: a block owns 64 rows instead of one and brings 64 rows of the other side into shared memory at a time. Every element that was
// loaded meets 64 others, and each thread computes 4 × 4 scores, so that a value read from shared memory serves four products.
// Gain over version 1: not yet measured on a GPU.
// H head dimension, W words (pairs of bf16) a row, R rows a tile. Threads are a 16 × 16 grid; thread (y, x) has rows y + 16i, columns x +
// 16j.
#include "attention/backward.cuh"

namespace limo {

constexpr int TILE = 64;        // R
constexpr int SIDE = 16;        // of the grid of threads
constexpr int EACH = TILE / SIDE; // rows or columns of a thread

// [R, W] in shared memory. Rows are one word longer than they need: then the same word of 32 rows lies in 32 banks.
template <int H> struct WordTile {
    static constexpr int WORDS = H / 2, STRIDE = WORDS + 1, SIZE = TILE * STRIDE;
    uint32_t *words_smem;

    __device__ __forceinline__ uint32_t at(int row, int word) const { return words_smem[row * STRIDE + word]; }

    // Rows from `first` on; past `length` they are zero.
    template <typename T> __device__ __forceinline__ void load(HeadRows<T> rows_gmem, uint32_t first, uint32_t length) const {
        constexpr int CHUNKS = H / 8; // of 16 bytes a row
        for (int i = int(threadIdx.x); i < TILE * CHUNKS; i += int(blockDim.x)) {
            const int row = i / CHUNKS, chunk = i % CHUNKS;
            const vec128 loaded = first + row < length ? ld128(rows_gmem[first + row] + 8 * chunk) : vec128{};
            for (int word = 0; word < 4; ++word) words_smem[row * STRIDE + 4 * chunk + word] = loaded.at[word];
        }
    }
};

// A [R, R] tile of p or ds.
struct ScoreTile {
    static constexpr int STRIDE = TILE + 1, SIZE = TILE * STRIDE;
    float *at_smem;
    __device__ __forceinline__ float &at(int query, int key) const { return at_smem[query * STRIDE + key]; }
};

// lse · log₂e and delta of a tile of queries; past the sequence zero, which makes ds zero there.
struct RowStatistics {
    float *lse_smem, *delta_smem; // [R]
    template <int H> __device__ __forceinline__ void load(const HeadPair<H> &from, uint32_t first, uint32_t length) const {
        for (uint32_t row = threadIdx.x; row < TILE; row += blockDim.x) {
            lse_smem[row] = first + row < length ? from.lse_gmem[first + row] * LOG2_E : 0.0f;
            delta_smem[row] = first + row < length ? from.delta_gmem[first + row] : 0.0f;
        }
    }
};

__device__ __forceinline__ float low(uint32_t word) { return bits_as_float(word << 16); }
__device__ __forceinline__ float high(uint32_t word) { return bits_as_float(word & 0xffff0000u); }

// sums[i][j] += a[y + 16i] · b[x + 16j]: products of rows.
template <int H> __device__ __forceinline__ void multiply_rows(float (&sums)[EACH][EACH], const WordTile<H> &a, const WordTile<H> &b) {
    const int y = int(threadIdx.x) / SIDE, x = int(threadIdx.x) % SIDE;
#pragma unroll 4
    for (int word = 0; word < WordTile<H>::WORDS; ++word) {
        uint32_t left[EACH], right[EACH];
#pragma unroll
        for (int i = 0; i < EACH; ++i) left[i] = a.at(y + SIDE * i, word), right[i] = b.at(x + SIDE * i, word);
#pragma unroll
        for (int i = 0; i < EACH; ++i) {
#pragma unroll
            for (int j = 0; j < EACH; ++j) {
                sums[i][j] = multiply_add(low(left[i]), low(right[j]), sums[i][j]);
                sums[i][j] = multiply_add(high(left[i]), high(right[j]), sums[i][j]);
            }
        }
    }
}

// A thread's sums for rows y + 16i and words x + 16j of a [R, H] gradient.
template <int H> struct GradientSums {
    static constexpr int WORDS = H / 2 / SIDE;
    float at[EACH][2 * WORDS] = {};

    // at[i] += weight(i) · the thread's words of `row`.
    template <typename Weight> __device__ __forceinline__ void add(Weight weight, const WordTile<H> &tile, int row) {
        const int x = int(threadIdx.x) % SIDE;
        const float weights[EACH] = {weight(0), weight(1), weight(2), weight(3)};
#pragma unroll
        for (int j = 0; j < WORDS; ++j) {
            const uint32_t word = tile.at(row, x + SIDE * j);
#pragma unroll
            for (int i = 0; i < EACH; ++i) {
                at[i][2 * j] = multiply_add(weights[i], low(word), at[i][2 * j]);
                at[i][2 * j + 1] = multiply_add(weights[i], high(word), at[i][2 * j + 1]);
            }
        }
    }

    __device__ __forceinline__ void store(HeadRows<bf16> to_gmem, float scale, uint32_t first, uint32_t length) const {
        const int y = int(threadIdx.x) / SIDE, x = int(threadIdx.x) % SIDE;
        for (int i = 0; i < EACH; ++i) {
            const uint32_t row = first + y + SIDE * i;
            if (row >= length) continue;
            for (int j = 0; j < WORDS; ++j) {
                bf16 *pair_gmem = to_gmem[row] + 2 * (x + SIDE * j);
                pair_gmem[0] = to_bf16(at[i][2 * j] * scale);
                pair_gmem[1] = to_bf16(at[i][2 * j + 1] * scale);
            }
        }
    }
};

// p and ds of queries from `query` on and keys from `key` on.
template <int H>
__device__ __forceinline__ void compute_scores(float scale_log2, const WordTile<H> &q, const WordTile<H> &dout, const WordTile<H> &k,
                                               const WordTile<H> &v, const RowStatistics &rows, uint32_t query, uint32_t key,
                                               const ScoreTile *p_to, const ScoreTile &ds_to) {
    const int y = int(threadIdx.x) / SIDE, x = int(threadIdx.x) % SIDE;
    float s[EACH][EACH] = {}, dp[EACH][EACH] = {};
    multiply_rows<H>(s, q, k);
    multiply_rows<H>(dp, dout, v);
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
        const int row = y + SIDE * i;
        const float lse = rows.lse_smem[row], delta = rows.delta_smem[row];
#pragma unroll
        for (int j = 0; j < EACH; ++j) {
            const int column = x + SIDE * j;
            score_gradient(s[i][j], dp[i][j], scale_log2, lse, delta, key + column <= query + row);
            if (p_to) p_to->at(row, column) = s[i][j];
            ds_to.at(row, column) = dp[i][j];
        }
    }
}

// dQ of 64 queries: over the tiles of keys up to the diagonal.
template <int H> __device__ __forceinline__ void tiled_queries(const AttentionBackwardParams &p) {
    const SequenceTile tile = find_tile<TILE>(p.cu_seqlens, p.sequences, blockIdx.x);
    if (tile.index >= tile.count) return;
    const uint32_t first = tile.index * TILE; // row of the tile
    const HeadPair<H> at(p, tile.begin, blockIdx.y);
    const int y = int(threadIdx.x) / SIDE;
    SharedMemory shared;
    const auto take = [&] { return WordTile<H>{shared.take<uint32_t>(WordTile<H>::SIZE)}; };
    const WordTile<H> q = take(), dout = take(), k = take(), v = take();
    const ScoreTile ds{shared.take<float>(ScoreTile::SIZE)};
    float *lse_smem = shared.take<float>(TILE);
    const RowStatistics rows{lse_smem, shared.take<float>(TILE)};

    q.load(at.q_gmem, first, tile.length);
    dout.load(at.dout_gmem, first, tile.length);
    rows.load(at, first, tile.length);
    GradientSums<H> dq;
    for (uint32_t key = 0; key <= first; key += TILE) {
        k.load(at.k_gmem, key, tile.length);
        v.load(at.v_gmem, key, tile.length);
        block_barrier(); // without it products would meet rows that others have not loaded
        compute_scores<H>(p.scale * LOG2_E, q, dout, k, v, rows, first, key, nullptr, ds);
        block_barrier(); // without it sums would take ds that others have not written
        for (int i = 0; i < TILE; ++i) {
            dq.add([&](int row) { return ds.at(y + SIDE * row, i); }, k, i);
        }
        block_barrier(); // without it the next tiles would overwrite what others still read
    }
    dq.store(at.dq_gmem, p.scale, first, tile.length);
}

// dK and dV of 64 keys: over the group's query heads, then the tiles of queries from the diagonal on.
template <int H> __device__ __forceinline__ void tiled_keys(const AttentionBackwardParams &p) {
    const SequenceTile tile = find_tile<TILE>(p.cu_seqlens, p.sequences, blockIdx.x);
    if (tile.index >= tile.count) return;
    const uint32_t first = tile.index * TILE; // row of the tile
    const uint32_t group = p.query_heads / p.kv_heads, heads = blockIdx.y * group;
    const HeadPair<H> keys(p, tile.begin, heads);
    const int y = int(threadIdx.x) / SIDE;
    SharedMemory shared;
    const auto take = [&] { return WordTile<H>{shared.take<uint32_t>(WordTile<H>::SIZE)}; };
    const WordTile<H> q = take(), dout = take(), k = take(), v = take();
    const ScoreTile ds{shared.take<float>(ScoreTile::SIZE)}, probabilities{shared.take<float>(ScoreTile::SIZE)};
    float *lse_smem = shared.take<float>(TILE);
    const RowStatistics rows{lse_smem, shared.take<float>(TILE)};

    k.load(keys.k_gmem, first, tile.length);
    v.load(keys.v_gmem, first, tile.length);
    GradientSums<H> dk, dv;
    for (uint32_t head = heads; head < heads + group; ++head) {
        const HeadPair<H> at(p, tile.begin, head);
        for (uint32_t query = first; query < tile.length; query += TILE) {
            q.load(at.q_gmem, query, tile.length);
            dout.load(at.dout_gmem, query, tile.length);
            rows.load(at, query, tile.length);
            block_barrier(); // without it products would meet rows that others have not loaded
            compute_scores<H>(p.scale * LOG2_E, q, dout, k, v, rows, query, first, &probabilities, ds);
            block_barrier(); // without it sums would take p and ds that others have not written
            for (int i = 0; i < TILE; ++i) {
                dv.add([&](int row) { return probabilities.at(i, y + SIDE * row); }, dout, i);
                dk.add([&](int row) { return ds.at(i, y + SIDE * row); }, q, i);
            }
            block_barrier(); // without it the next tiles would overwrite what others still read
        }
    }
    dk.store(keys.dk_gmem, p.scale, first, tile.length);
    dv.store(keys.dv_gmem, 1.0f, first, tile.length);
}

} // namespace limo

using namespace limo;

extern "C" __global__ void __launch_bounds__(256) attention_backward_2_queries_64(const __grid_constant__ AttentionBackwardParams p) {
    tiled_queries<64>(p);
}

extern "C" __global__ void __launch_bounds__(256) attention_backward_2_queries_128(const __grid_constant__ AttentionBackwardParams p) {
    tiled_queries<128>(p);
}

extern "C" __global__ void __launch_bounds__(256) attention_backward_2_keys_64(const __grid_constant__ AttentionBackwardParams p) {
    tiled_keys<64>(p);
}

extern "C" __global__ void __launch_bounds__(256) attention_backward_2_keys_128(const __grid_constant__ AttentionBackwardParams p) {
    tiled_keys<128>(p);
}
