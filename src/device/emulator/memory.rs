//! Host memory that plays device memory: every region is known by its bounds and, in checked mode, by its written bytes.

use super::machine::Machine;
use super::shadow::Shadow;
use crate::error::{Error, Result};
use crate::tensor::{Allocator, Region, Space, format_bytes};
use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

const ALIGNMENT: usize = 1024;
/// Bytes before and behind a buffer that belong to nobody, so that an access just outside is known as what it is.
pub const RED_ZONE: usize = 4096;

/// A span of memory.
pub struct Buffer {
    pub bytes: usize,
    /// In checked mode, a flag a byte: an upload, a fill or a kernel wrote it.
    pub written: Vec<bool>,
    /// In checked mode, the last accesses of the launch under way.
    pub shadow: Shadow,
}

impl Buffer {
    pub fn new(bytes: usize, checked: bool) -> Self {
        Buffer { bytes, written: vec![false; if checked { bytes } else { 0 }], shadow: Shadow::default() }
    }
}

/// Buffers by their first address.
pub type Buffers = BTreeMap<u64, Buffer>;

/// Notes that the host wrote `bytes` bytes at `address`.
pub fn note_written(buffers: &mut Buffers, address: u64, bytes: usize) -> Result<()> {
    let found = buffers.range_mut(..=address).next_back();
    let found = found.filter(|(start, buffer)| address - *start + bytes as u64 <= buffer.bytes as u64);
    let (start, buffer) =
        found.ok_or_else(|| Error::internal("a view of another device's memory was given to the emulator"))?;
    let offset = (address - start) as usize;
    buffer.written.iter_mut().skip(offset).take(bytes).for_each(|flag| *flag = true);
    Ok(())
}

/// The buffer that holds all of `address..address + bytes`, with its start. `recent` is the place of the one found last.
pub fn find<'a>(
    buffers: &'a mut [(u64, &mut Buffer)],
    recent: &mut usize,
    address: u64,
    bytes: usize,
) -> Option<(u64, &'a mut Buffer)> {
    let holds = |(start, buffer): &(u64, &mut Buffer)| {
        let offset = address.wrapping_sub(*start);
        offset <= buffer.bytes as u64 && bytes as u64 <= buffer.bytes as u64 - offset
    };
    if !buffers.get(*recent).is_some_and(holds) {
        *recent = buffers.partition_point(|(start, _)| *start <= address).checked_sub(1)?;
        if !holds(&buffers[*recent]) {
            return None;
        }
    }
    let (start, buffer) = &mut buffers[*recent];
    Some((*start, buffer))
}

/// Keeps a region's memory until its last tensor is gone.
struct Lease {
    machine: Arc<Machine>,
    base: *mut u8,
    layout: Layout,
}

// SAFETY: the block is plain memory that this value owns; access goes through tensors, which borrow.
unsafe impl Send for Lease {}
unsafe impl Sync for Lease {}

impl Drop for Lease {
    /// Work that was issued runs first, so that none outlives its memory.
    fn drop(&mut self) {
        self.machine.finish_all();
        self.machine.buffers().remove(&(self.base as u64 + RED_ZONE as u64));
        // SAFETY: allocated in `region` with this layout.
        unsafe { dealloc(self.base, self.layout) }
    }
}

impl Allocator for Arc<Machine> {
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
        self.buffers().insert(start, Buffer::new(bytes, self.checked));
        self.regions.fetch_add(1, Ordering::Relaxed);
        let lease = Lease { machine: self.clone(), base, layout };
        // SAFETY: the lease owns these zeroed bytes until it is dropped.
        Ok(Arc::new(unsafe { Region::new(start, bytes, Space::Host, Box::new(lease)) }))
    }
    fn regions(&self) -> usize {
        self.regions.load(Ordering::Relaxed)
    }
}
