// Classifier, version 1: naive.
// Idea: a block a row, one logit a thread at a time, three passes: the maximum, the sum of exponentials, the gradient. Trees in shared memory.
// Gain: the baseline. Not yet measured on a GPU.
// C rows, V logits a row, B threads a block (a power of two).
#include "classifier/softmax.cuh"

using namespace limo;

namespace limo {

// `combine` of all threads' values, in every thread.
template <typename Combine> __device__ __forceinline__ float over_block(float value, float *partial_smem, Combine combine) {
    const int thread = int(threadIdx.x);
    partial_smem[thread] = value;
    for (int half = int(blockDim.x) / 2; half > 0; half /= 2) {
        block_barrier(); // without it the upper half may not have been written yet
        if (thread < half) partial_smem[thread] = combine(partial_smem[thread], partial_smem[thread + half]);
    }
    block_barrier(); // without it the first value may lack its last combination
    const float result = partial_smem[0];
    block_barrier(); // without it a fast thread could overwrite what a slow one has to read
    return result;
}

} // namespace limo

extern "C" __global__ void __launch_bounds__(256) classifier_1(const __grid_constant__ ClassifierParams p) {
    const uint32_t thread = threadIdx.x, threads = blockDim.x;
    bf16 *row_gmem = p.logits + uint64_t(blockIdx.x) * p.width;
    if (ignored(p, row_gmem)) return; // the whole block
    SharedMemory shared;
    float *partial_smem = shared.take<float>(threads); // [B]

    Statistics s;
    for (uint32_t i = thread; i < p.width; i += threads) s.max = maximum(s.max, to_float(row_gmem[i]));
    s.max = over_block(s.max, partial_smem, [](float a, float b) { return maximum(a, b); });
    for (uint32_t i = thread; i < p.width; i += threads) s.sum += exp_below(to_float(row_gmem[i]), s.max);
    s.sum = over_block(s.sum, partial_smem, [](float a, float b) { return a + b; });

    const int32_t target = p.targets[blockIdx.x];
    if (thread == 0) p.losses[blockIdx.x] = row_loss(s, row_gmem, target, p.width);
    if (!p.scales) return; // the whole block
    block_barrier();       // without it the target's logit could be replaced before the loss has read it
    const Gradient gradient(s, p.scales[blockIdx.x], target);
    for (uint32_t i = thread; i < p.width; i += threads) row_gmem[i] = to_bf16(gradient.of(to_float(row_gmem[i]), i));
}
