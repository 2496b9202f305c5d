// Attention of chunks of prompts over pages.
// Idea: the tiles of attention/forward_7_wide.cu, 32 queries a warp; a tile of keys is a page. Tiles start at multiples of 64 of the sequence wherever the chunk
// starts, and a tile that a query does not see adds exact zeros to it, so its result does not depend on the chunk that it is in. No ladder: attention has one.
// S sequences, Q query heads, K key/value heads, W pages of a table, H head dimension.
#include "attention/wide.cuh"
#include "params/paged_attention.h"

namespace limo {

template <int DIM> __device__ __forceinline__ void paged_prefill(const PagedAttentionParams &p) {
    const SequenceTile chunk = find_tile<WIDE_ROWS>(p.cu_seqlens, p.sequences, blockIdx.x);
    if (chunk.index >= chunk.count) return; // a slot without work
    // Of a chunk the last queries, which see most keys, come first, so that the last blocks to start are short ones.
    const uint32_t skipped = (chunk.count - 1 - chunk.index) * WIDE_ROWS, left = chunk.length - skipped;
    const uint32_t queries = left < WIDE_ROWS ? left : WIDE_ROWS, row = threadIdx.x / WARP * 32; // of the block; the warp's first
    const uint32_t sequence = chunk.sequence, first = uint32_t(p.lengths[sequence]) - left;      // the first query's place among the keys
    const uint32_t keys = first + queries;
    const uint64_t token = chunk.begin + skipped;

    const uint32_t head = blockIdx.y, kv_head = head / (p.query_heads / p.kv_heads);
    const uint64_t q_stride = uint64_t(p.query_heads + 2 * p.kv_heads) * DIM;
    const bf16 *q_gmem = p.qkv + token * q_stride + head * DIM, *head_gmem = p.cache + uint64_t(kv_head) * PAGED_PAGE * DIM;
    const int32_t *pages_gmem = p.pages + uint64_t(sequence) * p.width;

    SharedMemory shared;
    using Page = Tile<PAGED_PAGE, DIM>;
    const Tile<WIDE_ROWS, DIM> q{shared.take<bf16>(WIDE_ROWS * DIM)};                             // [R, H]
    const Page k{shared.take<bf16>(Page::ELEMENTS)}, v{shared.take<bf16>(Page::ELEMENTS)};        // [PAGE, H]
    const auto own = q.template part<32>(row); // the warp's queries
    const auto fetch = [&](const Page &tile, bool of_values, uint32_t key) {
        const uint64_t values = of_values ? uint64_t(p.kv_heads) * PAGED_PAGE * DIM : 0;
        const bf16 *from_gmem = head_gmem + uint64_t(pages_gmem[key / PAGED_PAGE]) * p.page_stride + values;
        copy_tile_async<WIDE_THREADS>(tile, from_gmem, DIM, keys - key);
        copy_async_commit();
    };
    copy_tile_async<WIDE_THREADS>(q, q_gmem, q_stride, queries);
    fetch(k, false, 0);

    Accumulator<2, DIM / 8> out = {};
    RunningSoftmax<2> softmax;
    walk_wide(own, k, v, first, row, keys, p.scale, out, softmax, fetch);
    softmax.divide(out, [](uint32_t, float, float) {});
    const uint64_t out_stride = uint64_t(p.query_heads) * DIM;
    store_rows(out, own, p.out + (token + row) * out_stride + head * DIM, out_stride, queries > row ? queries - row : 0);
}

} // namespace limo

using namespace limo;

extern "C" __global__ void __launch_bounds__(128, 2) paged_prefill_64(const __grid_constant__ PagedAttentionParams p) { paged_prefill<64>(p); }

extern "C" __global__ void __launch_bounds__(128, 2) paged_prefill_128(const __grid_constant__ PagedAttentionParams p) { paged_prefill<128>(p); }
