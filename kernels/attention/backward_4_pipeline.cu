// Attention backward, version 4: copies ahead.
// Idea: while the tensor cores work on one tile of the other side, the next one is on its way, straight from global to shared memory
// (cp.async). That takes two places for it, and one barrier a tile instead of two. Tiles are swizzled, so that ldmatrix reads eight rows
// without a bank conflict.
// Gain over version 3: not yet measured on a GPU.
// H head dimension, R rows a tile, P queries at once. A warp's sums: s, dp [16, R] or [16, P], dq, dk, dv [16, H].
#include "attention/backward.cuh"

namespace limo {

constexpr int ROWS = 64; // R
constexpr int WARPS = ROWS / 16, THREADS = WARPS * WARP;
template <int H> constexpr int PART = H == 64 ? ROWS : ROWS / 2; // queries that a warp has scores of at once: what registers allow
template <int H> using RowTile = Tile<ROWS, H>;

// Tiles that follow each other in shared memory.
template <int H> struct Tiles {
    bf16 *first_smem;
    __device__ __forceinline__ Tiles(SharedMemory &shared, int count) : first_smem(shared.take<bf16>(count * RowTile<H>::ELEMENTS)) {}
    __device__ __forceinline__ RowTile<H> operator[](uint32_t i) const { return {first_smem + i * RowTile<H>::ELEMENTS}; }
};

// dQ of 64 queries: over the tiles of keys up to the diagonal.
template <int H> __device__ __forceinline__ void pipelined_queries(const AttentionBackwardParams &p) {
    const SequenceTile tile = find_tile<ROWS>(p.cu_seqlens, p.sequences, blockIdx.x);
    if (tile.index >= tile.count) return;
    const HeadPair<H> at(p, tile.begin, blockIdx.y);
    const uint32_t warp = threadIdx.x / WARP, first = tile.index * ROWS, own = first + 16 * warp; // the warp's first query
    SharedMemory shared;
    const Tiles<H> own_tiles(shared, 2), k(shared, 2), v(shared, 2); // two of each: one to work on, one to come
    const RowTile<H> q = own_tiles[0], dout = own_tiles[1];

    const auto fetch = [&](uint32_t step) {
        if (step <= tile.index) {
            copy_rows_async<THREADS>(k[step % 2], at.k_gmem, step * ROWS, tile.length);
            copy_rows_async<THREADS>(v[step % 2], at.v_gmem, step * ROWS, tile.length);
        }
        copy_async_commit();
    };
    copy_rows_async<THREADS>(q, at.q_gmem, first, tile.length);
    copy_rows_async<THREADS>(dout, at.dout_gmem, first, tile.length);
    fetch(0);
    float lse_log2[2], delta[2];
    load_statistics(at, own, tile.length, lse_log2, delta);

    Accumulator<1, H / 8> dq = {};
    for (uint32_t step = 0; step <= tile.index; ++step) {
        copy_async_wait<0>();
        // Without it products would meet rows that others' copies have not brought, and the next copies would overwrite what others still
        // read.
        block_barrier();
        fetch(step + 1);
        Accumulator<1, ROWS / 8> s = {}, dp = {};
        multiply_transposed(s, q, 16 * warp, k[step % 2]);
        multiply_transposed(dp, dout, 16 * warp, v[step % 2]);
        score_gradients(s, dp, p.scale * LOG2_E, lse_log2, delta, own, step * ROWS);
        multiply(dq, dp, k[step % 2]);
    }
    store_gradient(dq, p.scale, at.dq_gmem, own, tile.length);
}

// dK and dV of 64 keys: over the group's query heads, then the tiles of queries from the diagonal on.
template <int H> __device__ __forceinline__ void pipelined_keys(const AttentionBackwardParams &p) {
    const SequenceTile tile = find_tile<ROWS>(p.cu_seqlens, p.sequences, blockIdx.x);
    if (tile.index >= tile.count) return;
    const uint32_t group = p.query_heads / p.kv_heads, heads = blockIdx.y * group;
    const HeadPair<H> keys(p, tile.begin, heads);
    const uint32_t warp = threadIdx.x / WARP, first = tile.index * ROWS, own = first + 16 * warp; // the warp's first key
    SharedMemory shared;
    const Tiles<H> own_tiles(shared, 2), q(shared, 2), dout(shared, 2); // two of each: one to work on, one to come
    const RowTile<H> k = own_tiles[0], v = own_tiles[1];
    float *statistics_smem = shared.take<float>(2 * 2 * ROWS);
    const auto queries = [&](uint32_t stage) {
        float *lse_log2_smem = statistics_smem + stage * 2 * ROWS;
        return QueryStatistics{lse_log2_smem, lse_log2_smem + ROWS};
    };

    const uint32_t tiles = tile.count - tile.index, steps = group * tiles;
    const auto fetch = [&](uint32_t step) {
        if (step < steps) {
            const HeadPair<H> at(p, tile.begin, heads + step / tiles);
            const uint32_t query = first + step % tiles * ROWS;
            copy_rows_async<THREADS>(q[step % 2], at.q_gmem, query, tile.length);
            copy_rows_async<THREADS>(dout[step % 2], at.dout_gmem, query, tile.length);
            queries(step % 2).template load<ROWS, THREADS>(at, query, tile.length);
        }
        copy_async_commit();
    };
    copy_rows_async<THREADS>(k, keys.k_gmem, first, tile.length);
    copy_rows_async<THREADS>(v, keys.v_gmem, first, tile.length);
    fetch(0);

    Accumulator<1, H / 8> dk = {}, dv = {};
    for (uint32_t step = 0; step < steps; ++step) {
        copy_async_wait<0>();
        // Without it products would meet rows that others' copies have not brought, and the next copies would overwrite what others still
        // read.
        block_barrier();
        fetch(step + 1);
        const int stage = step % 2;
#pragma unroll 1 // unrolled, it needs more registers than there are
        for (uint32_t part = 0; part < ROWS; part += PART<H>) {
            const auto q_part = q[stage].template part<PART<H>>(part), dout_part = dout[stage].template part<PART<H>>(part);
            Accumulator<1, PART<H> / 8> s = {}, dp = {};
            multiply_transposed(s, k, 16 * warp, q_part);
            multiply_transposed(dp, v, 16 * warp, dout_part);
            score_gradients_transposed(s, dp, p.scale * LOG2_E, queries(stage).from(part), first + step % tiles * ROWS + part, own);
            multiply(dv, s, dout_part);
            multiply(dk, dp, q_part);
        }
    }
    store_gradient(dk, p.scale, keys.dk_gmem, own, tile.length);
    store_gradient(dv, 1.0f, keys.dv_gmem, own, tile.length);
}

} // namespace limo

using namespace limo;

extern "C" __global__ void __launch_bounds__(128, 2) attention_backward_4_queries_64(const __grid_constant__ AttentionBackwardParams p) {
    pipelined_queries<64>(p);
}

extern "C" __global__ void __launch_bounds__(128, 2) attention_backward_4_queries_128(const __grid_constant__ AttentionBackwardParams p) {
    pipelined_queries<128>(p);
}

extern "C" __global__ void __launch_bounds__(128, 2) attention_backward_4_keys_64(const __grid_constant__ AttentionBackwardParams p) {
    pipelined_keys<64>(p);
}

extern "C" __global__ void __launch_bounds__(128, 2) attention_backward_4_keys_128(const __grid_constant__ AttentionBackwardParams p) {
    pipelined_keys<128>(p);
}
