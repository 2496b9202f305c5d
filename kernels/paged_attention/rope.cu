// RoPE into a paged cache: query heads are turned in place, key heads are turned on their way to their page, value heads copied to it.
// Idea: one pass instead of two. A warp a token, as in rope_3_angles.cu: its lanes lie over a few heads and the chunks of half a head, and keep their sines and
// cosines in registers. Four heads a lane are on their way before the position, and with it the row of the table, is known. No ladder: RoPE has one.
// T tokens, Q query heads, K key/value heads, H head dimension.
#include "common/row.cuh"
#include "common/warp.cuh"
#include "params/paged_attention.h"
#include "rope/turn.cuh"

namespace limo {

template <int DIM> __device__ __forceinline__ void paged_rope(const PagedRopeParams &p) {
    constexpr uint32_t HALF = DIM / 2, CHUNKS = HALF / CHUNK, SIDE = WARP / CHUNKS; // SIDE heads side by side
    constexpr int HEADS = 4;                                                        // on their way at a time
    const uint32_t token = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
    if (token >= p.tokens) return;
    const uint32_t i = uint32_t(lane_index()) % CHUNKS * CHUNK, turned = p.query_heads + p.kv_heads, fused = turned + p.kv_heads;
    bf16 *token_gmem = p.qkv + uint64_t(token) * fused * DIM; // [Q + 2K, H]
    const int32_t place = p.rows[token];
    const uint32_t heads = place < 0 ? p.query_heads : fused; // a token that is not cached has queries only
    bf16 *slot_gmem = p.cache + uint64_t(uint32_t(place) / PAGED_PAGE) * p.page_stride + uint32_t(place) % PAGED_PAGE * DIM;

    f32x8 cos = {}, sin = {};
    const uint32_t group = uint32_t(lane_index()) / CHUNKS;
    for (uint32_t first = group; first < heads; first += HEADS * SIDE) {
        bf16x8 low_rmem[HEADS] = {}, high_rmem[HEADS] = {};
#pragma unroll
        for (int n = 0; n < HEADS; ++n) {
            const uint32_t head = first + n * SIDE;
            if (head >= heads) continue;
            low_rmem[n].words = ld128(token_gmem + head * DIM + i);
            high_rmem[n].words = ld128(token_gmem + head * DIM + HALF + i);
        }
        if (first == group) {
            const uint64_t angles = uint64_t(p.positions[token]) * HALF;
            cos = load_chunk<true>(p.cos + angles, i, HALF);
            sin = load_chunk<true>(p.sin + angles, i, HALF);
        }
#pragma unroll
        for (int n = 0; n < HEADS; ++n) {
            const uint32_t head = first + n * SIDE;
            if (head >= heads) continue;
            if (head < turned) turn(low_rmem[n], high_rmem[n], cos, sin);
            // Keys and values of a page are [2, K, PAGE, H], in the order of the heads behind the queries.
            bf16 *to_gmem = head < p.query_heads ? token_gmem + head * DIM : slot_gmem + uint64_t(head - p.query_heads) * PAGED_PAGE * DIM;
            st128_global(to_gmem + i, low_rmem[n].words);
            st128_global(to_gmem + HALF + i, high_rmem[n].words);
        }
    }
}

} // namespace limo

using namespace limo;

extern "C" __global__ void __launch_bounds__(256) paged_rope_64(const __grid_constant__ PagedRopeParams p) { paged_rope<64>(p); }

extern "C" __global__ void __launch_bounds__(256) paged_rope_128(const __grid_constant__ PagedRopeParams p) { paged_rope<128>(p); }
