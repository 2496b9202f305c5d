// Attention backward, version 5: one pass.
// Idea: the block of keys has ds already, so it also computes its part of dQ = ds·k: five products instead of seven, and the scores once.
// Other blocks have parts of the same dQ, so it is added up in f32 in global memory, in ascending order of key tiles. Every tile of queries
// has a turn, which says whose part is next. A block takes a ticket when it starts, and the ticket is its work: who waits for an earlier
// tile of keys waits for a block that runs.
// Gain over version 4: not yet measured on a GPU.
// H head dimension, R rows a tile, P queries at once. A warp's sums: s, dp [16, P], dk, dv [16, H], dq [32, 32] at a time.
#include "attention/backward.cuh"

namespace limo {

constexpr int ROWS = 64; // R
constexpr int WARPS = ROWS / 16, THREADS = WARPS * WARP;
template <int H> constexpr int PART = H == 64 ? ROWS : ROWS / 2; // P: what registers allow
template <int H> using RowTile = Tile<ROWS, H>;

template <int H> __device__ __forceinline__ void fused(const AttentionBackwardParams &p) {
    SharedMemory shared;
    uint32_t *ticket_smem = shared.take<uint32_t>(1);
    const uint32_t ticket = take_block_ticket(p.ticket, ticket_smem);
    const SequenceTile tile = find_tile<ROWS>(p.cu_seqlens, p.sequences, ticket / p.kv_heads);
    if (tile.index >= tile.count) return;
    const uint32_t group = p.query_heads / p.kv_heads, heads = ticket % p.kv_heads * group;
    const HeadPair<H> keys(p, tile.begin, heads);
    const uint32_t warp = threadIdx.x / WARP, first = tile.index * ROWS, own = 16 * warp; // the warp's first key within the tile
    const auto take = [&](int count) { return shared.take<bf16>(count * RowTile<H>::ELEMENTS); };
    const RowTile<H> k{take(1)}, v{take(1)}, dout{take(1)};
    bf16 *q_smem = take(2); // one to work on, one to come
    const Tile<ROWS, ROWS> ds{shared.take<bf16>(ROWS * ROWS)}; // transposed: a row a key
    float *statistics_smem = shared.take<float>(2 * 2 * ROWS);

    const uint32_t tiles = tile.count - tile.index, steps = group * tiles;
    const auto head_of = [&](uint32_t step) { return HeadPair<H>(p, tile.begin, heads + step / tiles); };
    const auto query_of = [&](uint32_t step) { return first + step % tiles * ROWS; };
    const auto q = [&](uint32_t step) { return RowTile<H>{q_smem + step % 2 * RowTile<H>::ELEMENTS}; };
    const auto queries = [&](uint32_t step) {
        float *lse_log2_smem = statistics_smem + step % 2 * 2 * ROWS;
        return QueryStatistics{lse_log2_smem, lse_log2_smem + ROWS};
    };
    const auto fetch_q = [&](uint32_t step) {
        if (step >= steps) return;
        copy_rows_async<THREADS>(q(step), head_of(step).q_gmem, query_of(step), tile.length);
        queries(step).template load<ROWS, THREADS>(head_of(step), query_of(step), tile.length);
    };
    const auto fetch_dout = [&](uint32_t step) {
        if (step < steps) copy_rows_async<THREADS>(dout, head_of(step).dout_gmem, query_of(step), tile.length);
        copy_async_commit();
    };
    copy_rows_async<THREADS>(k, keys.k_gmem, first, tile.length);
    copy_rows_async<THREADS>(v, keys.v_gmem, first, tile.length);
    fetch_q(0);
    fetch_dout(0);

    Accumulator<1, H / 8> dk = {}, dv = {};
    for (uint32_t step = 0; step < steps; ++step) {
        const HeadPair<H> at = head_of(step);
        const uint32_t query = query_of(step);
        copy_async_wait<0>();
        // Without it products would meet rows that others' copies have not brought, and this step would overwrite what others still read.
        block_barrier();
        fetch_q(step + 1);
#pragma unroll 1 // unrolled, it needs more registers than there are
        for (uint32_t part = 0; part < ROWS; part += PART<H>) {
            const auto q_part = q(step).template part<PART<H>>(part), dout_part = dout.template part<PART<H>>(part);
            Accumulator<1, PART<H> / 8> s = {}, dp = {};
            multiply_transposed(s, k, own, q_part);
            multiply_transposed(dp, v, own, dout_part);
            score_gradients_transposed(s, dp, p.scale * LOG2_E, queries(step).from(part), query + part, first + own);
            dp.store(ds, own, part);
            multiply(dv, s, dout_part);
            multiply(dk, dp, q_part);
        }
        uint32_t *turn_gmem = p.turns + ((tile.begin + query) * p.query_heads + heads + step / tiles) * ATTENTION_BACKWARD_TURNS;
        if (threadIdx.x == 0) ordered_wait(turn_gmem, tile.index);
        // Without it dQ would take ds that others have not put there, or be added out of turn, and the next dout would overwrite this one.
        block_barrier();
        fetch_dout(step + 1);
        const uint32_t row = 32 * (warp / 2), half = H / 2 * (warp % 2);
#pragma unroll 1
        for (uint32_t column = half; column < half + H / 2; column += 32) {
            auto dq = load_queries<2, 4>(at.dq_sum_gmem, query + row, column, tile.length, tile.index == 0);
            multiply_from_transposed(dq, ds, row, k, column);
            store_queries(dq, at.dq_sum_gmem, query + row, column, tile.length);
        }
        block_barrier(); // without it the turn would pass on before all have added
        if (threadIdx.x == 0) pass_turn(turn_gmem, tile.index + 1);
    }
    store_gradient(dk, p.scale, keys.dk_gmem, first + own, tile.length);
    store_gradient(dv, 1.0f, keys.dv_gmem, first + own, tile.length);
}

} // namespace limo

using namespace limo;

extern "C" __global__ void __launch_bounds__(128, 2) attention_backward_5_64(const __grid_constant__ AttentionBackwardParams p) {
    fused<64>(p);
}

extern "C" __global__ void __launch_bounds__(128, 2) attention_backward_5_128(const __grid_constant__ AttentionBackwardParams p) {
    fused<128>(p);
}
