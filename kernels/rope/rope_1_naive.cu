// RoPE, version 1: naive.
// Idea: a block a token; its threads take the pairs of all heads one by one.
// Gain: the baseline. Not yet measured on a GPU.
// T tokens (the grid), H head dimension, N turned heads.
#include "params/rope.h"
#include "rope/turn.cuh"

using namespace limo;

extern "C" __global__ void __launch_bounds__(256) rope_1(const __grid_constant__ RopeParams p) {
    const uint64_t angles = uint64_t(p.positions[blockIdx.x]) * p.half;
    bf16 *token_gmem = p.qkv + uint64_t(blockIdx.x) * p.fused * 2 * p.half; // [N, 2, H/2]
    for (uint32_t pair = threadIdx.x; pair < p.turned * p.half; pair += blockDim.x) {
        const uint32_t head = pair / p.half, i = pair - head * p.half;
        bf16 *low_gmem = token_gmem + head * 2 * p.half + i, *high_gmem = low_gmem + p.half;
        float x = to_float(*low_gmem), y = to_float(*high_gmem);
        turn(x, y, p.cos[angles + i], p.sign * p.sin[angles + i]);
        *low_gmem = to_bf16(x);
        *high_gmem = to_bf16(y);
    }
}
