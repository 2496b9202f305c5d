// RMSNorm forward, version 3: wide accesses.
// Idea: a thread moves 16 bytes, eight elements, at a time. An eighth of the memory instructions, so an eighth of the issue slots and of
// the address arithmetic stands between the memory and the next load.
// Gain over version 2: not yet measured on a GPU.
// T rows, D width, B threads a block, W = B/32 warps.
#include "common/warp.cuh"
#include "params/rms_norm.h"
#include "rms_norm/chunk.cuh"

namespace limo {

template <bool VECTORS> __device__ __forceinline__ void rms_norm_forward_vector(const RmsNormForwardParams &p) {
    const int thread = int(threadIdx.x), threads = int(blockDim.x);
    const uint64_t row = uint64_t(blockIdx.x) * p.width;
    const bf16 *x_gmem = p.x + row, *delta_gmem = p.delta ? p.delta + row : nullptr;
    bf16 *sum_gmem = p.sum ? p.sum + row : nullptr, *y_gmem = p.y + row;
    SharedMemory shared;
    float *slots_smem = shared.take<float>(threads / WARP); // [W]

    float squares = 0;
    for (uint32_t column = CHUNK * thread; column < p.width; column += CHUNK * threads) {
        bf16x8 s = load_chunk<VECTORS>(x_gmem, column, p.width);
        if (delta_gmem) {
            s = add_chunks(s, load_chunk<VECTORS>(delta_gmem, column, p.width));
            store_chunk<VECTORS>(sum_gmem, column, p.width, s);
        }
        squares = add_squares(s, squares);
    }
    squares = sum_over_warps(warp_sum(squares), thread / WARP, threads / WARP, slots_smem, [] { block_barrier(); });
    const float rstd = reciprocal_sqrt(squares / float(p.width) + p.eps);
    if (thread == 0) p.rstd[blockIdx.x] = rstd;

    const bf16 *s_gmem = delta_gmem ? sum_gmem : x_gmem;
    for (uint32_t column = CHUNK * thread; column < p.width; column += CHUNK * threads) {
        const bf16x8 s = load_chunk<VECTORS>(s_gmem, column, p.width);
        const bf16x8 weight = load_chunk<VECTORS>(p.weight, column, p.width);
        store_chunk<VECTORS>(y_gmem, column, p.width, scale_chunk(s, rstd, weight));
    }
}

} // namespace limo

using namespace limo;

extern "C" __global__ void __launch_bounds__(256) rms_norm_forward_3(const __grid_constant__ RmsNormForwardParams p) {
    rms_norm_forward_vector<true>(p);
}

extern "C" __global__ void __launch_bounds__(256) rms_norm_forward_3_any(const __grid_constant__ RmsNormForwardParams p) {
    rms_norm_forward_vector<false>(p);
}
