// Softmax cross-entropy of a row of logits x: loss = log sum exp(x) - x[target], and the gradient scale * (softmax(x) - onehot) in x's place. Powers
// are of two: e^a = 2^(a * log2 e), which is the instruction that GPUs have. The maximum is taken off first, so nothing overflows and
// one term of the sum is 1.
#pragma once
#include "common/row.cuh"
#include "common/warp.cuh"
#include "params/classifier.h"

namespace limo {

// Below every logit but minus infinity: what a maximum of nothing is. Finite, because infinity minus infinity is no number.
constexpr float LOWEST = -3.402823466e38f;
constexpr int32_t IGNORE = -1;

// e^x / e^max
__device__ __forceinline__ float exp_below(float x, float max) { return exp2_approximate((x - max) * LOG2_E); }

// The maximum of some logits, and the sum of e^(x - max) over them.
struct Statistics {
    float max = LOWEST, sum = 0;
};

// One more logit.
__device__ __forceinline__ void add_logit(Statistics &s, float x) {
    const float max = maximum(s.max, x);
    s.sum = s.sum * exp_below(s.max, max) + exp_below(x, max);
    s.max = max;
}

// Eight more: one rescaling of the sum.
__device__ __forceinline__ void add_logits(Statistics &s, const bf16x8 &chunk) {
    const f32x8 x = to_float(chunk);
    float max = s.max;
#pragma unroll
    for (int i = 0; i < 8; ++i) max = maximum(max, x.at[i]);
    float sum = s.sum * exp_below(s.max, max);
#pragma unroll
    for (int i = 0; i < 8; ++i) sum += exp_below(x.at[i], max);
    s = {max, sum};
}

// The statistics of the block's threads together, in every thread; sums are added in a fixed order. `slots_smem` has two floats a warp.
__device__ __forceinline__ Statistics merge_block(const Statistics &mine, float *slots_smem) {
    const int warp = int(threadIdx.x) / WARP, warps = int(blockDim.x) / WARP;
    const float warp_largest = warp_max(mine.max);
    const float warp_total = warp_sum(mine.sum * exp_below(mine.max, warp_largest));
    if (lane_index() == 0) {
        slots_smem[warp] = warp_largest;
        slots_smem[warps + warp] = warp_total;
    }
    block_barrier(); // without it a warp would merge slots that others have not filled
    Statistics all;
    for (int i = 0; i < warps; ++i) all.max = maximum(all.max, slots_smem[i]);
    for (int i = 0; i < warps; ++i) all.sum += slots_smem[warps + i] * exp_below(slots_smem[i], all.max);
    return all;
}

// The loss. A target outside of the vocabulary has no logit: its loss is no number, which nobody overlooks.
__device__ __forceinline__ float row_loss(const Statistics &s, const bf16 *row_gmem, int32_t target, uint32_t width) {
    const bool there = target >= 0 && uint32_t(target) < width;
    const float logit = there ? to_float(row_gmem[target]) : bits_as_float(0x7fc00000);
    return multiply_add(log2_approximate(s.sum), LN_2, s.max - logit);
}

// Softmax and gradient of a row, whose statistics are known.
struct Gradient {
    float max, log2_sum, scale;
    int32_t target;

    __device__ __forceinline__ Gradient(const Statistics &s, float scale, int32_t target)
        : max(s.max), log2_sum(log2_approximate(s.sum)), scale(scale), target(target) {}

