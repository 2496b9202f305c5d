// The likeliest token of a row, the first of equals.
// Idea: one reading, a block a row; every thread keeps the first of its largest logits, and of the threads that hold the row's largest the smallest token wins.
// R rows, V logits a row.
#include "sampling/strand.cuh"

namespace limo {

template <bool VECTORS> __device__ __forceinline__ void draw_greedy(const DrawTokensParams &p) {
    if (pads(p)) return; // the whole block
    const Row row(p);
    SharedMemory shared;
    const Scratch scratch(shared);
    Statistics model;
    float largest = -infinity();
    uint32_t token = 0xffffffffu;
    row.each_quad<VECTORS>([&](uint32_t quad, const Quad &x, const Quad &y) {
#pragma unroll
        for (uint32_t i = 0; i < QUAD; ++i) {
            if (y.at[i] > largest) token = QUAD * quad + i;
            largest = maximum(largest, y.at[i]);
        }
        if (p.log_probabilities) model.add(x, LOG2_E);
    });
    const float max = block_max(largest, scratch);
    if (!(max < infinity() && max > -infinity())) return store_unsound(p); // the whole block
    model = p.log_probabilities ? model.merged(LOG2_E, scratch) : model;
    uint32_t smallest = largest == max ? token : 0xffffffffu;
    const auto smaller = [](uint32_t a, uint32_t b) { return a < b ? a : b; };
#pragma unroll
    for (int mask = WARP / 2; mask > 0; mask /= 2) smallest = smaller(smallest, shuffle_from(smallest, lane_index() ^ mask));
    smallest = over_warps(smallest, scratch.low_smem, smaller);
    if (threadIdx.x == 0) store_token(p, row, model, smallest);
}

} // namespace limo

using namespace limo;

extern "C" __global__ void __launch_bounds__(512, 2) draw_tokens_greedy(const __grid_constant__ DrawTokensParams p) {
    draw_greedy<true>(p);
}

extern "C" __global__ void __launch_bounds__(512, 2) draw_tokens_greedy_any(const __grid_constant__ DrawTokensParams p) {
    draw_greedy<false>(p);
}
