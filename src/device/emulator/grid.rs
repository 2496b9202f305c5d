//! One launch: blocks of fibers, run in an order that the seed chooses, and the places where they wait for one another.

use super::checker::Shadow;
use super::clocks::{Clocks, Stamp};
use super::fiber::{Stack, Suspended, switch};
use super::memory::{Buffers, RED_ZONE};
use super::{KernelEntry, fault::Fault};
use crate::device::Launch;
use std::cell::Cell;
use std::ffi::c_void;

pub const WARP: usize = 32;
/// Barrier 0 is the block's own.
pub const BARRIERS: usize = 16;
/// Fibers alive at once, if a block has no more: further blocks start as others end, as on a GPU.
const MOST_FIBERS: usize = 2048;

/// x, y, z as kernels see them.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Index {
    pub x: u32,
    pub y: u32,
    pub z: u32,
}

impl std::fmt::Display for Index {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "({}, {}, {})", self.x, self.y, self.z)
    }
}

impl Index {
    pub fn of([x, y, z]: [u32; 3]) -> Self {
        Index { x, y, z }
    }

    /// The `linear`-th index of an extent, x fastest.
    fn unfold(linear: usize, [x, y, _]: [u32; 3]) -> Self {
        let (x, y) = (x as usize, y as usize);
        Index { x: (linear % x) as u32, y: (linear / x % y) as u32, z: (linear / (x * y)) as u32 }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    Runnable,
    AtBarrier(usize),
    AtWarp(WarpOp),
    Done,
}

/// What a whole warp does together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WarpOp {
    Barrier,
    Shuffle,
    Ballot,
    Product,
    LoadMatrices,
}

pub struct Thread {
    pub index: Index,
    pub state: State,
    pub stack: Stack,
    suspended: Suspended,
}

#[derive(Default, Clone)]
pub struct Barrier {
    /// Threads that this phase of the barrier was announced for.
    pub expected: usize,
    pub arrived: Vec<usize>,
}

#[derive(Clone)]
pub struct Warp {
    pub arrived: Vec<usize>,
    /// What each lane gave to a shuffle. Two phases, because a fast lane may give the next value before a slow one took this.
    pub slots: [[u32; WARP]; 2],
    pub phase: usize,
    /// What each lane gave to a collective, on its own stack.
    pub calls: [*mut c_void; WARP],
}

impl Warp {
    const NEW: Self = Warp { arrived: Vec::new(), slots: [[0; WARP]; 2], phase: 0, calls: [std::ptr::null_mut(); WARP] };
}

pub struct Block {
    /// Its place in the grid.
    pub linear: usize,
    pub index: Index,
    pub threads: Vec<Thread>,
    pub shared: SharedBuffer,
    pub clocks: Clocks,
    pub barriers: [Barrier; BARRIERS],
    pub warps: Vec<Warp>,
    queue: Queue,
    done: usize,
}

/// The runnable threads of a block, taken in an order fixed when the block starts.
struct Queue {
    /// The thread of each rank, and the rank of each thread.
    order: Vec<usize>,
    ranks: Vec<usize>,
    /// A bit a rank.
    runnable: Vec<u64>,
}

impl Queue {
    /// Nobody is runnable. `key` orders the threads.
    fn new(threads: usize, key: impl Fn(usize) -> u64) -> Self {
        let mut order: Vec<usize> = (0..threads).collect();
        order.sort_by_key(|&thread| key(thread));
        let mut ranks = vec![0; threads];
        order.iter().enumerate().for_each(|(rank, &thread)| ranks[thread] = rank);
        Queue { order, ranks, runnable: vec![0; threads.div_ceil(64)] }
    }
    fn push(&mut self, thread: usize) {
        let rank = self.ranks[thread];
        self.runnable[rank / 64] |= 1 << (rank % 64);
    }
    fn pop(&mut self) -> Option<usize> {
        let word = self.runnable.iter().position(|&word| word != 0)?;
        let bit = self.runnable[word].trailing_zeros() as usize;
        self.runnable[word] &= self.runnable[word] - 1;
        Some(self.order[64 * word + bit])
    }
}

/// The dynamic shared memory of a block, between red zones.
pub struct SharedBuffer {
    words: Vec<u64>,
    pub bytes: usize,
    /// In checked mode, a flag a byte: a thread wrote it.
    pub written: Vec<bool>,
    /// The last accesses to it.
    pub shadow: Shadow,
}

impl SharedBuffer {
    /// Filled with NaN, because a GPU leaves there what the last block left.
    fn new(bytes: usize, checked: bool) -> Self {
        let words = vec![u64::MAX; (bytes + 2 * RED_ZONE) / 8 + 1024 / 8 + 1];
        SharedBuffer { words, bytes, written: vec![false; if checked { bytes } else { 0 }], shadow: Shadow::default() }
    }
    pub fn base(&self) -> u64 {
        (self.words.as_ptr() as u64 + RED_ZONE as u64).next_multiple_of(1024)
    }
}

