// out[t] = drawn[source[t]] where source[t] >= 0, else tokens[t]. A thread a token; T tokens. No ladder: a step has a few kilobytes of them.
#include "common/types.cuh"
#include "params/sampling.h"

using namespace limo;

extern "C" __global__ void __launch_bounds__(256) feed_tokens(const __grid_constant__ FeedTokensParams p) {
    const uint64_t i = uint64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= p.count) return;
    const int32_t source = p.source[i], token = source < 0 ? p.tokens[i] : p.drawn[source];
    p.out[i] = source >= 0 && token < 0 ? 0 : token;
}
