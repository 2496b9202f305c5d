// SwiGLU's arithmetic, once for all versions.
#pragma once
#include "common/types.cuh"

namespace limo {

// 1 / (1 + e⁻ˣ), as t / (1 + t) or 1 / (1 + t) with t = e^−|x| ≤ 1: nothing overflows, for no x. The relative error is at most
// (|x| + 4) · 2⁻²³, most of it from rounding x · log₂ e; below x = −87.3 the result is 0.
__device__ __forceinline__ float sigmoid(float x) {
    const float t = exp2_approximate(LOG2_E * (x < 0 ? x : -x));
    const float r = reciprocal_approximate(1.0f + t);
    return x < 0 ? t * r : r;
}

// silu(gate) · up, rounded once, by whoever stores it.
__device__ __forceinline__ float gated(float gate, float up) { return gate * sigmoid(gate) * up; }

// The gradients of gate and up: silu' = s + silu · (1 − s).
struct GateGradient {
    float gate, up;
};
__device__ __forceinline__ GateGradient gate_gradient(float gate, float up, float dout) {
    const float s = sigmoid(gate), silu = gate * s;
    return {dout * up * multiply_add(silu, 1.0f - s, s), dout * silu};
}

__device__ __forceinline__ bf16x8 gated(const bf16x8 &gate, const bf16x8 &up) {
    f32x8 g = to_float(gate);
    const f32x8 u = to_float(up);
#pragma unroll
    for (int i = 0; i < 8; ++i) g.at[i] = gated(g.at[i], u.at[i]);
    return to_bf16(g);
}

} // namespace limo
