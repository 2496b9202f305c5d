// Attention forward, version 7: 32 queries a warp; ships.
// Idea: a fragment of keys or values that was loaded from shared memory multiplies two fragments of queries instead of one. At
// 16 queries a warp, loading takes longer than multiplying: 288 clocks to 256 for 64 keys on an A100, H = 128. Now it is 320 to 512.
// Gain over version 6: not yet measured on a GPU.
// R queries and U keys a tile, H columns of a head.
#include "attention/forward.cuh"

namespace limo {

template <int DIM> __device__ __forceinline__ void attention_forward_wide(const AttentionForwardParams &p) {
    constexpr int WARPS = 4, ROWS = 32 * WARPS, KEYS = DIM == 64 ? 128 : 64, THREADS = WARPS * WARP;
    const ForwardWork<ROWS, DIM> work(p, blockIdx.x);
    if (work.queries == 0) return;
    const uint32_t row = threadIdx.x / WARP * 32; // the warp's first query
    const float scale = exponent_scale(p);

    SharedMemory shared;
    const Tile<ROWS, DIM> q{shared.take<bf16>(ROWS * DIM)};                                  // [R, H]
    const Tile<KEYS, DIM> k{shared.take<bf16>(KEYS * DIM)}, v{shared.take<bf16>(KEYS * DIM)}; // [U, H]
    const auto own = q.template part<32>(row); // the warp's queries
    const auto fetch = [&](const Tile<KEYS, DIM> &tile, const bf16 *from_gmem, uint32_t key) {
        copy_tile_async<THREADS>(tile, from_gmem + key * work.qkv_stride, work.qkv_stride, work.keys - key);
        copy_async_commit();
    };
    copy_tile_async<THREADS>(q, work.q_gmem, work.qkv_stride, work.queries);
    fetch(k, work.k_gmem, 0);

    Accumulator<2, DIM / 8> out = {};
    RunningSoftmax<2> softmax;
    for (uint32_t key = 0; key < work.keys; key += KEYS) {
        copy_async_wait<0>();
        block_barrier(); // without it keys whose copies others wait for are missing, and a warp may still read the values overwritten next
        fetch(v, work.v_gmem, key);
        Accumulator<2, KEYS / 8> s = {};
        multiply_transposed(s, own, 0, k);
        if (key + KEYS > work.first + 1) { // on the diagonal: every query of the block sees all earlier tiles whole
            s.for_each([&](float &score, uint32_t i, uint32_t j) {
                if (key + j > work.first + row + i) score = minus_infinity();
            });
        }
        softmax.update(s, out, scale);
        const Factor<2, KEYS / 16> weights(s);

        copy_async_wait<0>();
        block_barrier(); // without it values are missing, and a warp may still read the keys overwritten next
        if (key + KEYS < work.keys) fetch(k, work.k_gmem, key + KEYS);
        multiply(out, weights, v);
    }
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
