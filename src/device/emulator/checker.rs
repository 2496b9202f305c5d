//! The checked mode: what every load and store of a kernel is held against. The host compiler, told to prepare for its thread
//! sanitizer, calls `__tsan_read4` and its like before each access; these are ours instead of its runtime's.
//!
//! An access must lie in a buffer or in the block's own shared memory, within bounds; a read must find bytes that were
//! written; and of two accesses by different threads, one of them a write, one must have happened before the other.

use super::clocks::Stamp;
use super::grid::{Grid, WARP, current};
use super::intrinsics::fail;
use super::memory::{RED_ZONE, find};
use std::collections::HashMap;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Access {
    Read,
    Write,
}

/// The last accesses to each byte of some memory, by address.
#[derive(Default)]
pub struct Shadow {
    pages: HashMap<u64, Box<[Byte]>>,
}

const PAGE: u64 = 64;

#[derive(Default)]
struct Byte {
    write: Option<Stamp>,
    /// Reads since that write.
    reads: Reads,
}

#[derive(Default)]
enum Reads {
    #[default]
    Nobody,
    One(Stamp),
    Many(Box<Readers>),
}

/// Reads of several threads, none ordered after all others.
struct Readers {
    block: u32,
    /// The clock of each thread's last read, 0 for none.
    clocks: Vec<u32>,
    /// A reader in another block, whom nothing orders within a launch.
    foreign: Option<Stamp>,
}

/// What an address belongs to, for people.
enum Place {
    Shared { offset: i64, bytes: usize },
    Buffer { offset: i64, bytes: usize, start: u64 },
}

/// Checks one access of the running fiber.
fn check(address: u64, bytes: usize, access: Access) {
    // SAFETY: instrumented code runs in fibers only.
    let grid = unsafe { current() };
    if grid.running_thread().stack.contains(address) {
        return;
    }
    if let Err(what) = grid.check_bounds(address, bytes, access).and_then(|()| grid.check_order(address, bytes, access)) {
        fail(what);
    }
}

impl Grid<'_> {
    /// Finds the memory behind an address, and that it was written where it is read.
    fn check_bounds(&mut self, address: u64, bytes: usize, access: Access) -> Result<(), String> {
        let shared = &mut self.blocks[self.running.0].shared;
        let offset = address.wrapping_sub(shared.base());
        let inside = offset < shared.bytes as u64 && bytes as u64 <= shared.bytes as u64 - offset;
        let written = if inside {
            Some(&mut shared.written[offset as usize..][..bytes])
        } else {
            let found = find(self.buffers, address, bytes);
            found.map(|(start, buffer)| &mut buffer.written[(address - start) as usize..][..bytes])
        };
        match (written, access) {
            (Some(written), Access::Write) => {
                written.fill(true);
                Ok(())
            }
            (Some(written), Access::Read) => match written.iter().position(|written| !written) {
                None => Ok(()),
                Some(at) => Err(format!("unwritten read: nobody wrote {}", self.name_of(address + at as u64))),
            },
            (None, _) => Err(match self.place_of(address) {
                Some(_) => format!("out of bounds: a {access:?} of {bytes} bytes at {}", self.name_of(address)),
                None => {
                    format!("foreign access: a {access:?} of {bytes} bytes at {address:#x}, memory that is not the kernel's")
                }
            }),
        }
    }

    /// Finds an access of another thread that no barrier orders before this one, and remembers this one.
    fn check_order(&mut self, address: u64, bytes: usize, access: Access) -> Result<(), String> {
        let now = self.now();
        let slot = self.running.0;
        let shared = &mut self.blocks[slot].shared;
        let in_shared = address.wrapping_sub(shared.base()) < shared.bytes as u64;
        // Taken out while the clocks of the block are asked.
        let mut shadow = std::mem::take(if in_shared { &mut shared.shadow } else { &mut self.shadow });
        let block = self.running_block();
        let ordered = |earlier: Stamp| earlier.block == now.block && block.clocks.ordered(earlier, now.thread as usize);
        let mut race = None;
        let mut at = address;
        while at < address + bytes as u64 && race.is_none() {
            // One page, or the part of it that the access covers: nearly always all of the access.
            let end = (address + bytes as u64).min((at / PAGE + 1) * PAGE);
            let page = shadow.page(at);
            race = (at..end).find_map(|at| {
                let byte = &mut page[(at % PAGE) as usize];
                let rival = byte.rival(access, &ordered);
                byte.remember(now, access, &ordered, block.threads.len());
                rival.map(|(stamp, other)| self.describe_race(now, stamp, access, other, at))
            });
            at = end;
        }
        *(if in_shared { &mut self.blocks[slot].shared.shadow } else { &mut self.shadow }) = shadow;
        race.map_or(Ok(()), Err)
    }

    fn describe_race(&self, now: Stamp, rival: Stamp, access: Access, other: Access, address: u64) -> String {
        let warp = |stamp: Stamp| (stamp.block, stamp.thread as usize / WARP);
        let missing = match (rival.block == now.block, warp(rival) == warp(now)) {
            (_, true) => "race within a warp: no warp barrier",
            (true, _) => "race: no barrier",
            (false, _) => "race: nothing",
        };
        let (block, thread, name) = (rival.block, rival.thread, self.name_of(address));
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
    fn name_of(&self, address: u64) -> String {
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

impl Shadow {
    fn page(&mut self, address: u64) -> &mut [Byte] {
        let page = self.pages.entry(address / PAGE);
        page.or_insert_with(|| (0..PAGE).map(|_| Byte::default()).collect())
    }
}

impl Byte {
    /// An earlier access that conflicts with a new one and is not ordered before it.
    fn rival(&self, access: Access, ordered: &impl Fn(Stamp) -> bool) -> Option<(Stamp, Access)> {
        let unordered = |stamp: Option<Stamp>| stamp.filter(|&stamp| !ordered(stamp));
        if let Some(write) = unordered(self.write) {
            return Some((write, Access::Write));
        }
        let read = match (access, &self.reads) {
            (Access::Read, _) | (_, Reads::Nobody) => None,
            (_, Reads::One(read)) => unordered(Some(*read)),
            (_, Reads::Many(readers)) => readers.stamps().find(|&stamp| !ordered(stamp)),
        };
        read.map(|stamp| (stamp, Access::Read))
    }

    fn remember(&mut self, now: Stamp, access: Access, ordered: &impl Fn(Stamp) -> bool, threads: usize) {
        if access == Access::Write {
            *self = Byte { write: Some(now), reads: Reads::Nobody };
            return;
        }
        match &mut self.reads {
            Reads::Nobody => self.reads = Reads::One(now),
            // An ordered read adds nothing: whoever is ordered after this one is ordered after that one.
            Reads::One(read) if ordered(*read) => *read = now,
            Reads::One(read) => {
                let mut readers = Readers { block: now.block, clocks: vec![0; threads], foreign: None };
                readers.add(*read);
                readers.add(now);
                self.reads = Reads::Many(Box::new(readers));
            }
            Reads::Many(readers) => readers.add(now),
        }
    }
}

impl Readers {
    fn add(&mut self, stamp: Stamp) {
        if stamp.block == self.block {
            self.clocks[stamp.thread as usize] = stamp.clock;
        } else {
            self.foreign = Some(stamp);
        }
    }

    fn stamps(&self) -> impl Iterator<Item = Stamp> {
        let stamp = |(thread, &clock): (usize, &u32)| Stamp { block: self.block, thread: thread as u32, clock };
        self.foreign.into_iter().chain(self.clocks.iter().enumerate().filter(|(_, clock)| **clock > 0).map(stamp))
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
