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

// The upper 32 bits of a · b.
__device__ __forceinline__ uint32_t multiply_high(uint32_t a, uint32_t b) { return __umulhi(a, b); }

// √value, correctly rounded.
__device__ __forceinline__ float square_root(float value) {
    float result;
    asm("sqrt.rn.f32 %0, %1;" : "=f"(result) : "f"(value));
    return result;
}

// The larger of two; NaN if either is.
__device__ __forceinline__ float maximum(float a, float b) {
    float result;
    asm("max.NaN.f32 %0, %1, %2;" : "=f"(result) : "f"(a), "f"(b));
    return result;
}

// 2^value from the special function unit: within 2 ulp, subnormal results are zero.
__device__ __forceinline__ float exp2_approximate(float value) {
    float result;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(value));
    return result;
}

// log₂ value from the special function unit: absolute error 2^-22 for values in [0.5, 2], relative 2^-22 elsewhere.
__device__ __forceinline__ float log2_approximate(float value) {
    float result;
    asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(value));
    return result;
}

// 1/value from the special function unit: within 1 ulp.
__device__ __forceinline__ float reciprocal_approximate(float value) {
    float result;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(value));
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

// The same to global memory, as one instruction whatever surrounds it: of a C++ store the compiler sometimes makes four.
__device__ __forceinline__ void st128_global(void *address_gmem, const vec128 &value) {
    // volatile and "memory": no access may move across what could be the same address.
    asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(address_gmem)), "r"(value.at[0]),
                 "r"(value.at[1]), "r"(value.at[2]), "r"(value.at[3])
                 : "memory");
}

// Loads 16 bytes of global memory that nobody writes during the kernel and nobody reads again soon: past L1, which keeps what is
// reused. Not volatile, without a memory clobber: the compiler may move it up, which is what we want of a load.
__device__ __forceinline__ vec128 ld128_stream(const void *address) {
    vec128 value;
    asm("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
        : "=r"(value.at[0]), "=r"(value.at[1]), "=r"(value.at[2]), "=r"(value.at[3])
        : "l"(address));
    return value;
}

// Stores 16 bytes to global memory that nobody reads again soon: the first to leave the caches. The address is a multiple of 16.
__device__ __forceinline__ void st128_stream(void *address_gmem, const vec128 &value) {
    // volatile and "memory": a store is not dropped, and reads of the same place stay on their side of it.
    asm volatile("st.global.cs.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(address_gmem), "r"(value.at[0]), "r"(value.at[1]),
                 "r"(value.at[2]), "r"(value.at[3])
                 : "memory");
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

// The value of one lane. Orders no memory.
__device__ __forceinline__ uint32_t shuffle_from(uint32_t value, int lane) { return __shfl_sync(0xffffffffu, value, lane); }

// A bit a lane of the warp: whether its condition holds. Orders no memory.
__device__ __forceinline__ uint32_t warp_ballot(bool condition) { return __ballot_sync(0xffffffffu, condition); }

// Adds to a word of shared memory and returns what it held, as one step that no other thread's addition comes between. Orders nothing else.
__device__ __forceinline__ uint32_t atomic_add_shared(uint32_t *word_smem, uint32_t value) {
    uint32_t before;
    // volatile and "memory": an addition is not dropped, and barriers keep their place before and behind it.
    asm volatile("atom.relaxed.cta.shared.add.u32 %0, [%1], %2;"
                 : "=r"(before)
                 : "r"(uint32_t(__cvta_generic_to_shared(word_smem))), "r"(value)
                 : "memory");
    return before;
}

// --- Blocks that wait for one another -----------------------------------------------------------------------------------------

// Takes a number from a counter in global memory: returns what it held, and leaves one more. Numbers are given in the order in which blocks
// started to run, so whoever waits for a smaller number than its own waits for a block that runs.
__device__ __forceinline__ uint32_t take_ticket(uint32_t *counter_gmem) {
    uint32_t ticket;
    // volatile: two calls are two tickets.
    asm volatile("atom.relaxed.gpu.global.add.u32 %0, [%1], 1;" : "=r"(ticket) : "l"(counter_gmem) : "memory");
    return ticket;
}

// Waits until `turn_gmem` holds `turn`. What was written before pass_turn stored that is then visible to this thread.
__device__ __forceinline__ void ordered_wait(const uint32_t *turn_gmem, uint32_t turn) {
    uint32_t now;
    do {
        // acquire: without it, reads that follow could be served from before the wait.
        asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(now) : "l"(turn_gmem) : "memory");
    } while (now != turn);
}

// Stores `turn` for ordered_wait, after everything that this thread wrote or saw written before.
__device__ __forceinline__ void pass_turn(uint32_t *turn_gmem, uint32_t turn) {
    // release: without it, the turn could be seen before the data that it announces.
    asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(turn_gmem), "r"(turn) : "memory");
}

// --- Copies that run on their own ----------------------------------------------------------------------------------------------

// An address in shared memory as PTX counts it.
__device__ __forceinline__ uint32_t shared_address(const void *pointer_smem) {
    return uint32_t(__cvta_generic_to_shared(pointer_smem));
}

// Starts copying 16 bytes from global to shared memory, past L1. Where `valid` is false zeros are written and nothing is read. Both addresses are
// multiples of 16. The bytes may be read, by this thread, after the copy_async_wait that covers the commit; by others after a barrier behind that.
__device__ __forceinline__ void copy_async(void *to_smem, const void *from_gmem, bool valid = true) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to_smem)), "l"(from_gmem), "r"(valid ? 16 : 0)
                 : "memory");
}

// Ends a group of this thread's copies; an empty group counts too.
__device__ __forceinline__ void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most the PENDING newest groups of this thread are under way.
template <int PENDING> __device__ __forceinline__ void copy_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

// --- Tensor cores ---------------------------------------------------------------------------------------------------------------
// Fragments of a warp, g = lane / 4 and c = lane % 4; a register holds two bf16, the lower column (or row of b) in bits 0-15:
//   a, 16 × 16: a[0] row g, columns 2c and 2c+1; a[1] row g + 8; a[2] row g, columns 2c+8 and 2c+9; a[3] row g + 8 of those.
//   b, 16 × 8:  b[0] rows 2c and 2c+1 of column g; b[1] rows 2c+8 and 2c+9.
//   d, 16 × 8:  d[0], d[1] row g, columns 2c and 2c+1; d[2], d[3] row g + 8.

// d += a · b, bf16 factors, f32 sums.
__device__ __forceinline__ void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Loads four 8 × 8 matrices of bf16 from shared memory. Lane i gives the address, a multiple of 16, of row i % 8 of matrix i / 8. Lane l gets, of
// matrix m in fragment[m], row l / 4, columns 2(l % 4) and 2(l % 4) + 1. It reads what other lanes wrote: a barrier comes before.
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&fragment)[4], const void *row_smem) {
    // volatile and "memory": without them it could move above the barrier that it follows.
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(fragment[0]), "=r"(fragment[1]), "=r"(fragment[2]), "=r"(fragment[3])
                 : "r"(shared_address(row_smem))
                 : "memory");
}

// The same, each matrix transposed: lane l gets rows 2(l % 4) and 2(l % 4) + 1 of column l / 4.
__device__ __forceinline__ void ldmatrix_x4_transposed(uint32_t (&fragment)[4], const void *row_smem) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(fragment[0]), "=r"(fragment[1]), "=r"(fragment[2]), "=r"(fragment[3])
                 : "r"(shared_address(row_smem))
                 : "memory");
}

} // namespace limo
#endif
