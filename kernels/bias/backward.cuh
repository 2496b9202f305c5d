// Bias gradient, versions 2 and 3: a block 256 columns of a partial sum. Each of its eight warps adds up every 8P-th row, a lane eight columns;
// ROWS of them are loaded before the first is added. The warps' sums are then added in order.
// T rows, N width, P partial sums, W = 8 warps a block.
#pragma once
#include "common/row.cuh"
#include "common/warp.cuh"
#include "params/bias.h"

namespace limo {

template <int ROWS, bool VECTORS> __device__ __forceinline__ void bias_backward(const BiasBackwardParams &p) {
    constexpr uint32_t WARPS = 8, WIDTH = WARP * CHUNK, STEP = WARPS * BIAS_PARTIALS;
    const uint32_t warp = threadIdx.x / WARP, lane = lane_index();
    const uint32_t first = blockIdx.x * WIDTH, column = first + lane * CHUNK;
    SharedMemory shared;
    float *sums_smem = shared.take<float>(WARPS * WIDTH); // [W, 256]

    f32x8 sum_rmem = {};
    for (uint64_t begin = blockIdx.y * WARPS + warp; begin < p.rows; begin += ROWS * STEP) {
        bf16x8 rows_rmem[ROWS]; // rows past the last are zeros, which change no sum
#pragma unroll
        for (int i = 0; i < ROWS; ++i) {
            const uint64_t row = begin + i * STEP;
            rows_rmem[i] = row < p.rows ? load_chunk_stream<VECTORS>(p.dy + row * p.width, column, p.width) : bf16x8{};
        }
#pragma unroll
        for (int i = 0; i < ROWS; ++i) {
            const f32x8 row = to_float(rows_rmem[i]);
#pragma unroll
            for (int j = 0; j < 8; ++j) sum_rmem.at[j] += row.at[j];
        }
    }
    store_chunk<true>(sums_smem + warp * WIDTH, lane * CHUNK, WIDTH, sum_rmem);
    block_barrier(); // without it a thread would add sums that other warps have not written yet

    float sum = 0;
#pragma unroll
    for (uint32_t i = 0; i < WARPS; ++i) sum += sums_smem[i * WIDTH + threadIdx.x];
    if (first + threadIdx.x < p.width) p.partials[uint64_t(blockIdx.y) * p.width + first + threadIdx.x] = sum;
}

} // namespace limo
