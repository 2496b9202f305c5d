// RMSNorm backward, version 3: wide accesses.
// Idea: a thread moves 16 bytes, eight elements, at a time.
// Gain over version 2: not yet measured on a GPU.
// T rows, D width, P partial sums (the grid), B threads a block, W = B/32 warps.
#include "common/warp.cuh"
#include "params/rms_norm.h"
#include "rms_norm/chunk.cuh"

namespace limo {

template <bool VECTORS> __device__ __forceinline__ void rms_norm_backward_vector(const RmsNormBackwardParams &p) {
    const int thread = int(threadIdx.x), threads = int(blockDim.x), warps = threads / WARP;
    const uint32_t first = CHUNK * thread, step = CHUNK * threads;
    float *partial_gmem = p.partials + uint64_t(blockIdx.x) * p.width; // [D] of [P, D]
    SharedMemory shared;
    float *slots_smem = shared.take<float>(2 * warps); // [2, W], used in turn

    for (uint32_t column = first; column < p.width; column += step) store_chunk<VECTORS>(partial_gmem, column, p.width, f32x8{});
    int turn = 0;
    for (uint64_t index = blockIdx.x; index < p.rows; index += gridDim.x, turn ^= 1) {
        const uint64_t row = index * p.width;
        const bf16 *dy_gmem = p.dy + row, *s_gmem = p.sum + row;
        bf16 *dsum_gmem = p.dsum + row;
        const float rstd = p.rstd[index];

        float dot = 0; // dx̂ · x̂
        for (uint32_t column = first; column < p.width; column += step) {
            const bf16x8 dy = load_chunk<VECTORS>(dy_gmem, column, p.width), s = load_chunk<VECTORS>(s_gmem, column, p.width);
            dot = add_dot(dy, s, load_chunk<VECTORS>(p.weight, column, p.width), rstd, dot);
        }
        dot = sum_over_warps(warp_sum(dot), thread / WARP, warps, slots_smem + turn * warps, [] { block_barrier(); });
        const float mean = dot / float(p.width);

        for (uint32_t column = first; column < p.width; column += step) {
            const bf16x8 dy = load_chunk<VECTORS>(dy_gmem, column, p.width), s = load_chunk<VECTORS>(s_gmem, column, p.width);
            const bf16x8 weight = load_chunk<VECTORS>(p.weight, column, p.width);
            bf16x8 above = {};
            if (p.accumulate) above = load_chunk<VECTORS>(dsum_gmem, column, p.width);
            store_chunk<VECTORS>(dsum_gmem, column, p.width, sum_gradient(dy, s, weight, rstd, mean, above));
            f32x8 partial = load_chunk<VECTORS>(partial_gmem, column, p.width);
            add_weight_gradient(dy, s, rstd, partial);
            store_chunk<VECTORS>(partial_gmem, column, p.width, partial);
        }
    }
}

} // namespace limo

using namespace limo;

extern "C" __global__ void __launch_bounds__(256) rms_norm_backward_3(const __grid_constant__ RmsNormBackwardParams p) {
    rms_norm_backward_vector<true>(p);
}

extern "C" __global__ void __launch_bounds__(256) rms_norm_backward_3_any(const __grid_constant__ RmsNormBackwardParams p) {
    rms_norm_backward_vector<false>(p);
}
