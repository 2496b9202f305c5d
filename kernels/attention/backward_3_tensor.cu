// Attention backward, version 3: tensor cores.
// Idea: all seven products by mma. Four warps share a tile of 64 rows, 16 each. The block of keys computes its scores transposed, a row a
// key: the registers that hold p and ds are then, rounded to bf16, the left factor of dV += pᵀ·dout and dK += dsᵀ·q, so they never touch
// shared memory.
// Gain over version 2: not yet measured on a GPU.
// H head dimension, R rows a tile, P queries at once. A warp's sums: s, dp [16, R] or [16, P], dq, dk, dv [16, H].
#include "attention/backward.cuh"

namespace limo {

constexpr int ROWS = 64; // R
constexpr int WARPS = ROWS / 16, THREADS = WARPS * WARP;
template <int H> constexpr int PART = H == 64 ? ROWS : ROWS / 2; // queries that a warp has scores of at once: what registers allow
template <int H> using RowTile = Tile<ROWS, H, Plain>;

template <int H> __device__ __forceinline__ void load(RowTile<H> tile, HeadRows<const bf16> rows_gmem, uint32_t first, uint32_t length) {
    copy_tile<THREADS>(tile, rows_gmem[first], rows_gmem.stride, rows_of_tile<ROWS>(first, length));
}

// dQ of 64 queries: over the tiles of keys up to the diagonal.
template <int H> __device__ __forceinline__ void tensor_queries(const AttentionBackwardParams &p) {
    const SequenceTile tile = find_tile<ROWS>(p.cu_seqlens, p.sequences, blockIdx.x);
    if (tile.index >= tile.count) return;
    const HeadPair<H> at(p, tile.begin, blockIdx.y);
    const uint32_t warp = threadIdx.x / WARP, first = tile.index * ROWS, own = first + 16 * warp; // the warp's first query
    SharedMemory shared;
    const auto take = [&] { return RowTile<H>{shared.take<bf16>(RowTile<H>::ELEMENTS)}; };
    const RowTile<H> q = take(), dout = take(), k = take(), v = take();

    load<H>(q, at.q_gmem, first, tile.length);
    load<H>(dout, at.dout_gmem, first, tile.length);
    float lse_log2[2], delta[2];
    load_statistics(at, own, tile.length, lse_log2, delta);

    Accumulator<1, H / 8> dq = {};
    for (uint32_t key = 0; key <= first; key += ROWS) {
        load<H>(k, at.k_gmem, key, tile.length);
        load<H>(v, at.v_gmem, key, tile.length);
        block_barrier(); // without it products would meet rows that others have not loaded
        Accumulator<1, ROWS / 8> s = {}, dp = {};
        multiply_transposed(s, q, 16 * warp, k);
        multiply_transposed(dp, dout, 16 * warp, v);
        score_gradients(s, dp, p.scale * LOG2_E, lse_log2, delta, own, key);
        multiply(dq, dp, k);
        block_barrier(); // without it the next tiles would overwrite what others still read
    }
    store_gradient(dq, p.scale, at.dq_gmem, own, tile.length);
}

// dK and dV of 64 keys: over the group's query heads, then the tiles of queries from the diagonal on.
template <int H> __device__ __forceinline__ void tensor_keys(const AttentionBackwardParams &p) {
    const SequenceTile tile = find_tile<ROWS>(p.cu_seqlens, p.sequences, blockIdx.x);
    if (tile.index >= tile.count) return;
    const uint32_t group = p.query_heads / p.kv_heads, heads = blockIdx.y * group;
    const HeadPair<H> keys(p, tile.begin, heads);
    const uint32_t warp = threadIdx.x / WARP, first = tile.index * ROWS, own = first + 16 * warp; // the warp's first key
    SharedMemory shared;
    const auto take = [&] { return RowTile<H>{shared.take<bf16>(RowTile<H>::ELEMENTS)}; };
    const RowTile<H> q = take(), dout = take(), k = take(), v = take();
    float *lse_log2_smem = shared.take<float>(ROWS);
    const QueryStatistics queries{lse_log2_smem, shared.take<float>(ROWS)};

    load<H>(k, keys.k_gmem, first, tile.length);
    load<H>(v, keys.v_gmem, first, tile.length);
    Accumulator<1, H / 8> dk = {}, dv = {};
    for (uint32_t head = heads; head < heads + group; ++head) {
        const HeadPair<H> at(p, tile.begin, head);
        for (uint32_t query = first; query < tile.length; query += ROWS) {
            load<H>(q, at.q_gmem, query, tile.length);
            load<H>(dout, at.dout_gmem, query, tile.length);
            queries.template load<ROWS, THREADS>(at, query, tile.length);
            block_barrier(); // without it products would meet rows that others have not loaded
#pragma unroll 1 // unrolled, it needs more registers than there are
            for (uint32_t part = 0; part < ROWS; part += PART<H>) {
                const auto q_part = q.template part<PART<H>>(part), dout_part = dout.template part<PART<H>>(part);
                Accumulator<1, PART<H> / 8> s = {}, dp = {};
                multiply_transposed(s, k, 16 * warp, q_part);
                multiply_transposed(dp, v, 16 * warp, dout_part);
                score_gradients_transposed(s, dp, p.scale * LOG2_E, queries.from(part), query + part, own);
                multiply(dv, s, dout_part);
                multiply(dk, dp, q_part);
            }
            block_barrier(); // without it the next tiles would overwrite what others still read
        }
    }
    store_gradient(dk, p.scale, keys.dk_gmem, own, tile.length);
    store_gradient(dv, 1.0f, keys.dv_gmem, own, tile.length);
}

} // namespace limo

using namespace limo;

extern "C" __global__ void __launch_bounds__(128, 2) attention_backward_3_queries_64(const __grid_constant__ AttentionBackwardParams p) {
    tensor_queries<64>(p);
}

extern "C" __global__ void __launch_bounds__(128, 2) attention_backward_3_queries_128(const __grid_constant__ AttentionBackwardParams p) {
    tensor_queries<128>(p);
}

extern "C" __global__ void __launch_bounds__(128, 2) attention_backward_3_keys_64(const __grid_constant__ AttentionBackwardParams p) {
    tensor_keys<64>(p);
}

extern "C" __global__ void __launch_bounds__(128, 2) attention_backward_3_keys_128(const __grid_constant__ AttentionBackwardParams p) {
    tensor_keys<128>(p);
}
