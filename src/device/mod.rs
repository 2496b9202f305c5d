//! What stands behind `ops::cuda`: something that holds memory and launches kernels by name. Two launchers exist, the CUDA
//! driver and the emulator, which runs the same kernel sources on the CPU.

pub mod driver;
pub mod emulator;
pub mod gpu;
mod graph;
pub mod images;
pub mod libraries;
pub mod nvtx;

use crate::error::{Error, Result};
use crate::tensor::{Allocator, View, ViewMut};
use std::ffi::c_void;
use std::sync::Arc;

/// The extent of one launch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Launch {
    /// Blocks in x, y, z.
    pub grid: [u32; 3],
    /// Threads a block in x, y, z.
    pub block: [u32; 3],
    /// Dynamic shared memory, in bytes.
    pub shared_bytes: u32,
}

/// A device runs the work of a stream in the order in which it was issued, and streams side by side. Events order them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    Compute,
    /// For transfers that hide behind computing.
    Copy,
}

/// A point in a stream.
pub trait Event {
    /// Whether all that was issued before it is done.
    fn is_done(&self) -> Result<bool>;
    /// Milliseconds from `start`, a mark of the same launcher, to this one; waits for both.
    fn milliseconds_since(&self, start: &dyn Event) -> Result<f64>;
    fn as_any(&self) -> &dyn std::any::Any;
}

/// Work that was recorded.
pub trait Recording {
    /// Issues all of it, with the addresses and parameters that it was recorded with, to the stream that it was recorded on.
    fn issue(&self) -> Result<()>;
}

/// Runs kernels of the embedded images. What is issued goes to the launcher's stream: [`Stream::Compute`] unless it came from `on`.
pub trait Launcher: Send {
    /// For people: "NVIDIA H200, driver 580.65" or "emulator".
    fn device(&self) -> String;
    fn allocator(&self) -> &dyn Allocator;
    /// Host memory that `copy` reaches.
    fn host_allocator(&self) -> &dyn Allocator;
    /// Bytes that can still be reserved; none where device memory is the host's.
    fn free_memory(&self) -> Result<Option<usize>> {
        Ok(None)
    }
    /// Dynamic shared memory that a block may have, in bytes: an H200's, unless the device says otherwise.
    fn shared_limit(&self) -> u32 {
        227 << 10
    }
    /// The same device, issuing to another stream.
    fn on(&self, stream: Stream) -> Box<dyn Launcher>;
    /// Launches the kernel of this name with its one parameter struct.
    ///
    /// # Safety
    /// `params` must be the kernel's own parameter struct, and every address in it valid for what the kernel does with it.
    unsafe fn launch(&self, kernel: &str, launch: Launch, params: &[u8]) -> Result<()>;
    fn fill_bytes(&self, value: u8, out: ViewMut) -> Result<()>;
    /// Copies within the device's memory, or between it and memory of `host_allocator`. Both have the same number of bytes.
    fn copy(&self, x: View, out: ViewMut) -> Result<()>;
    /// Copies from anywhere on the host, and waits for it and all that was issued before on this stream.
    fn upload(&self, bytes: &[u8], out: ViewMut) -> Result<()>;
    /// Copies to the host, and waits likewise.
    fn download(&self, x: View, out: &mut [u8]) -> Result<()>;
    /// This stream, for a library that writes `out` on it: CUDA's handle, with the context current on this thread. Where device memory is the host's: null, once the
    /// stream has done its work; the library then does its own before it returns.
    fn lend(&self, out: &ViewMut) -> Result<*mut c_void>;
    /// Records what `body` issues on this stream, and does not run it. Nothing in `body` may wait for the device, mark, or copy from memory that does not stay.
    fn record(&self, _body: &mut dyn FnMut() -> Result<()>) -> Result<Box<dyn Recording>> {
        Err(Error::internal(format!("{} does not record", self.device())))
    }
    /// Where device memory is the host's: runs `work` of the host, which writes `out`, in the order of this stream.
    fn issue_host(&self, _work: Arc<dyn Fn() + Send + Sync>, _out: View) -> Result<()> {
        Err(Error::internal("host work on a GPU's stream"))
    }
    /// An event behind what was issued on this stream until now.
    fn mark(&self) -> Result<Box<dyn Event>>;
    /// What is issued on this stream from now on starts after the event, which may be of another stream.
    fn wait(&self, event: &dyn Event) -> Result<()>;
    /// Waits for all work of all streams.
    fn synchronize(&self) -> Result<()>;
}

fn expect_bytes(what: &str, source: usize, destination: usize) -> Result<()> {
    if source == destination {
        return Ok(());
    }
    Err(Error::internal(format!("{what}: {source} bytes into {destination}")))
}
