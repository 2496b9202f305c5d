// Micro-kernels for the wrappers that compute: each writes raw words for words of input. One block.
#include "common/types.cuh"
#include "params/conformance.h"

using namespace limo;

// The word `ahead` places on, around the end.
static __device__ __forceinline__ uint32_t word(const ConformanceParams &p, uint64_t index, uint64_t ahead) {
    return p.input[(index + ahead) % p.words];
}

extern "C" __global__ void conformance_pack_bf16x2(const __grid_constant__ ConformanceParams p) {
    for (uint64_t i = threadIdx.x; i < p.words; i += blockDim.x) {
        p.output[i] = pack_bf16x2(bits_as_float(word(p, i, 0)), bits_as_float(word(p, i, 1)));
    }
}

extern "C" __global__ void conformance_unpack_bf16(const __grid_constant__ ConformanceParams p) {
    for (uint64_t i = threadIdx.x; i < p.words; i += blockDim.x) {
        p.output[i] = float_as_bits(to_float(bf16{uint16_t(word(p, i, 0) >> 16)}));
    }
}

extern "C" __global__ void conformance_multiply_add(const __grid_constant__ ConformanceParams p) {
    for (uint64_t i = threadIdx.x; i < p.words; i += blockDim.x) {
        const float a = bits_as_float(word(p, i, 0)), b = bits_as_float(word(p, i, 1)), c = bits_as_float(word(p, i, 2));
        p.output[i] = float_as_bits(multiply_add(a, b, c));
    }
}

extern "C" __global__ void conformance_reciprocal_sqrt(const __grid_constant__ ConformanceParams p) {
    for (uint64_t i = threadIdx.x; i < p.words; i += blockDim.x) {
        p.output[i] = float_as_bits(reciprocal_sqrt(bits_as_float(word(p, i, 0))));
    }
}
