// A token of the whole distribution.
// Idea: one reading, a block a row. Every thread keeps maximum and sum of its strand; the sums choose a strand, and only that one, a 512th of the row, is read again.
// R rows, V logits a row.
#include "sampling/strand.cuh"

namespace limo {

template <bool VECTORS> __device__ __forceinline__ void draw_plain(const DrawTokensParams &p) {
    if (pads(p)) return; // the whole block
    const Row row(p);
    SharedMemory shared;
    const Scratch scratch(shared);
    const Reading reading = read_row<VECTORS>(row, p);
    const float max = block_max(reading.strand.max, scratch);
    const float weight = reading.strand.sum * exp2_approximate((reading.strand.max - max) * p.scale);
    if (!Statistics{max, block_sum(weight, scratch)}.sound()) return store_unsound(p); // the whole block
    const Statistics model = p.log_probabilities ? reading.model.merged(LOG2_E, scratch) : Statistics();
    draw<VECTORS>(p, row, model, weight, reading.strand.max, -infinity(), scratch);
}

} // namespace limo

using namespace limo;

extern "C" __global__ void __launch_bounds__(512, 2) draw_tokens_plain(const __grid_constant__ DrawTokensParams p) {
    draw_plain<true>(p);
}

extern "C" __global__ void __launch_bounds__(512, 2) draw_tokens_plain_any(const __grid_constant__ DrawTokensParams p) {
    draw_plain<false>(p);
}
