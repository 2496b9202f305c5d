//! What kernels call: the other side of `kernels/emulator/cuda.h` and `intrinsics.h`. All of it runs on a fiber.

use super::fault::Fault;
use super::grid::{BARRIERS, Grid, Index, State, WARP, WarpOp, current, wait};

#[unsafe(no_mangle)]
extern "C" fn limo_thread_index() -> Index {
    grid().running_thread().index
}
#[unsafe(no_mangle)]
extern "C" fn limo_block_index() -> Index {
    grid().running_block().index
}
#[unsafe(no_mangle)]
extern "C" fn limo_block_extent() -> Index {
    Index::of(grid().launch.block)
}
#[unsafe(no_mangle)]
extern "C" fn limo_grid_extent() -> Index {
    Index::of(grid().launch.grid)
}
#[unsafe(no_mangle)]
extern "C" fn limo_shared_base() -> *mut u8 {
    grid().running_block().shared.base() as *mut u8
}
#[unsafe(no_mangle)]
extern "C" fn limo_block_barrier() {
    let threads = grid().running_block().threads.len();
    barrier(0, threads);
}
#[unsafe(no_mangle)]
extern "C" fn limo_named_barrier(id: i32, threads: i32) {
    barrier(id as usize, threads as usize);
}
#[unsafe(no_mangle)]
extern "C" fn limo_warp_barrier() {
    meet(WarpOp::Barrier);
}

/// The value that lane `source` of the warp gives. Orders no memory.
#[unsafe(no_mangle)]
extern "C" fn limo_shuffle(value: u32, source: i32) -> u32 {
    let (slot, thread) = grid().running;
    let warp = &mut grid().blocks[slot].warps[thread / WARP];
    let phase = warp.phase;
    warp.slots[phase][thread % WARP] = value;
    meet(WarpOp::Shuffle);
    grid().blocks[slot].warps[thread / WARP].slots[phase][source as usize % WARP]
}

#[unsafe(no_mangle)]
extern "C" fn limo_misaligned(address: *const u8) {
    fail(format!("misaligned: a 16-byte access at {address:p}"));
}

/// The launch of the running fiber. Each use is one statement: no reference lives across a wait.
fn grid<'a>() -> &'a mut Grid<'static> {
    // SAFETY: kernels, which alone call this module, run in fibers.
    unsafe { current() }
}

/// Ends the launch with a fault of the running fiber, which never goes on.
pub fn fail(what: String) -> ! {
    let fault = Fault::here(grid(), what);
    grid().fault = Some(fault);
    wait();
    unreachable!("a fault ends the launch");
}

/// The running thread arrives at barrier `id`, which `expected` threads pass together.
fn barrier(id: usize, expected: usize) {
    let (slot, thread) = grid().running;
    let block = &mut grid().blocks[slot];
    let count = block.threads.len();
    if id >= BARRIERS || expected == 0 || !expected.is_multiple_of(WARP) || expected > count {
        fail(format!("barrier {id} cannot be for {expected} threads of a block of {count}"));
    }
    let barrier = &mut block.barriers[id];
    if barrier.arrived.is_empty() {
        barrier.expected = expected;
    } else if barrier.expected != expected {
        fail(format!("divergent barrier: {id} is for {expected} threads here and for {} elsewhere", barrier.expected));
    }
    barrier.arrived.push(thread);
    // The state comes first: whoever completes the barrier makes everyone runnable, itself too.
    block.threads[thread].state = State::AtBarrier(id);
    if barrier.arrived.len() == expected {
        let arrived = std::mem::take(&mut barrier.arrived);
        block.clocks.join(&arrived);
        release(slot, arrived);
    }
    wait();
}

/// All lanes of the running warp do `op` together.
fn meet(op: WarpOp) {
    let (slot, thread) = grid().running;
    let block = &mut grid().blocks[slot];
    let warp = &mut block.warps[thread / WARP];
    if let Some(&other) = warp.arrived.first()
        && block.threads[other].state != State::AtWarp(op)
    {
        let state = block.threads[other].state;
        fail(format!("divergent warp: this lane is at {:?}, lane {} at {state:?}", State::AtWarp(op), other % WARP));
    }
    warp.arrived.push(thread);
    block.threads[thread].state = State::AtWarp(op);
    if warp.arrived.len() == WARP {
        let arrived = std::mem::take(&mut warp.arrived);
        warp.phase ^= 1;
        if op == WarpOp::Barrier {
            block.clocks.join(&arrived);
        }
        release(slot, arrived);
    }
    wait();
}

fn release(slot: usize, threads: Vec<usize>) {
    threads.into_iter().for_each(|thread| grid().enqueue(slot, thread));
}
