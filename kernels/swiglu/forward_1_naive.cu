// SwiGLU forward, version 1: naive.
// Idea: a block a token, one element a thread at a time.
// Gain: the baseline. Not yet measured on a GPU.
// T tokens (the grid), F width.
#include "params/swiglu.h"
#include "swiglu/gate.cuh"

using namespace limo;

extern "C" __global__ void __launch_bounds__(256) swiglu_forward_1(const __grid_constant__ SwiGluForwardParams p) {
    const bf16 *gate_gmem = p.gate_up + uint64_t(blockIdx.x) * 2 * p.width, *up_gmem = gate_gmem + p.width;
    bf16 *out_gmem = p.out + uint64_t(blockIdx.x) * p.width;
    for (uint32_t i = threadIdx.x; i < p.width; i += blockDim.x) {
        out_gmem[i] = to_bf16(gated(to_float(gate_gmem[i]), to_float(up_gmem[i])));
    }
}