/// A launch under way. Fibers reach it through [`current`].
pub struct Grid<'a> {
    pub kernel: &'a KernelEntry,
    pub params: &'a [u8],
    pub launch: Launch,
    pub buffers: &'a mut Buffers,
    /// The last accesses to global memory. A launch starts without any: launches happen one after another.
    pub shadow: Shadow,
    pub checked: bool,
    /// Resident blocks; a slot is reused when its block ends.
    pub blocks: Vec<Block>,
    /// Slot and thread of the running fiber.
    pub running: (usize, usize),
    pub fault: Option<Fault>,
    seed: u64,
    scheduler: Suspended,
}

thread_local! {
    static CURRENT: Cell<*mut Grid<'static>> = const { Cell::new(std::ptr::null_mut()) };
}

/// The launch that this host thread runs.
///
/// # Safety
/// Only for calls made by a fiber, and not kept across a switch.
pub unsafe fn current<'a>() -> &'a mut Grid<'static> {
    // SAFETY: `run` keeps the grid alive and does not touch it while a fiber runs.
    unsafe { &mut *CURRENT.get() }
}

impl<'a> Grid<'a> {
    pub fn new(
        kernel: &'a KernelEntry,
        params: &'a [u8],
        launch: Launch,
        buffers: &'a mut Buffers,
        checked: bool,
        seed: u64,
    ) -> Self {
        Grid {
            kernel,
            params,
            launch,
            buffers,
            shadow: Shadow::default(),
            checked,
            blocks: Vec::new(),
            running: (0, 0),
            fault: None,
            seed,
            scheduler: Suspended::NOTHING,
        }
    }

    fn block_threads(&self) -> usize {
        self.launch.block.iter().map(|&n| n as usize).product()
    }

    /// Runs every block to its end, or to the first fault. `stacks` is a pool that later launches use again.
    pub fn run(mut self, stacks: &mut Vec<Stack>) -> Result<(), Fault> {
        let blocks: usize = self.launch.grid.iter().map(|&n| n as usize).product();
        let resident = (MOST_FIBERS / self.block_threads()).max(1);
        let mut waiting: Vec<usize> = (0..blocks).rev().collect();
        if self.seed != 0 {
            waiting.sort_by_key(|&block| hash(self.seed ^ block as u64));
        }

        let shared: *mut Grid<'a> = &mut self;
        CURRENT.set(shared.cast());
        loop {
            // SAFETY: no fiber runs, so this is the only reference to the grid; it ends before `resume`.
            let grid = unsafe { &mut *shared };
            while grid.blocks.len() < resident && !waiting.is_empty() {
                let slot = grid.blocks.len();
                grid.admit(slot, waiting.pop().expect("not empty"), stacks);
            }
            let Some((slot, thread)) = grid.next() else {
                grid.fault = grid.stuck();
                break;
            };
            // SAFETY: `shared` is the grid, and the thread was in its queue once.
            unsafe { resume(shared, slot, thread) }
            // SAFETY: as above.
            let grid = unsafe { &mut *shared };
            if grid.fault.is_some() {
                break;
            }
            if grid.blocks[slot].done == grid.blocks[slot].threads.len() {
                stacks.extend(grid.blocks[slot].threads.drain(..).map(|thread| thread.stack));
                if let Some(linear) = waiting.pop() {
                    grid.admit(slot, linear, stacks);
                }
            }
        }
        CURRENT.set(std::ptr::null_mut());
        stacks.extend(self.blocks.drain(..).flat_map(|block| block.threads).map(|thread| thread.stack));
        self.fault.take().map_or(Ok(()), Err)
    }

    /// Starts the block at `linear` of the grid in a slot.
    fn admit(&mut self, slot: usize, linear: usize, stacks: &mut Vec<Stack>) {
        let count = self.block_threads();
        let thread = |i| {
            let mut stack = stacks.pop().unwrap_or_else(|| Stack::new(i));
            let suspended = stack.start(fiber);
            Thread { index: Index::unfold(i, self.launch.block), state: State::Runnable, stack, suspended }
        };
        let queue = Queue::new(count, |thread| self.order(linear, thread));
        let block = Block {
            linear,
            index: Index::unfold(linear, self.launch.grid),
            threads: (0..count).map(thread).collect(),
            shared: SharedBuffer::new(self.launch.shared_bytes as usize, self.checked),
            clocks: Clocks::new(count),
            barriers: std::array::from_fn(|_| Barrier::default()),
            warps: vec![Warp::NEW; count / WARP],
            queue,
            done: 0,
        };
        if slot == self.blocks.len() {
            self.blocks.push(block);
        } else {
            self.blocks[slot] = block;
        }
        (0..count).for_each(|thread| self.enqueue(slot, thread));
    }

