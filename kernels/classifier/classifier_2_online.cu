// Classifier, version 2: one pass for the statistics.
// Idea: the online softmax (Milakov & Gimelshein 2018): keep the sum for the maximum so far, and rescale it when a larger logit comes. The row
// is read twice instead of three times. Lanes merge by shuffles: one barrier instead of twenty.
// Gain over version 1: not yet measured on a GPU.
// C rows, V logits a row, W warps a block.
#include "classifier/softmax.cuh"

using namespace limo;

extern "C" __global__ void __launch_bounds__(256) classifier_2(const __grid_constant__ ClassifierParams p) {
    const uint32_t thread = threadIdx.x, threads = blockDim.x;
    bf16 *row_gmem = p.logits + uint64_t(blockIdx.x) * p.width;
    if (ignored(p, row_gmem)) return; // the whole block
    SharedMemory shared;
    float *slots_smem = shared.take<float>(2 * threads / WARP); // [2, W]

    Statistics s;
    for (uint32_t i = thread; i < p.width; i += threads) add_logit(s, to_float(row_gmem[i]));
    s = merge_block(s, slots_smem);

    const int32_t target = p.targets[blockIdx.x];
    if (thread == 0) p.losses[blockIdx.x] = row_loss(s, row_gmem, target, p.width);
    if (!p.scales) return; // the whole block
    block_barrier();       // without it the target's logit could be replaced before the loss has read it
    const Gradient gradient(s, p.scales[blockIdx.x], target);
    for (uint32_t i = thread; i < p.width; i += threads) row_gmem[i] = to_bf16(gradient.of(to_float(row_gmem[i]), i));
}
