// SwiGLU forward, versions 2 and 3: a warp a tile of a row, CHUNKS chunks of 16 bytes a lane, all loaded before the first is used.
#pragma once
#include "common/warp_tile.cuh"
#include "params/swiglu.h"
#include "swiglu/gate.cuh"

namespace limo {

template <int CHUNKS, bool VECTORS> __device__ __forceinline__ void swiglu_forward(const SwiGluForwardParams &p) {
    const WarpTile<CHUNKS> tile(p.width);
    if (tile.row >= p.rows) return;
    const bf16 *gate_gmem = p.gate_up + uint64_t(tile.row) * 2 * p.width, *up_gmem = gate_gmem + p.width;
    bf16 *out_gmem = p.out + uint64_t(tile.row) * p.width;

    bf16x8 gate_rmem[CHUNKS], up_rmem[CHUNKS];
#pragma unroll
    for (int i = 0; i < CHUNKS; ++i) {
        gate_rmem[i] = load_chunk_stream<VECTORS>(gate_gmem, tile.column(i), p.width);
        up_rmem[i] = load_chunk_stream<VECTORS>(up_gmem, tile.column(i), p.width);
    }
#pragma unroll
    for (int i = 0; i < CHUNKS; ++i) store_chunk_global<VECTORS>(out_gmem, tile.column(i), p.width, gated(gate_rmem[i], up_rmem[i]));
}

} // namespace limo
