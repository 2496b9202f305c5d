// Sums over warps and blocks, in one fixed order: the same bits on every device.
#pragma once
#include "common/types.cuh"

namespace limo {

__device__ __forceinline__ int lane_index() { return int(threadIdx.x) % WARP; }

// The sum over the warp, in every lane: a butterfly, so that all lanes add the same pairs.
__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
    for (int mask = WARP / 2; mask > 0; mask /= 2) value += shuffle_xor(value, mask);
    return value;
}

// The largest over the warp, in every lane; NaN if one is.
__device__ __forceinline__ float warp_max(float value) {
#pragma unroll
    for (int mask = WARP / 2; mask > 0; mask /= 2) value = maximum(value, shuffle_xor(value, mask));
    return value;
}

// Adds one value a warp through shared memory, in warp order. `slots_smem` has one float a warp of the group.
// `barrier` lets exactly the group's threads meet. The caller keeps `slots_smem` untouched until all have returned.
template <typename Barrier>
__device__ __forceinline__ float sum_over_warps(float warp_value, int warp, int warps, float *slots_smem, Barrier barrier) {
    if (lane_index() == 0) slots_smem[warp] = warp_value;
    barrier(); // without it a warp would add slots that others have not filled
    float total = slots_smem[0];
    for (int i = 1; i < warps; ++i) total += slots_smem[i];
    return total;
}

// Carves the dynamic shared buffer: each call takes the next `count` elements, 16-byte aligned.
class SharedMemory {
  public:
    template <typename T> __device__ __forceinline__ T *take(int count) {
        T *taken = reinterpret_cast<T *>(shared_base() + used_);
        used_ += (uint32_t(count) * uint32_t(sizeof(T)) + 15) / 16 * 16;
        return taken;
    }

  private:
    uint32_t used_ = 0;
};

} // namespace limo
