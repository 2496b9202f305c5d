// Choosing among what the threads of a block give: sums and maxima over the block, running sums, and the thread at which one reaches a target.
#pragma once
#include "common/warp.cuh"

namespace limo {

// Threads of every block here, a thread a strand, and a thread a bin of a histogram.
constexpr int STRANDS = 512;
constexpr int WARPS = STRANDS / WARP;
// Bits of a digit: STRANDS bins.
constexpr int DIGIT = 9;

// Below every logit but minus infinity.
constexpr float LOWEST = -3.402823466e38f;

// What the block's threads share.
struct Scratch {
    float *slots_smem;              // [W]
    uint64_t *totals_smem;          // [W]
    uint64_t *found_smem;           // [2]
    uint32_t *low_smem, *high_smem; // [512] each: the halves of the bins of a histogram

    __device__ __forceinline__ explicit Scratch(SharedMemory &shared)
        : slots_smem(shared.take<float>(WARPS)), totals_smem(shared.take<uint64_t>(WARPS)), found_smem(shared.take<uint64_t>(2)),
          low_smem(shared.take<uint32_t>(STRANDS)), high_smem(shared.take<uint32_t>(STRANDS)) {}
};

// Combines one value a warp, in warp order.
template <typename T, typename Combine> __device__ __forceinline__ T over_warps(T warp_value, T *slots_smem, Combine combine) {
    if (lane_index() == 0) slots_smem[threadIdx.x / WARP] = warp_value;
    block_barrier(); // without it a warp would read slots that others have not filled
    T all = slots_smem[0];
    for (int warp = 1; warp < WARPS; ++warp) all = combine(all, slots_smem[warp]);
    block_barrier(); // without it the next use could overwrite slots that a warp has yet to read
    return all;
}

__device__ __forceinline__ float block_max(float value, const Scratch &scratch) {
    return over_warps(warp_max(value), scratch.slots_smem, [](float a, float b) { return maximum(a, b); });
}

__device__ __forceinline__ float block_sum(float value, const Scratch &scratch) {
    return over_warps(warp_sum(value), scratch.slots_smem, [](float a, float b) { return a + b; });
}

__device__ __forceinline__ uint64_t shuffle_from(uint64_t value, int lane) {
    const uint32_t low = shuffle_from(uint32_t(value), lane), high = shuffle_from(uint32_t(value >> 32), lane);
    return uint64_t(high) << 32 | low;
}

// The sum of what the threads before this one give, and that of all. A barrier, such as that of thread_at, comes before the next running sum.
struct Running {
    uint64_t before, total;
};

__device__ __forceinline__ Running running_sum(uint64_t mine, const Scratch &scratch) {
    const int lane = lane_index(), warp = int(threadIdx.x) / WARP;
    uint64_t sum = mine; // up to and with this lane
#pragma unroll
    for (int distance = 1; distance < WARP; distance *= 2) {
        const uint64_t earlier = shuffle_from(sum, lane >= distance ? lane - distance : lane);
        if (lane >= distance) sum += earlier;
    }
    if (lane == WARP - 1) scratch.totals_smem[warp] = sum;
    block_barrier(); // without it a warp would add totals that others have not written
    Running running = {sum - mine, 0};
    for (int i = 0; i < WARPS; ++i) {
        if (i < warp) running.before += scratch.totals_smem[i];
        running.total += scratch.totals_smem[i];
    }
    return running;
}

// The thread at which the running sum reaches `target`, of 1 to the total, and the sum before it.
struct Chosen {
    uint32_t thread;
    uint64_t before;
};

__device__ __forceinline__ Chosen thread_at(uint64_t target, const Running &running, uint64_t mine, const Scratch &scratch) {
    if (running.before < target && target <= running.before + mine) {
        scratch.found_smem[0] = threadIdx.x;
        scratch.found_smem[1] = running.before;
    }
    block_barrier(); // without it threads would read what is not found yet
    // Nobody overwrites it before all have read it: the barrier of the next running sum lies between.
    return {uint32_t(scratch.found_smem[0]), scratch.found_smem[1]};
}

// floor(word * total / 2^64) + 1: what a running sum reaches where it exceeds that share of the total.
__device__ __forceinline__ uint64_t share_of(uint64_t word, uint64_t total) {
    const uint64_t word_low = uint32_t(word), word_high = word >> 32, total_low = uint32_t(total), total_high = total >> 32;
    const uint64_t middle = word_high * total_low + (word_low * total_low >> 32); // below 2^64: (2^32 - 1)^2 + 2^32 - 1
    const uint64_t other = word_low * total_high + uint32_t(middle);
    return word_high * total_high + (middle >> 32) + (other >> 32) + 1;
}

// --- Thresholds ---------------------------------------------------------------------------------------------------------------------------------

// Larger for a larger value; zeros are one value.
__device__ __forceinline__ uint32_t order_of(float value) {
    const uint32_t bits = float_as_bits(value + 0.0f);
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}

__device__ __forceinline__ float value_of(uint32_t order) { return bits_as_float(order >> 31 ? order & 0x7fffffffu : ~order); }

// Adds to a bin of 64 bits, in halves: atomic additions of 64 bits to shared memory are loops. Integers, so the order does not matter.
__device__ __forceinline__ void add_to_bin(const Scratch &scratch, uint32_t bin, uint64_t value) {
    const uint32_t low = uint32_t(value), before = atomic_add_shared(scratch.low_smem + bin, low);
    const uint32_t high = uint32_t(value >> 32) + (before + low < before ? 1 : 0);
    if (high != 0) atomic_add_shared(scratch.high_smem + bin, high);
}

// The largest value at which `measure` of all values from it on up reaches `target`, at least 1; `least` where those from there on never do. `each(visit)` visits this
// thread's values, none of which is above `most`. Digit by digit of the values' ranks below `most`: a histogram finds the first digit, one of what begins with it the next.
template <typename Each, typename Measure>
__device__ __forceinline__ float reach(Each each, Measure measure, float most, float least, uint64_t target, const Scratch &scratch) {
    const uint32_t top = order_of(most), last = top - order_of(least);
    int shift = 0;
    while (uint64_t(last) >> shift) shift += DIGIT;
    uint64_t found = 0;
    while (shift > 0) {
        shift -= DIGIT;
        scratch.low_smem[threadIdx.x] = scratch.high_smem[threadIdx.x] = 0;
        block_barrier(); // without it what others add could be lost
        each([&](float value) {
            const uint32_t rank = top - order_of(value);
            if (rank <= last && uint64_t(rank) >> (shift + DIGIT) == found) add_to_bin(scratch, rank >> shift & (STRANDS - 1), measure(value));
        });
        block_barrier(); // without it bins would be read that others still add to
        const uint64_t mine = uint64_t(scratch.high_smem[threadIdx.x]) << 32 | scratch.low_smem[threadIdx.x];
        const Running running = running_sum(mine, scratch);
        if (running.total < target) { // for all threads alike
            block_barrier();          // without it the next running sum could overwrite totals that a warp has yet to read
            return least;
        }
        const Chosen chosen = thread_at(target, running, mine, scratch);
        found = found << DIGIT | chosen.thread;
        target -= chosen.before;
    }
    return value_of(top - uint32_t(found));
}

} // namespace limo
