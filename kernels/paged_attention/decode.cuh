// Attention of last tokens over pages: how a block walks the splits that it is given. The query heads that share a key/value head are the rows of a
// tensor core's tile: each key and value is read once, whatever the group.
// S sequences, Q query heads, K key/value heads, W pages of a table, H head dimension.
#pragma once
#include "attention/softmax.cuh"
#include "params/paged_attention.h"

namespace limo {

constexpr uint32_t DECODE_WARPS = 4, DECODE_THREADS = DECODE_WARPS * WARP;
constexpr uint32_t HEADS = 16;                         // rows of a tile
constexpr uint32_t KEYS = PAGED_PAGE / DECODE_WARPS;   // of each page, for a warp

// A run of at most 16 query heads of a key/value head.
__device__ __forceinline__ uint32_t runs_of_group(const PagedAttentionParams &p) { return (p.query_heads / p.kv_heads + HEADS - 1) / HEADS; }

// Splits of a sequence that hold tokens. One without tokens has one, for somebody must write its zeros.
__device__ __forceinline__ uint32_t live_splits(uint32_t length) { return length == 0 ? 1 : (length + PAGED_SPLIT - 1) / PAGED_SPLIT; }

// What a block does at a time: a split of a sequence, for a run of query heads.
struct Work {
    uint32_t sequence, split, kv_head;
    uint32_t head, heads; // the first query head and their number
    uint32_t tokens;      // of the split; 0 for a sequence without tokens
    bool alone;           // the sequence has no other split

