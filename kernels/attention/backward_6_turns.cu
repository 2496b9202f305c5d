// Attention backward, version 6, which ships: less waiting.
// Idea: version 5 meets at three barriers a tile and lets memory answer three times in a row: whose turn is it, what is the sum, is the sum
// stored? Here a warp asks for itself, between two products, and says that its sum is stored a tile later, when that is long done; the sum
// comes during the product that is added to it. Query tiles come last first and, within a tile, head after head: all tiles of keys walk the
// same list, a later one just ends sooner, so nobody is held up for long. Tiles of 128 keys halve the traffic of dQ. Only tiles on the
// diagonal are masked.
// Gain over version 5: not yet measured on a GPU.
// H head dimension, R keys and C queries a tile, P queries at once. A warp's sums: s, dp [16, P], dk, dv [16, H], dq [32, H / 4].
#include "attention/backward.cuh"

namespace limo {

constexpr int KEYS = 128, QUERIES = 64; // R, C
constexpr int WARPS = KEYS / 16, THREADS = WARPS * WARP;
constexpr int SLICE = QUERIES / 2; // rows of dQ that a warp adds to, in one of four parts of the columns
template <int H> constexpr int PART = H == 64 ? QUERIES : QUERIES / 2; // P: what registers allow
static_assert(SLICE == 32 && ATTENTION_BACKWARD_TURNS == 4, "two by four warps share a tile of dQ");

// Rounds a warp's rows, from `row` on, and stores them by whole chunks. The warp alone uses those rows of `tile`.
template <int H>
__device__ __forceinline__ void store(const Accumulator<1, H / 8> &sums, Tile<KEYS, H> tile, HeadRows<bf16> to_gmem, uint32_t first,
                                      uint32_t row, uint32_t length) {
    sums.store(tile, row, 0);
    warp_barrier(); // without it a lane would store chunks that others have not filled
    const uint32_t valid = length > first + row ? length - first - row : 0;
    store_tile<WARP>(uint32_t(lane_index()), tile.template part<16>(row), to_gmem[first + row], to_gmem.stride, valid);
}

// What a step works on: the first query of a tile, one of the group's query heads.
struct Step {
    uint32_t query, head;
};

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
    const uint32_t lane = uint32_t(lane_index()), warp = threadIdx.x / WARP, first = tile.index * KEYS;
    const uint32_t own = 16 * warp; // the warp's first key within the tile

    const uint32_t tiles = (tile.length - first + QUERIES - 1) / QUERIES, steps = group * tiles;
    const auto after = [&](Step step) {
        return step.head + 1 < heads + group ? Step{step.query, step.head + 1} : Step{step.query - QUERIES, heads};
    };
    const auto head_of = [&](Step step) { return HeadPair<H>(p, tile.begin, step.head); };
    const auto q = [&](uint32_t stage) { return QueryTile{queries_smem + stage * 2 * QueryTile::ELEMENTS}; };
    const auto dout = [&](uint32_t stage) { return QueryTile{q(stage).smem + QueryTile::ELEMENTS}; };
    const auto statistics = [&](uint32_t stage) { return statistics_smem + stage * 2 * QUERIES; };
    // Starts the copies of a step, if there is one, and returns this thread's part of its statistics: it comes long before it is stored.
    const auto fetch = [&](Step step, uint32_t stage, bool exists) {
        float statistic = 0;
        if (exists) {
            const HeadPair<H> at = head_of(step);
            copy_rows_async<THREADS>(q(stage), at.q_gmem, step.query, tile.length);
            copy_rows_async<THREADS>(dout(stage), at.dout_gmem, step.query, tile.length);
            const uint32_t row = step.query + threadIdx.x % QUERIES;
            if (threadIdx.x < 2 * QUERIES && row < tile.length) {
                statistic = threadIdx.x < QUERIES ? at.lse_gmem[row] * LOG2_E : at.delta_gmem[row];
            }
        }
        copy_async_commit();
        return statistic;
    };
    const auto put_statistic = [&](uint32_t stage, float statistic) {
        if (threadIdx.x < 2 * QUERIES) statistics(stage)[threadIdx.x] = statistic;
    };
    // The warp's part of a tile of dQ, whether the sequence has rows there, and whose turn it is to add to it.
    const uint32_t row = SLICE * (warp / 4), quarter = warp % 4, column = H / 4 * quarter;
    const auto adds = [&](Step step) { return step.query + row < tile.length; };
    const auto turn_of = [&](Step step) {
        const uint64_t token = tile.begin + step.query + row;
        return p.turns + (token * p.query_heads + step.head) * ATTENTION_BACKWARD_TURNS + quarter;
    };
    Step step = {first + (tiles - 1) * QUERIES, heads}, last = step;
    copy_rows_async<THREADS>(k, head_of(step).k_gmem, first, tile.length);
    copy_rows_async<THREADS>(v, head_of(step).v_gmem, first, tile.length);
    put_statistic(0, fetch(step, 0, true));

