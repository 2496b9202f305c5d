// 32 queries a warp: the walk of 128 queries over tiles of keys and values, whatever these come from.
// R queries and U keys a tile, H columns of a head.
#pragma once
#include "attention/softmax.cuh"

namespace limo {

constexpr int WIDE_WARPS = 4, WIDE_ROWS = 32 * WIDE_WARPS, WIDE_THREADS = WIDE_WARPS * WARP;

// Scores, weights and weighted values of a warp's queries, `own`, of which the first stands at place `first + row` of its sequence; `first` is the place of the
// block's first query. `keys` is what the last query of the block sees. fetch(tile, of_values, key) starts the asynchronous copies of the tile at a key and
// commits them; the queries' own are committed with the keys that the caller has fetched already, those at 0.
template <int DIM, int KEYS, typename Fetch>
__device__ __forceinline__ void walk_wide(Tile<32, DIM> own, Tile<KEYS, DIM> k, Tile<KEYS, DIM> v, uint32_t first, uint32_t row, uint32_t keys, float scale,
                                          Accumulator<2, DIM / 8> &out, RunningSoftmax<2> &softmax, Fetch fetch) {
    for (uint32_t key = 0; key < keys; key += KEYS) {
        copy_async_wait<0>();
        block_barrier(); // without it keys whose copies others wait for are missing, and a warp may still read the values overwritten next
        fetch(v, true, key);
        Accumulator<2, KEYS / 8> s = {};
        multiply_transposed(s, own, 0, k);
        if (key + KEYS > first + 1) { // on the diagonal: every query of the block sees all earlier tiles whole
            s.for_each([&](float &score, uint32_t i, uint32_t j) {
                if (key + j > first + row + i) score = minus_infinity();
            });
        }
        softmax.update(s, out, scale);
        const Factor<2, KEYS / 16> weights(s);

        copy_async_wait<0>();
        block_barrier(); // without it values are missing, and a warp may still read the keys overwritten next
        if (key + KEYS < keys) fetch(k, false, key + KEYS);
        multiply(out, weights, v);
    }
}

} // namespace limo
