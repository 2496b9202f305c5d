//! One launch: blocks of fibers, run in an order that the seed chooses, and the places where they wait for one another.

use super::clocks::{Clocks, Past};
use super::copies::{self, Copies};
use super::fiber::{Stack, Suspended, switch};
use super::memory::{Buffer, Buffers, RED_ZONE};
use super::shadow::Shadow;
use super::warp::{WARP, Warp};
use super::{KernelEntry, fault::Fault};
use crate::device::Launch;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::rc::Rc;

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

pub struct Thread {
    pub index: Index,
    pub stack: Stack,
    pub copies: Copies,
    done: bool,
    suspended: Suspended,
}

#[derive(Default)]
pub struct Barrier {
    /// Threads that this phase of the barrier was announced for.
    pub expected: usize,
    pub arrived: Vec<usize>,
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
    pub queue: Queue,
    done: usize,
}

impl Block {
    /// The running thread's warp, and its lane in it.
    pub fn warp(&mut self, thread: usize) -> (&mut Warp, usize) {
        (&mut self.warps[thread / WARP], thread % WARP)
    }
}

/// The runnable threads of a block, taken in an order fixed when the block starts.
pub struct Queue {
    /// The thread of each rank, and the rank of each thread.
    order: Vec<usize>,
    ranks: Vec<usize>,
    /// A bit a rank.
    runnable: Vec<u64>,
}

impl Queue {
    /// Nobody is runnable. `key` orders the threads and keeps warps together.
    fn new(threads: usize, key: impl Fn(usize) -> (u64, u64)) -> Self {
        let mut order: Vec<usize> = (0..threads).collect();
        order.sort_by_key(|&thread| key(thread));
        let mut ranks = vec![0; threads];
        order.iter().enumerate().for_each(|(rank, &thread)| ranks[thread] = rank);
        Queue { order, ranks, runnable: vec![0; threads.div_ceil(64)] }
    }
    pub fn push(&mut self, thread: usize) {
        let rank = self.ranks[thread];
        self.runnable[rank / 64] |= 1 << (rank % 64);
    }
    /// All lanes of a thread's warp but the thread itself.
    pub fn push_rest_of_warp(&mut self, thread: usize) {
        let rank = self.ranks[thread];
        let warp = u64::from(u32::MAX) << (rank % 64 / WARP * WARP);
        self.runnable[rank / 64] |= warp & !(1 << (rank % 64));
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
    pub base: u64,
    pub memory: Buffer,
    _words: Vec<u64>,
}

impl SharedBuffer {
    /// Filled with NaN, because a GPU leaves there what the last block left.
    fn new(bytes: usize, checked: bool) -> Self {
        let words = vec![u64::MAX; (bytes + 2 * RED_ZONE) / 8 + 1024 / 8 + 1];
        let base = (words.as_ptr() as u64 + RED_ZONE as u64).next_multiple_of(1024);
        SharedBuffer { base, memory: Buffer::new(bytes, checked), _words: words }
    }
    pub fn holds(&self, address: u64, bytes: usize) -> bool {
        let offset = address.wrapping_sub(self.base);
        offset < self.memory.bytes as u64 && bytes as u64 <= self.memory.bytes as u64 - offset
    }
}

/// A thread that waits for its turn.
pub struct Waiter {
    pub slot: usize,
    pub thread: usize,
    pub address: u64,
    pub turn: u32,
}

/// A launch under way. Fibers reach it through [`current`].
pub struct Grid<'a> {
    pub kernel: &'a KernelEntry,
    pub params: &'a [u8],
    pub launch: Launch,
    /// Global memory by first address, and which of it was found last.
    pub buffers: Vec<(u64, &'a mut Buffer)>,
    pub recent: usize,
    pub checked: bool,
    /// Resident blocks; a slot is reused when its block ends.
    pub blocks: Vec<Block>,
    /// Blocks that have not started, the next one last.
    pub unstarted: Vec<usize>,
    /// Slot and thread of the running fiber.
    pub running: (usize, usize),
    pub waiters: Vec<Waiter>,
    /// In checked mode, the words that tickets and turns live in, and what the last pass_turn released there.
    pub turns: BTreeMap<u64, Rc<Past>>,
    pub fault: Option<Fault>,
    seed: u64,
    drawn: u64,
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
        // Launches of one stream happen one after another: none races with what came before.
        buffers.values_mut().for_each(|buffer| buffer.shadow = Shadow::default());
        let blocks: usize = launch.grid.iter().map(|&n| n as usize).product();
        let mut unstarted: Vec<usize> = (0..blocks).rev().collect();
        if seed != 0 {
            unstarted.sort_by_key(|&block| hash(seed ^ block as u64));
        }
        Grid {
            kernel,
            params,
            launch,
            buffers: buffers.iter_mut().map(|(&start, buffer)| (start, buffer)).collect(),
            recent: 0,
            checked,
            blocks: Vec::new(),
            unstarted,
            running: (0, 0),
            waiters: Vec::new(),
            turns: BTreeMap::new(),
            fault: None,
            seed,
            drawn: 0,
            scheduler: Suspended::NOTHING,
        }
    }

