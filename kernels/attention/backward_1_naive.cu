// Attention backward, version 1: naive.
// Idea: the formulas as they stand, in two kernels. One has a block a query (dQ), the other a block a key (dK, dV). Each goes through the
// rows on the other side in chunks: first a thread a row computes the gradient of one score, then a thread a column adds up the products.
// Gain: the baseline. Not yet measured on a GPU.
// T tokens, Q query heads, K key/value heads, H head dimension, B threads a block (and rows a chunk).
#include "attention/backward.cuh"

namespace limo {

constexpr int NAIVE_THREADS = 128; // B

template <int H> __device__ __forceinline__ float dot(const bf16 *a_gmem, const float *b_smem) {
    float sum = 0;
    for (int i = 0; i < H; ++i) sum = multiply_add(to_float(a_gmem[i]), b_smem[i], sum);
    return sum;
}

template <int H> __device__ __forceinline__ void load_row(float *to_smem, const bf16 *row_gmem) {
    if (int(threadIdx.x) < H) to_smem[threadIdx.x] = to_float(row_gmem[threadIdx.x]);
}

// dq[t] = scale · Σ_u ds[t, u] · k[u] over the keys u ≤ t.
template <int H> __device__ __forceinline__ void naive_queries(const AttentionBackwardParams &p) {
    const uint32_t thread = threadIdx.x;
    const SequenceTile row = find_tile<1>(p.cu_seqlens, p.sequences, blockIdx.x);
    if (row.index >= row.count) return;
    const HeadPair<H> at(p, row.begin, blockIdx.y);
    const float scale_log2 = p.scale * LOG2_E;
    SharedMemory shared;
    float *q_smem = shared.take<float>(H), *dout_smem = shared.take<float>(H), *ds_smem = shared.take<float>(NAIVE_THREADS);

    const uint64_t t = row.index;
    load_row<H>(q_smem, at.q_gmem[t]);
    load_row<H>(dout_smem, at.dout_gmem[t]);
    block_barrier(); // without it a thread would multiply with elements that others have not loaded
    const float lse_log2 = at.lse_gmem[t] * LOG2_E, delta = at.delta_gmem[t];
    float dq = 0; // column `thread`
    for (uint64_t begin = 0; begin <= t; begin += NAIVE_THREADS) {
        const uint64_t u = begin + thread;
        float ds = 0;
        if (u <= t) {
            float s = dot<H>(at.k_gmem[u], q_smem);
            ds = dot<H>(at.v_gmem[u], dout_smem);
            score_gradient(s, ds, scale_log2, lse_log2, delta, true);
        }
        ds_smem[thread] = ds;
        block_barrier(); // without it a thread would add a product whose ds is not there yet
        const int keys = int(t + 1 - begin < NAIVE_THREADS ? t + 1 - begin : NAIVE_THREADS);
        if (thread < H) {
            for (int i = 0; i < keys; ++i) dq = multiply_add(ds_smem[i], to_float(at.k_gmem[begin + i][thread]), dq);
        }
        block_barrier(); // without it the next chunk's ds would overwrite what others still read
    }
    if (thread < H) at.dq_gmem[t][thread] = to_bf16(dq * p.scale);
}

// dv[u] = Σ p[t, u] · dout[t] and dk[u] = scale · Σ ds[t, u] · q[t] over the group's query heads, then the queries t ≥ u.
template <int H> __device__ __forceinline__ void naive_keys(const AttentionBackwardParams &p) {
    const uint32_t thread = threadIdx.x, group = p.query_heads / p.kv_heads;
    const SequenceTile row = find_tile<1>(p.cu_seqlens, p.sequences, blockIdx.x);
    if (row.index >= row.count) return;
    const float scale_log2 = p.scale * LOG2_E;
    SharedMemory shared;
    float *k_smem = shared.take<float>(H), *v_smem = shared.take<float>(H);
    float *p_smem = shared.take<float>(NAIVE_THREADS), *ds_smem = shared.take<float>(NAIVE_THREADS);

    const uint64_t u = row.index;
    const HeadPair<H> first(p, row.begin, blockIdx.y * group);
    load_row<H>(k_smem, first.k_gmem[u]);
    load_row<H>(v_smem, first.v_gmem[u]);
    block_barrier(); // without it a thread would multiply with elements that others have not loaded
    float dk = 0, dv = 0; // column `thread`
    for (uint32_t head = blockIdx.y * group; head < (blockIdx.y + 1) * group; ++head) {
        const HeadPair<H> at(p, row.begin, head);
        for (uint64_t begin = u; begin < row.length; begin += NAIVE_THREADS) {
            const uint64_t t = begin + thread;
            float probability = 0, ds = 0;
            if (t < row.length) {
                probability = dot<H>(at.q_gmem[t], k_smem);
                ds = dot<H>(at.dout_gmem[t], v_smem);
                score_gradient(probability, ds, scale_log2, at.lse_gmem[t] * LOG2_E, at.delta_gmem[t], true);
            }
            p_smem[thread] = probability;
            ds_smem[thread] = ds;
            block_barrier(); // without it a thread would add a product whose p or ds is not there yet
            const int queries = int(row.length - begin < NAIVE_THREADS ? row.length - begin : NAIVE_THREADS);
            if (thread < H) {
                for (int i = 0; i < queries; ++i) {
                    dv = multiply_add(p_smem[i], to_float(at.dout_gmem[begin + i][thread]), dv);
                    dk = multiply_add(ds_smem[i], to_float(at.q_gmem[begin + i][thread]), dk);
                }
            }
            block_barrier(); // without it the next chunk would overwrite what others still read
        }
    }
    if (thread < H) {
        first.dk_gmem[u][thread] = to_bf16(dk * p.scale);
        first.dv_gmem[u][thread] = to_bf16(dv);
    }
}

} // namespace limo

using namespace limo;

extern "C" __global__ void __launch_bounds__(128) attention_backward_1_queries_64(const __grid_constant__ AttentionBackwardParams p) {
    naive_queries<64>(p);
}

extern "C" __global__ void __launch_bounds__(128) attention_backward_1_queries_128(const __grid_constant__ AttentionBackwardParams p) {
    naive_queries<128>(p);
}

extern "C" __global__ void __launch_bounds__(128) attention_backward_1_keys_64(const __grid_constant__ AttentionBackwardParams p) {
    naive_keys<64>(p);
}

extern "C" __global__ void __launch_bounds__(128) attention_backward_1_keys_128(const __grid_constant__ AttentionBackwardParams p) {
    naive_keys<128>(p);
}
