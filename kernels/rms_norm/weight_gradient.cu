// The end of RMSNorm backward, for every version: dweight += the partial sums, added in order.
#include "common/partials.cuh"
#include "params/rms_norm.h"

using namespace limo;

extern "C" __global__ void __launch_bounds__(256) rms_norm_weight_gradient(const __grid_constant__ RmsNormWeightGradientParams p) {
    add_partials<RMS_NORM_PARTIALS>(p.partials, p.dweight, p.width);
}
