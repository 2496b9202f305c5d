// SwiGLU backward, versions 2 and 3: a warp a tile of a row, CHUNKS chunks of 16 bytes a lane, all loaded before the first is used.
#pragma once
#include "common/warp_tile.cuh"
#include "params/swiglu.h"
#include "swiglu/gate.cuh"

namespace limo {

template <int CHUNKS, bool VECTORS> __device__ __forceinline__ void swiglu_backward(const SwiGluBackwardParams &p) {
    const WarpTile<CHUNKS> tile(p.width);
    if (tile.row >= p.rows) return;
    const uint64_t row = uint64_t(tile.row) * p.width;
    const bf16 *gate_gmem = p.gate_up + 2 * row, *up_gmem = gate_gmem + p.width, *dout_gmem = p.dout + row;
    bf16 *dgate_gmem = p.dgate_up + 2 * row, *dup_gmem = dgate_gmem + p.width;

    bf16x8 gate_rmem[CHUNKS], up_rmem[CHUNKS], dout_rmem[CHUNKS];
#pragma unroll
    for (int i = 0; i < CHUNKS; ++i) {
        gate_rmem[i] = load_chunk_stream<VECTORS>(gate_gmem, tile.column(i), p.width);
        up_rmem[i] = load_chunk_stream<VECTORS>(up_gmem, tile.column(i), p.width);
        dout_rmem[i] = load_chunk_stream<VECTORS>(dout_gmem, tile.column(i), p.width);
    }
#pragma unroll
    for (int i = 0; i < CHUNKS; ++i) {
        f32x8 dgate = to_float(gate_rmem[i]), dup = to_float(up_rmem[i]);
        const f32x8 dout = to_float(dout_rmem[i]);
#pragma unroll
        for (int j = 0; j < 8; ++j) {
            const GateGradient gradient = gate_gradient(dgate.at[j], dup.at[j], dout.at[j]);
            dgate.at[j] = gradient.gate;
            dup.at[j] = gradient.up;
        }
        store_chunk_global<VECTORS>(dgate_gmem, tile.column(i), p.width, to_bf16(dgate));
        store_chunk_global<VECTORS>(dup_gmem, tile.column(i), p.width, to_bf16(dup));
    }
}

} // namespace limo
