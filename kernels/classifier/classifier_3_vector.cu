// Classifier, version 3: wide accesses.
// Idea: a thread moves 16 bytes, eight logits, at a time, issues four such loads before it uses the first, and rescales its sum once for eight. A
// block has up to 1024 threads: few rows are in the works at once, so the caches can hold them until the second pass.
// Gain over version 2: not yet measured on a GPU.
// C rows, V logits a row, W warps a block.
#include "classifier/softmax.cuh"

namespace limo {

template <bool VECTORS> __device__ __forceinline__ void classifier_vector(const ClassifierParams &p) {
    bf16 *row_gmem = p.logits + uint64_t(blockIdx.x) * p.width;
    if (ignored(p, row_gmem)) return; // the whole block
    SharedMemory shared;
    float *slots_smem = shared.take<float>(2 * int(blockDim.x) / WARP); // [2, W]
    const auto nothing = [](int, const bf16x8 &) {};
    const Statistics s = merge_block(thread_statistics<VECTORS>(row_gmem, p.width, nothing), slots_smem);

    const int32_t target = p.targets[blockIdx.x];
    if (threadIdx.x == 0) p.losses[blockIdx.x] = row_loss(s, row_gmem, target, p.width);
    if (!p.scales) return; // the whole block
    block_barrier();       // without it the target's logit could be replaced before the loss has read it
    const Gradient gradient(s, p.scales[blockIdx.x], target);
    const int rounds = rounds_of(p.width);
    for (int round = 0; round < rounds; round += LOADS) replace_rounds<VECTORS, 1, false>(row_gmem, p.width, gradient, round, rounds);
}

} // namespace limo

using namespace limo;

extern "C" __global__ void __launch_bounds__(1024) classifier_3(const __grid_constant__ ClassifierParams p) {
    classifier_vector<true>(p);
}

extern "C" __global__ void __launch_bounds__(1024) classifier_3_any(const __grid_constant__ ClassifierParams p) {
    classifier_vector<false>(p);
}