    __device__ __forceinline__ float softmax_scaled(float x) const {
        return scale * exp2_approximate(multiply_add(x - max, LOG2_E, -log2_sum));
    }
    __device__ __forceinline__ float of(float x, uint32_t column) const {
        const float gradient = softmax_scaled(x);
        return column == uint32_t(target) ? gradient - scale : gradient;
    }
    // Eight columns from `column` on.
    __device__ __forceinline__ bf16x8 of(const bf16x8 &chunk, uint32_t column) const {
        f32x8 x = to_float(chunk);
#pragma unroll
        for (int i = 0; i < 8; ++i) x.at[i] = softmax_scaled(x.at[i]);
        const uint32_t offset = uint32_t(target) - column;
        if (offset < CHUNK) { // of one thread of the block
#pragma unroll
            for (uint32_t i = 0; i < CHUNK; ++i) {
                if (i == offset) x.at[i] -= scale;
            }
        }
        return to_bf16(x);
    }
};

// Eight logits; minus infinity, which adds nothing, past the row's end.
template <bool VECTORS> __device__ __forceinline__ bf16x8 load_logits(const bf16 *row_gmem, uint32_t column, uint32_t width) {
    constexpr uint32_t MINUS_INFINITY = 0xff80;
    bf16x8 chunk;
    if constexpr (VECTORS) {
        constexpr uint32_t PAIR = MINUS_INFINITY << 16 | MINUS_INFINITY;
        chunk.words = {{PAIR, PAIR, PAIR, PAIR}};
        if (column < width) chunk.words = ld128(row_gmem + column);
    } else {
        chunk.words = {};
#pragma unroll
        for (uint32_t i = 0; i < CHUNK; ++i) {
            const uint32_t bits = column + i < width ? row_gmem[column + i].bits : MINUS_INFINITY;
            chunk.words.at[i / 2] |= bits << 16 * (i % 2);
        }
    }
    return chunk;
}

// Eight gradients, which nobody reads again soon.
template <bool VECTORS>
__device__ __forceinline__ void store_gradient(bf16 *row_gmem, uint32_t column, uint32_t width, const bf16x8 &gradient) {
    if constexpr (VECTORS) {
        if (column < width) st128_stream(row_gmem + column, gradient.words);
    } else {
        store_chunk<false>(row_gmem, column, width, gradient);
    }
}

// --- Rows in rounds: each thread of the block takes eight columns a round, and LOADS rounds' loads are issued before the first is used ----------

constexpr int LOADS = 4;

// The first of this thread's columns in a round.
__device__ __forceinline__ uint32_t column_of(int round) { return CHUNK * uint32_t(round * int(blockDim.x) + int(threadIdx.x)); }

__device__ __forceinline__ int rounds_of(uint32_t width) {
    const uint32_t columns = CHUNK * blockDim.x;
    return int((width + columns - 1) / columns);
}

// The statistics of this thread's columns; `keep(round, chunk)` sees them pass.
template <bool VECTORS, typename Keep>
__device__ __forceinline__ Statistics thread_statistics(const bf16 *row_gmem, uint32_t width, Keep keep) {
    Statistics s;
    for (int round = 0; round < rounds_of(width); round += LOADS) {
        bf16x8 chunks_rmem[LOADS];
#pragma unroll
        for (int i = 0; i < LOADS; ++i) chunks_rmem[i] = load_logits<VECTORS>(row_gmem, column_of(round + i), width);
#pragma unroll
        for (int i = 0; i < LOADS; ++i) {
            keep(round + i, chunks_rmem[i]);
            add_logits(s, chunks_rmem[i]);
        }
    }
    return s;
}

// Replaces the logits of rounds `round`, `round` + STEP, ... by gradients: LOADS of them, as far as they are in 0..rounds.
template <bool VECTORS, int STEP, bool STREAM>
__device__ __forceinline__ void replace_rounds(bf16 *row_gmem, uint32_t width, const Gradient &gradient, int round, int rounds) {
    bf16x8 chunks_rmem[LOADS];
#pragma unroll
    for (int i = 0; i < LOADS; ++i) {
        const int at = round + STEP * i;
        if (at >= 0 && at < rounds) chunks_rmem[i] = load_chunk<VECTORS>(row_gmem, column_of(at), width);
    }
#pragma unroll
    for (int i = 0; i < LOADS; ++i) {
        const int at = round + STEP * i;
        if (at < 0 || at >= rounds) continue;
        const bf16x8 gradients = gradient.of(chunks_rmem[i], column_of(at));
        if constexpr (STREAM) {
            store_gradient<VECTORS>(row_gmem, column_of(at), width, gradients);
        } else {
            store_chunk<VECTORS>(row_gmem, column_of(at), width, gradients);
        }
    }
}

// --- What a row begins and ends with ------------------------------------------------------------------------------------------------------------

// A row that is not trained on: no loss, no gradient, and no look at its logits. Every thread of the block calls it; false for other rows.
__device__ __forceinline__ bool ignored(const ClassifierParams &p, bf16 *row_gmem) {
    if (p.targets[blockIdx.x] != IGNORE) return false;
    if (threadIdx.x == 0) p.losses[blockIdx.x] = 0;
    if (p.scales) {
        for (uint32_t column = threadIdx.x; column < p.width; column += blockDim.x) row_gmem[column] = {0};
    }
    return true;
}

} // namespace limo
