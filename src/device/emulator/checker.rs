//! The checked mode: what every load and store of a kernel is held against. The host compiler, told to prepare for its thread
//! sanitizer, calls `__tsan_read4` and its like before each access; these are ours instead of its runtime's.
//!
//! An access must lie in a buffer or in the block's own shared memory, within bounds; a read must find bytes that were
//! written; and of two accesses by different threads, one of them a write, one must have happened before the other.

use super::clocks::Stamp;
use super::grid::{Grid, current};
use super::intrinsics::fail;
use super::memory::{RED_ZONE, find};
use super::shadow::{Access, Cell};
use super::warp::WARP;

/// What an address belongs to, for people.
enum Place {
    Shared { offset: i64, bytes: usize },
    Buffer { offset: i64, bytes: usize, start: u64 },
}

/// What is wrong with an access.
enum Flaw {
    Outside,
    /// Nobody wrote the byte at this address.
    Unwritten(u64),
    /// An earlier access, of this kind, to the byte at this address.
    Race(Stamp, Access, u64),
}

/// Checks one plain access of the running fiber.
fn check(address: u64, bytes: usize, access: Access) {
    // SAFETY: instrumented code runs in fibers only.
    let grid = unsafe { current() };
    if grid.running_thread().stack.contains(address) {
        return;
    }
    let thread = grid.running.1;
    if let Err(what) = grid.check(address, bytes, access, thread).and_then(|()| grid.expect_no_turn(address, bytes, access)) {
        fail(what);
    }
}

impl Grid<'_> {
    /// Checks and remembers an access by a thread of the running block; says what is wrong with it.
    pub fn check(&mut self, address: u64, bytes: usize, access: Access, thread: usize) -> Result<(), String> {
        self.examine(address, bytes, access, thread).map_err(|flaw| self.describe(flaw, address, bytes, access, thread))
    }

    fn examine(&mut self, address: u64, bytes: usize, access: Access, thread: usize) -> Result<(), Flaw> {
        let now = self.stamp(thread);
        let block = &mut self.blocks[self.running.0];
        let clocks = &block.clocks;
        let ordered = |earlier: Stamp| clocks.ordered(earlier, thread);
        let (start, memory) = match block.shared.holds(address, bytes) {
            true => (block.shared.base, &mut block.shared.memory),
            false => find(&mut self.buffers, &mut self.recent, address, bytes).ok_or(Flaw::Outside)?,
        };
        let offset = (address - start) as usize;
        let mut rival = None;
        memory.shadow.cells(offset, bytes, |at, cell| {
            rival = rival.or_else(|| cell.rival(access, &ordered).map(|(stamp, other)| (stamp, other, at)));
            cell.remember(now, access, &ordered);
        });
        if let Some((stamp, other, at)) = rival {
            return Err(Flaw::Race(stamp, other, start + at as u64));
        }
        let written = &mut memory.written[offset..][..bytes];
        match access {
            Access::Write => written.fill(true),
            Access::Read | Access::Addition => {
                if let Some(at) = written.iter().position(|written| !written) {
                    return Err(Flaw::Unwritten(address + at as u64));
                }
            }
        }
        Ok(())
    }

    /// A thread of the running block starts a copy to shared memory: until it is waited for, nobody's accesses are ordered after it.
    pub fn begin_copy(&mut self, address: u64, bytes: usize, thread: usize) -> Result<(), String> {
        self.check(address, bytes, Access::Write, thread)?;
        self.stamp_copy(address, bytes, Stamp { clock: Stamp::UNDER_WAY, ..self.stamp(thread) }, false);
        Ok(())
    }

    /// The thread has waited for it: an ordinary write of this moment.
    pub fn end_copy(&mut self, address: u64, bytes: usize, thread: usize) {
        self.stamp_copy(address, bytes, self.stamp(thread), true);
    }

    fn stamp_copy(&mut self, address: u64, bytes: usize, stamp: Stamp, written: bool) {
        let shared = &mut self.blocks[self.running.0].shared;
        let offset = (address - shared.base) as usize;
        shared.memory.shadow.cells(offset, bytes, |_, cell| *cell = Cell::written_at(stamp));
        shared.memory.written[offset..][..bytes].fill(written);
    }

    /// The first use of a word as a ticket or turn: what plain accesses came before must be ordered. Later uses order themselves.
    pub fn check_word(&mut self, address: u64, thread: usize) -> Result<(), String> {
        [Access::Read, Access::Write].into_iter().try_for_each(|access| self.check(address, size_of::<u32>(), access, thread))
    }

    fn expect_no_turn(&self, address: u64, bytes: usize, access: Access) -> Result<(), String> {
        if self.turns.is_empty() {
            return Ok(());
        }
        match self.turns.range(address.saturating_sub(3)..address + bytes as u64).next() {
            None => Ok(()),
            Some((&word, _)) => Err(format!("race: a plain {access:?} of a ticket or turn in {}", self.name_of(word))),
        }
    }

    fn stamp(&self, thread: usize) -> Stamp {
        let block = self.running_block();
        Stamp { block: block.linear as u32, thread: thread as u32, clock: block.clocks.of(thread) }
    }

    fn describe(&self, flaw: Flaw, address: u64, bytes: usize, access: Access, thread: usize) -> String {
        match flaw {
            Flaw::Race(rival, other, at) => self.describe_race(self.stamp(thread), rival, access, other, at),
            Flaw::Unwritten(at) => format!("unwritten read: nobody wrote {}", self.name_of(at)),
            Flaw::Outside if self.place_of(address).is_some() => {
                format!("out of bounds: a {access:?} of {bytes} bytes at {}", self.name_of(address))
            }
            Flaw::Outside => {
                format!("foreign access: a {access:?} of {bytes} bytes at {address:#x}, memory that is not the kernel's")
            }
        }
    }

    fn describe_race(&self, now: Stamp, rival: Stamp, access: Access, other: Access, address: u64) -> String {
        let (block, thread, name) = (rival.block, rival.thread, self.name_of(address));
        if rival.clock == Stamp::UNDER_WAY {
            let copy = format!("the copy that thread {thread} of block {block} started to {name}");
            return format!("copy under way: no copy_async_wait orders this {access:?} after {copy}");
        }
        let warp = |stamp: Stamp| (stamp.block, stamp.thread as usize / WARP);
        let missing = match (rival.block == now.block, warp(rival) == warp(now)) {
            (_, true) => "race within a warp: no warp barrier",
            (true, _) => "race: no barrier",
            (false, _) => "race: nothing",
        };
        format!("{missing} orders this {access:?} after the {other:?} by thread {thread} of block {block} of {name}")
    }

    /// The memory that holds an address or ends or begins just beside it.
    fn place_of(&self, address: u64) -> Option<Place> {
        let zone = RED_ZONE as i64;
        let near = |start: u64, bytes: usize| {
            let offset = address.wrapping_sub(start) as i64;
            (offset >= -zone && offset < bytes as i64 + zone).then_some(offset)
        };
        let shared = &self.running_block().shared;
        if let Some(offset) = near(shared.base, shared.memory.bytes) {
            return Some(Place::Shared { offset, bytes: shared.memory.bytes });
        }
        self.buffers.iter().find_map(|(start, buffer)| {
            near(*start, buffer.bytes).map(|offset| Place::Buffer { offset, bytes: buffer.bytes, start: *start })
        })
    }

    /// "byte 12 of the 40-byte buffer at parameter offset 8": a parameter block holds the addresses of its buffers.
    pub fn name_of(&self, address: u64) -> String {
        match self.place_of(address) {
            None => format!("address {address:#x}"),
            Some(Place::Shared { offset, bytes }) => format!("byte {offset} of the {bytes} bytes of shared memory"),
            Some(Place::Buffer { offset, bytes, start }) => {
                let words = self.params.chunks_exact(8).map(|word| u64::from_ne_bytes(word.try_into().expect("8 bytes")));
                let inside = |word: u64| word.wrapping_sub(start) < bytes.max(1) as u64;
                match words.enumerate().find(|&(_, word)| inside(word)) {
                    Some((index, _)) => {
                        format!("byte {offset} of the {bytes}-byte buffer at parameter offset {}", 8 * index)
                    }
                    None => format!("byte {offset} of a {bytes}-byte buffer that no parameter points to"),
                }
            }
        }
    }
}

