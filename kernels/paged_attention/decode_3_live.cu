// Attention of last tokens over pages, version 3: only what lives; ships.
// Idea: the grid has as many blocks as run at once, and each takes every so many-th entry of the list of all splits that hold tokens. Short sequences
// in a batch with a long one cost no empty blocks, and copies run on from one split to the next.
// Gain over version 2: not yet measured on a GPU.
#include "paged_attention/decode.cuh"

namespace limo {

// Entries blockIdx.x, + gridDim.x, … of the list: sequence by sequence, their live splits, for each the runs of heads. Nobody writes it down: a warp
// holds the lengths of 32 sequences, adds up how many entries they have, and looks its own up. All lanes call it together.
class LiveSplits {
  public:
    explicit __device__ __forceinline__ LiveSplits(const PagedAttentionParams &p) : p_(p), entry_(blockIdx.x) { load(); }

    __device__ __forceinline__ bool next(Work &work) {
        uint32_t count;
        while (entry_ >= (count = shuffle_from(through_, WARP - 1))) {
            entry_ -= count;
            first_ += WARP;
            if (first_ >= p_.sequences) return false;
            load();
        }
        uint32_t lane = 0; // of the first sequence whose entries go beyond ours
#pragma unroll
        for (uint32_t step = WARP / 2; step > 0; step /= 2) {
            if (shuffle_from(through_, int(lane + step - 1)) <= entry_) lane += step;
        }
        const uint32_t length = shuffle_from(length_, int(lane)), runs = p_.kv_heads * runs_of_group(p_);
        const uint32_t index = entry_ - (shuffle_from(through_, int(lane)) - live_splits(length) * runs);
        work = work_of(p_, first_ + lane, length, index / runs, index % runs);
        entry_ += gridDim.x;
        return true;
    }

  private:
    const PagedAttentionParams &p_;
    uint32_t entry_;             // counted from sequence first_
    uint32_t first_ = 0;         // of the sequences that the lanes hold
    uint32_t length_, through_;  // of this lane's, and the entries of all up to it

    __device__ __forceinline__ void load() {
        const uint32_t lane = uint32_t(lane_index());
        const bool exists = first_ + lane < p_.sequences;
        length_ = exists ? uint32_t(p_.lengths[first_ + lane]) : 0;
        through_ = exists ? live_splits(length_) * p_.kv_heads * runs_of_group(p_) : 0;
#pragma unroll
        for (uint32_t step = 1; step < WARP; step *= 2) {
            const uint32_t before = shuffle_from(through_, int((lane - step) % WARP));
            if (lane >= step) through_ += before;
        }
    }
};

} // namespace limo

using namespace limo;

extern "C" __global__ void __launch_bounds__(128, 3) paged_decode_3_64(const __grid_constant__ PagedAttentionParams p) {
    paged_decode<64, 4, LiveSplits>(p);
}

extern "C" __global__ void __launch_bounds__(128, 2) paged_decode_3_128(const __grid_constant__ PagedAttentionParams p) {
    paged_decode<128, 3, LiveSplits>(p);
}
