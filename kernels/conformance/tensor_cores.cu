// Micro-kernels for tensor cores and the loads that feed them. One block; every warp takes rounds of 128 words.
#include "common/warp.cuh"
#include "conformance/words.cuh"

using namespace limo;

// Output words of a round: a 16 × 8 matrix, or four registers of 32 lanes.
constexpr int ROUND = 128;

template <typename Of> static __device__ __forceinline__ void each_round(const ConformanceParams &p, Of of) {
    const uint64_t warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    for (uint64_t first = warp * ROUND; first < p.words; first += warps * ROUND) of(first);
}

// Row i % 8 of matrix i / 8 is the 16 bytes of lane i. Every lane points at another one's row, and writes its four registers side by side.
template <typename Load> static __device__ __forceinline__ void load_matrices(const ConformanceParams &p, Load load) {
    const int lane = lane_index(), warp = int(threadIdx.x) / WARP;
    SharedMemory shared;
    uint32_t *rows_smem = shared.take<uint32_t>(4 * int(blockDim.x)) + warp * ROUND; // [32, 4]
    each_round(p, [&](uint64_t first) {
        st128(rows_smem + 4 * lane, ld128(p.input + first + 4 * lane));
        warp_barrier(); // the rows are there before others load them
        uint32_t fragment[4];
        load(fragment, rows_smem + 4 * ((5 * lane + 3) % WARP));
        for (int i = 0; i < 4; ++i) p.output[first + 4 * lane + i] = fragment[i];
        warp_barrier(); // and have been loaded before the next ones replace them
    });
}

extern "C" __global__ void conformance_ldmatrix_x4(const __grid_constant__ ConformanceParams p) {
    load_matrices(p, [](uint32_t (&fragment)[4], const void *row) { ldmatrix_x4(fragment, row); });
}

extern "C" __global__ void conformance_ldmatrix_x4_transposed(const __grid_constant__ ConformanceParams p) {
    load_matrices(p, [](uint32_t (&fragment)[4], const void *row) { ldmatrix_x4_transposed(fragment, row); });
}

// The matrices of the round at word `first`: a from there on, [16, 16], then b, [16, 8], then d, [16, 8]. `number` makes a value of a word.
template <typename Number> static __device__ __forceinline__ void multiply(const ConformanceParams &p, Number number) {
    const int group = lane_index() / 4, pair = lane_index() % 4 * 2;
    each_round(p, [&](uint64_t first) {
        const auto a_at = [&](int row, int column) { return number(word(p, first, 16 * row + column)); };
        const auto b_at = [&](int row, int column) { return number(word(p, first, 256 + 8 * row + column)); };
        uint32_t a[4], b[2];
        float d[4];
        for (int i = 0; i < 4; ++i) {
            const int row = group + i % 2 * 8, column = pair + i / 2 * 8;
            a[i] = pack_bf16x2(a_at(row, column), a_at(row, column + 1));
        }
        for (int i = 0; i < 2; ++i) b[i] = pack_bf16x2(b_at(pair + 8 * i, group), b_at(pair + 8 * i + 1, group));
        for (int i = 0; i < 4; ++i) d[i] = number(word(p, first, 384 + 8 * (group + i / 2 * 8) + pair + i % 2));
        mma_m16n8k16(d, a, b);
        for (int i = 0; i < 4; ++i) p.output[first + 8 * (group + i / 2 * 8) + pair + i % 2] = float_as_bits(d[i]);
    });
}

// Integers from -8 to 7: every sum is exact, so only the places of elements matter.
extern "C" __global__ void conformance_mma_integers(const __grid_constant__ ConformanceParams p) {
    multiply(p, [](uint32_t word) { return float(int(word % 16) - 8); });
}

// Multiples of 1/128 in [-1, 1), which bf16 holds, times a power of two from 1 to 128.
extern "C" __global__ void conformance_mma_fractions(const __grid_constant__ ConformanceParams p) {
    multiply(p, [](uint32_t word) { return float(int(word % 256) - 128) / 128.0f * float(1 << (word >> 8) % 8); });
}
