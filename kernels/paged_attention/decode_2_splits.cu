// Attention of last tokens over pages, version 2: packed heads, splits.
// Idea: a block a (split, key/value head, sequence). The query heads that share a key/value head are rows of one tensor-core tile, so keys and values
// are read once, by asynchronous copies that keep 64 KB and more a block on their way; long sequences have as many blocks as splits.
// Gain over version 1: not yet measured on a GPU.
#include "paged_attention/decode.cuh"

namespace limo {

// One entry, named by the block's place in the grid; none where the sequence ends before the split.
struct OneSplit {
    const PagedAttentionParams &p;
    bool taken = false;

    explicit __device__ __forceinline__ OneSplit(const PagedAttentionParams &params) : p(params) {}

    __device__ __forceinline__ bool next(Work &work) {
        const uint32_t length = uint32_t(p.lengths[blockIdx.z]);
        if (taken || blockIdx.x >= live_splits(length)) return false;
        taken = true;
        work = work_of(p, blockIdx.z, length, blockIdx.x, blockIdx.y);
        return true;
    }
};

} // namespace limo

using namespace limo;

extern "C" __global__ void __launch_bounds__(128, 3) paged_decode_2_64(const __grid_constant__ PagedAttentionParams p) {
    paged_decode<64, 4, OneSplit>(p);
}

extern "C" __global__ void __launch_bounds__(128, 2) paged_decode_2_128(const __grid_constant__ PagedAttentionParams p) {
    paged_decode<128, 3, OneSplit>(p);
}
