// Attention forward, version 7: 32 queries a warp; ships.
// Idea: a fragment of keys or values that was loaded from shared memory multiplies two fragments of queries instead of one. At
// 16 queries a warp, loading takes longer than multiplying: 288 clocks to 256 for 64 keys on an A100, H = 128. Now it is 320 to 512.
// Gain over version 6: not yet measured on a GPU.
// R queries and U keys a tile, H columns of a head.
#include "attention/forward.cuh"
#include "attention/wide.cuh"

namespace limo {

template <int DIM> __device__ __forceinline__ void attention_forward_wide(const AttentionForwardParams &p) {
    constexpr int ROWS = WIDE_ROWS, KEYS = DIM == 64 ? 128 : 64;
    const ForwardWork<ROWS, DIM> work(p, blockIdx.x);
    if (work.queries == 0) return;
    const uint32_t row = threadIdx.x / WARP * 32; // the warp's first query

    SharedMemory shared;
    const Tile<ROWS, DIM> q{shared.take<bf16>(ROWS * DIM)};                                  // [R, H]
    const Tile<KEYS, DIM> k{shared.take<bf16>(KEYS * DIM)}, v{shared.take<bf16>(KEYS * DIM)}; // [U, H]
    const auto own = q.template part<32>(row); // the warp's queries
    const auto fetch = [&](const Tile<KEYS, DIM> &tile, bool of_values, uint32_t key) {
        const bf16 *from_gmem = (of_values ? work.v_gmem : work.k_gmem) + key * work.qkv_stride;
        copy_tile_async<WIDE_THREADS>(tile, from_gmem, work.qkv_stride, work.keys - key);
        copy_async_commit();
    };
    copy_tile_async<WIDE_THREADS>(q, work.q_gmem, work.qkv_stride, work.queries);
    fetch(k, false, 0);

    Accumulator<2, DIM / 8> out = {};
    RunningSoftmax<2> softmax;
    walk_wide(own, k, v, work.first, row, work.keys, exponent_scale(p), out, softmax, fetch);
    finish(p, work, out, softmax, own, row);
}

} // namespace limo

using namespace limo;

extern "C" __global__ void __launch_bounds__(128, 2) attention_forward_7_64(const __grid_constant__ AttentionForwardParams p) {
    attention_forward_wide<64>(p);
}

extern "C" __global__ void __launch_bounds__(128, 2) attention_forward_7_128(const __grid_constant__ AttentionForwardParams p) {
    attention_forward_wide<128>(p);
}
