// RMSNorm backward, version 5, which ships: several rows at once in a block.
// Idea: the grid is the constant number of partial sums, two blocks an SM of an H200, so a block must keep the memory busy by itself: it has
// up to sixteen warps, dealt to groups of just as many warps as hold a row. While one group waits for its dot product, the loads of
// the others are in flight. At the end the groups' shares of dweight are added in their order.
// Gain over version 4: not yet measured on a GPU.
// T rows, D width, P partial sums (the grid), G groups a block, W warps a group, C chunks a lane.
#include "common/warp.cuh"
#include "params/rms_norm.h"
#include "rms_norm/chunk.cuh"

namespace limo {

template <bool VECTORS> __device__ __forceinline__ void rms_norm_backward_groups(const RmsNormBackwardParams &p) {
    constexpr int CHUNKS = RMS_NORM_BACKWARD_WARP_WIDTH / (WARP * CHUNK);
    const int warps = int((p.width + RMS_NORM_BACKWARD_WARP_WIDTH - 1) / RMS_NORM_BACKWARD_WARP_WIDTH);
    const int threads = warps * WARP; // of a group
    const int group = int(threadIdx.x) / threads, groups = int(blockDim.x) / threads;
    const int thread = int(threadIdx.x) - group * threads; // within its group
    SharedMemory shared;
    float *slots_smem = shared.take<float>(2 * groups * warps) + group * 2 * warps; // [2, W] of [G, 2, W], used in turn
    const auto column = [&](int i) { return CHUNK * uint32_t(i * threads + thread); };

    const auto weight = [&](int i) { return load_chunk<VECTORS>(p.weight, column(i), p.width); }; // from L1: registers are scarcer
    f32x8 partial_rmem[CHUNKS] = {};                                                                // [C] a lane

    int turn = 0;
    for (uint64_t index = blockIdx.x + uint64_t(group) * gridDim.x; index < p.rows; index += uint64_t(groups) * gridDim.x, turn ^= 1) {
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
        dot = warp_sum(dot);
        if (warps > 1) {
            const auto barrier = [&] { named_barrier(1 + group, threads); };
            dot = sum_over_warps(dot, thread / WARP, warps, slots_smem + turn * warps, barrier);
        }
        const float mean = dot / float(p.width);

#pragma unroll
        for (int i = 0; i < CHUNKS; ++i) {
            forget(dy_rmem[i].words); // what was unpacked for the dot product need not survive the barrier
            forget(s_rmem[i].words);
            add_weight_gradient(dy_rmem[i], s_rmem[i], rstd, partial_rmem[i]);
            const bf16x8 gradient = sum_gradient(dy_rmem[i], s_rmem[i], weight(i), rstd, mean, above_rmem[i]);
            store_chunk<VECTORS>(p.dsum + row, column(i), p.width, gradient);
        }
    }

    float *total_smem = shared.take<float>(p.width);                  // [D], of the groups so far
    float *partial_gmem = p.partials + uint64_t(blockIdx.x) * p.width; // [D] of [P, D]
    for (int place = 0; place < groups; ++place) {
        if (place > 0) block_barrier(); // without it a group would add to a total that the group before has not written
        if (group != place) continue;
        float *target = group == groups - 1 ? partial_gmem : total_smem;
#pragma unroll
        for (int i = 0; i < CHUNKS; ++i) {
            if (group > 0) add_chunk(partial_rmem[i], load_chunk<VECTORS>(total_smem, column(i), p.width));
            store_chunk<VECTORS>(target, column(i), p.width, partial_rmem[i]);
        }
    }
}

} // namespace limo

using namespace limo;

extern "C" __global__ void __launch_bounds__(512, 2) rms_norm_backward_5(const __grid_constant__ RmsNormBackwardParams p) {
    rms_norm_backward_groups<true>(p);
}

extern "C" __global__ void __launch_bounds__(512) rms_norm_backward_5_any(const __grid_constant__ RmsNormBackwardParams p) {
    rms_norm_backward_groups<false>(p);
}
