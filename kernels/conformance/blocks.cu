// Micro-kernels for blocks that wait for one another: many blocks of B threads; scratch holds two words, zero.
#include "common/warp.cuh"
#include "conformance/words.cuh"

using namespace limo;

// Every thread takes a ticket and writes the word of that number: no number may be missing or given twice.
extern "C" __global__ void conformance_take_ticket(const __grid_constant__ ConformanceParams p) {
    const uint32_t ticket = take_ticket(p.scratch);
    p.output[ticket] = p.input[ticket];
}

// Sums over blocks in order of tickets: each block adds its words to those that the block before it wrote.
extern "C" __global__ void conformance_ordered_wait(const __grid_constant__ ConformanceParams p) {
    uint32_t *counter_gmem = p.scratch, *turn_gmem = p.scratch + 1;
    SharedMemory shared;
    uint32_t *ticket_smem = shared.take<uint32_t>(1);
    if (threadIdx.x == 0) {
        *ticket_smem = take_ticket(counter_gmem);
        ordered_wait(turn_gmem, *ticket_smem);
    }
    block_barrier(); // the ticket is known, and what thread 0 learned from the turn holds for all threads
    const uint32_t ticket = *ticket_smem;
    const uint64_t i = uint64_t(ticket) * blockDim.x + threadIdx.x;
    p.output[i] = p.input[i] + (ticket == 0 ? 0 : p.output[i - blockDim.x]);
    block_barrier(); // all threads have written before the turn says so
    if (threadIdx.x == 0) pass_turn(turn_gmem, ticket + 1);
}
