// Embedding backward, version 1: naive.
// Idea: a block a sorted position. If a run of equal ids starts there, the block adds the run's rows to the table's row, one row and one element a
// thread at a time; otherwise it has nothing to do. No two blocks write one row, so there are no atomics and the order is that of the run.
// Gain: the baseline. Not yet measured on a GPU.
// T tokens, D width, V rows of the table.
#include "common/types.cuh"
#include "params/embedding.h"

using namespace limo;

extern "C" __global__ void __launch_bounds__(256) embedding_backward_1(const __grid_constant__ EmbeddingBackwardParams p) {
    const uint32_t first = blockIdx.x;
    const int32_t id = p.ids[p.order[first]];
    if (id < 0 || uint64_t(id) >= p.vocabulary) return;
    if (first > 0 && p.ids[p.order[first - 1]] == id) return;
    float *dtable_gmem = p.dtable + uint64_t(id) * p.width;
    for (uint32_t at = first; at < p.rows; ++at) {
        const uint32_t token = p.order[at];
        if (p.ids[token] != id) return;
        const bf16 *dout_gmem = p.dout + uint64_t(token) * p.width;
        for (uint32_t i = threadIdx.x; i < p.width; i += blockDim.x) dtable_gmem[i] += to_float(dout_gmem[i]);
    }
}
