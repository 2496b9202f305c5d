// Attention forward, version 1: naive.
// Idea: a warp a query and head. Each lane scores a key of its own, 32 keys at a time; a running softmax weighs them; then all lanes walk
// over the 32 values together, each adding to its own columns of the result. Nothing is kept but one row, so memory is linear already.
// Gain: the baseline. Not yet measured on a GPU.
// T tokens, S sequences, Q query heads, K key/value heads, H columns of a head.
#include "attention/forward.cuh"

namespace limo {

template <int DIM> __device__ __forceinline__ void attention_forward_naive(const AttentionForwardParams &p) {
    constexpr int WARPS = 8, COLUMNS = DIM / WARP; // of a lane
    const int lane = lane_index(), warp = int(threadIdx.x) / WARP;
    const ForwardWork<1, DIM> work(p, blockIdx.x * WARPS + warp);
    if (work.queries == 0) return; // a whole warp: nobody waits for it

    SharedMemory shared;
    float *q_smem = shared.take<float>(WARPS * DIM) + warp * DIM; // [H] of [8, H]
    for (int i = lane; i < DIM; i += WARP) q_smem[i] = to_float(work.q_gmem[i]) * exponent_scale(p);
    warp_barrier(); // without it a lane would read columns that others have not written

    float highest = minus_infinity(), sum = 0, out_rmem[COLUMNS] = {};
    for (uint32_t base = 0; base < work.keys; base += WARP) {
        const uint32_t count = work.keys - base < WARP ? work.keys - base : WARP;
        float score = minus_infinity();
        if (uint32_t(lane) < count) {
            const bf16 *k_gmem = work.k_gmem + (base + lane) * work.qkv_stride;
            score = 0;
            for (int i = 0; i < DIM; ++i) score = multiply_add(q_smem[i], to_float(k_gmem[i]), score);
        }
        const float now = maximum(highest, warp_max(score));
        const float weight = exp2_approximate(score - now);
        const float rescale = exp2_approximate(highest - now); // what was added up so far was relative to a lower score
        highest = now;
        sum = multiply_add(sum, rescale, warp_sum(weight));
        for (float &out : out_rmem) out *= rescale;
        for (uint32_t i = 0; i < count; ++i) {
            const float shared_weight = bits_as_float(shuffle_from(float_as_bits(weight), int(i)));
            const bf16 *v_gmem = work.v_gmem + (base + i) * work.qkv_stride + lane * COLUMNS;
            for (int j = 0; j < COLUMNS; ++j) out_rmem[j] = multiply_add(shared_weight, to_float(v_gmem[j]), out_rmem[j]);
        }
    }
    for (int j = 0; j < COLUMNS; ++j) work.out_gmem(p, 0)[lane * COLUMNS + j] = to_bf16(out_rmem[j] / sum);
    if (lane == 0) *work.lse_gmem(p, 0) = log_sum_exp(highest, sum);
}

} // namespace limo

using namespace limo;

extern "C" __global__ void __launch_bounds__(256, 4) attention_forward_1_64(const __grid_constant__ AttentionForwardParams p) {
    attention_forward_naive<64>(p);
}

extern "C" __global__ void __launch_bounds__(256, 4) attention_forward_1_128(const __grid_constant__ AttentionForwardParams p) {
    attention_forward_naive<128>(p);
}
