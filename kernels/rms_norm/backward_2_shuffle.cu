// RMSNorm backward, version 2: sums in registers.
// Idea: the lanes of a warp add up by shuffles, and one value a warp goes through shared memory, in two sets of slots that rows use in turn:
// one barrier a row instead of ten.
// Gain over version 1: not yet measured on a GPU.
// T rows, D width, P partial sums (the grid), B threads a block, W = B/32 warps.
#include "common/warp.cuh"
#include "params/rms_norm.h"

using namespace limo;

extern "C" __global__ void __launch_bounds__(256) rms_norm_backward_2(const __grid_constant__ RmsNormBackwardParams p) {
    const int thread = int(threadIdx.x), threads = int(blockDim.x), warps = threads / WARP;
    float *partial_gmem = p.partials + uint64_t(blockIdx.x) * p.width; // [D] of [P, D]
    SharedMemory shared;
    float *slots_smem = shared.take<float>(2 * warps); // [2, W]: a warp may be one row ahead, so the slots it fills are not those being read

    for (uint32_t i = thread; i < p.width; i += threads) partial_gmem[i] = 0;
    int turn = 0;
    for (uint64_t index = blockIdx.x; index < p.rows; index += gridDim.x, turn ^= 1) {
        const uint64_t row = index * p.width;
        const bf16 *dy_gmem = p.dy + row, *s_gmem = p.sum + row;
        bf16 *dsum_gmem = p.dsum + row;
        const float rstd = p.rstd[index];

        float dot = 0; // dx̂ · x̂
        for (uint32_t i = thread; i < p.width; i += threads) {
            dot = multiply_add(to_float(dy_gmem[i]) * to_float(p.weight[i]), to_float(s_gmem[i]) * rstd, dot);
        }
        dot = sum_over_warps(warp_sum(dot), thread / WARP, warps, slots_smem + turn * warps, [] { block_barrier(); });
        const float mean = dot / float(p.width);

        for (uint32_t i = thread; i < p.width; i += threads) {
            const float dy = to_float(dy_gmem[i]), normalised = to_float(s_gmem[i]) * rstd;
            const float above = p.accumulate ? to_float(dsum_gmem[i]) : 0.0f;
            dsum_gmem[i] = to_bf16(multiply_add(rstd, multiply_add(-normalised, mean, dy * to_float(p.weight[i])), above));
            partial_gmem[i] = multiply_add(dy, round_to_bf16(normalised), partial_gmem[i]);
        }
    }
}
