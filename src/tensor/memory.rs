//! Regions: one reserved span of host or device memory, and the allocators that hand them out.

use crate::error::{Error, Result};
use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::any::Any;
use std::sync::Arc;

/// Where the bytes of a region live.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Space {
    /// Addressable by the CPU (the CPU backend, the emulator, staging buffers).
    Host,
    /// Addressable by the CPU, and by the copies of a device, whose kernels never see it.
    Pinned,
    /// Addressable by a GPU only.
    Device,
    /// Nowhere: a region that is only measured.
    Dry,
}

impl Space {
    /// Whether the CPU reads and writes it.
    pub fn is_host(self) -> bool {
        matches!(self, Space::Host | Space::Pinned)
    }
}

/// A span of memory that its owner keeps alive. Regions never move or grow.
pub struct Region {
    pub(super) address: u64,
    pub(super) bytes: usize,
    pub(super) space: Space,
    _owner: Box<dyn Any + Send + Sync>,
}

impl Region {
    /// # Safety
    /// `address..address + bytes` must stay valid, zero-initialised or written, and used by nobody else, until `owner` is dropped.
    pub unsafe fn new(address: u64, bytes: usize, space: Space, owner: Box<dyn Any + Send + Sync>) -> Self {
        Region { address, bytes, space, _owner: owner }
    }

    pub(super) fn dry() -> Self {
        Region { address: 0, bytes: usize::MAX, space: Space::Dry, _owner: Box::new(()) }
    }
}

/// Hands out zero-initialised regions.
pub trait Allocator {
    fn region(&self, bytes: usize) -> Result<Arc<Region>>;
    /// Regions handed out so far, where they are counted: after its first step, training reserves nothing.
    fn regions(&self) -> usize {
        0
    }
}

/// Host memory, aligned for vector loads and committed at once: what is reserved cannot run out later.
pub struct HostAllocator;

/// Host memory that is committed where it is first used: for a cache that a short job fills only in part.
pub struct LazyAllocator;

/// Host memory that is committed at once, for what a device copies from and to.
pub struct PinnedAllocator;

pub(super) const ALIGNMENT: usize = 1024;

struct HostBlock {
    pointer: *mut u8,
    layout: Layout,
}

// SAFETY: the block is plain memory that this value owns; access goes through tensors, which borrow.
unsafe impl Send for HostBlock {}
unsafe impl Sync for HostBlock {}

impl Drop for HostBlock {
    fn drop(&mut self) {
        // SAFETY: allocated in `region` with this layout.
        unsafe { dealloc(self.pointer, self.layout) }
    }
}

impl Allocator for HostAllocator {
    fn region(&self, bytes: usize) -> Result<Arc<Region>> {
        host_region(bytes, Space::Host)
    }
}

impl Allocator for LazyAllocator {
    fn region(&self, bytes: usize) -> Result<Arc<Region>> {
        // Fresh pages of the system, which are zero; allocators write zeros where they align.
        let mut pages = memmap2::MmapMut::map_anon(bytes.max(ALIGNMENT)).map_err(|_| too_big(bytes))?;
        let pointer = pages.as_mut_ptr();
        // SAFETY: the pages own these bytes until they are dropped.
        Ok(Arc::new(unsafe { Region::new(pointer as u64, bytes, Space::Host, Box::new(pages)) }))
    }
}

impl Allocator for PinnedAllocator {
    fn region(&self, bytes: usize) -> Result<Arc<Region>> {
        host_region(bytes, Space::Pinned)
    }
}

fn too_big(bytes: usize) -> Error {
    Error::does_not_fit(format!("cannot reserve {} of host memory", super::format_bytes(bytes)))
}

fn host_region(bytes: usize, space: Space) -> Result<Arc<Region>> {
    let layout = Layout::from_size_align(bytes.max(ALIGNMENT), ALIGNMENT).map_err(|_| too_big(bytes))?;
    // SAFETY: the layout is not empty.
    let pointer = unsafe { alloc_zeroed(layout) };
    if pointer.is_null() {
        return Err(too_big(bytes));
    }
    let block = HostBlock { pointer, layout };
    commit(pointer, bytes);
    // SAFETY: the block owns these bytes until it is dropped.
    Ok(Arc::new(unsafe { Region::new(pointer as u64, bytes, space, Box::new(block)) }))
}

/// Touches the whole pages of fresh memory, many at a time. A kernel that cannot (before Linux 5.14) commits them when they are first used.
fn commit(pointer: *mut u8, bytes: usize) {
    const PAGE: usize = 4096;
    let begin = (pointer as usize).next_multiple_of(PAGE);
    let pages = (pointer as usize + bytes).saturating_sub(begin) / PAGE;
    if pages > 0 {
        // SAFETY: the pages are ours, zeroed and used by nobody yet; populating them changes no byte.
        let _ = unsafe { rustix::mm::madvise(begin as *mut _, pages * PAGE, rustix::mm::Advice::LinuxPopulateWrite) };
    }
}
