// SwiGLU forward, version 2: wide accesses.
// Idea: a warp a tile of 256 columns; a lane moves 16 bytes, eight elements, at a time.
// Gain over version 1: not yet measured on a GPU.
#include "swiglu/forward.cuh"

using namespace limo;

extern "C" __global__ void __launch_bounds__(256) swiglu_forward_2(const __grid_constant__ SwiGluForwardParams p) {
    swiglu_forward<1, true>(p);
}

extern "C" __global__ void __launch_bounds__(256) swiglu_forward_2_any(const __grid_constant__ SwiGluForwardParams p) {
    swiglu_forward<1, false>(p);
}
