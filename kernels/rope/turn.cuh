// RoPE's arithmetic, once for all versions. Products are rounded before they are added, as the CPU backend does.
#pragma once
#include "common/types.cuh"

namespace limo {

// (x, y) → (x · cos − y · sin, y · cos + x · sin)
__device__ __forceinline__ void turn(float &x, float &y, float cos, float sin) {
    const float turned = x * cos - y * sin;
    y = y * cos + x * sin;
    x = turned;
}

// Eight neighbours of either half of a head.
__device__ __forceinline__ void turn(bf16x8 &low, bf16x8 &high, const f32x8 &cos, const f32x8 &sin) {
    f32x8 x = to_float(low), y = to_float(high);
#pragma unroll
    for (int i = 0; i < 8; ++i) turn(x.at[i], y.at[i], cos.at[i], sin.at[i]);
    low = to_bf16(x);
    high = to_bf16(y);
}

// The angles' sines for a direction: turning back negates them.
__device__ __forceinline__ f32x8 directed(f32x8 sin, float sign) {
#pragma unroll
    for (int i = 0; i < 8; ++i) sin.at[i] *= sign;
    return sin;
}

} // namespace limo
