// Sums of squares, version 2, which ships: a warp a partial sum.
// Idea: 16-byte loads, eight of them issued before the first is used, and sums that stay in registers: no barrier, no shared memory, so no warp
// ever waits for another. A lane has 128 bytes on their way; 4096 elements are four such rounds.
// Gain over version 1: not yet measured on a GPU.
// N elements, W warps a block.
#include "common/warp.cuh"
#include "params/square_sums.h"

using namespace limo;

extern "C" __global__ void __launch_bounds__(256) square_sums_2(const __grid_constant__ SquareSumsParams p) {
    constexpr uint32_t LOADS = 8, ROUND = LOADS * WARP * 4;
    static_assert(SQUARE_SUMS_ELEMENTS % ROUND == 0, "whole rounds");
    const int lane = lane_index();
    const uint64_t partial = uint64_t(blockIdx.x) * (blockDim.x / WARP) + threadIdx.x / WARP;
    const uint64_t begin = partial * SQUARE_SUMS_ELEMENTS;
    if (begin >= p.count) return; // a whole warp: nobody waits for it
    const float *x_gmem = p.x + begin;
    const uint32_t there = p.count - begin < SQUARE_SUMS_ELEMENTS ? uint32_t(p.count - begin) : SQUARE_SUMS_ELEMENTS;

    float squares[4] = {};
#pragma unroll 1
    for (uint32_t round = 0; round < SQUARE_SUMS_ELEMENTS; round += ROUND) {
        vec128 x_rmem[LOADS];
#pragma unroll
        for (uint32_t load = 0; load < LOADS; ++load) {
            const uint32_t at = round + (load * WARP + lane) * 4;
            x_rmem[load] = {};
            if (at + 4 <= there) {
                x_rmem[load] = ld128_stream(x_gmem + at);
            } else {
#pragma unroll
                for (uint32_t i = 0; i < 4; ++i) {
                    if (at + i < there) x_rmem[load].at[i] = float_as_bits(x_gmem[at + i]);
                }
            }
        }
#pragma unroll
        for (uint32_t load = 0; load < LOADS; ++load) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const float x = bits_as_float(x_rmem[load].at[i]);
                squares[i] = multiply_add(x, x, squares[i]);
            }
        }
    }
    const float sum = warp_sum((squares[0] + squares[1]) + (squares[2] + squares[3]));
    if (lane == 0) p.sums[partial] = sum;
}
