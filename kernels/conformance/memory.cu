// Micro-kernels for the wrappers that move bytes: the output is the input, or where shared memory lies. One block.
#include "common/warp.cuh"
#include "params/conformance.h"

using namespace limo;

extern "C" __global__ void conformance_ld128(const __grid_constant__ ConformanceParams p) {
    for (uint64_t i = 4 * threadIdx.x; i < p.words; i += 4 * blockDim.x) {
        const vec128 words = ld128(p.input + i);
        for (int j = 0; j < 4; ++j) p.output[i + j] = words.at[j];
    }
}

extern "C" __global__ void conformance_ld128_stream(const __grid_constant__ ConformanceParams p) {
    for (uint64_t i = 4 * threadIdx.x; i < p.words; i += 4 * blockDim.x) {
        const vec128 words = ld128_stream(p.input + i);
        for (int j = 0; j < 4; ++j) p.output[i + j] = words.at[j];
    }
}

extern "C" __global__ void conformance_st128(const __grid_constant__ ConformanceParams p) {
    for (uint64_t i = 4 * threadIdx.x; i < p.words; i += 4 * blockDim.x) {
        vec128 words;
        for (int j = 0; j < 4; ++j) words.at[j] = p.input[i + j];
        st128(p.output + i, words);
    }
}

extern "C" __global__ void conformance_st128_global(const __grid_constant__ ConformanceParams p) {
    for (uint64_t i = 4 * threadIdx.x; i < p.words; i += 4 * blockDim.x) {
        vec128 words;
        for (int j = 0; j < 4; ++j) words.at[j] = p.input[i + j];
        st128_global(p.output + i, words);
    }
}

extern "C" __global__ void conformance_st128_stream(const __grid_constant__ ConformanceParams p) {
    for (uint64_t i = 4 * threadIdx.x; i < p.words; i += 4 * blockDim.x) {
        vec128 words;
        for (int j = 0; j < 4; ++j) words.at[j] = p.input[i + j];
        st128_stream(p.output + i, words);
    }
}

// Even words: where the base lies within 1024 bytes. Odd words: a value that went through the last carved element.
extern "C" __global__ void conformance_shared_base(const __grid_constant__ ConformanceParams p) {
    SharedMemory shared;
    shared.take<float>(3); // rounds up to 16 bytes
    uint32_t *words_smem = shared.take<uint32_t>(int(blockDim.x));
    const uint64_t before = reinterpret_cast<uint64_t>(words_smem) - reinterpret_cast<uint64_t>(shared_base());
    for (uint64_t i = threadIdx.x; i < p.words; i += blockDim.x) {
        words_smem[threadIdx.x] = p.input[i];
        p.output[i] = i % 2 ? words_smem[threadIdx.x] : uint32_t(reinterpret_cast<uint64_t>(shared_base()) % 1024 + before);
    }
}
