// Bias gradient, version 1: naive.
// Idea: a block 256 columns of a partial sum, a thread a column. Row t belongs to partial sum t mod P.
// Gain: the baseline. Not yet measured on a GPU.
// T rows, N width, P partial sums.
#include "common/types.cuh"
#include "params/bias.h"

using namespace limo;

extern "C" __global__ void __launch_bounds__(256) bias_backward_1(const __grid_constant__ BiasBackwardParams p) {
    const uint64_t column = uint64_t(blockIdx.x) * blockDim.x + threadIdx.x, partial = blockIdx.y;
    if (column >= p.width) return;
    float sum = 0;
    for (uint64_t row = partial; row < p.rows; row += BIAS_PARTIALS) sum += to_float(p.dy[row * p.width + column]);
    p.partials[partial * p.width + column] = sum;
}