    pub fn enqueue(&mut self, slot: usize, thread: usize) {
        self.blocks[slot].threads[thread].state = State::Runnable;
        self.blocks[slot].queue.push(thread);
    }

    /// A runnable thread, of the running block as long as it has one.
    fn next(&mut self) -> Option<(usize, usize)> {
        let (first, count) = (self.running.0, self.blocks.len());
        (first..first + count).map(|slot| slot % count).find_map(|slot| Some((slot, self.blocks[slot].queue.pop()?)))
    }

    /// Where a thread stands in the order of this seed: warps of a block first, lanes of a warp next; 0 is the natural order.
    /// In others a warp may run far ahead of its neighbours, and lanes run in any order.
    fn order(&self, block: usize, thread: usize) -> u64 {
        if self.seed == 0 {
            return thread as u64;
        }
        let draw = |of: usize| hash((self.seed << 32) ^ of as u64) >> 40;
        (draw((block << 6) | (thread / WARP)) << 24) | draw((block << 11) | (1 << 10) | thread)
    }

    pub fn running_block(&self) -> &Block {
        &self.blocks[self.running.0]
    }
    pub fn running_thread(&self) -> &Thread {
        &self.running_block().threads[self.running.1]
    }
    /// When the running thread does what it does, for the race check.
    pub fn now(&self) -> Stamp {
        let (block, thread) = (self.running_block(), self.running.1);
        Stamp { block: block.linear as u32, thread: thread as u32, clock: block.clocks.of(thread) }
    }

    /// Why nobody can run although some have not ended; nothing if all have.
    fn stuck(&self) -> Option<Fault> {
        let waits = |thread: &&Thread| thread.state != State::Done;
        let block = self.blocks.iter().find(|block| block.threads.iter().any(|thread| waits(&thread)))?;
        let thread = block.threads.iter().find(waits)?;
        let same = block.threads.iter().filter(|other| other.state == thread.state).count();
        let left = block.threads.iter().filter(|other| other.state == State::Done).count();
        let place = match thread.state {
            State::AtBarrier(id) => format!("barrier {id} for {} threads", block.barriers[id].expected),
            state => format!("{state:?}"),
        };
        let what = format!(
            "divergent barrier: {same} threads wait at {place}, {left} have left the kernel, {} wait elsewhere",
            block.threads.len() - same - left
        );
        Some(Fault::new(self.kernel.name(), block.index, thread.index, what))
    }
}

/// Runs a fiber until it waits or ends.
///
/// # Safety
/// `grid` is the launch under way, nobody holds a reference to it, and the thread is suspended.
unsafe fn resume(grid: *mut Grid, slot: usize, thread: usize) {
    // SAFETY: the caller's promise; no reference outlives its statement, so the fiber is free to make its own.
    unsafe {
        (*grid).running = (slot, thread);
        let to = (&(*grid).blocks)[slot].threads[thread].suspended;
        switch(&raw mut (*grid).scheduler, to);
        if (&(*grid).blocks)[slot].threads[thread].stack.overflowed() {
            // What lay below the stack is overwritten, so nothing can be trusted any more.
            eprintln!("{}: a kernel needs more stack than the emulator gives its threads", (*grid).kernel.name());
            std::process::abort();
        }
    }
}

/// Leaves the running fiber, whose state says why, for the scheduler; returns when the fiber is resumed.
pub fn wait() {
    let (from, to) = {
        // SAFETY: a fiber runs; the reference ends before the switch.
        let grid = unsafe { current() };
        let (slot, thread) = grid.running;
        let fiber = &mut grid.blocks[slot].threads[thread];
        (&raw mut fiber.suspended, grid.scheduler)
    };
    // SAFETY: the scheduler waits in `resume`; `from` stays where it is while its thread has not ended.
    unsafe { switch(from, to) }
}

/// What a fiber runs: the kernel, once.
extern "C" fn fiber() -> ! {
    let (run, params) = {
        // SAFETY: a fiber runs; the reference ends before the kernel starts.
        let grid = unsafe { current() };
        (grid.kernel.run, grid.params.as_ptr())
    };
    // SAFETY: the launcher compared the sizes of the parameter block; what it points to is its caller's promise.
    unsafe { run(params.cast()) }
    {
        // SAFETY: a fiber runs; the reference ends before the switch.
        let grid = unsafe { current() };
        let (slot, thread) = grid.running;
        grid.blocks[slot].done += 1;
        grid.blocks[slot].threads[thread].state = State::Done;
    }
    wait();
    unreachable!("a fiber that ended is not resumed");
}

/// The mixing function of SplitMix64.
fn hash(seed: u64) -> u64 {
    let mut z = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
