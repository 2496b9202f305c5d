// Micro-kernels for the wrappers by which threads wait for and talk to one another. One block of B threads; words come in rounds of B.
#include "common/warp.cuh"
#include "params/conformance.h"

using namespace limo;

// Round r exchanges with the lane whose number differs by the bits of r.
extern "C" __global__ void conformance_shuffle_xor(const __grid_constant__ ConformanceParams p) {
    for (uint64_t first = 0; first < p.words; first += blockDim.x) {
        const uint64_t i = first + threadIdx.x;
        const int mask = int(first / blockDim.x % WARP);
        p.output[i] = float_as_bits(shuffle_xor(bits_as_float(p.input[i]), mask));
    }
}

// Round r takes the value of lane 5 · lane + r.
extern "C" __global__ void conformance_shuffle_from(const __grid_constant__ ConformanceParams p) {
    for (uint64_t first = 0; first < p.words; first += blockDim.x) {
        const uint64_t i = first + threadIdx.x;
        p.output[i] = shuffle_from(p.input[i], (5 * lane_index() + int(first / blockDim.x)) % WARP);
    }
}

// Round r votes by bit r of the words.
extern "C" __global__ void conformance_warp_ballot(const __grid_constant__ ConformanceParams p) {
    for (uint64_t first = 0; first < p.words; first += blockDim.x) {
        const uint64_t i = first + threadIdx.x;
        p.output[i] = warp_ballot(p.input[i] >> first / blockDim.x % WARP & 1);
    }
}

// Every round is reversed through shared memory, among `threads` threads starting at `first_thread`, which meet at `barrier`.
template <typename Barrier>
static __device__ __forceinline__ void reverse_rounds(const ConformanceParams &p, int first_thread, int threads, Barrier barrier) {
    SharedMemory shared;
    uint32_t *words_smem = shared.take<uint32_t>(int(blockDim.x)) + first_thread; // [B], the part of these threads
    const int thread = int(threadIdx.x) - first_thread;
    for (uint64_t first = first_thread; first < p.words; first += blockDim.x) {
        words_smem[thread] = p.input[first + thread];
        barrier(); // the wrapper under test: without it words would be read before they are written
        p.output[first + thread] = words_smem[threads - 1 - thread];
        barrier(); // and here overwritten before they are read
    }
}

extern "C" __global__ void conformance_block_barrier(const __grid_constant__ ConformanceParams p) {
    reverse_rounds(p, 0, int(blockDim.x), [] { block_barrier(); });
}

// Two groups of warps, each with its own barrier, go through their rounds without waiting for one another.
extern "C" __global__ void conformance_named_barrier(const __grid_constant__ ConformanceParams p) {
    const int threads = int(blockDim.x) / 2, group = int(threadIdx.x) / threads;
    reverse_rounds(p, group * threads, threads, [&] { named_barrier(1 + group, threads); });
}

extern "C" __global__ void conformance_warp_barrier(const __grid_constant__ ConformanceParams p) {
    reverse_rounds(p, int(threadIdx.x) / WARP * WARP, WARP, [] { warp_barrier(); });
}

// Every thread adds its word to one of 32 sums of 64 bits, which the word's last five bits choose: whose addition overflows the lower half adds one to the upper. Even
// words of the output are lower halves, odd ones upper halves.
extern "C" __global__ void conformance_atomic_add_shared(const __grid_constant__ ConformanceParams p) {
    SharedMemory shared;
    uint32_t *low_smem = shared.take<uint32_t>(WARP), *high_smem = shared.take<uint32_t>(WARP);
    for (uint64_t first = 0; first < p.words; first += blockDim.x) {
        const uint64_t i = first + threadIdx.x;
        const uint32_t word = p.input[i], sum = word % WARP;
        if (threadIdx.x < WARP) low_smem[threadIdx.x] = high_smem[threadIdx.x] = 0;
        block_barrier(); // without it additions could be lost
        const uint32_t before = atomic_add_shared(low_smem + sum, word);
        if (before + word < before) atomic_add_shared(high_smem + sum, 1);
        block_barrier(); // without it sums would be read that others still add to
        p.output[i] = i % 2 == 0 ? low_smem[sum] : high_smem[sum];
        block_barrier(); // without it the next round could clear a sum that a thread has yet to read
    }
}
