// RMSNorm forward, version 1: naive.
// Idea: one block a row, one element a thread at a time, a tree of sums in shared memory. The row is read from global memory twice:
// to take its mean square, and to scale it.
// Gain: the baseline. Not yet measured on a GPU.
// T rows, D width, B threads a block (a power of two).
#include "common/warp.cuh"
#include "params/rms_norm.h"

using namespace limo;

extern "C" __global__ void __launch_bounds__(256) rms_norm_forward_1(const __grid_constant__ RmsNormForwardParams p) {
    const int thread = int(threadIdx.x), threads = int(blockDim.x);
    const uint64_t row = uint64_t(blockIdx.x) * p.width;
    const bf16 *x_gmem = p.x + row, *delta_gmem = p.delta ? p.delta + row : nullptr;
    bf16 *sum_gmem = p.sum ? p.sum + row : nullptr, *y_gmem = p.y + row;
    SharedMemory shared;
    float *partial_smem = shared.take<float>(threads); // [B]

    float squares = 0;
    for (uint32_t i = thread; i < p.width; i += threads) {
        float s = to_float(x_gmem[i]);
        if (delta_gmem) {
            s = round_to_bf16(s + to_float(delta_gmem[i]));
            sum_gmem[i] = to_bf16(s);
        }
        squares = multiply_add(s, s, squares);
    }
    partial_smem[thread] = squares;
    for (int half = threads / 2; half > 0; half /= 2) {
        block_barrier(); // without it the upper half may not have been written yet
        if (thread < half) partial_smem[thread] += partial_smem[thread + half];
    }
    block_barrier(); // without it partial_smem[0] may lack its last addition
    const float rstd = reciprocal_sqrt(partial_smem[0] / float(p.width) + p.eps);
    if (thread == 0) p.rstd[blockIdx.x] = rstd;

    const bf16 *s_gmem = delta_gmem ? sum_gmem : x_gmem;
    for (uint32_t i = thread; i < p.width; i += threads) {
        const float normalised = round_to_bf16(to_float(s_gmem[i]) * rstd);
        y_gmem[i] = to_bf16(normalised * to_float(p.weight[i]));
    }
}
