// A token of what top-k, top-p and min-p leave, without a sort.
// Idea: two readings, a block a row. The first gives a bound that no kept token is below; the second keeps the few logits from there on up in shared memory, a list a
// thread, and the thresholds are found among those, by histograms. Where a list is full, the row is read again instead.
// R rows, V logits a row, L entries of a list.
#include "sampling/strand.cuh"

namespace limo {

// No token below this is kept. The k-th largest logit is at least the k-th largest of the strands' largest; tokens that each weigh less than `rest` of all are together
// less than what top-p leaves.
__device__ __forceinline__ float bound(const DrawTokensParams &p, const Statistics &all, float strand_max, const Scratch &scratch) {
    if (p.top_k > STRANDS) return LOWEST;
    if (p.top_k > 0) {
        const auto only = [&](auto visit) { visit(strand_max); };
        return reach(only, [](float) { return uint64_t(1); }, all.max, LOWEST, p.top_k, scratch);
    }
    const float below = p.top_p < 1 ? p.unit * log2_approximate(p.rest * all.sum) : p.min_p;
    return maximum(all.max + below, LOWEST);
}

template <bool VECTORS> __device__ __forceinline__ void draw_narrowed(const DrawTokensParams &p) {
    if (pads(p)) return; // the whole block
    const Row row(p);
    SharedMemory shared;
    const Scratch scratch(shared);
    float *list_smem = shared.take<float>(DRAW_TOKENS_LIST * STRANDS) + threadIdx.x; // [L, 512]: a thread reads what it wrote itself, without barriers
    const Reading reading = read_row<VECTORS>(row, p);
    const Statistics all = reading.strand.merged(p.scale, scratch);
    if (!all.sound()) return store_unsound(p); // the whole block
    const Statistics model = p.log_probabilities ? reading.model.merged(LOG2_E, scratch) : Statistics();

    const float least = bound(p, all, reading.strand.max, scratch);
    uint32_t count = 0;
    row.each_quad<VECTORS>([&](uint32_t, const Quad &, const Quad &y) {
#pragma unroll
        for (uint32_t i = 0; i < QUAD; ++i) {
            if (!(y.at[i] >= least)) continue;
            if (count < DRAW_TOKENS_LIST) list_smem[count * STRANDS] = y.at[i];
            ++count;
        }
    });
    const bool listed = block_max(float(count), scratch) <= float(DRAW_TOKENS_LIST);
    const auto each = [&](auto visit) {
        if (listed) {
            for (uint32_t i = 0; i < count; ++i) visit(list_smem[i * STRANDS]);
        } else {
            row.each_quad<VECTORS>([&](uint32_t, const Quad &, const Quad &y) {
                for (uint32_t i = 0; i < QUAD; ++i) {
                    if (y.at[i] >= least) visit(y.at[i]);
                }
            });
        }
    };
    const auto weight_of = [&](float y) { return exp2_approximate((y - all.max) * p.scale); };
    // Of this thread's strand.
    const auto weight_from = [&](float threshold) {
        float weight = 0;
        each([&](float y) { weight += y >= threshold ? weight_of(y) : 0; });
        return weight;
    };

    float threshold = least, total = all.sum;
    if (p.top_k > 0) {
        threshold = reach(each, [](float) { return uint64_t(1); }, all.max, threshold, p.top_k, scratch);
        total = block_sum(weight_from(threshold), scratch);
    }
    if (p.top_p < 1) {
        const uint64_t target = whole(p.top_p * total);
        threshold = reach(each, [&](float y) { return whole(weight_of(y)); }, all.max, threshold, target > 0 ? target : 1, scratch);
    }
    threshold = maximum(threshold, all.max + p.min_p);
    draw<VECTORS>(p, row, model, weight_from(threshold), reading.strand.max, threshold, scratch);
}

} // namespace limo

using namespace limo;

extern "C" __global__ void __launch_bounds__(512, 2) draw_tokens_narrowed(const __grid_constant__ DrawTokensParams p) {
    draw_narrowed<true>(p);
}

extern "C" __global__ void __launch_bounds__(512, 2) draw_tokens_narrowed_any(const __grid_constant__ DrawTokensParams p) {
    draw_narrowed<false>(p);
}
