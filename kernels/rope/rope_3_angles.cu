// RoPE, version 3, which ships: angles stay in registers.
// Idea: a warp a token. Its lanes lie over a few heads and the chunks of half a head, so that a lane turns the same pairs of every head: it loads their
// 64 bytes of sines and cosines once a token, not once for each 32 bytes that it turns. Four heads a lane are on their way at a time, and their
// loads are issued before the angles are known: a position leads to a row of the table, which is two trips to memory.
// Gain over version 2: not yet measured on a GPU.
// T tokens, H head dimension, N turned heads, C chunks of half a head, G heads side by side in the warp.
#include "common/row.cuh"
#include "common/warp.cuh"
#include "params/rope.h"
#include "rope/turn.cuh"

namespace limo {

template <bool VECTORS> __device__ __forceinline__ void rope_angles(const RopeParams &p) {
    constexpr int HEADS = 4; // on their way at a time
    const uint32_t row = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
    if (row >= p.rows) return;
    const uint32_t chunks = (p.half + CHUNK - 1) / CHUNK, groups = WARP / chunks;
    const uint32_t group = lane_index() / chunks, i = (lane_index() - group * chunks) * CHUNK;
    if (group >= groups) return; // lanes left over where C does not divide 32: there is nothing to meet for
    bf16 *token_gmem = p.qkv + uint64_t(row) * p.fused * 2 * p.half; // [N, 2, H/2]
    const auto low_gmem = [&](uint32_t head) { return token_gmem + head * 2 * p.half; };

    f32x8 cos = {}, sin = {};
    for (uint32_t first = group; first < p.turned; first += HEADS * groups) {
        bf16x8 low_rmem[HEADS] = {}, high_rmem[HEADS] = {};
#pragma unroll
        for (int n = 0; n < HEADS; ++n) {
            const uint32_t head = first + n * groups;
            if (head >= p.turned) continue;
            low_rmem[n] = load_chunk<VECTORS>(low_gmem(head), i, p.half);
            high_rmem[n] = load_chunk<VECTORS>(low_gmem(head) + p.half, i, p.half);
        }
        if (first == group) {
            const uint64_t angles = uint64_t(p.positions[row]) * p.half;
            cos = load_chunk<VECTORS>(p.cos + angles, i, p.half);
            sin = directed(load_chunk<VECTORS>(p.sin + angles, i, p.half), p.sign);
        }
#pragma unroll
        for (int n = 0; n < HEADS; ++n) {
            const uint32_t head = first + n * groups;
            if (head >= p.turned) continue;
            turn(low_rmem[n], high_rmem[n], cos, sin);
            store_chunk_global<VECTORS>(low_gmem(head), i, p.half, low_rmem[n]);
            store_chunk_global<VECTORS>(low_gmem(head) + p.half, i, p.half, high_rmem[n]);
        }
    }
}

} // namespace limo

using namespace limo;

extern "C" __global__ void __launch_bounds__(256, 3) rope_3(const __grid_constant__ RopeParams p) { rope_angles<true>(p); }

extern "C" __global__ void __launch_bounds__(256) rope_3_any(const __grid_constant__ RopeParams p) { rope_angles<false>(p); }
