// RoPE, version 2: wide accesses.
// Idea: a thread takes eight pairs, 16 bytes of either half of a head.
// Gain over version 1: not yet measured on a GPU.
// T tokens (the grid), H head dimension, N turned heads.
#include "common/row.cuh"
#include "params/rope.h"
#include "rope/turn.cuh"

namespace limo {

template <bool VECTORS> __device__ __forceinline__ void rope_vector(const RopeParams &p) {
    const uint64_t angles = uint64_t(p.positions[blockIdx.x]) * p.half;
    const float *cos_gmem = p.cos + angles, *sin_gmem = p.sin + angles;
    bf16 *token_gmem = p.qkv + uint64_t(blockIdx.x) * p.fused * 2 * p.half; // [N, 2, H/2]
    const uint32_t chunks = (p.half + CHUNK - 1) / CHUNK;                    // of half a head
    for (uint32_t chunk = threadIdx.x; chunk < p.turned * chunks; chunk += blockDim.x) {
        const uint32_t head = chunk / chunks, i = (chunk - head * chunks) * CHUNK;
        bf16 *low_gmem = token_gmem + head * 2 * p.half, *high_gmem = low_gmem + p.half;
        bf16x8 low = load_chunk<VECTORS>(low_gmem, i, p.half), high = load_chunk<VECTORS>(high_gmem, i, p.half);
        const f32x8 sin = directed(load_chunk<VECTORS>(sin_gmem, i, p.half), p.sign);
        turn(low, high, load_chunk<VECTORS>(cos_gmem, i, p.half), sin);
        store_chunk_global<VECTORS>(low_gmem, i, p.half, low);
        store_chunk_global<VECTORS>(high_gmem, i, p.half, high);
    }
}

} // namespace limo

using namespace limo;

extern "C" __global__ void __launch_bounds__(256) rope_2(const __grid_constant__ RopeParams p) { rope_vector<true>(p); }

extern "C" __global__ void __launch_bounds__(256) rope_2_any(const __grid_constant__ RopeParams p) { rope_vector<false>(p); }
