// Embedding forward, version 1: naive.
// Idea: a block a token; its threads copy the table's row one element at a time.
// Gain: the baseline. Not yet measured on a GPU.
// T tokens, D width, V rows of the table.
#include "common/types.cuh"
#include "params/embedding.h"

using namespace limo;

extern "C" __global__ void __launch_bounds__(256) embedding_forward_1(const __grid_constant__ EmbeddingForwardParams p) {
    const int32_t id = p.ids[blockIdx.x];
    const bool known = id >= 0 && uint32_t(id) < p.vocabulary;
    const bf16 *from_gmem = p.table + uint64_t(known ? id : 0) * p.width;
    bf16 *to_gmem = p.out + uint64_t(blockIdx.x) * p.width;
    for (uint32_t i = threadIdx.x; i < p.width; i += blockDim.x) to_gmem[i] = known ? from_gmem[i] : bf16{0};
}
