//! Host memory that plays device memory: every region is known by its bounds and, in checked mode, by its written bytes.

use crate::error::{Error, Result};
use crate::tensor::{Allocator, Region, Space, format_bytes};
use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

const ALIGNMENT: usize = 1024;
/// Bytes before and behind a buffer that belong to nobody, so that an access just outside is known as what it is.
pub const RED_ZONE: usize = 4096;

/// A reserved span.
pub struct Buffer {
    pub bytes: usize,
    /// In checked mode, a flag a byte: an upload, a fill or a kernel wrote it.
    pub written: Vec<bool>,
}

/// Buffers by their first address.
pub type Buffers = BTreeMap<u64, Buffer>;

/// The emulated device's memory.
#[derive(Clone)]
pub struct Memory {
    buffers: Arc<Mutex<Buffers>>,
    regions: Arc<AtomicUsize>,
    checked: bool,
}

impl Memory {
    pub fn new(checked: bool) -> Self {
        Memory { buffers: Arc::default(), regions: Arc::default(), checked }
    }

    /// A launch holds the lock, so no buffer goes away under a kernel.
    pub fn lock(&self) -> MutexGuard<'_, Buffers> {
        self.buffers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that the host wrote `bytes` bytes at `address`.
    pub fn note_written(&self, address: u64, bytes: usize) -> Result<()> {
        let mut buffers = self.lock();
        let (start, buffer) = find(&mut buffers, address, bytes)
            .ok_or_else(|| Error::internal("a view of another device's memory was given to the emulator"))?;
        let offset = (address - start) as usize;
        buffer.written.iter_mut().skip(offset).take(bytes).for_each(|flag| *flag = true);
        Ok(())
    }
}

/// The buffer that holds all of `address..address + bytes`, with its start.
pub fn find(buffers: &mut Buffers, address: u64, bytes: usize) -> Option<(u64, &mut Buffer)> {
    let (&start, buffer) = buffers.range_mut(..=address).next_back()?;
    let offset = (address - start) as usize;
    (offset <= buffer.bytes && bytes <= buffer.bytes - offset).then_some((start, buffer))
}

/// Keeps a region's memory until its last tensor is gone.
struct Lease {
    memory: Memory,
    base: *mut u8,
    layout: Layout,
}

// SAFETY: the block is plain memory that this value owns; access goes through tensors, which borrow.
unsafe impl Send for Lease {}
unsafe impl Sync for Lease {}

impl Drop for Lease {
    fn drop(&mut self) {
        self.memory.lock().remove(&(self.base as u64 + RED_ZONE as u64));
        // SAFETY: allocated in `region` with this layout.
        unsafe { dealloc(self.base, self.layout) }
    }
}

impl Allocator for Memory {
    fn region(&self, bytes: usize) -> Result<Arc<Region>> {
        let too_big = || Error::does_not_fit(format!("cannot reserve {} of emulated memory", format_bytes(bytes)));
        let padded = bytes.checked_add(2 * RED_ZONE).ok_or_else(too_big)?;
        let layout = Layout::from_size_align(padded, ALIGNMENT).map_err(|_| too_big())?;
        // SAFETY: the layout is not empty.
        let base = unsafe { alloc_zeroed(layout) };
        if base.is_null() {
            return Err(too_big());
        }
        let start = base as u64 + RED_ZONE as u64;
        let written = if self.checked { vec![false; bytes] } else { Vec::new() };
        self.lock().insert(start, Buffer { bytes, written });
        self.regions.fetch_add(1, Ordering::Relaxed);
        let lease = Lease { memory: self.clone(), base, layout };
        // SAFETY: the lease owns these zeroed bytes until it is dropped.
        Ok(Arc::new(unsafe { Region::new(start, bytes, Space::Host, Box::new(lease)) }))
    }
    fn regions(&self) -> usize {
        self.regions.load(Ordering::Relaxed)
    }
}
