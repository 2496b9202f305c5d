// SwiGLU forward, version 3, which ships: twice as much on its way.
// Idea: two chunks a lane of each input, all 64 bytes requested before the first is used. That takes more than unrolling: to save registers ptxas
// moves loads down behind the exponentials of the chunk before. Told that four blocks shall fit an SM, 64 registers a thread, it has no reason to.
// Gain over version 2: not yet measured on a GPU.
#include "swiglu/forward.cuh"

using namespace limo;

constexpr int CHUNKS = SWIGLU_FORWARD_TILE / (WARP * CHUNK);

extern "C" __global__ void __launch_bounds__(256, 4) swiglu_forward_3(const __grid_constant__ SwiGluForwardParams p) {
    swiglu_forward<CHUNKS, true>(p);
}

extern "C" __global__ void __launch_bounds__(256) swiglu_forward_3_any(const __grid_constant__ SwiGluForwardParams p) {
    swiglu_forward<CHUNKS, false>(p);
}
