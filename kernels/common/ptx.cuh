// Every instruction that C++ has no word for, wrapped: the only file with PTX. Kernels call these names; a host compiler gets
// the same names from emulator/intrinsics.h. kernels/conformance/ has a micro-kernel for each.
#pragma once
#include <stdint.h>

namespace limo {

// Threads of a warp.
constexpr int WARP = 32;

// 16 bytes: the widest access a thread can make.
struct alignas(16) vec128 {
    uint32_t at[4];
};

} // namespace limo

#ifdef LIMO_EMULATOR
#include "emulator/intrinsics.h"
#else

namespace limo {

// --- Registers: reinterpretation and arithmetic -------------------------------------------------------------------------------

// The same 32 bits under the other type.
__device__ __forceinline__ float bits_as_float(uint32_t bits) { return __uint_as_float(bits); }
__device__ __forceinline__ uint32_t float_as_bits(float value) { return __float_as_uint(value); }

// Two f32 rounded to bf16, to nearest with ties to even: `low` in bits 0-15, `high` in bits 16-31. NaN becomes 0x7fff.
__device__ __forceinline__ uint32_t pack_bf16x2(float low, float high) {
    uint32_t packed;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
    return packed;
}

// a · b + c with one rounding. The compiler never contracts by itself (-fmad=false), so this is the only source of fused products.
__device__ __forceinline__ float multiply_add(float a, float b, float c) {
    float result;
    asm("fma.rn.f32 %0, %1, %2, %3;" : "=f"(result) : "f"(a), "f"(b), "f"(c));
    return result;
}

// 1/√value from the two correctly rounded instructions: used once a row, where the approximate one would save nothing.
__device__ __forceinline__ float reciprocal_sqrt(float value) {
    float root, result;
    asm("sqrt.rn.f32 %0, %1;" : "=f"(root) : "f"(value));
    asm("rcp.rn.f32 %0, %1;" : "=f"(result) : "f"(root));
    return result;
}

// Hides where a value came from. The compiler then unpacks it again where it is used again, instead of keeping eight f32 alive for four
// registers of bf16: volatile, so that it stays where it is written.
__device__ __forceinline__ void forget(vec128 &value) {
    asm volatile("" : "+r"(value.at[0]), "+r"(value.at[1]), "+r"(value.at[2]), "+r"(value.at[3]));
}

// --- Memory -------------------------------------------------------------------------------------------------------------------

// Loads 16 bytes from global or shared memory; the address is a multiple of 16 (the device faults otherwise).
__device__ __forceinline__ vec128 ld128(const void *address) { return *static_cast<const vec128 *>(address); }

// Stores 16 bytes to global or shared memory; the address is a multiple of 16.
__device__ __forceinline__ void st128(void *address, const vec128 &value) { *static_cast<vec128 *>(address) = value; }

// Loads 16 bytes of global memory that nobody writes during the kernel and nobody reads again soon: past L1, which keeps what is
// reused. Not volatile, without a memory clobber: the compiler may move it up, which is what we want of a load.
__device__ __forceinline__ vec128 ld128_stream(const void *address) {
    vec128 value;
    asm("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
        : "=r"(value.at[0]), "=r"(value.at[1]), "=r"(value.at[2]), "=r"(value.at[3])
        : "l"(address));
    return value;
}

// The block's dynamic shared memory, 1024-byte aligned.
__device__ __forceinline__ unsigned char *shared_base() {
    extern __shared__ __align__(1024) unsigned char limo_shared_memory[];
    return limo_shared_memory;
}

// --- Threads that wait for and talk to one another ----------------------------------------------------------------------------

// Every thread of the block arrives before any goes on; what they wrote is visible to all of them.
__device__ __forceinline__ void block_barrier() { __syncthreads(); }

// The same among `threads` threads (whole warps) that name barrier `id`, 1 to 15; 0 is the block's own.
__device__ __forceinline__ void named_barrier(int id, int threads) {
    // volatile and "memory": without them accesses could move across, and the barrier would order nothing.
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// The same among the lanes of a warp: lanes run on their own since Volta, so shared memory needs it between a write and another lane's read.
__device__ __forceinline__ void warp_barrier() { __syncwarp(); }

// The value of lane (own lane XOR mask). Orders no memory.
__device__ __forceinline__ float shuffle_xor(float value, int mask) { return __shfl_xor_sync(0xffffffffu, value, mask); }

} // namespace limo
#endif
