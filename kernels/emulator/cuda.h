// Included before every kernel source when a host compiler builds it: the part of CUDA C++ that our kernels use.
#pragma once
#define LIMO_EMULATOR 1
#include <stdint.h>

#define __global__
#define __device__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __grid_constant__

struct LimoIndex {
    uint32_t x, y, z;
};

// A fiber is a thread for its whole life, so its indices are constants to the compiler.
extern "C" {
LimoIndex limo_thread_index() __attribute__((const));
LimoIndex limo_block_index() __attribute__((const));
LimoIndex limo_block_extent() __attribute__((const));
LimoIndex limo_grid_extent() __attribute__((const));
}
#define threadIdx (limo_thread_index())
#define blockIdx (limo_block_index())
#define blockDim (limo_block_extent())
#define gridDim (limo_grid_extent())
