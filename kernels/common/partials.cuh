// The end of a sum down the columns: total += partial sums, added in order.
// A sum in order is a chain of additions, but its loads need not be. A block brings 32 columns of all partial sums into shared memory at once, many
// loads a thread on their way, and one warp adds them up from there.
// P partial sums, D width; 256 threads and P · 32 floats of shared memory a block, a block 32 columns.
#pragma once
#include "common/warp.cuh"

namespace limo {

template <int PARTIALS> __device__ __forceinline__ void add_partials(const float *partials_gmem, float *total_gmem, uint64_t width) {
    constexpr int WARPS = 8, ROUNDS = PARTIALS / WARPS;
    const int lane = lane_index(), warp = int(threadIdx.x) / WARP;
    const uint64_t column = uint64_t(blockIdx.x) * WARP + lane;
    SharedMemory shared;
    float *tile_smem = shared.take<float>(PARTIALS * WARP); // [P, 32]

#pragma unroll
    for (int i = 0; i < ROUNDS; ++i) {
        const int partial = i * WARPS + warp;
        tile_smem[partial * WARP + lane] = column < width ? partials_gmem[partial * width + column] : 0.0f;
    }
    block_barrier(); // without it the first warp would add partial sums that others have not brought yet
    if (warp > 0 || column >= width) return;
    float total = 0;
#pragma unroll 16
    for (int partial = 0; partial < PARTIALS; ++partial) total += tile_smem[partial * WARP + lane];
    total_gmem[column] += total;
}

} // namespace limo
