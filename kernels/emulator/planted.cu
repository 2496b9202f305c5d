// Bugs planted on purpose, each beside its correct twin (`bug` = 0): the checked emulator must find every one and no twin.
// One block of N threads unless said otherwise; input and output are [N].
#include "common/warp.cuh"
#include "params/emulator.h"

using namespace limo;

// Race: without the second barrier a warp overwrites values that another one has yet to read.
extern "C" __global__ void planted_race(const __grid_constant__ PlantedParams p) {
    const int thread = int(threadIdx.x), threads = int(blockDim.x);
    SharedMemory shared;
    float *values_smem = shared.take<float>(threads); // [N]
    values_smem[thread] = p.input[thread];
    block_barrier(); // without it unwritten values would be read
    const float neighbour = values_smem[(thread + WARP) % threads];
    if (!p.bug) block_barrier();
    values_smem[thread] = 2 * neighbour;
    p.output[thread] = values_smem[thread];
}

// Race with additions, which are atomic among themselves only: without the barrier a sum is read that others still add to.
extern "C" __global__ void planted_early_sum(const __grid_constant__ PlantedParams p) {
    SharedMemory shared;
    uint32_t *sum_smem = shared.take<uint32_t>(1);
    if (threadIdx.x == 0) *sum_smem = 0;
    block_barrier(); // without it additions could be lost
    atomic_add_shared(sum_smem, uint32_t(p.input[threadIdx.x]));
    if (!p.bug) block_barrier();
    p.output[threadIdx.x] = float(*sum_smem);
}

// Race between blocks: two blocks write one element. Nothing orders blocks of one launch.
extern "C" __global__ void planted_block_race(const __grid_constant__ PlantedParams p) {
    const uint64_t index = p.bug ? threadIdx.x : uint64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    p.output[index] = p.input[index];
}

// Out of bounds: the test for the last element is off by one.
extern "C" __global__ void planted_out_of_bounds(const __grid_constant__ PlantedParams p) {
    const uint64_t index = uint64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (index < p.count + p.bug) p.output[index] = p.input[index];
}

// Unwritten read: the first thread forgets its slot.
extern "C" __global__ void planted_unwritten_read(const __grid_constant__ PlantedParams p) {
    const int thread = int(threadIdx.x), threads = int(blockDim.x);
    SharedMemory shared;
    float *values_smem = shared.take<float>(threads); // [N]
    if (thread > 0 || !p.bug) values_smem[thread] = p.input[thread];
    block_barrier(); // orders the writes before the reads
    p.output[thread] = values_smem[threads - 1 - thread];
}

// Divergent barrier: the second half of the block never arrives.
extern "C" __global__ void planted_divergent_barrier(const __grid_constant__ PlantedParams p) {
    const int thread = int(threadIdx.x), threads = int(blockDim.x);
    if (!p.bug || thread < threads / 2) block_barrier();
    p.output[thread] = p.input[thread];
}

// Wrong order: lanes read what their neighbours write, and rely on lanes running in step.
extern "C" __global__ void planted_wrong_order(const __grid_constant__ PlantedParams p) {
    const int thread = int(threadIdx.x), threads = int(blockDim.x);
    SharedMemory shared;
    float *values_smem = shared.take<float>(threads); // [N]
    values_smem[thread] = 0;
    block_barrier(); // every slot holds something before the lanes exchange theirs
    values_smem[thread] = p.input[thread];
    if (!p.bug) warp_barrier();
    p.output[thread] = values_smem[thread ^ 1];
}

// --- Asynchronous copies: each thread copies four elements. p.count is 4N ---------------------------------------------------------

struct Chunk {
    float at[4];
};

// The thread's chunk of shared memory, [N, 4].
static __device__ __forceinline__ Chunk *chunk_smem() { return reinterpret_cast<Chunk *>(shared_base()) + threadIdx.x; }

// Missing wait: the copy was committed, but nobody waited for it. (At the end of the kernel it must be over, so it is waited for there.)
extern "C" __global__ void planted_missing_wait(const __grid_constant__ PlantedParams p) {
    copy_async(chunk_smem(), p.input + 4 * threadIdx.x);
    copy_async_commit();
    if (!p.bug) copy_async_wait<0>();
    for (int i = 0; i < 4; ++i) p.output[4 * threadIdx.x + i] = chunk_smem()->at[i];
    copy_async_wait<0>();
}

// Wait for the wrong group: it lets the newest one be under way, and that is the one it needs.
extern "C" __global__ void planted_wrong_group(const __grid_constant__ PlantedParams p) {
    copy_async_commit(); // an empty group
    copy_async(chunk_smem(), p.input + 4 * threadIdx.x);
    copy_async_commit();
    if (p.bug) {
        copy_async_wait<1>();
    } else {
        copy_async_wait<0>();
    }
    for (int i = 0; i < 4; ++i) p.output[4 * threadIdx.x + i] = chunk_smem()->at[i];
    copy_async_wait<0>();
}

