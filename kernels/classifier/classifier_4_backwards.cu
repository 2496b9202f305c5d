// Classifier, version 4: the second pass runs backwards.
// Idea: after the first pass the caches hold the end of the row. Going forward again, each load of the second pass evicts what the next ones need; going
// backwards it finds it. Gradients, which only a later kernel reads, leave the caches first.
// Gain over version 3: not yet measured on a GPU.
// C rows, V logits a row, W warps a block.
#include "classifier/softmax.cuh"

namespace limo {

template <bool VECTORS> __device__ __forceinline__ void classifier_backwards(const ClassifierParams &p) {
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
    for (int round = rounds - 1; round >= 0; round -= LOADS) replace_rounds<VECTORS, -1, true>(row_gmem, p.width, gradient, round, rounds);
}

} // namespace limo

using namespace limo;

extern "C" __global__ void __launch_bounds__(1024) classifier_4(const __grid_constant__ ClassifierParams p) {
    classifier_backwards<true>(p);
}

extern "C" __global__ void __launch_bounds__(1024) classifier_4_any(const __grid_constant__ ClassifierParams p) {
    classifier_backwards<false>(p);
}
