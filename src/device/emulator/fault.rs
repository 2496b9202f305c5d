//! What the emulator reports: one sentence, and who was at fault.

use super::grid::{Grid, Index};
use crate::error::Error;

#[derive(Debug)]
pub struct Fault {
    kernel: String,
    block: Index,
    thread: Index,
    what: String,
}

impl Fault {
    pub fn new(kernel: &str, block: Index, thread: Index, what: String) -> Self {
        Fault { kernel: kernel.to_string(), block, thread, what }
    }

    /// A fault of the running fiber.
    pub fn here(grid: &Grid, what: String) -> Self {
        Self::new(grid.kernel.name(), grid.running_block().index, grid.running_thread().index, what)
    }
}

impl From<Fault> for Error {
    fn from(fault: Fault) -> Self {
        let Fault { kernel, block, thread, what } = fault;
        Error::internal(format!("{kernel}, block {block}, thread {thread}: {what}"))
    }
}
