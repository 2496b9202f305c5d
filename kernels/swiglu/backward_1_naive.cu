// SwiGLU backward, version 1: naive.
// Idea: a block a token, one element a thread at a time.
// Gain: the baseline. Not yet measured on a GPU.
// T tokens (the grid), F width.
#include "params/swiglu.h"
#include "swiglu/gate.cuh"

using namespace limo;

extern "C" __global__ void __launch_bounds__(256) swiglu_backward_1(const __grid_constant__ SwiGluBackwardParams p) {
    const uint64_t row = uint64_t(blockIdx.x) * p.width;
    const bf16 *gate_gmem = p.gate_up + 2 * row, *up_gmem = gate_gmem + p.width, *dout_gmem = p.dout + row;
    bf16 *dgate_gmem = p.dgate_up + 2 * row, *dup_gmem = dgate_gmem + p.width;
    for (uint32_t i = threadIdx.x; i < p.width; i += blockDim.x) {
        const GateGradient gradient = gate_gradient(to_float(gate_gmem[i]), to_float(up_gmem[i]), to_float(dout_gmem[i]));
        dgate_gmem[i] = to_bf16(gradient.gate);
        dup_gmem[i] = to_bf16(gradient.up);
    }
}