/// The callbacks that g++ and clang++ emit, by size.
macro_rules! callbacks {
    ($($name:ident: $access:ident of $bytes:literal;)*) => {$(
        #[unsafe(no_mangle)]
        extern "C" fn $name(address: u64) {
            check(address, $bytes, Access::$access);
        }
    )*};
}

callbacks! {
    __tsan_read1: Read of 1; __tsan_read2: Read of 2; __tsan_read4: Read of 4; __tsan_read8: Read of 8; __tsan_read16: Read of 16;
    __tsan_write1: Write of 1; __tsan_write2: Write of 2; __tsan_write4: Write of 4; __tsan_write8: Write of 8;
    __tsan_write16: Write of 16;
    __tsan_unaligned_read2: Read of 2; __tsan_unaligned_read4: Read of 4; __tsan_unaligned_read8: Read of 8;
    __tsan_unaligned_read16: Read of 16;
    __tsan_unaligned_write2: Write of 2; __tsan_unaligned_write4: Write of 4; __tsan_unaligned_write8: Write of 8;
    __tsan_unaligned_write16: Write of 16;
}

#[unsafe(no_mangle)]
extern "C" fn __tsan_read_range(address: u64, bytes: usize) {
    check(address, bytes, Access::Read);
}
#[unsafe(no_mangle)]
extern "C" fn __tsan_write_range(address: u64, bytes: usize) {
    check(address, bytes, Access::Write);
}

/// Clang calls these for memcpy, memmove and memset.
///
/// # Safety
/// As for the functions they stand for.
#[unsafe(no_mangle)]
unsafe extern "C" fn __tsan_memcpy(to: *mut u8, from: *const u8, bytes: usize) -> *mut u8 {
    // SAFETY: the caller's promise.
    unsafe { __tsan_memmove(to, from, bytes) }
}
#[unsafe(no_mangle)]
unsafe extern "C" fn __tsan_memmove(to: *mut u8, from: *const u8, bytes: usize) -> *mut u8 {
    check(from as u64, bytes, Access::Read);
    check(to as u64, bytes, Access::Write);
    // SAFETY: the caller's promise.
    unsafe { std::ptr::copy(from, to, bytes) };
    to
}
#[unsafe(no_mangle)]
unsafe extern "C" fn __tsan_memset(to: *mut u8, value: i32, bytes: usize) -> *mut u8 {
    check(to as u64, bytes, Access::Write);
    // SAFETY: the caller's promise.
    unsafe { std::ptr::write_bytes(to, value as u8, bytes) };
    to
}

// Calls that mark where functions begin and end, and the sanitizer's own start: of no use here.
#[unsafe(no_mangle)]
extern "C" fn __tsan_init() {}
#[unsafe(no_mangle)]
extern "C" fn __tsan_func_entry(_caller: u64) {}
#[unsafe(no_mangle)]
extern "C" fn __tsan_func_exit() {}
