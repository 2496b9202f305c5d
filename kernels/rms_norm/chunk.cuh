// What RMSNorm does to a chunk of eight columns: the contract's arithmetic, once for all vector versions.
#pragma once
#include "common/row.cuh"

namespace limo {

// x + delta as it is stored.
__device__ __forceinline__ bf16x8 add_chunks(const bf16x8 &x, const bf16x8 &delta) {
    f32x8 sum = to_float(x);
    const f32x8 addend = to_float(delta);
#pragma unroll
    for (int i = 0; i < 8; ++i) sum.at[i] += addend.at[i];
    return to_bf16(sum);
}

// `squares` plus the squares of a chunk, column by column.
__device__ __forceinline__ float add_squares(const bf16x8 &chunk, float squares) {
    const f32x8 s = to_float(chunk);
#pragma unroll
    for (int i = 0; i < 8; ++i) squares = multiply_add(s.at[i], s.at[i], squares);
    return squares;
}

// round(s · rstd): the normalised values, as they met the weight.
__device__ __forceinline__ f32x8 normalise(const bf16x8 &s, float rstd) {
    f32x8 normalised = to_float(s);
#pragma unroll
    for (int i = 0; i < 8; ++i) normalised.at[i] *= rstd;
    return to_float(to_bf16(normalised));
}

// y = round(s · rstd) · weight
__device__ __forceinline__ bf16x8 scale_chunk(const bf16x8 &s, float rstd, const bf16x8 &weight) {
    f32x8 y = normalise(s, rstd);
    const f32x8 w = to_float(weight);
#pragma unroll
    for (int i = 0; i < 8; ++i) y.at[i] *= w.at[i];
    return to_bf16(y);
}

// `dot` plus dx̂ · x̂ of a chunk, where dx̂ = dy · weight and x̂ = s · rstd.
__device__ __forceinline__ float add_dot(const bf16x8 &dy, const bf16x8 &s, const bf16x8 &weight, float rstd, float dot) {
    const f32x8 g = to_float(dy), x = to_float(s), w = to_float(weight);
#pragma unroll
    for (int i = 0; i < 8; ++i) dot = multiply_add(g.at[i] * w.at[i], x.at[i] * rstd, dot);
    return dot;
}

// above + rstd · (dx̂ − x̂ · mean): the gradient of s. `above` is zero where nothing is accumulated.
__device__ __forceinline__ bf16x8 sum_gradient(const bf16x8 &dy, const bf16x8 &s, const bf16x8 &weight, float rstd, float mean,
                                               const bf16x8 &above) {
    const f32x8 g = to_float(dy), x = to_float(s), w = to_float(weight);
    f32x8 gradient = to_float(above);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        gradient.at[i] = multiply_add(rstd, multiply_add(-(x.at[i] * rstd), mean, g.at[i] * w.at[i]), gradient.at[i]);
    }
    return to_bf16(gradient);
}

// `total` plus an addend, column by column.
__device__ __forceinline__ void add_chunk(f32x8 &total, const f32x8 &addend) {
#pragma unroll
    for (int i = 0; i < 8; ++i) total.at[i] += addend.at[i];
}

// `total` plus dy · round(x̂): what a row adds to dweight.
__device__ __forceinline__ void add_weight_gradient(const bf16x8 &dy, const bf16x8 &s, float rstd, f32x8 &total) {
    const f32x8 g = to_float(dy), normalised = normalise(s, rstd);
#pragma unroll
    for (int i = 0; i < 8; ++i) total.at[i] = multiply_add(g.at[i], normalised.at[i], total.at[i]);
}

} // namespace limo
