// Bias gradient, version 2: wide accesses.
// Idea: a lane reads eight columns, 16 bytes, at a time; the warps of a block share its rows.
// Gain over version 1: not yet measured on a GPU.
#include "bias/backward.cuh"

using namespace limo;

extern "C" __global__ void __launch_bounds__(256) bias_backward_2(const __grid_constant__ BiasBackwardParams p) {
    bias_backward<1, true>(p);
}

extern "C" __global__ void __launch_bounds__(256) bias_backward_2_any(const __grid_constant__ BiasBackwardParams p) {
    bias_backward<1, false>(p);
}
