//! A launcher that runs nothing and notes what it was asked to launch: the launches of a benchmark at its full shapes are known,
//! and checked, on a machine without a GPU or the memory.

use crate::device::{Event, Launch, Launcher, Stream};
use crate::error::Result;
use crate::tensor::{Allocator, Region, Space, View, ViewMut};
use serde::Serialize;
use std::cell::RefCell;
use std::ffi::c_void;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// One launch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Noted {
    pub kernel: String,
    /// Blocks in x, y, z.
    pub grid: [u32; 3],
    /// Threads a block.
    pub threads: u32,
    /// Dynamic shared memory, in bytes.
    pub shared_bytes: u32,
}

#[derive(Default)]
pub struct Dry {
    memory: Addresses,
    launches: RefCell<Vec<Noted>>,
}

impl Dry {
    /// The launches since the last call.
    pub fn take(&self) -> Vec<Noted> {
        self.launches.take()
    }

    /// Bytes that were reserved so far.
    pub fn reserved(&self) -> u64 {
        self.memory.reserved.load(Ordering::Relaxed)
    }
}

/// Hands out addresses with nothing behind them.
#[derive(Default)]
struct Addresses {
    reserved: AtomicU64,
}

/// Every address lies beyond this one, so that none is null.
const FIRST: u64 = 1 << 40;
const ALIGNMENT: u64 = 1024;

impl Allocator for Addresses {
    fn region(&self, bytes: usize) -> Result<Arc<Region>> {
        let before = self.reserved.fetch_add((bytes as u64).next_multiple_of(ALIGNMENT), Ordering::Relaxed);
        // SAFETY: dry memory is never followed: views of it refuse to be read, and `launch` runs nothing.
        Ok(Arc::new(unsafe { Region::new(FIRST + before, bytes, Space::Dry, Box::new(())) }))
    }
}

impl Launcher for Dry {
    fn device(&self) -> String {
        "nothing: launches are noted".to_string()
    }
    fn allocator(&self) -> &dyn Allocator {
        &self.memory
    }
    fn host_allocator(&self) -> &dyn Allocator {
        &self.memory
    }
    /// Notes of its own.
    fn on(&self, _stream: Stream) -> Box<dyn Launcher> {
        Box::new(Dry::default())
    }
    unsafe fn launch(&self, kernel: &str, launch: Launch, _params: &[u8]) -> Result<()> {
        let Launch { grid, block, shared_bytes } = launch;
        let noted = Noted { kernel: kernel.to_string(), grid, threads: block.iter().product(), shared_bytes };
        self.launches.borrow_mut().push(noted);
        Ok(())
    }
    fn fill_bytes(&self, _value: u8, _out: ViewMut) -> Result<()> {
        Ok(())
    }
    fn copy(&self, _x: View, _out: ViewMut) -> Result<()> {
        Ok(())
    }
    fn upload(&self, _bytes: &[u8], _out: ViewMut) -> Result<()> {
        Ok(())
    }
    fn download(&self, _x: View, out: &mut [u8]) -> Result<()> {
        out.fill(0);
        Ok(())
    }
    fn lend(&self, _out: &ViewMut) -> Result<*mut c_void> {
        Ok(std::ptr::null_mut())
    }
    fn mark(&self) -> Result<Box<dyn Event>> {
        Ok(Box::new(NoTime))
    }
    fn wait(&self, _event: &dyn Event) -> Result<()> {
        Ok(())
    }
    fn synchronize(&self) -> Result<()> {
        Ok(())
    }
}

struct NoTime;

impl Event for NoTime {
    fn is_done(&self) -> Result<bool> {
        Ok(true)
    }
    fn milliseconds_since(&self, _start: &dyn Event) -> Result<f64> {
        Ok(0.0)
    }
    fn as_any(&self) -> &dyn std::any::Any {
        self
    }
}
