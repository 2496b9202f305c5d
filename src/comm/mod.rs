//! Ranks: which launcher started this process, and the collectives between ranks. Backends only move bytes; sums are ours (`zero`), in an order that
//! does not depend on the number of ranks.

mod handshake;
pub mod heartbeat;
pub mod launch;
#[cfg(feature = "mpi")]
pub mod mpi;
pub mod nccl;
mod solo;
pub mod threads;

pub use handshake::handshake;
pub use solo::{Planned, Solo};

use crate::error::{Error, Result};
use crate::tensor::{View, ViewMut};
use std::path::Path;

/// One rank's end of a group of ranks. All ranks call the same methods in the same order, with operands of the same sizes.
///
/// Operands on a device are used in the order of its second queue (`Stream::Copy`), and a call may return before that is done. Errors are communication errors, which
/// name the rank that is late or gone where that is known; after one the group is of no use.
pub trait Comm {
    fn rank(&self) -> usize;
    fn world(&self) -> usize;
    /// For people: "4 threads", "NCCL 2.28.9, 8 ranks".
    fn describe(&self) -> String;
    /// whole = the parts of all ranks, in the order of the ranks. Neither overlaps the other.
    fn all_gather(&self, part: View, whole: ViewMut) -> Result<()>;
    /// Row r of `sent` [world, N] goes to rank r, and row r of `received` [world, N] comes from rank r.
    fn exchange(&self, sent: View, received: ViewMut) -> Result<()>;
    /// What every rank says, in the order of the ranks: host bytes, of any length each. Waits for it.
    fn share(&self, bytes: &[u8]) -> Result<Vec<Vec<u8>>>;
    /// Waits with patience for work behind collectives, until `done`. A device's own waits have no end where a rank is gone: this comes before them.
    fn settle(&self, _done: &dyn Fn() -> Result<bool>) -> Result<()> {
        Ok(())
    }
    /// From now on ranks that are processes write FOLDER/ranks/N.json, by which they know of one another. All ranks call it, with the same folder.
    fn heartbeats(&self, _folder: &Path) -> Result<()> {
        Ok(())
    }
    /// Says which step this rank begins, for those that wait for it.
    fn begin_step(&self, _step: usize) {}
    /// Says what this rank does next, likewise.
    fn note(&self, _operation: &str) {}
    /// This rank ends with an error that the others do not know of: they need not wait.
    fn abort(&self, _error: &Error) {}
}

/// What a rank does, in words. Before the first step, `step` is 0.
fn doing(step: usize, operation: &str) -> String {
    if step > 0 { format!("step {step}: {operation}") } else { operation.to_string() }
}

/// Refuses operands that a collective of `world` ranks cannot move.
fn expect_sizes(what: &str, part: View, whole: View, parts: usize) -> Result<()> {
    if part.bytes() * parts == whole.bytes() && part.dtype() == whole.dtype() {
        return Ok(());
    }
    let (part_dtype, whole_dtype) = (part.dtype(), whole.dtype());
    Err(Error::internal(format!(
        "{what}: {} bytes of {part_dtype} a rank, {} of {whole_dtype} in all",
        part.bytes(),
        whole.bytes()
    )))
}

/// Refuses operands that cannot be exchanged a row a rank.
fn expect_rows(sent: View, received: View, world: usize) -> Result<()> {
    expect_sizes("exchange", sent, received, 1)?;
    match sent.bytes().is_multiple_of(world) {
        true => Ok(()),
        false => Err(Error::internal(format!("exchange: {} bytes are no {world} rows", sent.bytes()))),
    }
}

/// An outcome that all ranks agree on: the first rank's error, if any has one.
pub fn agree(comm: &dyn Comm, mine: Result<()>) -> Result<()> {
    if comm.world() == 1 {
        return mine;
    }
    let said = match &mine {
        Ok(()) => Vec::new(),
        Err(error) => serde_json::to_vec(error).map_err(|e| Error::internal(e.to_string()))?,
    };
    let all = comm.share(&said)?;
    let Some(rank) = all.iter().position(|said| !said.is_empty()) else { return Ok(()) };
    // A rank that ends now could take the error along before all others have it. They have, once they are here.
    let _ = comm.share(&[]);
    match rank == comm.rank() {
        true => mine,
        false => {
            let theirs = serde_json::from_slice(&all[rank]);
            let theirs = theirs.unwrap_or_else(|e| Error::communication(format!("an error that cannot be read: {e}")));
            Err(theirs.context(format!("rank {rank}")))
        }
    }
}
