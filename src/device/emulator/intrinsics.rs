//! What kernels call: the other side of `kernels/emulator/cuda.h` and `intrinsics.h`. All of it runs on a fiber.

use super::copies;
use super::fault::Fault;
use super::grid::{BARRIERS, Grid, Index, current, hand_over, wait};
use super::shadow::Access;
use super::turns;
use super::warp::{WARP, WarpOp};

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
    grid().running_block().shared.base as *mut u8
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
    let [] = collective(WarpOp::Barrier, []);
}

/// The value that lane `source` of the warp gives. Orders no memory.
#[unsafe(no_mangle)]
extern "C" fn limo_shuffle(value: u32, source: u32) -> u32 {
    let [value] = collective(WarpOp::Shuffle, [value, source]);
    value
}

#[unsafe(no_mangle)]
extern "C" fn limo_ballot(condition: u32) -> u32 {
    let [ballot] = collective(WarpOp::Ballot, [u32::from(condition != 0)]);
    ballot
}

/// Four words in registers: sums, or what a lane gets of four matrices.
#[repr(C)]
struct Four<T>([T; 4]);

/// A lane's share of d + a · b.
#[unsafe(no_mangle)]
#[rustfmt::skip]
#[allow(clippy::too_many_arguments)]
extern "C" fn limo_mma_m16n8k16(
    d0: f32, d1: f32, d2: f32, d3: f32, a0: u32, a1: u32, a2: u32, a3: u32, b0: u32, b1: u32,
) -> Four<f32> {
    let [d0, d1, d2, d3] = [d0, d1, d2, d3].map(f32::to_bits);
    Four(collective(WarpOp::Product, [d0, d1, d2, d3, a0, a1, a2, a3, b0, b1]).map(f32::from_bits))
}

#[unsafe(no_mangle)]
extern "C" fn limo_ldmatrix_x4(row: u64, transposed: u32) -> Four<u32> {
    Four(collective(WarpOp::LoadMatrices { transposed: transposed != 0 }, [row as u32, (row >> 32) as u32]))
}

/// Returns what the word held.
#[unsafe(no_mangle)]
extern "C" fn limo_atomic_add(word: *mut u32, value: u32) -> u32 {
    if grid().checked {
        let thread = grid().running.1;
        grid().check(word as u64, size_of::<u32>(), Access::Addition, thread).unwrap_or_else(|what| fail(what));
    }
    // SAFETY: the kernel's own pointer; all fibers run on one host thread.
    unsafe {
        let before = word.read();
        word.write(before.wrapping_add(value));
        before
    }
}
#[unsafe(no_mangle)]
extern "C" fn limo_take_ticket(counter: *mut u32) -> u32 {
    turns::take_ticket(counter)
}
#[unsafe(no_mangle)]
extern "C" fn limo_ordered_wait(turn_address: *const u32, turn: u32) {
    turns::ordered_wait(turn_address, turn);
}
#[unsafe(no_mangle)]
extern "C" fn limo_pass_turn(turn_address: *mut u32, turn: u32) {
    turns::pass_turn(turn_address, turn);
}

#[unsafe(no_mangle)]
extern "C" fn limo_copy_async(to: u64, from: u64, bytes: u32) {
    copies::start(to, from, bytes);
}
#[unsafe(no_mangle)]
extern "C" fn limo_copy_async_commit() {
    copies::commit();
}
#[unsafe(no_mangle)]
extern "C" fn limo_copy_async_wait(pending: u32) {
    copies::wait(pending);
}

#[unsafe(no_mangle)]
extern "C" fn limo_misaligned(address: *const u8) {
    fail(format!("misaligned: a 16-byte access at {address:p}"));
}

/// The launch of the running fiber. Each use is one statement: no reference lives across a wait.
pub fn grid<'a>() -> &'a mut Grid<'static> {
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
    let checked = grid().checked;
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
    if barrier.arrived.len() < expected {
        return wait();
    }
    // The last one goes on at once.
    if checked {
        block.clocks.join(&barrier.arrived);
    }
    let others = barrier.arrived.drain(..).filter(|&other| other != thread);
    others.for_each(|other| block.queue.push(other));
    hand_over();
}

/// All lanes of the running warp give words and take words. The last lane to arrive does the work, and goes on at once.
fn collective<const GIVEN: usize, const TAKEN: usize>(op: WarpOp, words: [u32; GIVEN]) -> [u32; TAKEN] {
    let (slot, thread) = grid().running;
    let (warp, lane) = grid().blocks[slot].warp(thread);
    if warp.arrived != 0 && warp.op != op {
        let (other, arrived) = (warp.op, warp.arrived.trailing_zeros());
        fail(format!("divergent warp: this lane is at {op:?}, lane {arrived} at {other:?}"));
    }
    warp.op = op;
    warp.arrived |= 1 << lane;
    warp.given.iter_mut().zip(words).for_each(|(row, word)| row[lane] = word);
    if warp.arrived == u32::MAX {
        if grid().checked {
            check_collective(op, thread / WARP * WARP);
        }
        let block = &mut grid().blocks[slot];
        let (warp, _) = block.warp(thread);
        // SAFETY: the kernel's own addresses.
        unsafe { warp.complete() };
        warp.arrived = 0;
        block.queue.push_rest_of_warp(thread);
    } else {
        wait();
    }
    let (warp, lane) = grid().blocks[slot].warp(thread);
    std::array::from_fn(|i| warp.taken[i][lane])
}

/// What checked mode has to say of an operation that all lanes from thread `first` on have arrived at.
fn check_collective(op: WarpOp, first: usize) {
    let slot = grid().running.0;
    match op {
        WarpOp::Barrier => {
            let lanes: [usize; WARP] = std::array::from_fn(|lane| first + lane);
            grid().blocks[slot].clocks.join(&lanes);
        }
        WarpOp::LoadMatrices { .. } => {
            for lane in 0..WARP {
                let row = grid().blocks[slot].warps[first / WARP].row(lane);
                // The row is read for other lanes too: who wrote it without a barrier is unordered with one of any two.
                for reader in [lane, (lane + 1) % WARP] {
                    grid().check(row, 16, Access::Read, first + reader).unwrap_or_else(|what| fail(what));
                }
            }
        }
        WarpOp::Shuffle | WarpOp::Ballot | WarpOp::Product => {}
    }
}
