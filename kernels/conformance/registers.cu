// Micro-kernels for the wrappers that compute: each writes raw words for words of input. One block.
#include "conformance/words.cuh"

using namespace limo;

extern "C" __global__ void conformance_pack_bf16x2(const __grid_constant__ ConformanceParams p) {
    write_words(p, [&](uint64_t i) { return pack_bf16x2(value(p, i), value(p, i, 1)); });
}

extern "C" __global__ void conformance_unpack_bf16(const __grid_constant__ ConformanceParams p) {
    write_words(p, [&](uint64_t i) { return float_as_bits(to_float(bf16{uint16_t(word(p, i) >> 16)})); });
}

extern "C" __global__ void conformance_multiply_add(const __grid_constant__ ConformanceParams p) {
    write_words(p, [&](uint64_t i) { return float_as_bits(multiply_add(value(p, i), value(p, i, 1), value(p, i, 2))); });
}

extern "C" __global__ void conformance_reciprocal_sqrt(const __grid_constant__ ConformanceParams p) {
    write_words(p, [&](uint64_t i) { return float_as_bits(reciprocal_sqrt(value(p, i))); });
}

extern "C" __global__ void conformance_multiply_high(const __grid_constant__ ConformanceParams p) {
    write_words(p, [&](uint64_t i) { return multiply_high(word(p, i), word(p, i, 1)); });
}

extern "C" __global__ void conformance_square_root(const __grid_constant__ ConformanceParams p) {
    write_words(p, [&](uint64_t i) { return float_as_bits(square_root(value(p, i))); });
}

// With the word 32 places on: for the first words, the number of the other sign.
extern "C" __global__ void conformance_maximum(const __grid_constant__ ConformanceParams p) {
    write_words(p, [&](uint64_t i) { return float_as_bits(maximum(value(p, i), value(p, i, WARP))); });
}

// Even words are below 1, where little would be tested.
extern "C" __global__ void conformance_exp2_approximate(const __grid_constant__ ConformanceParams p) {
    write_words(p, [&](uint64_t i) { return float_as_bits(exp2_approximate(i % 2 == 0 ? 160.0f * value(p, i) : value(p, i))); });
}

extern "C" __global__ void conformance_log2_approximate(const __grid_constant__ ConformanceParams p) {
    write_words(p, [&](uint64_t i) { return float_as_bits(log2_approximate(i % 2 == 0 ? 2.0f * value(p, i) : value(p, i))); });
}

extern "C" __global__ void conformance_reciprocal_approximate(const __grid_constant__ ConformanceParams p) {
    write_words(p, [&](uint64_t i) { return float_as_bits(reciprocal_approximate(value(p, i))); });
}

extern "C" __global__ void conformance_forget(const __grid_constant__ ConformanceParams p) {
    for (uint64_t i = 4 * threadIdx.x; i < p.words; i += 4 * blockDim.x) {
        vec128 words = ld128(p.input + i);
        forget(words);
        st128(p.output + i, words);
    }
}
