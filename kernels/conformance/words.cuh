// What micro-kernels share: words of input, and loops over them.
#pragma once
#include "common/types.cuh"
#include "params/conformance.h"

namespace limo {

// The word `ahead` places on, around the end.
static __device__ __forceinline__ uint32_t word(const ConformanceParams &p, uint64_t index, uint64_t ahead = 0) {
    return p.input[(index + ahead) % p.words];
}

static __device__ __forceinline__ float value(const ConformanceParams &p, uint64_t index, uint64_t ahead = 0) {
    return bits_as_float(word(p, index, ahead));
}

// Word i of the output is `of(i)`. One block.
template <typename Of> static __device__ __forceinline__ void write_words(const ConformanceParams &p, Of of) {
    for (uint64_t i = threadIdx.x; i < p.words; i += blockDim.x) p.output[i] = of(i);
}

} // namespace limo
