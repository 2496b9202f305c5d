// Attention backward, version 6, which ships: less waiting.
// Idea: version 5 meets at three barriers a tile and waits for its turn before it multiplies. Here a warp waits by itself, for its own part of dQ, when that is ready to
// be added. Query tiles come last first and, within a tile, head after head: all tiles of keys walk the same list, a later one just ends sooner, so
// nobody overtakes and nobody is held up. Tiles of 128 keys halve what dQ costs in memory traffic. Only tiles on the diagonal are masked.
// Gain over version 5: not yet measured on a GPU.
// H head dimension, R keys and C queries a tile, P queries at once. A warp's sums: s, dp [16, P], dk, dv [16, H], dq [32, H / 4].
#include "attention/backward.cuh"

namespace limo {

constexpr int KEYS = 128, QUERIES = 64; // R, C
constexpr int WARPS = KEYS / 16, THREADS = WARPS * WARP;
constexpr int SLICE = QUERIES / 2; // rows of dQ that a warp adds to, in one of four parts of the columns
template <int H> constexpr int PART = H == 64 ? QUERIES : QUERIES / 2; // P: what registers allow
static_assert(SLICE == 32 && ATTENTION_BACKWARD_TURNS == 4, "two by four warps share a tile of dQ");

template <int ROWS, int H>
__device__ __forceinline__ void load(Tile<ROWS, H> tile, HeadRows<const bf16> rows_gmem, uint32_t first, uint32_t length) {
    copy_tile_async<THREADS>(tile, rows_gmem[first], rows_gmem.stride, rows_of_tile<ROWS>(first, length));
}

// Rounds a warp's rows, from `row` on, and stores them by whole chunks. The warp alone uses those rows of `tile`.
template <int H>
__device__ __forceinline__ void store(const Accumulator<1, H / 8> &sums, Tile<KEYS, H> tile, HeadRows<bf16> to_gmem, uint32_t first,
                                      uint32_t row, uint32_t length) {
    put(tile, sums, row, 0);
    warp_barrier(); // without it a lane would store chunks that others have not filled
    const uint32_t valid = length > first + row ? length - first - row : 0;
    store_tile<WARP>(uint32_t(lane_index()), rows_from<16>(tile, row), to_gmem[first + row], to_gmem.stride, valid);
}

template <int H> __device__ __forceinline__ void fused(const AttentionBackwardParams &p) {
    using QueryTile = Tile<QUERIES, H>;
    SharedMemory shared;
    const Tile<KEYS, H> k{shared.take<bf16>(KEYS * H)}, v{shared.take<bf16>(KEYS * H)};
    bf16 *queries_smem = shared.take<bf16>(4 * QueryTile::ELEMENTS); // q and dout: one to work on, one to come
    const Tile<KEYS, QUERIES> ds{shared.take<bf16>(KEYS * QUERIES)}; // transposed: a row a key
    float *statistics_smem = shared.take<float>(4 * QUERIES);        // lse · log₂e and delta: of this tile, of the next
    const uint32_t ticket = take_block_ticket(p.ticket, shared.take<uint32_t>(1));

    const SequenceTile tile = find_tile<KEYS>(p.cu_seqlens, p.sequences, ticket / p.kv_heads);
    if (tile.index >= tile.count) return;
    const uint32_t group = p.query_heads / p.kv_heads, heads = ticket % p.kv_heads * group;
    const HeadPair<H> keys(p, tile.begin, heads);
    const uint32_t lane = uint32_t(lane_index()), warp = threadIdx.x / WARP, first = tile.index * KEYS;
    const uint32_t own = 16 * warp; // the warp's first key within the tile

    const uint32_t tiles = (tile.length - first + QUERIES - 1) / QUERIES, steps = group * tiles;
    const auto query_of = [&](uint32_t step) { return first + (tiles - 1 - step / group) * QUERIES; };
    const auto q = [&](uint32_t step) { return QueryTile{queries_smem + step % 2 * 2 * QueryTile::ELEMENTS}; };
    const auto dout = [&](uint32_t step) { return QueryTile{q(step).smem + QueryTile::ELEMENTS}; };
    const auto statistics = [&](uint32_t step) { return statistics_smem + step % 2 * 2 * QUERIES; };
    // Starts the copies of a step, and returns this thread's part of its statistics: it comes long before it is stored.
    const auto fetch = [&](uint32_t step) {
        float statistic = 0;
        if (step < steps) {
            const HeadPair<H> at(p, tile.begin, heads + step % group);
            load(q(step), at.q_gmem, query_of(step), tile.length);
            load(dout(step), at.dout_gmem, query_of(step), tile.length);
            const uint32_t row = query_of(step) + threadIdx.x % QUERIES;
            if (threadIdx.x < 2 * QUERIES && row < tile.length) {
                statistic = threadIdx.x < QUERIES ? at.lse_gmem[row] * LOG2_E : at.delta_gmem[row];
            }
        }
        copy_async_commit();
        return statistic;
    };
    const auto put_statistic = [&](uint32_t step, float statistic) {
        if (threadIdx.x < 2 * QUERIES) statistics(step)[threadIdx.x] = statistic;
    };
    load(k, keys.k_gmem, first, tile.length);
    load(v, keys.v_gmem, first, tile.length);
    put_statistic(0, fetch(0));

    Accumulator<1, H / 8> dk = {}, dv = {};
    for (uint32_t step = 0; step < steps; ++step) {
        const uint32_t query = query_of(step), head = heads + step % group;
        copy_async_wait<0>();
        // Without it products would meet rows that others' copies have not brought, and this step would overwrite what others still read.
        block_barrier();
        const float statistic = fetch(step + 1);
        const QueryStatistics now{statistics(step), statistics(step) + QUERIES};
#pragma unroll 1 // unrolled, it needs more registers than there are
        for (uint32_t part = 0; part < QUERIES; part += PART<H>) {
            const auto q_part = rows_from<PART<H>>(q(step), part), dout_part = rows_from<PART<H>>(dout(step), part);
            Accumulator<1, PART<H> / 8> s = {}, dp = {};
            multiply_transposed(s, k, own, q_part);
            multiply_transposed(dp, v, own, dout_part);
            if (query < first + KEYS - 1) {
                score_gradients_transposed<true>(s, dp, p.scale * LOG2_E, now.from(part), query + part, first + own);
            } else {
                score_gradients_transposed<false>(s, dp, p.scale * LOG2_E, now.from(part), query + part, first + own);
            }
            put(ds, dp, own, part);
            multiply(dv, s, dout_part);
            multiply(dk, dp, q_part);
        }
        put_statistic(step + 1, statistic);
        block_barrier(); // without it dQ would take ds that others have not put there

        const uint32_t row = SLICE * (warp / 4), quarter = warp % 4;
        if (query + row >= tile.length) continue; // whole warps, and nobody waits for this slice
        Accumulator<2, H / 32> dq = {};
        multiply_from_transposed(dq, ds, row, k, H / 4 * quarter);
        const HeadPair<H> at(p, tile.begin, head);
        uint32_t *turn_gmem = p.turns + ((tile.begin + query + row) * p.query_heads + head) * ATTENTION_BACKWARD_TURNS + quarter;
        if (lane == 0) ordered_wait(turn_gmem, tile.index);
        warp_barrier(); // without it other lanes would not know that the turn has come
        add_queries(dq, at.dq_sum_gmem, query + row, H / 4 * quarter, tile.length, tile.index == 0);
        warp_barrier(); // without it the turn would pass on before all lanes have added
        if (lane == 0) pass_turn(turn_gmem, tile.index + 1);
    }
    block_barrier(); // without it dK would overwrite keys that others still multiply with
    dk.for_each([&](float &value, uint32_t, uint32_t) { value *= p.scale; });
    store<H>(dk, k, keys.dk_gmem, first, own, tile.length);
    store<H>(dv, v, keys.dv_gmem, first, own, tile.length);
}

} // namespace limo

using namespace limo;

extern "C" __global__ void __launch_bounds__(256, 1) attention_backward_6_64(const __grid_constant__ AttentionBackwardParams p) {
    fused<64>(p);
}

extern "C" __global__ void __launch_bounds__(256, 1) attention_backward_6_128(const __grid_constant__ AttentionBackwardParams p) {
    fused<128>(p);
}
