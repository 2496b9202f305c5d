// RMSNorm forward, version 2: sums in registers.
// Idea: the lanes of a warp add up by shuffles, without shared memory or barriers; only one value a warp goes through shared memory. One
// barrier a row instead of nine.
// Gain over version 1: not yet measured on a GPU.
// T rows, D width, B threads a block, W = B/32 warps.
#include "common/warp.cuh"
#include "params/rms_norm.h"

using namespace limo;

extern "C" __global__ void __launch_bounds__(256) rms_norm_forward_2(const __grid_constant__ RmsNormForwardParams p) {
    const int thread = int(threadIdx.x), threads = int(blockDim.x);
    const uint64_t row = uint64_t(blockIdx.x) * p.width;
    const bf16 *x_gmem = p.x + row, *delta_gmem = p.delta ? p.delta + row : nullptr;
    bf16 *sum_gmem = p.sum ? p.sum + row : nullptr, *y_gmem = p.y + row;
    SharedMemory shared;
    float *slots_smem = shared.take<float>(threads / WARP); // [W]

    float squares = 0;
    for (uint32_t i = thread; i < p.width; i += threads) {
        float s = to_float(x_gmem[i]);
        if (delta_gmem) {
            s = round_to_bf16(s + to_float(delta_gmem[i]));
            sum_gmem[i] = to_bf16(s);
        }
        squares = multiply_add(s, s, squares);
    }
    squares = sum_over_warps(warp_sum(squares), thread / WARP, threads / WARP, slots_smem, [] { block_barrier(); });
    const float rstd = reciprocal_sqrt(squares / float(p.width) + p.eps);
    if (thread == 0) p.rstd[blockIdx.x] = rstd;

    const bf16 *s_gmem = delta_gmem ? sum_gmem : x_gmem;
    for (uint32_t i = thread; i < p.width; i += threads) {
        const float normalised = round_to_bf16(to_float(s_gmem[i]) * rstd);
        y_gmem[i] = to_bf16(normalised * to_float(p.weight[i]));
    }
}
