//! Blocks that wait for one another: tickets and turns. In checked mode a turn carries what its passer knew to whoever waits for it.

use super::grid::{Waiter, hand_over, wait};
use super::intrinsics::{fail, grid};

/// Returns what the counter held, and leaves one more.
pub fn take_ticket(counter: *mut u32) -> u32 {
    hand_over();
    claim(counter as u64);
    // SAFETY: the kernel's own pointer.
    unsafe {
        let ticket = *counter;
        *counter = ticket.wrapping_add(1);
        ticket
    }
}

/// Returns when the word holds `turn`, knowing what the thread knew that stored it.
pub fn ordered_wait(turn_address: *const u32, turn: u32) {
    hand_over();
    let address = turn_address as u64;
    claim(address);
    // SAFETY: the kernel's own pointer. Another turn may have been passed before this fiber runs again.
    while unsafe { turn_address.read() } != turn {
        let (slot, thread) = grid().running;
        grid().waiters.push(Waiter { slot, thread, address, turn });
        wait();
    }
    let (slot, thread) = grid().running;
    if let Some(past) = grid().turns.get(&address) {
        grid().blocks[slot].clocks.acquire(thread, past);
    }
}

/// Stores `turn` and wakes whoever waits for it.
pub fn pass_turn(turn_address: *mut u32, turn: u32) {
    let address = turn_address as u64;
    claim(address);
    // SAFETY: the kernel's own pointer.
    unsafe { turn_address.write(turn) };
    let (slot, thread) = grid().running;
    if grid().checked {
        let past = grid().blocks[slot].clocks.release(thread);
        grid().turns.insert(address, past);
    }
    let woken = grid().waiters.extract_if(.., |waiter| (waiter.address, waiter.turn) == (address, turn));
    woken.for_each(|waiter| grid().blocks[waiter.slot].queue.push(waiter.thread));
    hand_over();
}

/// In checked mode, makes a word one of tickets or turns for the rest of the launch: plain accesses to it are races from then on, as are
/// those before that nothing orders.
fn claim(address: u64) {
    if grid().checked && !grid().turns.contains_key(&address) {
        let thread = grid().running.1;
        grid().check_word(address, thread).unwrap_or_else(|what| fail(what));
        grid().turns.insert(address, Default::default());
    }
}
