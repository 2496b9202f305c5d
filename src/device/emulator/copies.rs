//! Asynchronous copies. Each thread has its own, in groups. A copy takes effect when the seed has it: at once, when its thread next says
//! something about copies, or at the wait that covers its group. Until that wait, what it writes is nobody's to read.

use super::intrinsics::{fail, grid};
use super::shadow::Access;

/// Bytes that a copy writes.
const BYTES: usize = 16;
/// What they are while the copy is under way: NaN.
const POISON: u8 = 0xff;

/// The copies of a thread that no wait has covered.
#[derive(Default)]
pub struct Copies {
    started: Vec<Copy>,
    /// Groups committed so far.
    groups: u32,
}

#[derive(Clone, Copy)]
struct Copy {
    to: u64,
    from: u64,
    /// Bytes to read; the rest of those to write are zeros.
    bytes: usize,
    group: u32,
    /// It took effect.
    landed: bool,
}

/// The running thread's copies. Each use is one statement.
fn copies<'a>() -> &'a mut Copies {
    let (slot, thread) = grid().running;
    &mut grid().blocks[slot].threads[thread].copies
}

pub fn start(to: u64, from: u64, bytes: u32) {
    if let Some(address) = [to, from].into_iter().find(|address| address % BYTES as u64 != 0) {
        fail(format!("misaligned: an asynchronous copy of 16 bytes at {address:#x}"));
    }
    if !grid().running_block().shared.holds(to, BYTES) {
        fail(format!("out of bounds: an asynchronous copy to {}, outside of shared memory", grid().name_of(to)));
    }
    let thread = grid().running.1;
    if grid().checked {
        let read = if bytes > 0 { grid().check(from, bytes as usize, Access::Read, thread) } else { Ok(()) };
        read.and_then(|()| grid().begin_copy(to, BYTES, thread)).unwrap_or_else(|what| fail(what));
    }
    // SAFETY: within the block's shared memory.
    unsafe { std::ptr::write_bytes(to as *mut u8, POISON, BYTES) };
    let group = copies().groups;
    copies().started.push(Copy { to, from, bytes: bytes as usize, group, landed: false });
    land_some();
}

pub fn commit() {
    copies().groups += 1;
    land_some();
}

/// Returns when at most the `pending` newest groups are under way.
pub fn wait(pending: u32) {
    let thread = grid().running.1;
    let covered = copies().groups.saturating_sub(pending);
    let mut started = std::mem::take(&mut copies().started);
    for copy in started.extract_if(.., |copy| copy.group < covered) {
        if !copy.landed {
            land(&copy);
        }
        if grid().checked {
            // Again: the source must still be what it was, whenever the copy read it.
            let read = if copy.bytes > 0 { grid().check(copy.from, copy.bytes, Access::Read, thread) } else { Ok(()) };
            read.unwrap_or_else(|what| fail(format!("{what} (the source of a copy under way)")));
            grid().end_copy(copy.to, BYTES, thread);
        }
    }
    copies().started = started;
    land_some();
}

/// A kernel must not end with copies that nobody waited for.
pub fn expect_none() {
    if let Some(&copy) = copies().started.first() {
        let name = grid().name_of(copy.to);
        fail(format!("copy under way: the thread ends, and no copy_async_wait covered its copy to {name}"));
    }
}

/// Some copies take effect now, as the seed has it; in natural order none does before its wait.
fn land_some() {
    for i in 0..copies().started.len() {
        let copy = copies().started[i];
        if !copy.landed && grid().draw(4) == 1 {
            land(&copy);
            copies().started[i].landed = true;
        }
    }
}

fn land(copy: &Copy) {
    // SAFETY: the kernel's own pointers; the destination was found in shared memory, and nothing is read where no bytes are to be.
    unsafe {
        std::ptr::write_bytes(copy.to as *mut u8, 0, BYTES);
        std::ptr::copy_nonoverlapping(copy.from as *const u8, copy.to as *mut u8, copy.bytes);
    }
}