    __device__ __forceinline__ uint32_t tiles() const { return (tokens + PAGED_PAGE - 1) / PAGED_PAGE; }
};

// Run `run` counts the runs of all key/value heads.
__device__ __forceinline__ Work work_of(const PagedAttentionParams &p, uint32_t sequence, uint32_t length, uint32_t split, uint32_t run) {
    const uint32_t group = p.query_heads / p.kv_heads, runs = runs_of_group(p), kv_head = run / runs, first = run % runs * HEADS;
    const uint32_t heads = group - first < HEADS ? group - first : HEADS, behind = length - split * PAGED_SPLIT;
    return {sequence, split, kv_head, kv_head * group + first, heads, behind < PAGED_SPLIT ? behind : PAGED_SPLIT, length <= PAGED_SPLIT};
}

// The copies of a warp, which run ahead of its products and across the border from one piece of work to the next. A warp copies 16 keys and values of
// each page, and nobody else reads them: warps wait for themselves alone.
template <int DIM, typename List> struct Copies {
    const PagedAttentionParams &p;
    List list;
    Work work = {};
    uint32_t tile = 0, page = 0; // lane l: page l of the split
    bool more = true;

    explicit __device__ __forceinline__ Copies(const PagedAttentionParams &params) : p(params), list(params) { next_work(); }

    __device__ __forceinline__ void next_work() {
        do more = list.next(work);
        while (more && work.tokens == 0);
        const uint32_t lane = uint32_t(lane_index());
        tile = 0;
        if (more && lane < work.tiles()) {
            page = uint32_t(p.pages[uint64_t(work.sequence) * p.width + work.split * (PAGED_SPLIT / PAGED_PAGE) + lane]);
        }
    }

    // Starts the copies of the next tile, if there is one, and commits them. Rows behind the last token become zeros: a weight of 0 times what lies
    // there could be NaN.
    __device__ __forceinline__ void fetch(Tile<KEYS, DIM> k, Tile<KEYS, DIM> v) {
        if (more) {
            const uint32_t first = threadIdx.x / WARP * KEYS, hidden = tile * PAGED_PAGE + first;
            const uint32_t rows = work.tokens > hidden ? work.tokens - hidden : 0;
            const bf16 *page_gmem = p.cache + uint64_t(shuffle_from(page, int(tile))) * p.page_stride;
            const bf16 *k_gmem = page_gmem + (uint64_t(work.kv_head) * PAGED_PAGE + first) * DIM;
            const auto copy = [](bf16 *to_smem, const bf16 *chunk_gmem, bool valid) { copy_async(to_smem, chunk_gmem, valid); };
            for_each_chunk<WARP>(uint32_t(lane_index()), k, k_gmem, DIM, rows, copy);
            for_each_chunk<WARP>(uint32_t(lane_index()), v, k_gmem + uint64_t(p.kv_heads) * PAGED_PAGE * DIM, DIM, rows, copy);
            if (++tile == work.tiles()) next_work();
        }
        copy_async_commit();
    }
};

// The queries of a run as factors a, 16 columns each; rows behind the last head are zeros. Every warp loads them all.
template <int DIM> __device__ __forceinline__ void load_queries(uint32_t (&q_rmem)[DIM / 16][1][4], const PagedAttentionParams &p, const Work &work) {
    const uint32_t row = uint32_t(lane_index()) / 4, column = uint32_t(lane_index()) % 4 * 2;
    const bf16 *q_gmem = p.qkv + (uint64_t(work.sequence) * (p.query_heads + 2 * p.kv_heads) + work.head) * DIM;
#pragma unroll
    for (int k = 0; k < DIM / 16; ++k) {
#pragma unroll
        for (uint32_t i = 0; i < 4; ++i) {
            const uint32_t head = row + 8 * (i % 2);
            const bf16 *pair_gmem = q_gmem + head * DIM + 16 * k + 8 * (i / 2) + column;
            q_rmem[k][0][i] = head < work.heads ? *reinterpret_cast<const uint32_t *>(pair_gmem) : 0;
        }
    }
}

// Where a chunk of eight columns of a head's partial sums goes: to the result where the split is the only one, else to scratch, for paged_combine.
template <int DIM>
__device__ __forceinline__ void store_head(const PagedAttentionParams &p, const Work &work, uint32_t row, uint32_t chunk, float highest, float sum,
                                           f32x8 values) {
    const uint64_t head = uint64_t(work.sequence) * p.query_heads + work.head + row, place = head * p.splits + work.split;
    if (work.alone) {
        const float share = reciprocal_approximate(sum);
#pragma unroll
        for (int i = 0; i < 8; ++i) values.at[i] *= share;
        st128_global(p.out + head * DIM + chunk * CHUNK, to_bf16(values).words);
    } else {
        store_chunk<true>(p.partial + place * DIM, chunk * CHUNK, DIM, values);
        if (chunk == 0) p.sums[2 * place] = highest, p.sums[2 * place + 1] = sum;
    }
}

// Walks the splits of `List` through a ring of STAGES tiles a warp. A warp has a running softmax over its quarter of every page; the four meet at the
// end of a split.
template <int DIM, int STAGES, typename List> __device__ __forceinline__ void paged_decode(const PagedAttentionParams &p) {
    using Rows = Tile<KEYS, DIM>;
    constexpr uint32_t CHUNKS = DIM / CHUNK;
    const uint32_t warp = threadIdx.x / WARP;
    SharedMemory shared;
    bf16 *ring_smem = shared.take<bf16>(STAGES * DECODE_WARPS * 2 * Rows::ELEMENTS); // [STAGES, warps, 2, 16 tokens, H]
    float *sums_smem = shared.take<float>(DECODE_WARPS * HEADS * 2);                 // [warps, 16 heads, 2]
    const auto slot_smem = [&](uint32_t stage, uint32_t of_warp) { return ring_smem + (stage * DECODE_WARPS + of_warp) * 2 * Rows::ELEMENTS; };
    // What a warp has added up takes the place of the keys and values that it added last: [16 heads, H] f32, chunks swizzled as in Tile.
    const auto partial_smem = [&](uint32_t stage, uint32_t of_warp, uint32_t head, uint32_t chunk) {
        return reinterpret_cast<float *>(slot_smem(stage, of_warp)) + head * DIM + Swizzled::place(head, chunk) * CHUNK;
    };

    Copies<DIM, List> copies(p);
    uint32_t stage = 0;
    const auto refill = [&] {
        const Rows k{slot_smem(stage, warp)}, v{k.smem + Rows::ELEMENTS};
        copies.fetch(k, v);
        stage = stage + 1 == STAGES ? 0 : stage + 1;
    };
#pragma unroll 1 // a block starts sooner with less code to fetch
    for (int i = 0; i < STAGES; ++i) refill();

    List list(p);
    Work work;
    while (list.next(work)) {
        if (work.tokens == 0) {
            bf16 *out_gmem = p.out + (uint64_t(work.sequence) * p.query_heads + work.head) * DIM;
            for (uint32_t i = threadIdx.x; i < work.heads * CHUNKS; i += DECODE_THREADS) st128_global(out_gmem + i * CHUNK, vec128{});
            continue;
        }
        uint32_t q_rmem[DIM / 16][1][4];
        load_queries<DIM>(q_rmem, p, work);
        Accumulator<1, DIM / 8> out = {};
        RunningSoftmax<1> softmax(-bits_as_float(0x7f7fffff)); // the lowest number: a warp may see no key at all, and −∞ − −∞ is NaN
        for (uint32_t first = 0; first < work.tokens; first += PAGED_PAGE) {
            const Rows k{slot_smem(stage, warp)}, v{k.smem + Rows::ELEMENTS};
            copy_async_wait<STAGES - 1>();
            warp_barrier(); // without it rows whose copies other lanes wait for are missing
            Accumulator<1, KEYS / 8> s = {};
#pragma unroll
            for (int i = 0; i < DIM / 16; ++i) {
                uint32_t b[2][2];
                load_b_transposed(b, k, 0, 16 * i);
                multiply_step(s, 0, q_rmem[i], b);
            }
            if (first + PAGED_PAGE > work.tokens) {
                s.for_each([&](float &score, uint32_t, uint32_t j) {
                    if (first + warp * KEYS + j >= work.tokens) score = minus_infinity();
                });
            }
            softmax.update(s, out, p.scale);
            multiply(out, Factor<1, KEYS / 16>(s), v);
            warp_barrier(); // without it copies, or sums, would overwrite rows that another lane still reads
            if (first + PAGED_PAGE < work.tokens) refill();
        }

        out.for_each([&](float &value, uint32_t head, uint32_t column) {
            if (head < work.heads) partial_smem(stage, warp, head, column / CHUNK)[column % CHUNK] = value;
        });
#pragma unroll
        for (uint32_t half = 0; half < 2; ++half) {
            const float sum = softmax.total(0, half);
            if (lane_index() % 4 == 0) {
                float *pair_smem = sums_smem + 2 * (warp * HEADS + 8 * half + uint32_t(lane_index()) / 4);
                pair_smem[0] = softmax.highest[0][half], pair_smem[1] = sum;
            }
        }
        block_barrier(); // without it the sums of other warps are missing
        for (uint32_t i = threadIdx.x; i < work.heads * CHUNKS; i += DECODE_THREADS) {
            const uint32_t head = i / CHUNKS, chunk = i % CHUNKS;
            const auto pair_smem = [&](uint32_t of_warp) { return sums_smem + 2 * (of_warp * HEADS + head); };
            float highest = pair_smem(0)[0], sum = 0;
            for (uint32_t w = 1; w < DECODE_WARPS; ++w) highest = maximum(highest, pair_smem(w)[0]);
            f32x8 values = {};
            for (uint32_t w = 0; w < DECODE_WARPS; ++w) {
                const float weight = exp2_approximate(pair_smem(w)[0] - highest);
                sum = multiply_add(weight, pair_smem(w)[1], sum);
                const f32x8 part = load_chunk<true>(partial_smem(stage, w, head, chunk), 0, CHUNK);
#pragma unroll
                for (int j = 0; j < 8; ++j) values.at[j] = multiply_add(weight, part.at[j], values.at[j]);
            }
            store_head<DIM>(p, work, head, chunk, highest, sum, values);
        }
        block_barrier(); // without it copies, or the next sums, would overwrite what another warp still adds up
        refill();
    }
}

} // namespace limo
