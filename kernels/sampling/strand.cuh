// A row of logits as strands: token i is of strand (i / 4) % 512, and thread t of a block reads strand t, 16 bytes at a time. The rule is that of
// `DrawTokens` in src/ops/args/sampling.rs. Powers are of two, the instruction that GPUs have.
#pragma once
#include "common/philox.cuh"
#include "params/sampling.h"
#include "sampling/choose.cuh"

namespace limo {

constexpr uint32_t QUAD = 4;
// Quads whose loads are issued before the first is used.
constexpr int LOADS = 4;

// 2^40, of which weights are whole numbers.
__device__ __forceinline__ uint64_t whole(float weight) { return uint64_t(weight * 1099511627776.0f); }

__device__ __forceinline__ float infinity() { return bits_as_float(0x7f800000); }

struct Quad {
    float at[QUAD];
};

// One row, which one block draws from.
struct Row {
    const float *logits_gmem;
    uint32_t *seen_gmem; // null: no penalty
    uint32_t vocabulary, quads, key[2], counter;
    float penalty;

    __device__ __forceinline__ explicit Row(const DrawTokensParams &p)
        : logits_gmem(p.logits + uint64_t(blockIdx.x) * p.width), seen_gmem(nullptr), vocabulary(p.vocabulary),
          quads((p.vocabulary + QUAD - 1) / QUAD), penalty(p.penalty) {
        const int32_t *row_gmem = p.rows + uint64_t(blockIdx.x) * 4;
        key[0] = uint32_t(row_gmem[0]);
        key[1] = uint32_t(row_gmem[1]);
        counter = uint32_t(row_gmem[2]);
        if (p.seen) seen_gmem = p.seen + uint64_t(uint32_t(row_gmem[3])) * ((p.width + 31) / 32);
    }

    // Logits of a quad; minus infinity past the vocabulary.
    template <bool VECTORS> __device__ __forceinline__ Quad load(uint32_t quad) const {
        Quad x = {{-infinity(), -infinity(), -infinity(), -infinity()}};
        const uint32_t token = QUAD * quad;
        if (VECTORS && quad < quads) {
            const vec128 words = ld128_stream(logits_gmem + token);
#pragma unroll
            for (uint32_t i = 0; i < QUAD; ++i) x.at[i] = token + i < vocabulary ? bits_as_float(words.at[i]) : -infinity();
        }
        if (!VECTORS) {
#pragma unroll
            for (uint32_t i = 0; i < QUAD; ++i) {
                if (token + i < vocabulary) x.at[i] = logits_gmem[token + i];
            }
        }
        return x;
    }

    __device__ __forceinline__ Quad penalised(uint32_t quad, const Quad &x) const {
        Quad y = x;
        if (!seen_gmem || quad >= quads) return y;
        const uint32_t token = QUAD * quad, seen = seen_gmem[token / 32] >> token % 32;
        if ((seen & 15) == 0) return y;
#pragma unroll
        for (uint32_t i = 0; i < QUAD; ++i) {
            if (seen >> i & 1) y.at[i] = x.at[i] > 0 ? x.at[i] / penalty : x.at[i] * penalty;
        }
        return y;
    }

    // visit(quad, logits, logits after the penalty) for every quad of this thread's strand, and some quads past the row's end.
    template <bool VECTORS, typename Visit> __device__ __forceinline__ void each_quad(Visit visit) const {
        for (uint32_t first = threadIdx.x; first < quads; first += LOADS * STRANDS) {
            Quad x_rmem[LOADS];
#pragma unroll
            for (int i = 0; i < LOADS; ++i) x_rmem[i] = load<VECTORS>(first + i * STRANDS);
#pragma unroll
            for (int i = 0; i < LOADS; ++i) visit(first + i * STRANDS, x_rmem[i], penalised(first + i * STRANDS, x_rmem[i]));
        }
    }
};

// Draws nothing for a row that pads the batch. Every thread of the block calls it; false for other rows.
__device__ __forceinline__ bool pads(const DrawTokensParams &p) {
    if (p.rows[uint64_t(blockIdx.x) * 4 + 3] >= 0) return false;
    if (threadIdx.x == 0) {
        p.tokens[blockIdx.x] = 0;
        if (p.log_probabilities) p.log_probabilities[blockIdx.x] = 0;
    }
    return true;
}

// The maximum of some logits, and the sum of 2^(scale * (x - max)) over them.
struct Statistics {
    float max = LOWEST, sum = 0;

    // Four more: one rescaling of the sum.
    __device__ __forceinline__ void add(const Quad &x, float scale) {
        float largest = max;
#pragma unroll
        for (uint32_t i = 0; i < QUAD; ++i) largest = maximum(largest, x.at[i]);
        sum *= exp2_approximate((max - largest) * scale);
#pragma unroll
        for (uint32_t i = 0; i < QUAD; ++i) sum += exp2_approximate((x.at[i] - largest) * scale);
        max = largest;
    }

