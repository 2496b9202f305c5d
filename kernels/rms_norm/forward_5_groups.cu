// RMSNorm forward, version 5, which ships: several narrow rows a block.
// Idea: a block has up to eight warps, dealt to groups of just as many warps as hold a row. Narrow rows no longer pay for a block each
// (at D = 896 a row is 7 KB of traffic, 220 ns of one SM's share of the memory), and a group waits for its own warps only.
// Gain over version 4: not yet measured on a GPU.
// T rows, D width, G groups a block, W warps a group, C chunks a lane.
#include "common/warp.cuh"
#include "params/rms_norm.h"
#include "rms_norm/chunk.cuh"

namespace limo {

template <bool VECTORS> __device__ __forceinline__ void rms_norm_forward_groups(const RmsNormForwardParams &p) {
    constexpr int CHUNKS = RMS_NORM_FORWARD_WARP_WIDTH / (WARP * CHUNK);
    const int warps = int((p.width + RMS_NORM_FORWARD_WARP_WIDTH - 1) / RMS_NORM_FORWARD_WARP_WIDTH);
    const int threads = warps * WARP; // of a group
    const int group = int(threadIdx.x) / threads, groups = int(blockDim.x) / threads;
    const int thread = int(threadIdx.x) - group * threads; // within its group
    const uint64_t index = uint64_t(blockIdx.x) * groups + group;
    if (index >= p.rows) return; // a whole group: nobody waits for it
    const uint64_t row = index * p.width;
    SharedMemory shared;
    float *slots_smem = shared.take<float>(groups * warps) + group * warps; // [W] of [G, W]
    const auto column = [&](int i) { return CHUNK * uint32_t(i * threads + thread); };

    bf16x8 s_rmem[CHUNKS]; // [C] a lane: x, then the sum
#pragma unroll
    for (int i = 0; i < CHUNKS; ++i) s_rmem[i] = load_chunk_stream<VECTORS>(p.x + row, column(i), p.width);
    if (p.delta) {
        bf16x8 delta_rmem[CHUNKS];
#pragma unroll
        for (int i = 0; i < CHUNKS; ++i) delta_rmem[i] = load_chunk_stream<VECTORS>(p.delta + row, column(i), p.width);
#pragma unroll
        for (int i = 0; i < CHUNKS; ++i) {
            s_rmem[i] = add_chunks(s_rmem[i], delta_rmem[i]);
            store_chunk<VECTORS>(p.sum + row, column(i), p.width, s_rmem[i]);
        }
    }

    float squares = 0;
#pragma unroll
    for (int i = 0; i < CHUNKS; ++i) squares = add_squares(s_rmem[i], squares); // chunks past the width are zero
    squares = warp_sum(squares);
    if (warps > 1) {
        const auto barrier = [&] { named_barrier(1 + group, threads); };
        squares = sum_over_warps(squares, thread / WARP, warps, slots_smem, barrier);
    }
    const float rstd = reciprocal_sqrt(squares / float(p.width) + p.eps);
    if (thread == 0) p.rstd[index] = rstd;

#pragma unroll
    for (int i = 0; i < CHUNKS; ++i) {
        const bf16x8 weight = load_chunk<VECTORS>(p.weight, column(i), p.width);
        store_chunk<VECTORS>(p.y + row, column(i), p.width, scale_chunk(s_rmem[i], rstd, weight));
    }
}

} // namespace limo

using namespace limo;

extern "C" __global__ void __launch_bounds__(512) rms_norm_forward_5(const __grid_constant__ RmsNormForwardParams p) {
    rms_norm_forward_groups<true>(p);
}

extern "C" __global__ void __launch_bounds__(512) rms_norm_forward_5_any(const __grid_constant__ RmsNormForwardParams p) {
    rms_norm_forward_groups<false>(p);
}
