//! Fibers: stacks that one host thread switches between. A fiber is one CUDA thread.

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::arch::naked_asm;

/// Enough for a kernel, the checker beneath it and a formatted report.
const STACK_BYTES: usize = 32 << 10;
/// At the low end of every stack; overwritten by a kernel that needs more.
const CANARY: u64 = 0x5afe_57ac_5afe_57ac;

const LAYOUT: Layout = match Layout::from_size_align(STACK_BYTES, 64) {
    Ok(layout) => layout,
    Err(_) => panic!("a power of two"),
};

/// A suspended flow of execution: everything else it needs lies on its stack.
#[derive(Debug, Clone, Copy)]
#[repr(transparent)]
pub struct Suspended(*mut u8);

impl Suspended {
    pub const NOTHING: Self = Suspended(std::ptr::null_mut());
}

/// Memory for one fiber. Pages are committed when first touched.
pub struct Stack {
    low: *mut u8,
    /// Where the frames begin. Stacks start at different lines, or all of them would compete for the same few sets of the cache.
    top: *mut u8,
}

// SAFETY: plain memory that this value owns.
unsafe impl Send for Stack {}

impl Stack {
    pub fn new(serial: usize) -> Self {
        // SAFETY: the layout is not empty.
        let low = unsafe { alloc(LAYOUT) };
        if low.is_null() {
            handle_alloc_error(LAYOUT);
        }
        // SAFETY: at most 4032 bytes below the end.
        let top = unsafe { low.add(STACK_BYTES - 64 * (serial % 64)) };
        Stack { low, top }
    }

    /// Prepares the stack so that switching to it calls `entry`, which never returns.
    pub fn start(&mut self, entry: extern "C" fn() -> !) -> Suspended {
        // SAFETY: all writes lie within the stack. The layout is what `switch` pops; see there.
        unsafe {
            self.low.cast::<u64>().write(CANARY);
            let frame = self.top.cast::<u64>().sub(FRAME_WORDS);
            frame.write_bytes(0, FRAME_WORDS);
            frame.add(ENTRY_WORD).write(entry as usize as u64);
            Suspended(frame.cast())
        }
    }

    pub fn contains(&self, address: u64) -> bool {
        (address.wrapping_sub(self.low as u64)) < STACK_BYTES as u64
    }

    pub fn overflowed(&self) -> bool {
        // SAFETY: within the stack, written by `start`.
        unsafe { self.low.cast::<u64>().read() != CANARY }
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        // SAFETY: allocated by `new` with this layout.
        unsafe { dealloc(self.low, LAYOUT) }
    }
}

#[cfg(target_arch = "x86_64")]
mod frame {
    /// r15, r14, r13, r12, rbx, rbp, return address, and one word that keeps the entry's stack aligned.
    pub const FRAME_WORDS: usize = 8;
    pub const ENTRY_WORD: usize = 6;
}

#[cfg(target_arch = "aarch64")]
mod frame {
    /// x19 to x30, then d8 to d15; x30 holds the return address.
    pub const FRAME_WORDS: usize = 20;
    pub const ENTRY_WORD: usize = 11;
}

use frame::{ENTRY_WORD, FRAME_WORDS};

/// Saves this flow of execution to `from` and continues `to`. Callee-saved registers go to the stack; the caller expects the rest to change.
///
/// # Safety
/// `to` was saved by `switch` or made by [`Stack::start`], its stack is alive, and nobody has continued it since.
#[cfg(target_arch = "x86_64")]
#[unsafe(naked)]
pub unsafe extern "C" fn switch(from: *mut Suspended, to: Suspended) {
    naked_asm!(
        "push rbp",
        "push rbx",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "mov [rdi], rsp",
        "mov rsp, rsi",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbx",
        "pop rbp",
        "ret"
    )
}

/// Saves this flow of execution to `from` and continues `to`. Callee-saved registers go to the stack; the caller expects the rest to change.
///
/// # Safety
/// `to` was saved by `switch` or made by [`Stack::start`], its stack is alive, and nobody has continued it since.
#[cfg(target_arch = "aarch64")]
#[unsafe(naked)]
pub unsafe extern "C" fn switch(from: *mut Suspended, to: Suspended) {
    naked_asm!(
        "sub sp, sp, #160",
        "stp x19, x20, [sp, #0]",
        "stp x21, x22, [sp, #16]",
        "stp x23, x24, [sp, #32]",
        "stp x25, x26, [sp, #48]",
        "stp x27, x28, [sp, #64]",
        "stp x29, x30, [sp, #80]",
        "stp d8, d9, [sp, #96]",
        "stp d10, d11, [sp, #112]",
        "stp d12, d13, [sp, #128]",
        "stp d14, d15, [sp, #144]",
        "mov x9, sp",
        "str x9, [x0]",
        "mov sp, x1",
        "ldp x19, x20, [sp, #0]",
        "ldp x21, x22, [sp, #16]",
        "ldp x23, x24, [sp, #32]",
        "ldp x25, x26, [sp, #48]",
        "ldp x27, x28, [sp, #64]",
        "ldp x29, x30, [sp, #80]",
        "ldp d8, d9, [sp, #96]",
        "ldp d10, d11, [sp, #112]",
        "ldp d12, d13, [sp, #128]",
        "ldp d14, d15, [sp, #144]",
        "add sp, sp, #160",
        "ret"
    )
}
