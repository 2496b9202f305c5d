// AdamW, version 3, which ships: fewer bytes, and none kept.
// Idea: nothing here is read twice, so stores leave the caches first (st128_stream). And the fewest bytes are those that do not exist: moments in
// bf16 or 8 bits, parameters without remainders, bf16 gradients. One pass for all: a warp holds a block of 256 elements, so the
// scale of 8-bit moments is a maximum over its lanes, and no element is visited twice.
// Gain over version 2: not yet measured on a GPU.
// N elements, eight a lane.
#include "adamw/eight_bits.cuh"

namespace limo {

// The moments of eight elements in f32 or bf16.
template <typename T> struct Moments {
    static __device__ __forceinline__ void load(const AdamWParams &p, uint64_t begin, uint32_t there, f32x8 &m, f32x8 &v) {
        m = load8(reinterpret_cast<const T *>(p.m.address) + begin, there);
        v = load8(reinterpret_cast<const T *>(p.v.address) + begin, there);
    }
    static __device__ __forceinline__ void store(const AdamWParams &p, uint64_t begin, uint32_t there, const f32x8 &m, const f32x8 &v,
                                                 const Draws &draws) {
        T *m_gmem = reinterpret_cast<T *>(p.m.address) + begin, *v_gmem = reinterpret_cast<T *>(p.v.address) + begin;
        if constexpr (sizeof(T) == 4) {
            store8<true>(m_gmem, there, m);
            store8<true>(v_gmem, there, v);
        } else {
            store8<true>(m_gmem, there, round8_stochastically(m, [&](int i) { return draws.m(i); }));
            store8<true>(v_gmem, there, round8_stochastically(v, [&](int i) { return draws.v(i); }));
        }
    }
};

// In 8 bits.
template <> struct Moments<uint8_t> {
    static __device__ __forceinline__ void load(const AdamWParams &p, uint64_t begin, uint32_t there, f32x8 &m, f32x8 &v) {
        const float m_scale = p.m_scales[begin / ADAMW_BLOCK], v_scale = p.v_scales[begin / ADAMW_BLOCK];
        const codes8 m_codes = load8_codes(p.m + begin, there), v_codes = load8_codes(p.v + begin, there);
        m = decode8<false>(m_codes, m_scale); // only now: decoding waits for its load, and would keep the next from being issued
        v = decode8<true>(v_codes, v_scale);
    }
    static __device__ __forceinline__ void store(const AdamWParams &p, uint64_t begin, uint32_t there, const f32x8 &m, const f32x8 &v,
                                                 const Draws &draws) {
        const uint64_t block = begin / ADAMW_BLOCK;
        warp_barrier(); // without it a lane could still have to read the scales that lane 0 replaces
        store8_codes<false>(p.m + begin, p.m_scales + block, there, m, [&](int i) { return draws.m(i); });
        store8_codes<true>(p.v + begin, p.v_scales + block, there, v, [&](int i) { return draws.v(i); });
    }
};

// State: float, bf16 or uint8_t. EXACT: parameters have remainders. Grad: float or bf16.
template <typename State, bool EXACT, typename Grad> __device__ __forceinline__ void adamw_stream(const AdamWParams &p) {
    const uint64_t begin = CHUNK * (uint64_t(blockIdx.x) * blockDim.x + threadIdx.x);
    if (begin / ADAMW_BLOCK * ADAMW_BLOCK >= p.count) return; // a whole warp: nobody waits for it
    const uint32_t there = elements_there(begin, p.count);
    const f32x8 grad = load8(reinterpret_cast<const Grad *>(p.grad.address) + begin, there);
    f32x8 param = EXACT ? load8_masters(p, begin, there) : load8(p.param + begin, there);
    f32x8 m, v;
    Moments<State>::load(p, begin, there, m, v);
    Draws draws;
    if constexpr (!EXACT || sizeof(State) < 4) draws = draw8(p, begin); // while the loads are on their way
#pragma unroll
    for (int i = 0; i < 8; ++i) adamw_update(p, grad.at[i], param.at[i], m.at[i], v.at[i]);
    if constexpr (EXACT) {
        store8_masters<true>(p, begin, there, param);
    } else {
        store8<true>(p.param + begin, there, round8_stochastically(param, [&](int i) { return draws.param(i); }));
    }
    Moments<State>::store(p, begin, there, m, v, draws);
}

} // namespace limo

using namespace limo;

// adamw_3_<moments>_<master>_<gradient>
extern "C" __global__ void __launch_bounds__(256) adamw_3_f32_exact_f32(const __grid_constant__ AdamWParams p) {
    adamw_stream<float, true, float>(p);
}
extern "C" __global__ void __launch_bounds__(256) adamw_3_f32_exact_bf16(const __grid_constant__ AdamWParams p) {
    adamw_stream<float, true, bf16>(p);
}
extern "C" __global__ void __launch_bounds__(256) adamw_3_f32_stochastic_f32(const __grid_constant__ AdamWParams p) {
    adamw_stream<float, false, float>(p);
}
extern "C" __global__ void __launch_bounds__(256) adamw_3_f32_stochastic_bf16(const __grid_constant__ AdamWParams p) {
    adamw_stream<float, false, bf16>(p);
}
extern "C" __global__ void __launch_bounds__(256) adamw_3_bf16_exact_f32(const __grid_constant__ AdamWParams p) {
    adamw_stream<bf16, true, float>(p);
}
extern "C" __global__ void __launch_bounds__(256) adamw_3_bf16_exact_bf16(const __grid_constant__ AdamWParams p) {
    adamw_stream<bf16, true, bf16>(p);
}
extern "C" __global__ void __launch_bounds__(256) adamw_3_bf16_stochastic_f32(const __grid_constant__ AdamWParams p) {
    adamw_stream<bf16, false, float>(p);
}
extern "C" __global__ void __launch_bounds__(256) adamw_3_bf16_stochastic_bf16(const __grid_constant__ AdamWParams p) {
    adamw_stream<bf16, false, bf16>(p);
}
extern "C" __global__ void __launch_bounds__(256) adamw_3_int8_exact_f32(const __grid_constant__ AdamWParams p) {
    adamw_stream<uint8_t, true, float>(p);
}
extern "C" __global__ void __launch_bounds__(256) adamw_3_int8_exact_bf16(const __grid_constant__ AdamWParams p) {
    adamw_stream<uint8_t, true, bf16>(p);
}
extern "C" __global__ void __launch_bounds__(256) adamw_3_int8_stochastic_f32(const __grid_constant__ AdamWParams p) {
    adamw_stream<uint8_t, false, float>(p);
}
extern "C" __global__ void __launch_bounds__(256) adamw_3_int8_stochastic_bf16(const __grid_constant__ AdamWParams p) {
    adamw_stream<uint8_t, false, bf16>(p);
}
