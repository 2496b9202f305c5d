//! Regions: one reserved span of host or device memory, and the allocators that hand them out.

use crate::error::{Error, Result};
use memmap2::{Advice, MmapMut};
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

impl Allocator for HostAllocator {
    fn region(&self, bytes: usize) -> Result<Arc<Region>> {
        host_region(bytes, Space::Host, true)
    }
}

impl Allocator for LazyAllocator {
    fn region(&self, bytes: usize) -> Result<Arc<Region>> {
        host_region(bytes, Space::Host, false)
    }
}

impl Allocator for PinnedAllocator {
    fn region(&self, bytes: usize) -> Result<Arc<Region>> {
        host_region(bytes, Space::Pinned, true)
    }
}

/// Fresh pages of the system, which are zero: an allocator would write zeros where memory is aligned.
fn host_region(bytes: usize, space: Space, committed: bool) -> Result<Arc<Region>> {
    let too_big = |_| Error::does_not_fit(format!("cannot reserve {} of host memory", super::format_bytes(bytes)));
    let mut pages = MmapMut::map_anon(bytes.max(ALIGNMENT)).map_err(too_big)?;
    if committed {
        // A kernel that cannot (before Linux 5.14) commits them when they are first used.
        let _ = pages.advise(Advice::PopulateWrite);
    }
    let pointer = pages.as_mut_ptr();
    // SAFETY: the pages own these bytes until they are dropped.
    Ok(Arc::new(unsafe { Region::new(pointer as u64, bytes, space, Box::new(pages)) }))
}
