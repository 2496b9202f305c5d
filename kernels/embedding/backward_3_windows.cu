// Embedding backward, version 3, which ships: windows of positions, eight rows on their way.
// Idea: a warp owns the runs that *start* in its window of 32 sorted positions. Its lanes look up the 32 tokens and ids at once and a vote finds
// where runs start; then eight rows are loaded, with the table's rows of the runs that start among them, before the first is added. A run that
// goes on past the window is followed to its end. There are a 32nd as many warps as in version 2, where most find that no run starts at theirs,
// and a long run waits for memory an eighth as often.
// Gain over version 2: not yet measured on a GPU.
// T tokens, D width, V rows of the table.
#include "common/warp_tile.cuh"
#include "embedding/add.cuh"
#include "params/embedding.h"

namespace limo {

template <bool VECTORS> __device__ __forceinline__ void embedding_backward_windows(const EmbeddingBackwardParams &p) {
    constexpr int ROWS = 8; // loaded before the first is added
    const WarpTile<1> tile(p.width);
    const uint32_t window = tile.row * WARP;
    if (window >= p.rows) return;
    const int lane = lane_index();
    const auto known = [&](int32_t id) { return id >= 0 && uint64_t(id) < p.vocabulary; };
    const auto dtable = [&](int32_t id) { return p.dtable + uint64_t(id) * p.width; };

    int32_t before = window > 0 ? p.ids[p.order[window - 1]] : -1; // the id before lane 0's; no run of −1 ever starts
    int32_t current = -1;                                           // the run that is being added up, if its id is known
    f32x8 total_rmem = {};
    for (uint32_t base = window; base < p.rows; base += WARP) {
        const int count = int(p.rows - base < WARP ? p.rows - base : WARP);
        const uint32_t token = lane < count ? p.order[base + lane] : 0;
        const int32_t id = lane < count ? p.ids[token] : -1;
        const int32_t previous = int32_t(shuffle_from(uint32_t(id), lane > 0 ? lane - 1 : 0));
        const uint32_t starts = warp_ballot(lane < count && id != (lane > 0 ? previous : before));
        const auto starts_at = [&](int i) { return (starts >> i & 1) != 0; };

        // In the window: from the first start on. Behind it: up to the first start, which belongs to another warp.
        int begin = 0, end = count;
        if (base == window) {
            while (begin < count && !starts_at(begin)) ++begin;
            if (begin == count) return;
        } else {
            for (end = 0; end < count && !starts_at(end);) ++end;
        }
        for (int first = begin; first < end; first += ROWS) {
            bf16x8 rows_rmem[ROWS];
            f32x8 starts_rmem[ROWS]; // the table's row, where a run starts
            int32_t ids_rmem[ROWS];
#pragma unroll
            for (int i = 0; i < ROWS; ++i) {
                if (first + i >= end) continue;
                const uint64_t row = uint64_t(shuffle_from(token, first + i)) * p.width;
                ids_rmem[i] = int32_t(shuffle_from(uint32_t(id), first + i));
                rows_rmem[i] = load_chunk_stream<VECTORS>(p.dout + row, tile.first, p.width);
                if (starts_at(first + i) && known(ids_rmem[i])) starts_rmem[i] = load_chunk<VECTORS>(dtable(ids_rmem[i]), tile.first, p.width);
            }
#pragma unroll
            for (int i = 0; i < ROWS; ++i) {
                if (first + i >= end) continue;
                if (starts_at(first + i)) {
                    if (known(current)) store_chunk<VECTORS>(dtable(current), tile.first, p.width, total_rmem);
                    current = ids_rmem[i];
                    total_rmem = starts_rmem[i];
                }
                add_chunk(total_rmem, rows_rmem[i]);
            }
        }
        if (end < WARP) break;
        before = int32_t(shuffle_from(uint32_t(id), WARP - 1));
    }
    if (known(current)) store_chunk<VECTORS>(dtable(current), tile.first, p.width, total_rmem);
}

} // namespace limo

using namespace limo;

extern "C" __global__ void __launch_bounds__(128) embedding_backward_3(const __grid_constant__ EmbeddingBackwardParams p) {
    embedding_backward_windows<true>(p);
}

extern "C" __global__ void __launch_bounds__(128) embedding_backward_3_any(const __grid_constant__ EmbeddingBackwardParams p) {
    embedding_backward_windows<false>(p);
}
