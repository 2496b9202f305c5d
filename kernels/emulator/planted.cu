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
