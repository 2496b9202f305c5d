// Micro-kernels for asynchronous copies. One block of B threads; words come in rounds of 4B, 16 bytes a thread.
#include "common/warp.cuh"
#include "conformance/words.cuh"

using namespace limo;

// Copies run PENDING rounds ahead, through PENDING + 1 buffers. Every round is written in reverse order of its chunks, so that threads read what
// others copied; of every fifth chunk zeros are asked for.
template <int PENDING> static __device__ __forceinline__ void copy_rounds(const ConformanceParams &p) {
    constexpr int BUFFERS = PENDING + 1;
    const int threads = int(blockDim.x), thread = int(threadIdx.x);
    SharedMemory shared;
    uint32_t *words_smem = shared.take<uint32_t>(4 * threads * BUFFERS); // [BUFFERS, B, 4]
    const int rounds = int(p.words) / (4 * threads);
    const auto start = [&](int round) {
        const uint64_t chunk = uint64_t(round) * threads + thread;
        if (round < rounds) copy_async(words_smem + 4 * (round % BUFFERS * threads + thread), p.input + 4 * chunk, chunk % 5 != 0);
        copy_async_commit(); // one group a round, empty ones too, so that their number says which rounds are there
    };
    for (int round = 0; round < PENDING; ++round) start(round);
    for (int round = 0; round < rounds; ++round) {
        block_barrier(); // others have read the buffer that is filled next
        start(round + PENDING);
        copy_async_wait<PENDING>();
        block_barrier(); // what others copied is there
        const vec128 words = ld128(words_smem + 4 * (round % BUFFERS * threads + threads - 1 - thread));
        st128(p.output + 4 * (uint64_t(round) * threads + thread), words);
    }
    copy_async_wait<0>();
}

extern "C" __global__ void conformance_copy_async(const __grid_constant__ ConformanceParams p) { copy_rounds<0>(p); }

extern "C" __global__ void conformance_copy_async_wait(const __grid_constant__ ConformanceParams p) { copy_rounds<2>(p); }
