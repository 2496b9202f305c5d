// Rows cut into tiles, for kernels that need no sum along a row: each warp takes one tile of one row, alone.
#pragma once
#include "common/row.cuh"
#include "common/warp.cuh"

namespace limo {

// The tile of this warp, CHUNKS chunks a lane. Tiles are counted along a row, then down the rows, so neighbouring warps are neighbours in memory.
template <int CHUNKS> struct WarpTile {
    static constexpr uint32_t WIDTH = CHUNKS * WARP * CHUNK;
    uint32_t row;
    uint32_t first; // column of the first chunk of this lane

    __device__ __forceinline__ explicit WarpTile(uint32_t width) {
        const uint32_t index = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP, tiles = (width + WIDTH - 1) / WIDTH;
        row = index / tiles;
        first = (index - row * tiles) * WIDTH + lane_index() * CHUNK;
    }

    // The first column of chunk `i` of this lane: a warp's accesses are next to one another.
    __device__ __forceinline__ uint32_t column(int i) const { return first + i * WARP * CHUNK; }
};

} // namespace limo
