// AdamW, version 1: naive.
// Idea: a thread an element. Everything is read once and written once already; what is lost is that a thread has 16 bytes on their way.
// Gain: the baseline. Not yet measured on a GPU.
// N elements; exact masters, moments and gradient in f32.
#include "adamw/update.cuh"

using namespace limo;

extern "C" __global__ void __launch_bounds__(256) adamw_1(const __grid_constant__ AdamWParams p) {
    const uint64_t i = uint64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= p.count) return;
    const float grad = reinterpret_cast<const float *>(p.grad.address)[i];
    float &m_gmem = reinterpret_cast<float *>(p.m.address)[i], &v_gmem = reinterpret_cast<float *>(p.v.address)[i];
    float master = join_master(p.param[i].bits, p.remainder[i]), m = m_gmem, v = v_gmem;
    adamw_update(p, grad, master, m, v);
    const uint32_t bits = master_bits(master);
    p.param[i] = {uint16_t(rounded_half(bits))};
    p.remainder[i] = uint16_t(bits);
    m_gmem = m;
    v_gmem = v;
}
