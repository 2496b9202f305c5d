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
extern "C" fn limo_ballot(condition: u32) -> u32 {
    let mut call = (condition != 0, 0u32);
    collective(WarpOp::Ballot, &mut call, |calls| {
        let ballot = calls.iter().enumerate().fold(0, |bits, (lane, call)| bits | u32::from(call.0) << lane);
        calls.iter_mut().for_each(|call| call.1 = ballot);
    });
    call.1
}

/// Returns what the counter held, and leaves one more.
#[unsafe(no_mangle)]
extern "C" fn limo_take_ticket(counter: *mut u32) -> u32 {
    // SAFETY: the kernel's own pointer.
    unsafe {
        let ticket = *counter;
        *counter = ticket.wrapping_add(1);
        ticket
    }
}

#[unsafe(no_mangle)]
extern "C" fn limo_ordered_wait(turn_address: *const u32, turn: u32) {
    // SAFETY: the kernel's own pointer.
    while unsafe { turn_address.read_volatile() } != turn {
        let (slot, thread) = grid().running;
        grid().enqueue(slot, thread);
        wait();
    }
}

#[unsafe(no_mangle)]
extern "C" fn limo_pass_turn(turn_address: *mut u32, turn: u32) {
    // SAFETY: the kernel's own pointer.
    unsafe { turn_address.write_volatile(turn) }
}

#[unsafe(no_mangle)]
extern "C" fn limo_copy_async(to: *mut u8, from: *const u8, bytes: u32) {
    // SAFETY: the kernel's own pointers; nothing is read where no bytes are to be.
    unsafe {
        std::ptr::write_bytes(to, 0, 16);
        std::ptr::copy_nonoverlapping(from, to, bytes as usize);
    }
}
#[unsafe(no_mangle)]
extern "C" fn limo_copy_async_commit() {}
#[unsafe(no_mangle)]
extern "C" fn limo_copy_async_wait(_pending: u32) {}

/// A lane's share of d += a · b: four sums, four registers of a, two of b.
#[repr(C)]
#[derive(Clone, Copy)]
struct Sums([f32; 4]);

#[unsafe(no_mangle)]
#[allow(clippy::too_many_arguments)]
extern "C" fn limo_mma_m16n8k16(
    d0: f32,
    d1: f32,
    d2: f32,
    d3: f32,
    a0: u32,
    a1: u32,
    a2: u32,
    a3: u32,
    b0: u32,
    b1: u32,
) -> Sums {
    let mut call = Product { d: [d0, d1, d2, d3], a: [a0, a1, a2, a3], b: [b0, b1] };
    collective(WarpOp::Product, &mut call, multiply);
    Sums(call.d)
}

struct Product {
    d: [f32; 4],
    a: [u32; 4],
    b: [u32; 2],
}

/// d += a · b from the fragments of 32 lanes.
fn multiply(calls: &mut [&mut Product]) {
    let low = |word: u32| f32::from_bits(word << 16);
    let high = |word: u32| f32::from_bits(word & 0xffff_0000);
    let mut a = [[0.0f32; 16]; 16];
    let mut b = [[0.0f32; 16]; 8];
    for (lane, call) in calls.iter().enumerate() {
        let (group, column) = (lane / 4, lane % 4 * 2);
        for (i, &word) in call.a.iter().enumerate() {
            let (row, column) = (group + i % 2 * 8, column + i / 2 * 8);
            (a[row][column], a[row][column + 1]) = (low(word), high(word));
        }
        for (i, &word) in call.b.iter().enumerate() {
            let row = column + i * 8;
            (b[group][row], b[group][row + 1]) = (low(word), high(word));
        }
    }
    for (lane, call) in calls.iter_mut().enumerate() {
        for (i, d) in call.d.iter_mut().enumerate() {
            let (row, column) = (lane / 4 + i / 2 * 8, lane % 4 * 2 + i % 2);
            *d += (0..16).map(|k| a[row][k] * b[column][k]).sum::<f32>();
        }
    }
}

/// What a lane gets of four 8 × 8 matrices.
#[repr(C)]
#[derive(Clone, Copy)]
struct Fragment([u32; 4]);

#[unsafe(no_mangle)]
extern "C" fn limo_ldmatrix_x4(row: *const u16, transposed: u32) -> Fragment {
    let mut call = (row, Fragment([0; 4]));
    collective(WarpOp::LoadMatrices, &mut call, |calls| {
        for lane in 0..WARP {
            for matrix in 0..4 {
                // SAFETY: the kernel's own pointers, to eight elements each.
                let at = |row: usize, column: usize| u32::from(unsafe { *calls[8 * matrix + row].0.add(column) });
                let (group, pair) = (lane / 4, lane % 4 * 2);
                let (low, high) = match transposed {
                    0 => (at(group, pair), at(group, pair + 1)),
                    _ => (at(pair, group), at(pair + 1, group)),
                };
                calls[lane].1.0[matrix] = low | high << 16;
            }
        }
    });
    call.1
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

/// All lanes of the running warp give a `call` each; the last one works on all of them, in order of lane.
fn collective<T>(op: WarpOp, call: &mut T, work: impl FnOnce(&mut [&mut T])) {
    let (slot, thread) = grid().running;
    let warp = &mut grid().blocks[slot].warps[thread / WARP];
    warp.calls[thread % WARP] = std::ptr::from_mut(call).cast();
    if warp.arrived.len() == WARP - 1 {
        // SAFETY: every lane's call lies on its stack, which keeps still until `meet` returns there; `op` says that all have one type.
        let mut calls: Vec<&mut T> = warp.calls.iter().map(|&call| unsafe { &mut *call.cast() }).collect();
        work(&mut calls);
    }
    meet(op);
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
