// RMSNorm backward, version 1: naive.
// Idea: a block a partial sum of dweight. It walks its rows one after another, one element a thread at a time; a tree in shared memory adds
// up the row's dot product, a second pass writes dsum and adds to the partial sum in global memory.
// Gain: the baseline. Not yet measured on a GPU.
// T rows, D width, P partial sums (the grid), B threads a block (a power of two).
#include "common/warp.cuh"
#include "params/rms_norm.h"

using namespace limo;

extern "C" __global__ void __launch_bounds__(256) rms_norm_backward_1(const __grid_constant__ RmsNormBackwardParams p) {
    const int thread = int(threadIdx.x), threads = int(blockDim.x);
    float *partial_gmem = p.partials + uint64_t(blockIdx.x) * p.width; // [D] of [P, D]
    SharedMemory shared;
    float *dot_smem = shared.take<float>(threads); // [B]

    for (uint32_t i = thread; i < p.width; i += threads) partial_gmem[i] = 0;
    for (uint64_t index = blockIdx.x; index < p.rows; index += gridDim.x) {
        const uint64_t row = index * p.width;
        const bf16 *dy_gmem = p.dy + row, *s_gmem = p.sum + row;
        bf16 *dsum_gmem = p.dsum + row;
        const float rstd = p.rstd[index];

        float dot = 0; // dx̂ · x̂
        for (uint32_t i = thread; i < p.width; i += threads) {
            dot = multiply_add(to_float(dy_gmem[i]) * to_float(p.weight[i]), to_float(s_gmem[i]) * rstd, dot);
        }
        dot_smem[thread] = dot;
        for (int half = threads / 2; half > 0; half /= 2) {
            block_barrier(); // without it the upper half may not have been written yet
            if (thread < half) dot_smem[thread] += dot_smem[thread + half];
        }
        block_barrier(); // without it dot_smem[0] may lack its last addition
        const float mean = dot_smem[0] / float(p.width);
        block_barrier(); // without it the next row may overwrite dot_smem[0] before all have read it

        for (uint32_t i = thread; i < p.width; i += threads) {
            const float dy = to_float(dy_gmem[i]), normalised = to_float(s_gmem[i]) * rstd;
            const float above = p.accumulate ? to_float(dsum_gmem[i]) : 0.0f;
            dsum_gmem[i] = to_bf16(multiply_add(rstd, multiply_add(-normalised, mean, dy * to_float(p.weight[i])), above));
            partial_gmem[i] = multiply_add(dy, round_to_bf16(normalised), partial_gmem[i]);
        }
    }
}