    Accumulator<1, H / 8> dk = {}, dv = {};
    for (uint32_t i = 0; i < steps; ++i, last = step, step = after(step)) {
        const uint32_t stage = i % 2;
        copy_async_wait<0>();
        // Without it products would meet rows that others' copies have not brought, and this step would overwrite what others still read.
        block_barrier();
        const float statistic = fetch(after(step), stage ^ 1, i + 1 < steps);
        const QueryStatistics now{statistics(stage), statistics(stage) + QUERIES};
#pragma unroll 1 // unrolled, it needs more registers than there are
        for (uint32_t part = 0; part < QUERIES; part += PART<H>) {
            const auto q_part = q(stage).template part<PART<H>>(part), dout_part = dout(stage).template part<PART<H>>(part);
            Accumulator<1, PART<H> / 8> s = {}, dp = {};
            multiply_transposed(s, k, own, q_part);
            multiply_transposed(dp, v, own, dout_part);
            if (step.query < first + KEYS - 1) {
                score_gradients_transposed<true>(s, dp, p.scale * LOG2_E, now.from(part), step.query + part, first + own);
            } else {
                score_gradients_transposed<false>(s, dp, p.scale * LOG2_E, now.from(part), step.query + part, first + own);
            }
            dp.store(ds, own, part);
            multiply(dv, s, dout_part);
            if (part == 0 && lane == 0) {
                if (i > 0 && adds(last)) pass_turn(turn_of(last), tile.index + 1);
                if (adds(step)) ordered_wait(turn_of(step), tile.index);
            }
            multiply(dk, dp, q_part);
        }
        put_statistic(stage ^ 1, statistic);
        block_barrier(); // without it dQ would take ds that others have not put there, or the sum of an earlier turn
        if (!adds(step)) continue;
        const HeadRows<float> sum_gmem = head_of(step).dq_sum_gmem;
        // On its way during the product.
        auto sum = load_queries<2, H / 32>(sum_gmem, step.query + row, column, tile.length, tile.index == 0);
        Accumulator<2, H / 32> dq = {};
        multiply_from_transposed(dq, ds, row, k, column);
        add(sum, dq);
        store_queries(sum, sum_gmem, step.query + row, column, tile.length);
    }
    block_barrier(); // without it the last turn would pass on before all have added, and dK overwrite keys that others still multiply with
    if (lane == 0 && adds(last)) pass_turn(turn_of(last), tile.index + 1);
    dk.for_each([&](float &value, uint32_t, uint32_t) { value *= p.scale; });
    store<H>(dk, k, head_of(last).dk_gmem, first, own, tile.length);
    store<H>(dv, v, head_of(last).dv_gmem, first, own, tile.length);
}

} // namespace limo

using namespace limo;

extern "C" __global__ void __launch_bounds__(256, 1) attention_backward_6_64(const __grid_constant__ AttentionBackwardParams p) {
    fused<64>(p);
}

extern "C" __global__ void __launch_bounds__(256, 1) attention_backward_6_128(const __grid_constant__ AttentionBackwardParams p) {
    fused<128>(p);
}
