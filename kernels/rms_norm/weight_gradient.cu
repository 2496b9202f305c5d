// The end of RMSNorm backward, for every version: dweight += the partial sums, added in order.
// Idea: a sum in order is a chain of additions, but its loads need not be. A block brings 32 columns of all partial sums into shared
// memory at once, 32 loads a thread in flight, and one warp adds them up from there.
// P partial sums, D width; P threads a block.
#include "common/warp.cuh"
#include "params/rms_norm.h"

using namespace limo;

extern "C" __global__ void __launch_bounds__(256) rms_norm_weight_gradient(const __grid_constant__ RmsNormWeightGradientParams p) {
    constexpr int WARPS = RMS_NORM_PARTIALS / WARP, ROUNDS = RMS_NORM_PARTIALS / WARPS;
    const int lane = lane_index(), warp = int(threadIdx.x) / WARP;
    const uint64_t column = uint64_t(blockIdx.x) * WARP + lane;
    SharedMemory shared;
    float *tile_smem = shared.take<float>(RMS_NORM_PARTIALS * WARP); // [P, 32]

#pragma unroll
    for (int i = 0; i < ROUNDS; ++i) {
        const int partial = i * WARPS + warp;
        tile_smem[partial * WARP + lane] = column < p.width ? p.partials[partial * p.width + column] : 0.0f;
    }
    block_barrier(); // without it the first warp would add partial sums that others have not brought yet
    if (warp > 0 || column >= p.width) return;
    float total = 0;
#pragma unroll 16
    for (int partial = 0; partial < int(RMS_NORM_PARTIALS); ++partial) total += tile_smem[partial * WARP + lane];
    p.dweight[column] += total;
}
