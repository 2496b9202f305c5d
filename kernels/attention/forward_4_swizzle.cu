// Attention forward, version 4: swizzled tiles, asynchronous copies.
// Idea: what goes in and out of shared memory takes the short way. Tiles are swizzled, so that the eight rows of a matrix that ldmatrix
// loads lie in different banks: one pass instead of eight. Copies are 16-byte asynchronous ones, past registers and L1, and all of them
// are under way before the first is waited for.
// Gain over version 3: not yet measured on a GPU.
// R queries and U keys a tile, H columns of a head.
#include "attention/forward.cuh"

namespace limo {

template <int DIM> __device__ __forceinline__ void attention_forward_swizzle(const AttentionForwardParams &p) {
    constexpr int WARPS = 4, ROWS = 16 * WARPS, KEYS = 64, THREADS = WARPS * WARP;
    const ForwardWork<ROWS, DIM> work(p, blockIdx.x);
    if (work.queries == 0) return;
    const uint32_t row = threadIdx.x / WARP * 16; // the warp's first query
    const float scale = exponent_scale(p);

    SharedMemory shared;
    const Tile<ROWS, DIM> q{shared.take<bf16>(ROWS * DIM)};                                  // [R, H]
    const Tile<KEYS, DIM> k{shared.take<bf16>(KEYS * DIM)}, v{shared.take<bf16>(KEYS * DIM)}; // [U, H]
    const auto own = q.template part<16>(row); // the warp's queries
    copy_tile_async<THREADS>(q, work.q_gmem, work.qkv_stride, work.queries);

    Accumulator<1, DIM / 8> out = {};
    RunningSoftmax<1> softmax;
    for (uint32_t key = 0; key < work.keys; key += KEYS) {
        block_barrier(); // without it a warp may still read the keys and values that are overwritten here
        copy_tile_async<THREADS>(k, work.k_gmem + key * work.qkv_stride, work.qkv_stride, work.keys - key);
        copy_tile_async<THREADS>(v, work.v_gmem + key * work.qkv_stride, work.qkv_stride, work.keys - key);
        copy_async_commit();
        copy_async_wait<0>();
        block_barrier(); // without it a warp would load fragments of rows whose copies others have not waited for

        Accumulator<1, KEYS / 8> s = {};
        multiply_transposed(s, own, 0, k);
        s.for_each([&](float &score, uint32_t i, uint32_t j) {
            score = key + j <= work.first + row + i ? score * scale : minus_infinity();
        });
        softmax.update(s, out);
        multiply(out, s, v);
    }
    finish(p, work, out, softmax, own, row);
}

} // namespace limo

using namespace limo;

extern "C" __global__ void __launch_bounds__(128, 3) attention_forward_4_64(const __grid_constant__ AttentionForwardParams p) {
    attention_forward_swizzle<64>(p);
}

extern "C" __global__ void __launch_bounds__(128, 2) attention_forward_4_128(const __grid_constant__ AttentionForwardParams p) {
    attention_forward_swizzle<128>(p);
}
