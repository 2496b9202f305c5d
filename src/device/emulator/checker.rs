//! The checked mode: what every load and store of a kernel is held against. The host compiler, told to prepare for its thread
//! sanitizer, calls `__tsan_read4` and its like before each access; these are ours instead of its runtime's.
//!
//! An access must lie in a buffer or in the block's own shared memory, within bounds; a read must find bytes that were
//! written; and of two accesses by different threads, one of them a write, one must have happened before the other.

use super::clocks::Stamp;
use super::grid::{Grid, current};
use super::intrinsics::fail;
use super::memory::{RED_ZONE, find};
use super::shadow::{Access, Cell, Reads};
use super::warp::WARP;

/// What an address belongs to, for people.
enum Place {
    Shared { offset: i64, bytes: usize },
    Buffer { offset: i64, bytes: usize, start: u64 },
}

/// Checks one plain access of the running fiber.
fn check(address: u64, bytes: usize, access: Access) {
    // SAFETY: instrumented code runs in fibers only.
    let grid = unsafe { current() };
    if grid.running_thread().stack.contains(address) {
        return;
    }
    let thread = grid.running.1;
    let result = match access {
        Access::Read => grid.check_read(address, bytes, thread),
        Access::Write => grid.check_write(address, bytes, thread),
    };
    if let Err(what) = result.and_then(|()| grid.expect_no_turn(address, bytes, access)) {
        fail(what);
    }
}

impl Grid<'_> {
    /// A read by a thread of the running block.
    pub fn check_read(&mut self, address: u64, bytes: usize, thread: usize) -> Result<(), String> {
        self.written(address, bytes, Access::Read)?;
        self.check_order(address, bytes, Access::Read, thread)?;
        match self.written(address, bytes, Access::Read)?.iter().position(|written| !written) {
            None => Ok(()),
            Some(at) => Err(format!("unwritten read: nobody wrote {}", self.name_of(address + at as u64))),
        }
    }

    /// A write by a thread of the running block.
    pub fn check_write(&mut self, address: u64, bytes: usize, thread: usize) -> Result<(), String> {
        self.written(address, bytes, Access::Write)?.fill(true);
        self.check_order(address, bytes, Access::Write, thread)
    }

    /// A thread of the running block starts a copy to shared memory: until it is waited for, nobody's accesses are ordered after it.
    pub fn begin_copy(&mut self, address: u64, bytes: usize, thread: usize) -> Result<(), String> {
        self.check_write(address, bytes, thread)?;
        self.written(address, bytes, Access::Write)?.fill(false);
        self.stamp_copy(address, bytes, Stamp { clock: Stamp::UNDER_WAY, ..self.stamp(thread) });
        Ok(())
    }

    /// The thread has waited for it: an ordinary write of this moment.
    pub fn end_copy(&mut self, address: u64, bytes: usize, thread: usize) {
        self.written(address, bytes, Access::Write).expect("a copy in bounds").fill(true);
        self.stamp_copy(address, bytes, self.stamp(thread));
    }

    fn stamp_copy(&mut self, address: u64, bytes: usize, stamp: Stamp) {
        let shadow = &mut self.blocks[self.running.0].shared.shadow;
        shadow.cells(address, bytes, |_, cell| *cell = Cell { write: Some(stamp), reads: Reads::Nobody });
    }

    /// An access to a word of tickets or turns. Those order themselves; what came before the `first` of them is checked.
    pub fn check_word(&mut self, address: u64, first: bool, write: bool, thread: usize) -> Result<(), String> {
        let bytes = size_of::<u32>();
        if first {
            self.check_read(address, bytes, thread)?;
            self.check_write(address, bytes, thread)
        } else if write {
            self.written(address, bytes, Access::Write).map(|written| written.fill(true))
        } else {
            Ok(())
        }
    }

    fn expect_no_turn(&self, address: u64, bytes: usize, access: Access) -> Result<(), String> {
        let end = address + bytes as u64;
        match self.turns.range(address.saturating_sub(3)..end).next() {
            None => Ok(()),
            Some((&word, _)) => Err(format!("race: a plain {access:?} of a ticket or turn in {}", self.name_of(word))),
        }
    }

    fn stamp(&self, thread: usize) -> Stamp {
        let block = self.running_block();
        Stamp { block: block.linear as u32, thread: thread as u32, clock: block.clocks.of(thread) }
    }

    /// Which bytes of a span were written; an error where the span is not all of one buffer's or of shared memory.
    fn written(&mut self, address: u64, bytes: usize, access: Access) -> Result<&mut [bool], String> {
        let slot = self.running.0;
        let shared = &self.blocks[slot].shared;
        let offset = address.wrapping_sub(shared.base());
        if offset < shared.bytes as u64 && bytes as u64 <= shared.bytes as u64 - offset {
            return Ok(&mut self.blocks[slot].shared.written[offset as usize..][..bytes]);
        }
        if find(self.buffers, address, bytes).is_none() {
            return Err(match self.place_of(address) {
                Some(_) => format!("out of bounds: a {access:?} of {bytes} bytes at {}", self.name_of(address)),
                None => {
                    format!("foreign access: a {access:?} of {bytes} bytes at {address:#x}, memory that is not the kernel's")
                }
            });
        }
        let (start, buffer) = find(self.buffers, address, bytes).expect("just found");
        Ok(&mut buffer.written[(address - start) as usize..][..bytes])
    }

    /// Finds an access of another thread that nothing orders before this one, and remembers this one.
    fn check_order(&mut self, address: u64, bytes: usize, access: Access, thread: usize) -> Result<(), String> {
        let now = self.stamp(thread);
        let slot = self.running.0;
        let shared = &mut self.blocks[slot].shared;
        let in_shared = address.wrapping_sub(shared.base()) < shared.bytes as u64;
        // Taken out while the clocks of the block are asked.
        let mut shadow = std::mem::take(if in_shared { &mut shared.shadow } else { &mut self.shadow });
        let block = self.running_block();
        let ordered = |earlier: Stamp| block.clocks.ordered(earlier, thread);
        let mut rival = None;
        shadow.cells(address, bytes, |at, cell| {
            rival = rival.or_else(|| cell.rival(access, &ordered).map(|(stamp, other)| (stamp, other, at)));
            cell.remember(now, access, &ordered, block.threads.len());
        });
        *(if in_shared { &mut self.blocks[slot].shared.shadow } else { &mut self.shadow }) = shadow;
        rival.map_or(Ok(()), |(stamp, other, at)| Err(self.describe_race(now, stamp, access, other, at)))
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
        if let Some(offset) = near(shared.base(), shared.bytes) {
            return Some(Place::Shared { offset, bytes: shared.bytes });
        }
        let below = self.buffers.range(..=address).next_back();
        let above = self.buffers.range(address..).next();
        [below, above].into_iter().flatten().find_map(|(&start, buffer)| {
            near(start, buffer.bytes).map(|offset| Place::Buffer { offset, bytes: buffer.bytes, start })
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
