// Sums of squares, version 1: naive.
// Idea: a block a partial sum of 4096 elements, one element a thread at a time, a tree of sums in shared memory.
// Gain: the baseline. Not yet measured on a GPU.
// N elements, B threads a block (a power of two).
#include "common/warp.cuh"
#include "params/square_sums.h"

using namespace limo;

extern "C" __global__ void __launch_bounds__(256) square_sums_1(const __grid_constant__ SquareSumsParams p) {
    const int thread = int(threadIdx.x), threads = int(blockDim.x);
    const uint64_t begin = uint64_t(blockIdx.x) * SQUARE_SUMS_ELEMENTS;
    SharedMemory shared;
    float *partial_smem = shared.take<float>(threads); // [B]

    float squares = 0;
    for (uint32_t i = thread; i < SQUARE_SUMS_ELEMENTS && begin + i < p.count; i += threads) {
        const float x = p.x[begin + i];
        squares = multiply_add(x, x, squares);
    }
    partial_smem[thread] = squares;
    for (int half = threads / 2; half > 0; half /= 2) {
        block_barrier(); // without it the upper half may not have been written yet
        if (thread < half) partial_smem[thread] += partial_smem[thread + half];
    }
    if (thread == 0) p.sums[blockIdx.x] = partial_smem[0]; // its last addition is this thread's own
}
