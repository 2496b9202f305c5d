// RMSNorm forward, version 4: the row stays in registers.
// Idea: a block has just as many warps as hold the row, four chunks a lane. The row crosses memory once, and all its loads are issued
// before the first is used: 128 bytes a thread are in flight instead of 32.
// Gain over version 3: not yet measured on a GPU.
// T rows, D width, W warps a block, C chunks a lane.
#include "common/warp.cuh"
#include "params/rms_norm.h"
#include "rms_norm/chunk.cuh"

namespace limo {

template <bool VECTORS> __device__ __forceinline__ void rms_norm_forward_registers(const RmsNormForwardParams &p) {
    constexpr int CHUNKS = RMS_NORM_FORWARD_WARP_WIDTH / (WARP * CHUNK);
    const int thread = int(threadIdx.x), threads = int(blockDim.x), warps = threads / WARP;
    const uint64_t row = uint64_t(blockIdx.x) * p.width;
    SharedMemory shared;
    float *slots_smem = shared.take<float>(warps); // [W]
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
    squares = sum_over_warps(warp_sum(squares), thread / WARP, warps, slots_smem, [] { block_barrier(); });
    const float rstd = reciprocal_sqrt(squares / float(p.width) + p.eps);
    if (thread == 0) p.rstd[blockIdx.x] = rstd;

#pragma unroll
    for (int i = 0; i < CHUNKS; ++i) {
        const bf16x8 weight = load_chunk<VECTORS>(p.weight, column(i), p.width);
        store_chunk<VECTORS>(p.y + row, column(i), p.width, scale_chunk(s_rmem[i], rstd, weight));
    }
}

} // namespace limo

using namespace limo;

extern "C" __global__ void __launch_bounds__(512) rms_norm_forward_4(const __grid_constant__ RmsNormForwardParams p) {
    rms_norm_forward_registers<true>(p);
}

extern "C" __global__ void __launch_bounds__(512) rms_norm_forward_4_any(const __grid_constant__ RmsNormForwardParams p) {
    rms_norm_forward_registers<false>(p);
}