    fn block_threads(&self) -> usize {
        self.launch.block.iter().map(|&n| n as usize).product()
    }

    /// Blocks that are alive at once. A GPU promises no more than one, and under every third seed there is no more.
    fn residents(&self) -> usize {
        if self.seed % 3 == 2 { 1 } else { (MOST_FIBERS / self.block_threads()).max(1) }
    }

    /// Runs every block to its end, or to the first fault. `stacks` is a pool that later launches use again.
    pub fn run(mut self, stacks: &mut Vec<Stack>) -> Result<(), Fault> {
        let residents = self.residents();
        let shared: *mut Grid<'a> = &mut self;
        CURRENT.set(shared.cast());
        loop {
            // SAFETY: no fiber runs, so this is the only reference to the grid; it ends before `resume`.
            let grid = unsafe { &mut *shared };
            while grid.blocks.len() < residents
                && let Some(linear) = grid.unstarted.pop()
            {
                grid.admit(grid.blocks.len(), linear, stacks);
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
            let block = &mut grid.blocks[slot];
            if block.done == block.threads.len() {
                block.done = 0;
                stacks.extend(block.threads.drain(..).map(|thread| thread.stack));
                if let Some(linear) = grid.unstarted.pop() {
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
            Thread { index: Index::unfold(i, self.launch.block), stack, copies: Copies::default(), done: false, suspended }
        };
        let block = Block {
            linear,
            index: Index::unfold(linear, self.launch.grid),
            threads: (0..count).map(thread).collect(),
            shared: SharedBuffer::new(self.launch.shared_bytes as usize, self.checked),
            clocks: Clocks::new(linear as u32, count),
            barriers: std::array::from_fn(|_| Barrier::default()),
            warps: (0..count / WARP).map(|_| Warp::new()).collect(),
            queue: Queue::new(count, |thread| self.order(linear, thread)),
            done: 0,
        };
        if slot == self.blocks.len() {
            self.blocks.push(block);
        } else {
            self.blocks[slot] = block;
        }
        (0..count).for_each(|thread| self.blocks[slot].queue.push(thread));
    }

    /// A runnable thread, of the running block as long as it has one.
    fn next(&mut self) -> Option<(usize, usize)> {
        let (first, count) = (self.running.0, self.blocks.len());
        (first..first + count).map(|slot| slot % count).find_map(|slot| Some((slot, self.blocks[slot].queue.pop()?)))
    }

    /// Where a thread stands in the order of this seed: warps of a block first, lanes of a warp next; 0 is the natural order.
    /// In others a warp may run far ahead of its neighbours, and lanes run in any order.
    fn order(&self, block: usize, thread: usize) -> (u64, u64) {
        let warp = (thread / WARP) as u64;
        if self.seed == 0 {
            return (warp, thread as u64);
        }
        let draw = |of: usize| hash((self.seed << 32) ^ of as u64) >> 40;
        ((draw((block << 6) | (thread / WARP)) << 24) | warp, draw((block << 11) | (1 << 10) | thread))
    }

    /// One of `choices`, as the seed has it; always 0 in the natural order.
    pub fn draw(&mut self, choices: u64) -> u64 {
        if self.seed == 0 {
            return 0;
        }
        self.drawn += 1;
        hash(self.seed.rotate_left(32) ^ self.drawn) % choices
    }

    pub fn running_block(&self) -> &Block {
        &self.blocks[self.running.0]
    }
    pub fn running_thread(&self) -> &Thread {
        &self.running_block().threads[self.running.1]
    }

    /// Why nobody can run although some have not ended; nothing if all have.
    fn stuck(&self) -> Option<Fault> {
        let slots = || (0..self.blocks.len()).filter(|&slot| self.blocks[slot].threads.iter().any(|thread| !thread.done));
        let waits = |slot: usize| self.waiters.iter().find(|waiter| waiter.slot == slot);
        // A block that waits for no turn holds up those that do.
        let slot = slots().find(|&slot| waits(slot).is_none()).or(slots().next())?;
        let block = &self.blocks[slot];
        if let Some(waiter) = waits(slot) {
            let what = self.describe_deadlock(waiter);
            return Some(Fault::new(self.kernel.name(), block.index, block.threads[waiter.thread].index, what));
        }
        let thread = block.threads.iter().position(|thread| !thread.done)?;
        let left = block.threads.iter().filter(|thread| thread.done).count();
        let others = |same: usize| format!("{left} have left the kernel, {} wait elsewhere", block.threads.len() - same - left);
        let warp = &block.warps[thread / WARP];
        let what = if warp.arrived >> (thread % WARP) & 1 == 1 {
            let same = warp.arrived.count_ones() as usize;
            format!("divergent warp: {same} lanes wait at {:?}, of the block {}", warp.op, others(same))
        } else {
            let id = block.barriers.iter().position(|barrier| barrier.arrived.contains(&thread))?;
            let (same, expected) = (block.barriers[id].arrived.len(), block.barriers[id].expected);
            format!("divergent barrier: {same} threads wait at barrier {id} for {expected} threads, {}", others(same))
        };
        Some(Fault::new(self.kernel.name(), block.index, block.threads[thread].index, what))
    }

    fn describe_deadlock(&self, &Waiter { address, turn, .. }: &Waiter) -> String {
        let unstarted = match self.unstarted.len() {
            0 => "every block has started, and nobody is left to pass it".to_string(),
            n => format!("{n} blocks have not started and cannot before one ends: turns must be in the order of take_ticket"),
        };
        // SAFETY: a turn that is waited for was read before.
        let now = unsafe { *(address as *const u32) };
        format!("deadlock: waits for turn {turn} in {}, which holds {now}; {unstarted}", self.name_of(address))
    }
}

/// Runs fibers, from this one on, until all of its block wait or end, or one hands over to another block.
///
/// # Safety
/// `grid` is the launch under way, nobody holds a reference to it, and the thread is suspended.
unsafe fn resume(grid: *mut Grid, slot: usize, thread: usize) {
    // SAFETY: the caller's promise; no reference outlives its statement, so the fiber is free to make its own.
    unsafe {
        (*grid).running = (slot, thread);
        let to = (&(*grid).blocks)[slot].threads[thread].suspended;
        switch(&raw mut (*grid).scheduler, to);
        if (&(*grid).blocks)[slot].threads.iter().any(|thread| thread.stack.overflowed()) {
            // What lay below the stack is overwritten, so nothing can be trusted any more.
            eprintln!("{}: a kernel needs more stack than the emulator gives its threads", (*grid).kernel.name());
            std::process::abort();
        }
    }
}

/// Leaves the running fiber for the next runnable one of its block, or for the scheduler. Returns when somebody made the fiber
/// runnable and its turn has come.
pub fn wait() {
    let (from, to) = {
        // SAFETY: a fiber runs; the reference ends before the switch.
        let grid = unsafe { current() };
        let (slot, thread) = grid.running;
        let block = &mut grid.blocks[slot];
        let next = if grid.fault.is_none() { block.queue.pop() } else { None };
        if next == Some(thread) {
            return;
        }
        grid.running.1 = next.unwrap_or(thread);
        let to = next.map_or(grid.scheduler, |next| block.threads[next].suspended);
        (&raw mut block.threads[thread].suspended, to)
    };
    // SAFETY: the scheduler waits in `resume`, the other fiber in here or at its start; `from` stays where it is while its thread has not
    // ended.
    unsafe { switch(from, to) }
}

/// Where blocks may overtake one another: in some orders another block runs now, and this fiber later.
pub fn hand_over() {
    let (from, to) = {
        // SAFETY: a fiber runs; the reference ends before the switch.
        let grid = unsafe { current() };
        let blocks = grid.blocks.len() as u64;
        if blocks == 1 || grid.draw(4) != 1 {
            return;
        }
        let (slot, thread) = grid.running;
        grid.blocks[slot].queue.push(thread);
        // Where the scheduler looks first.
        grid.running.0 = grid.draw(blocks) as usize;
        (&raw mut grid.blocks[slot].threads[thread].suspended, grid.scheduler)
    };
    // SAFETY: as in `wait`.
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
    copies::expect_none();
    {
        // SAFETY: a fiber runs; the reference ends before the switch.
        let grid = unsafe { current() };
        let (slot, thread) = grid.running;
        grid.blocks[slot].done += 1;
        grid.blocks[slot].threads[thread].done = true;
    }
    wait();
    unreachable!("a fiber that ended is not resumed");
}

/// The mixing function of SplitMix64.
pub fn hash(seed: u64) -> u64 {
    let mut z = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