// Missing barrier: a thread waits for its own copies only, and reads what another warp copied.
extern "C" __global__ void planted_missing_copy_barrier(const __grid_constant__ PlantedParams p) {
    const int other = int(threadIdx.x + WARP) % int(blockDim.x) - int(threadIdx.x);
    *chunk_smem() = {};
    block_barrier(); // every chunk holds something before the copies start
    copy_async(chunk_smem(), p.input + 4 * threadIdx.x);
    copy_async_commit();
    copy_async_wait<0>();
    if (!p.bug) block_barrier();
    for (int i = 0; i < 4; ++i) p.output[4 * threadIdx.x + i] = chunk_smem()[other].at[i];
}

// Buffer reused too early: the next copy starts while another warp may still read what the last one brought.
extern "C" __global__ void planted_buffer_reused(const __grid_constant__ PlantedParams p) {
    const int other = int(threadIdx.x + WARP) % int(blockDim.x) - int(threadIdx.x);
    for (int round = 0; round < 2; ++round) {
        copy_async(chunk_smem(), p.input + 4 * threadIdx.x);
        copy_async_commit();
        copy_async_wait<0>();
        block_barrier(); // the chunks of all threads are there
        for (int i = 0; i < 4; ++i) p.output[4 * threadIdx.x + i] = chunk_smem()[other].at[i];
        if (!p.bug) block_barrier();
    }
}

// Abandoned copy: the thread ends while it is under way.
extern "C" __global__ void planted_abandoned_copy(const __grid_constant__ PlantedParams p) {
    for (int i = 0; i < 4; ++i) p.output[4 * threadIdx.x + i] = p.input[4 * threadIdx.x + i];
    copy_async(chunk_smem(), p.input + 4 * threadIdx.x);
    copy_async_commit();
    if (!p.bug) copy_async_wait<0>();
}

// --- Turns: p.scratch holds a counter and a turn, both zero -----------------------------------------------------------------------

// Adds up the chunks of all blocks in output[0, N), in order of `turn`. `wait` and `barrier` are what bugs leave out.
static __device__ __forceinline__ void add_in_turn(const PlantedParams &p, uint32_t turn, bool wait, bool barrier) {
    const uint32_t thread = threadIdx.x;
    if (thread == 0 && wait) ordered_wait(p.scratch + 1, turn);
    block_barrier(); // what thread 0 learned from the turn holds for all threads
    const float before = turn == 0 ? 0.0f : p.output[thread];
    p.output[thread] = before + p.input[uint64_t(turn) * blockDim.x + thread];
    if (barrier) block_barrier(); // all threads have added before the turn says so
    if (thread == 0) pass_turn(p.scratch + 1, turn + 1);
}

static __device__ __forceinline__ uint32_t ticket_of_block(const PlantedParams &p) {
    SharedMemory shared;
    uint32_t *ticket_smem = shared.take<uint32_t>(1);
    if (threadIdx.x == 0) *ticket_smem = take_ticket(p.scratch);
    block_barrier(); // the ticket is there before others read it
    return *ticket_smem;
}

// Missing turn: a block adds to the sums without waiting for the one before.
extern "C" __global__ void planted_missing_turn(const __grid_constant__ PlantedParams p) {
    add_in_turn(p, ticket_of_block(p), !p.bug, true);
}

// Turn passed too early: by a thread that does not know whether the others have added.
extern "C" __global__ void planted_early_turn(const __grid_constant__ PlantedParams p) {
    add_in_turn(p, ticket_of_block(p), true, !p.bug);
}

// Turns without tickets: blocks need not start in the order of their numbers, and one may wait for another that cannot start before it ends.
extern "C" __global__ void planted_turn_without_ticket(const __grid_constant__ PlantedParams p) {
    add_in_turn(p, p.bug ? blockIdx.x : ticket_of_block(p), true, true);
}

// --- Warps ------------------------------------------------------------------------------------------------------------------------

// Missing lane: the last lane of a warp does not vote, and waits for the block instead.
extern "C" __global__ void planted_missing_lane(const __grid_constant__ PlantedParams p) {
    const int thread = int(threadIdx.x);
    uint32_t votes = 0;
    if (!p.bug || lane_index() < WARP - 1) votes = warp_ballot(p.input[thread] > 0.0f);
    block_barrier(); // where the lane that does not vote waits
    p.output[thread] = float(votes & 1);
}

// Rows of a fragment that other lanes wrote, without a warp barrier.
extern "C" __global__ void planted_early_fragment(const __grid_constant__ PlantedParams p) {
    for (int i = 0; i < 4; ++i) chunk_smem()->at[i] = p.input[4 * threadIdx.x + i];
    if (!p.bug) warp_barrier();
    uint32_t fragment[4];
    ldmatrix_x4(fragment, chunk_smem());
    for (int i = 0; i < 4; ++i) p.output[4 * threadIdx.x + i] = bits_as_float(fragment[i]);
}
