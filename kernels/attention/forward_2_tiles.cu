// Attention forward, version 2: tiles.
// Idea: a block takes 64 queries and brings 64 keys and values at a time into shared memory, so each is read from global memory once for
// 64 queries instead of once for each (FlashAttention, arXiv 2205.14135). 16 × 16 threads: 4 × 4 scores each, so that eight
// loads from shared memory serve sixteen products.
// Gain over version 1: not yet measured on a GPU.
// R queries and U keys a tile, H columns of a head.
#include "attention/forward.cuh"

namespace limo {

// Combines a value over the sixteen lanes of half a warp, in each of them.
template <typename Combine> __device__ __forceinline__ float half_warp(float value, Combine combine) {
#pragma unroll
    for (int mask = 8; mask > 0; mask /= 2) value = combine(value, shuffle_xor(value, mask));
    return value;
}

template <int DIM> __device__ __forceinline__ void attention_forward_tiles(const AttentionForwardParams &p) {
    constexpr int ROWS = 64, KEYS = 64, THREADS = 256;
    constexpr int PART = 4;            // queries, and keys, of a thread
    constexpr int PAIRS = DIM / 2 / 16; // columns of the result of a thread, two by two
    constexpr int STRIDE = KEYS + 1;    // of weights: rows begin in different banks
    const ForwardWork<ROWS, DIM> work(p, blockIdx.x);
    if (work.queries == 0) return;
    // A thread's queries are 4 y and the three that follow, its keys x, x + 16, x + 32, x + 48: half a warp shares its queries.
    const uint32_t x = threadIdx.x % 16, y = threadIdx.x / 16;

    const float scale = exponent_scale(p);

    SharedMemory shared;
    const Tile<ROWS, DIM, Plain> q{shared.take<bf16>(ROWS * DIM)};                                  // [R, H]
    const Tile<KEYS, DIM, Plain> k{shared.take<bf16>(KEYS * DIM)}, v{shared.take<bf16>(KEYS * DIM)}; // [U, H]
    float *weights_smem = shared.take<float>(ROWS * STRIDE) + PART * y * STRIDE;              // [4, U] of [R, U]
    copy_tile<THREADS>(q, work.q_gmem, work.qkv_stride, work.queries);

    float highest[PART], sum[PART] = {}, out[PART][2 * PAIRS] = {};
    for (float &value : highest) value = minus_infinity();
    for (uint32_t key = 0; key < work.keys; key += KEYS) {
        block_barrier(); // without it a thread may still read the keys and values that are overwritten here
        copy_tile<THREADS>(k, work.k_gmem + key * work.qkv_stride, work.qkv_stride, work.keys - key);
        copy_tile<THREADS>(v, work.v_gmem + key * work.qkv_stride, work.qkv_stride, work.keys - key);
        block_barrier(); // without it a thread would read rows that others have not written

        float s[PART][PART] = {}; // [queries, keys]
        for (int chunk = 0; chunk < DIM / int(CHUNK); ++chunk) {
            f32x8 q_rmem[PART];
#pragma unroll
            for (int i = 0; i < PART; ++i) q_rmem[i] = to_float(bf16x8{ld128(q.chunk(PART * y + i, chunk))});
#pragma unroll
            for (int j = 0; j < PART; ++j) {
                const f32x8 k_rmem = to_float(bf16x8{ld128(k.chunk(x + 16 * j, chunk))});
#pragma unroll
                for (int i = 0; i < PART; ++i) {
#pragma unroll
                    for (int column = 0; column < int(CHUNK); ++column) {
                        s[i][j] = multiply_add(q_rmem[i].at[column], k_rmem.at[column], s[i][j]);
                    }
                }
            }
        }

#pragma unroll
        for (int i = 0; i < PART; ++i) {
            float now = highest[i];
#pragma unroll
            for (int j = 0; j < PART; ++j) {
                s[i][j] = key + x + 16 * j <= work.first + PART * y + i ? s[i][j] * scale : minus_infinity();
                now = maximum(now, s[i][j]);
            }
            now = half_warp(now, [](float a, float b) { return maximum(a, b); });
            const float rescale = exp2_approximate(highest[i] - now);
            highest[i] = now;
            sum[i] *= rescale;
#pragma unroll
            for (int j = 0; j < PART; ++j) {
                const float weight = exp2_approximate(s[i][j] - now);
                sum[i] += weight; // of this thread's own keys
                weights_smem[i * STRIDE + x + 16 * j] = weight;
            }
#pragma unroll
            for (float &value : out[i]) value *= rescale;
        }
        warp_barrier(); // without it a lane would read weights that others of its half have not written

        for (int u = 0; u < KEYS; ++u) {
            float weight[PART];
#pragma unroll
            for (int i = 0; i < PART; ++i) weight[i] = weights_smem[i * STRIDE + u];
#pragma unroll
            for (int pair = 0; pair < PAIRS; ++pair) {
                const uint32_t two = *v.pair(u, 2 * x + 32 * pair);
                const float low = bits_as_float(two << 16), high = bits_as_float(two & 0xffff0000u);
#pragma unroll
                for (int i = 0; i < PART; ++i) {
                    out[i][2 * pair] = multiply_add(weight[i], low, out[i][2 * pair]);
                    out[i][2 * pair + 1] = multiply_add(weight[i], high, out[i][2 * pair + 1]);
                }
            }
        }
    }

#pragma unroll
    for (int i = 0; i < PART; ++i) {
        const uint32_t query = PART * y + i;
        sum[i] = half_warp(sum[i], [](float a, float b) { return a + b; });
        if (query >= work.queries) continue;
        if (x == 0) *work.lse_gmem(p, query) = log_sum_exp(highest[i], sum[i]);
        uint32_t *out_gmem = reinterpret_cast<uint32_t *>(work.out_gmem(p, query));
#pragma unroll
        for (int pair = 0; pair < PAIRS; ++pair) {
            out_gmem[x + 16 * pair] = pack_bf16x2(out[i][2 * pair] / sum[i], out[i][2 * pair + 1] / sum[i]);
        }
    }
}

} // namespace limo

using namespace limo;

extern "C" __global__ void __launch_bounds__(256) attention_forward_2_64(const __grid_constant__ AttentionForwardParams p) {
    attention_forward_tiles<64>(p);
}

extern "C" __global__ void __launch_bounds__(256) attention_forward_2_128(const __grid_constant__ AttentionForwardParams p) {
    attention_forward_tiles<128>(p);
}
