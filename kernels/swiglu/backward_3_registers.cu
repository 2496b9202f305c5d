// SwiGLU backward, version 3, which ships: twice as much on its way.
// Idea: two chunks a lane of each of the three inputs, 96 bytes. As forward, four blocks an SM keep ptxas from moving the loads down.
// Gain over version 2: not yet measured on a GPU.
#include "swiglu/backward.cuh"

using namespace limo;

constexpr int CHUNKS = SWIGLU_BACKWARD_TILE / (WARP * CHUNK);

extern "C" __global__ void __launch_bounds__(256, 4) swiglu_backward_3(const __grid_constant__ SwiGluBackwardParams p) {
    swiglu_backward<CHUNKS, true>(p);
}

extern "C" __global__ void __launch_bounds__(256) swiglu_backward_3_any(const __grid_constant__ SwiGluBackwardParams p) {
    swiglu_backward<CHUNKS, false>(p);
}
