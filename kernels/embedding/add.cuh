// The one addition of the embedding's gradient.
#pragma once
#include "common/types.cuh"

namespace limo {

// total += row, in f32.
__device__ __forceinline__ void add_chunk(f32x8 &total, const bf16x8 &row) {
    const f32x8 addend = to_float(row);
#pragma unroll
    for (int i = 0; i < 8; ++i) total.at[i] += addend.at[i];
}

} // namespace limo
