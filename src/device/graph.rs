//! CUDA graphs: what was issued to a stream, to be issued again with one call.

use super::driver::Driver;
use super::gpu::failed;
use super::{Launcher, Recording, Stream};
use crate::error::Result;
use cudarc::driver::result;
use cudarc::driver::sys;

struct Graph {
    exec: sys::CUgraphExec,
    /// Issues to the stream that was recorded.
    driver: Box<dyn Launcher>,
    stream: sys::CUstream,
}

/// Records what `body` issues to the stream of `driver`.
pub fn record(driver: &Driver, stream: Stream, body: &mut dyn FnMut() -> Result<()>) -> Result<Box<dyn Recording>> {
    let handle = driver.stream()?;
    // Calls of other threads that a capture forbids are no business of this one.
    let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
    // SAFETY: a stream of the context that `stream` made current.
    unsafe { result::stream::begin_capture(handle, mode) }.map_err(|e| failed("beginning to record a graph", e))?;
    let issued = body();
    // SAFETY: as above. It ends the capture whatever became of the body.
    let graph = unsafe { result::stream::end_capture(handle) };
    if let (Err(_), Ok(graph)) = (&issued, &graph) {
        // SAFETY: nobody else has it.
        let _ = unsafe { result::graph::destroy(*graph) };
    }
    issued?;
    let graph = graph.map_err(|e| failed("recording a graph", e))?;
    let flags = sys::CUgraphInstantiate_flags(0);
    // SAFETY: the graph was just made, and nobody uses it after it was instantiated.
    let exec = unsafe {
        let exec = result::graph::instantiate(graph, flags);
        let _ = result::graph::destroy(graph);
        exec
    };
    let exec = exec.map_err(|e| failed("instantiating a graph", e))?;
    Ok(Box::new(Graph { exec, driver: driver.on(stream), stream: handle }))
}

impl Recording for Graph {
    fn issue(&self) -> Result<()> {
        // SAFETY: an instantiated graph and a stream of its context, both of which live as long as this does.
        unsafe { result::graph::launch(self.exec, self.stream) }
            .map_err(|e| failed(&format!("launching a graph on {}", self.driver.device()), e))
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        // SAFETY: instantiated once, destroyed once; a launch that still runs is waited for by the driver.
        let _ = unsafe { result::graph::exec_destroy(self.exec) };
    }
}
