// RMSNorm backward, version 4: the row and its share of dweight stay in registers.
// Idea: a block has just as many warps as hold a row, two chunks a lane. dy, sum and the old dsum are loaded together and cross memory once;
// a lane's columns are the same in every row, so its part of dweight is added up in registers and leaves once a block.
// Gain over version 3: not yet measured on a GPU.
// T rows, D width, P partial sums (the grid), W warps a block, C chunks a lane.
#include "common/warp.cuh"
#include "params/rms_norm.h"
#include "rms_norm/chunk.cuh"

namespace limo {

template <bool VECTORS> __device__ __forceinline__ void rms_norm_backward_registers(const RmsNormBackwardParams &p) {
    constexpr int CHUNKS = RMS_NORM_BACKWARD_WARP_WIDTH / (WARP * CHUNK);
    const int thread = int(threadIdx.x), threads = int(blockDim.x), warps = threads / WARP;
    SharedMemory shared;
    float *slots_smem = shared.take<float>(2 * warps); // [2, W], used in turn
    const auto column = [&](int i) { return CHUNK * uint32_t(i * threads + thread); };

    const auto weight = [&](int i) { return load_chunk<VECTORS>(p.weight, column(i), p.width); }; // from L1: registers are scarcer
    f32x8 partial_rmem[CHUNKS] = {};                                                                // [C] a lane

    int turn = 0;
    for (uint64_t index = blockIdx.x; index < p.rows; index += gridDim.x, turn ^= 1) {
        const uint64_t row = index * p.width;
        const float rstd = p.rstd[index];
        bf16x8 dy_rmem[CHUNKS], s_rmem[CHUNKS], above_rmem[CHUNKS] = {}; // [C] a lane each
#pragma unroll
        for (int i = 0; i < CHUNKS; ++i) {
            dy_rmem[i] = load_chunk_stream<VECTORS>(p.dy + row, column(i), p.width);
            s_rmem[i] = load_chunk_stream<VECTORS>(p.sum + row, column(i), p.width);
            if (p.accumulate) above_rmem[i] = load_chunk<VECTORS>(p.dsum + row, column(i), p.width);
        }

        float dot = 0; // dx̂ · x̂; chunks past the width are zero
#pragma unroll
        for (int i = 0; i < CHUNKS; ++i) dot = add_dot(dy_rmem[i], s_rmem[i], weight(i), rstd, dot);
        dot = sum_over_warps(warp_sum(dot), thread / WARP, warps, slots_smem + turn * warps, [] { block_barrier(); });
        const float mean = dot / float(p.width);

#pragma unroll
        for (int i = 0; i < CHUNKS; ++i) {
            forget(dy_rmem[i].words); // what was unpacked for the dot product need not survive the barrier
            forget(s_rmem[i].words);
            const bf16x8 gradient = sum_gradient(dy_rmem[i], s_rmem[i], weight(i), rstd, mean, above_rmem[i]);
            store_chunk<VECTORS>(p.dsum + row, column(i), p.width, gradient);
            add_weight_gradient(dy_rmem[i], s_rmem[i], rstd, partial_rmem[i]);
        }
    }

    float *partial_gmem = p.partials + uint64_t(blockIdx.x) * p.width; // [D] of [P, D]
#pragma unroll
    for (int i = 0; i < CHUNKS; ++i) store_chunk<VECTORS>(partial_gmem, column(i), p.width, partial_rmem[i]);
}

} // namespace limo

using namespace limo;

extern "C" __global__ void __launch_bounds__(512) rms_norm_backward_4(const __grid_constant__ RmsNormBackwardParams p) {
    rms_norm_backward_registers<true>(p);
}

extern "C" __global__ void __launch_bounds__(512) rms_norm_backward_4_any(const __grid_constant__ RmsNormBackwardParams p) {
    rms_norm_backward_registers<false>(p);
}
