// AdamW, version 2: wide accesses.
// Idea: a thread updates eight neighbours with eight 16-byte loads, all issued before the first is used: 128 bytes on their way instead of 16.
// Gain over version 1: not yet measured on a GPU.
// N elements; exact masters, moments and gradient in f32.
#include "adamw/storage.cuh"

using namespace limo;

extern "C" __global__ void __launch_bounds__(256) adamw_2(const __grid_constant__ AdamWParams p) {
    const uint64_t begin = CHUNK * (uint64_t(blockIdx.x) * blockDim.x + threadIdx.x);
    const uint32_t there = elements_there(begin, p.count);
    if (there == 0) return;
    float *m_gmem = reinterpret_cast<float *>(p.m.address) + begin, *v_gmem = reinterpret_cast<float *>(p.v.address) + begin;
    const f32x8 grad = load8(reinterpret_cast<const float *>(p.grad.address) + begin, there);
    f32x8 master = load8_masters(p, begin, there), m = load8(m_gmem, there), v = load8(v_gmem, there);
#pragma unroll
    for (int i = 0; i < 8; ++i) adamw_update(p, grad.at[i], master.at[i], m.at[i], v.at[i]);
    store8_masters<false>(p, begin, there, master);
    store8<false>(m_gmem, there, m);
    store8<false>(v_gmem, there, v);
}
