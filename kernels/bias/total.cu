// The end of the bias gradient, for every version: dbias += the partial sums, added in order.
#include "common/partials.cuh"
#include "params/bias.h"

using namespace limo;

extern "C" __global__ void __launch_bounds__(256) bias_total(const __grid_constant__ BiasTotalParams p) {
    add_partials<BIAS_PARTIALS>(p.partials, p.dbias, p.width);
}
