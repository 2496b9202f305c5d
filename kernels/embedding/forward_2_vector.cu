// Embedding forward, version 2, which ships: wide accesses.
// Idea: a warp a tile of a row; a lane moves four chunks of 16 bytes, all loaded before the first is stored. The table is read through L1 and L2:
// frequent tokens come back.
// Gain over version 1: not yet measured on a GPU.
// T tokens, D width, V rows of the table, C chunks a lane.
#include "common/warp_tile.cuh"
#include "params/embedding.h"

namespace limo {

template <bool VECTORS> __device__ __forceinline__ void embedding_forward_vector(const EmbeddingForwardParams &p) {
    constexpr int CHUNKS = EMBEDDING_FORWARD_TILE / (WARP * CHUNK);
    const WarpTile<CHUNKS> tile(p.width);
    if (tile.row >= p.rows) return;
    const int32_t id = p.ids[tile.row];
    const bool known = id >= 0 && uint32_t(id) < p.vocabulary;
    const bf16 *from_gmem = p.table + uint64_t(known ? id : 0) * p.width;
    bf16 *to_gmem = p.out + uint64_t(tile.row) * p.width;

    bf16x8 row_rmem[CHUNKS] = {}; // [C] a lane
    if (known) {
#pragma unroll
        for (int i = 0; i < CHUNKS; ++i) row_rmem[i] = load_chunk<VECTORS>(from_gmem, tile.column(i), p.width);
    }
#pragma unroll
    for (int i = 0; i < CHUNKS; ++i) store_chunk<VECTORS>(to_gmem, tile.column(i), p.width, row_rmem[i]);
}

} // namespace limo

using namespace limo;

extern "C" __global__ void __launch_bounds__(256) embedding_forward_2(const __grid_constant__ EmbeddingForwardParams p) {
    embedding_forward_vector<true>(p);
}

extern "C" __global__ void __launch_bounds__(256) embedding_forward_2_any(const __grid_constant__ EmbeddingForwardParams p) {
    embedding_forward_vector<false>(p);
}