    // Those of all threads of the block.
    __device__ __forceinline__ Statistics merged(float scale, const Scratch &scratch) const {
        Statistics all;
        all.max = block_max(max, scratch);
        all.sum = block_sum(sum * exp2_approximate((max - all.max) * scale), scratch);
        return all;
    }

    // No token is NaN or infinite, and one is more than minus infinity.
    __device__ __forceinline__ bool sound() const { return max < infinity() && sum > 0; }
};

// What one reading of a row tells: of this thread's strand, and of all tokens as the model has them, which only log-probabilities need.
struct Reading {
    Statistics strand, model;
};

template <bool VECTORS> __device__ __forceinline__ Reading read_row(const Row &row, const DrawTokensParams &p) {
    Reading reading;
    const bool apart = p.log_probabilities && p.apart;
    row.each_quad<VECTORS>([&](uint32_t, const Quad &x, const Quad &y) {
        reading.strand.add(y, p.scale);
        if (apart) reading.model.add(x, LOG2_E);
    });
    if (!apart) reading.model = reading.strand;
    return reading;
}

// Stores a token and adds it to what its sequence holds. One thread calls it, after a barrier behind all reads of `seen`.
__device__ __forceinline__ void store_token(const DrawTokensParams &p, const Row &row, const Statistics &model, uint32_t token) {
    p.tokens[blockIdx.x] = int32_t(token);
    if (p.log_probabilities) p.log_probabilities[blockIdx.x] = row.logits_gmem[token] - model.max - LN_2 * log2_approximate(model.sum);
    if (row.seen_gmem) row.seen_gmem[token / 32] |= 1u << token % 32;
}

// For a row that nothing can be drawn from.
__device__ __forceinline__ void store_unsound(const DrawTokensParams &p) {
    if (threadIdx.x != 0) return;
    p.tokens[blockIdx.x] = -1;
    if (p.log_probabilities) p.log_probabilities[blockIdx.x] = bits_as_float(0x7fc00000);
}

// Chooses a strand, then one of its tokens from `threshold` on up, and stores it. A thread gives the weight of its strand's tokens, and the largest of them.
template <bool VECTORS>
__device__ __forceinline__ void draw(const DrawTokensParams &p, const Row &row, const Statistics &model, float weight, float largest,
                                     float threshold, const Scratch &scratch) {
    const Draw random = philox4x32(row.counter, 0, 0, 0, row.key[0], row.key[1]);
    const uint64_t first = uint64_t(random.at[1]) << 32 | random.at[0], second = uint64_t(random.at[3]) << 32 | random.at[2];

    const uint64_t strand_weight = whole(weight);
    const Running strands = running_sum(strand_weight, scratch);
    const uint32_t strand = thread_at(share_of(first, strands.total), strands, strand_weight, scratch).thread;
    if (threadIdx.x == strand) scratch.slots_smem[0] = largest;
    block_barrier(); // without it threads would read what that one has not written
    largest = scratch.slots_smem[0];

    // The strand again: a thread takes one of its quads, or a few neighbours where it is longer than the block.
    const uint32_t quads = (row.quads - strand + STRANDS - 1) / STRANDS, each = (quads + STRANDS - 1) / STRANDS;
    const uint32_t begin = threadIdx.x * each, end = begin + each < quads ? begin + each : quads;
    const auto weight_of = [&](float y) { return y >= threshold ? whole(exp2_approximate((y - largest) * p.scale)) : 0; };
    const auto of_quad = [&](uint32_t i) {
        const uint32_t quad = strand + i * STRANDS;
        return row.penalised(quad, row.load<VECTORS>(quad));
    };
    uint64_t mine = 0;
    for (uint32_t i = begin; i < end; ++i) {
        const Quad y = of_quad(i);
#pragma unroll
        for (uint32_t j = 0; j < QUAD; ++j) mine += weight_of(y.at[j]);
    }
    const Running tokens = running_sum(mine, scratch);
    const uint64_t target = share_of(second, tokens.total);
    const Chosen chosen = thread_at(target, tokens, mine, scratch);
    if (threadIdx.x != chosen.thread) return;
    uint64_t rest = target - chosen.before;
    for (uint32_t i = begin; i < end; ++i) {
        const Quad y = of_quad(i);
        for (uint32_t j = 0; j < QUAD; ++j) {
            const uint64_t token_weight = weight_of(y.at[j]);
            if (rest <= token_weight) return store_token(p, row, model, QUAD * (strand + i * STRANDS) + j);
            rest -= token_weight;
        }
    }
}

} // namespace limo
