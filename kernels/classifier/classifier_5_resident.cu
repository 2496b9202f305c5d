// Classifier, version 5, which ships: the end of the row never leaves the SM.
// Idea: the first pass keeps the last rounds of the row in shared memory, 96 KiB at most, which every GPU since sm_80 grants a block. The second pass begins
// with those and reads the rest, backwards, from the caches, which have that much less to hold.
// Gain over version 4: not yet measured on a GPU.
// C rows, V logits a row, B threads and W warps a block, K rounds kept.
#include "classifier/softmax.cuh"

namespace limo {

template <bool VECTORS> __device__ __forceinline__ void classifier_resident(const ClassifierParams &p) {
    const int threads = int(blockDim.x), rounds = rounds_of(p.width);
    const int kept = rounds < int(CLASSIFIER_KEPT_ROUNDS) ? rounds : int(CLASSIFIER_KEPT_ROUNDS), read_again = rounds - kept;
    bf16 *row_gmem = p.logits + uint64_t(blockIdx.x) * p.width;
    if (ignored(p, row_gmem)) return; // the whole block
    SharedMemory shared;
    float *slots_smem = shared.take<float>(2 * threads / WARP);              // [2, W]
    bf16x8 *kept_smem = shared.take<bf16x8>(kept * threads) + threadIdx.x;   // [K, B]: a thread reads what it wrote itself, without barriers
    const auto keep = [&](int round, const bf16x8 &chunk) {
        if (round >= read_again && round < rounds) st128(kept_smem + (round - read_again) * threads, chunk.words);
    };
    const Statistics s = merge_block(thread_statistics<VECTORS>(row_gmem, p.width, keep), slots_smem);

    const int32_t target = p.targets[blockIdx.x];
    if (threadIdx.x == 0) p.losses[blockIdx.x] = row_loss(s, row_gmem, target, p.width);
    if (!p.scales) return; // the whole block
    block_barrier();       // without it the target's logit could be replaced before the loss has read it
    const Gradient gradient(s, p.scales[blockIdx.x], target);
    for (int round = rounds - 1; round >= read_again; --round) {
        const bf16x8 chunk = {ld128(kept_smem + (round - read_again) * threads)};
        store_gradient<VECTORS>(row_gmem, column_of(round), p.width, gradient.of(chunk, column_of(round)));
    }
    for (int round = read_again - 1; round >= 0; round -= LOADS) {
        replace_rounds<VECTORS, -1, true>(row_gmem, p.width, gradient, round, read_again);
    }
}

} // namespace limo

using namespace limo;

extern "C" __global__ void __launch_bounds__(1024) classifier_5(const __grid_constant__ ClassifierParams p) {
    classifier_resident<true>(p);
}

extern "C" __global__ void __launch_bounds__(1024) classifier_5_any(const __grid_constant__ ClassifierParams p) {
    classifier_resident<false>(p);
}
