// SwiGLU backward, version 2: wide accesses.
// Idea: a warp a tile of 256 columns; a lane moves 16 bytes, eight elements, at a time.
// Gain over version 1: not yet measured on a GPU.
#include "swiglu/backward.cuh"

using namespace limo;

extern "C" __global__ void __launch_bounds__(256) swiglu_backward_2(const __grid_constant__ SwiGluBackwardParams p) {
    swiglu_backward<1, true>(p);
}

extern "C" __global__ void __launch_bounds__(256) swiglu_backward_2_any(const __grid_constant__ SwiGluBackwardParams p) {
    swiglu_backward<1, false>(p);
}
