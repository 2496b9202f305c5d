// Before and after attention backward: what is computed once a row. Memory-bound, 16 bytes an access, the same for every version.
// Before: delta = rowsum(dout ∘ out), which softmax takes off every dP of a row. The fused versions also need their turns and their ticket
// to start at zero, in every launch. After them: their dQ, added up in f32, is scaled and rounded once.
// T tokens, Q query heads, K key/value heads, H head dimension; H / 8 threads a row.
#include "attention/backward.cuh"

namespace limo {

// Columns of a thread.
constexpr uint32_t COLUMNS = 8;

// One thread's part of the rows [T, Q], as they lie in dout and dq.
template <int H> struct RowPart {
    uint64_t row;
    uint32_t column;
    bool valid;
    __device__ __forceinline__ explicit RowPart(const AttentionBackwardParams &p) {
        const uint64_t index = uint64_t(blockIdx.x) * blockDim.x + threadIdx.x;
        row = index / (H / COLUMNS);
        column = COLUMNS * uint32_t(index % (H / COLUMNS));
        valid = row < p.tokens * p.query_heads;
    }
};

template <int H> __device__ __forceinline__ void row_deltas(const AttentionBackwardParams &p) {
    const RowPart<H> part(p);
    bf16x8 out = {}, dout = {};
    if (part.valid) {
        out.words = ld128_stream(p.out + part.row * H + part.column);
        dout.words = ld128(p.dout + part.row * H + part.column);
    }
    const f32x8 a = to_float(out), b = to_float(dout);
    float sum = 0;
#pragma unroll
    for (int i = 0; i < int(COLUMNS); ++i) sum = multiply_add(a.at[i], b.at[i], sum);
#pragma unroll
    for (int mask = 1; mask < H / int(COLUMNS); mask *= 2) sum += shuffle_xor(sum, mask);
    if (!part.valid || part.column > 0) return;
    p.delta[part.row % p.query_heads * p.tokens + part.row / p.query_heads] = sum;
    for (uint32_t i = 0; i < ATTENTION_BACKWARD_TURNS; ++i) p.turns[part.row * ATTENTION_BACKWARD_TURNS + i] = 0;
    if (part.row == 0) *p.ticket = 0;
}

template <int H> __device__ __forceinline__ void finish_queries(const AttentionBackwardParams &p) {
    const RowPart<H> part(p);
    if (!part.valid) return;
    const uint64_t head = part.row % p.query_heads, token = part.row / p.query_heads;
    const float *dq_gmem = p.dq + part.row * H + part.column;
    f32x8 dq;
#pragma unroll
    for (int half = 0; half < 8; half += 4) {
        const vec128 words = ld128_stream(dq_gmem + half);
#pragma unroll
        for (int i = 0; i < 4; ++i) dq.at[half + i] = bits_as_float(words.at[i]) * p.scale;
    }
    st128(p.dqkv + (token * (p.query_heads + 2 * p.kv_heads) + head) * H + part.column, to_bf16(dq).words);
}

} // namespace limo

using namespace limo;

extern "C" __global__ void __launch_bounds__(256) attention_backward_deltas_64(const __grid_constant__ AttentionBackwardParams p) {
    row_deltas<64>(p);
}

extern "C" __global__ void __launch_bounds__(256) attention_backward_deltas_128(const __grid_constant__ AttentionBackwardParams p) {
    row_deltas<128>(p);
}

extern "C" __global__ void __launch_bounds__(256) attention_backward_finish_64(const __grid_constant__ AttentionBackwardParams p) {
    finish_queries<64>(p);
}

extern "C" __global__ void __launch_bounds__(256) attention_backward_finish_128(const __grid_constant__ AttentionBackwardParams p) {
    finish_queries<128>(p);
}
