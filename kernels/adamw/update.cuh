// AdamW of one element, and how a parameter is stored: the contract's arithmetic, once for all versions.
#pragma once
#include "common/stochastic.cuh"
#include "params/adamw.h"

namespace limo {

// The update in f32, in the order of operations of torch.optim.AdamW.
__device__ __forceinline__ void adamw_update(const AdamWParams &p, float grad, float &param, float &m, float &v) {
    const float g = grad * p.grad_scale;
    m += p.rest1 * (g - m);
    v = v * p.beta2 + p.rest2 * g * g;
    const float denominator = square_root(v) / p.v_root + p.eps;
    param = param * p.decay - p.step_size * (m / denominator);
}

// The f32 master of a bf16 parameter and its remainder. The parameter is the upper half, one more where the remainder rounds up.
__device__ __forceinline__ float join_master(uint32_t param, uint32_t remainder) {
    return bits_as_float((param - (remainder >> 15)) << 16 | remainder);
}

// The bits of a master; its lower half is the remainder. No half of what is no number looks like one.
__device__ __forceinline__ uint32_t master_bits(float master) { return master == master ? float_as_bits(master) : QUIET_NAN; }

// The bf16 parameter of a master's bits.
__device__ __forceinline__ uint32_t rounded_half(uint32_t master) { return (master >> 16) + (master >> 15 & 1); }

} // namespace limo
