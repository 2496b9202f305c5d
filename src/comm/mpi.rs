//! Ranks that are processes on CPUs, over MPI. Every collective is one exchange of messages between all pairs of ranks, posted at once and tested in turn, so that the
//! rank whose message is missing is known, and nobody waits for ever.

use super::heartbeat::{Heartbeat, Missing};
use super::{Comm, expect_rows, expect_sizes};
use crate::error::{Error, Result};
use crate::tensor::{View, ViewMut};
use mpi::environment::{Universe, library_version};
use mpi::ffi;
use mpi::{Threading, initialize_with_threading};
use std::cell::Cell;
use std::ffi::{c_char, c_int, c_void};
use std::mem::{ManuallyDrop, MaybeUninit};
use std::path::Path;
use std::time::Duration;

/// The longest message, in bytes: MPI counts in 32 bits.
const PIECE: usize = 1 << 30;

/// One rank's end. The collectives take host memory.
pub struct Mpi {
    universe: ManuallyDrop<Universe>,
    rank: usize,
    world: usize,
    library: String,
    heartbeat: Heartbeat,
    /// MPI was given up: its messages may be under way for ever.
    failed: Cell<bool>,
}

/// Joins the ranks that mpirun, or another launcher of MPI, started: once in a process. A rank that waits longer than `patience` for one that begins nothing gives up.
///
/// The end is a collective too, so a rank that goes because of an error calls `abort` first. mpirun kills the other ranks when one has failed, unless it was started with
/// --enable-recovery: then each ends by itself, and mpirun tells none of their exit codes.
pub fn connect(patience: Duration) -> Result<Mpi> {
    let (universe, _) = initialize_with_threading(Threading::Serialized)
        .ok_or_else(|| Error::internal("MPI was already initialised in this process"))?;
    let (mut rank, mut world) = (0, 0);
    // SAFETY: MPI is initialised, and the pointers are to integers of this frame.
    unsafe {
        check("MPI_Comm_set_errhandler", ffi::MPI_Comm_set_errhandler(ffi::RSMPI_COMM_WORLD, ffi::RSMPI_ERRORS_RETURN))?;
        check("MPI_Comm_rank", ffi::MPI_Comm_rank(ffi::RSMPI_COMM_WORLD, &mut rank))?;
        check("MPI_Comm_size", ffi::MPI_Comm_size(ffi::RSMPI_COMM_WORLD, &mut world))?;
    }
    let (rank, world) = (rank as usize, world as usize);
    let library = library_version().unwrap_or_default();
    // Open MPI: "Open MPI v4.1.4, package: …"
    let library = library.split(',').next().unwrap_or_default().trim().to_string();
    let heartbeat = Heartbeat::new(rank, world, patience);
    Ok(Mpi { universe: ManuallyDrop::new(universe), rank, world, library, heartbeat, failed: Cell::new(false) })
}

/// A message under way.
struct Message {
    request: ffi::MPI_Request,
    /// From or to this rank.
    peer: usize,
    /// Bytes to receive; none of a message that is sent.
    expected: Option<usize>,
}

impl Mpi {
    /// Sends `sent[r]` to every other rank r, and fills `received[r]` with what it sends here. The own row is copied.
    fn transfer(&self, what: &'static str, sent: &[&[u8]], received: &mut [&mut [u8]]) -> Result<()> {
        if self.failed.get() {
            return Err(Error::communication(format!("{what}: an earlier operation of this group failed")));
        }
        let moved = self.try_transfer(what, sent, received);
        moved.inspect_err(|error| self.abort(error))
    }

    fn try_transfer(&self, what: &'static str, sent: &[&[u8]], received: &mut [&mut [u8]]) -> Result<()> {
        let mut wait = self.heartbeat.begin(what);
        let mut messages = Vec::new();
        for peer in (0..self.world).filter(|&peer| peer != self.rank) {
            for piece in received[peer].chunks_mut(PIECE) {
                messages.push(self.receive(peer, piece)?);
            }
        }
        for peer in (0..self.world).filter(|&peer| peer != self.rank) {
            for piece in sent[peer].chunks(PIECE) {
                messages.push(self.send(peer, piece)?);
            }
        }
        received[self.rank].copy_from_slice(sent[self.rank]);
        loop {
            let mut i = 0;
            while i < messages.len() {
                match messages[i].is_done(what)? {
                    true => drop(messages.swap_remove(i)),
                    false => i += 1,
                }
            }
            if messages.is_empty() {
                return Ok(());
            }
            wait.pause(|| {
                let mut peers: Vec<usize> = messages.iter().map(|message| message.peer).collect();
                peers.sort_unstable();
                peers.dedup();
                Missing::These(peers)
            })?;
        }
    }

    fn receive(&self, peer: usize, piece: &mut [u8]) -> Result<Message> {
        let mut request = MaybeUninit::uninit();
        // SAFETY: the piece stays borrowed until its message is done. Where that is never, no function of MPI is called again, and nothing is written outside of one.
        unsafe {
            let (buffer, count) = (piece.as_mut_ptr() as *mut c_void, piece.len() as c_int);
            let status = ffi::MPI_Irecv(
                buffer,
                count,
                ffi::RSMPI_UINT8_T,
                peer as c_int,
                0,
                ffi::RSMPI_COMM_WORLD,
                request.as_mut_ptr(),
            );
            check("MPI_Irecv", status)?;
            Ok(Message { request: request.assume_init(), peer, expected: Some(piece.len()) })
        }
    }

    fn send(&self, peer: usize, piece: &[u8]) -> Result<Message> {
        let mut request = MaybeUninit::uninit();
        // SAFETY: as in `receive`.
        unsafe {
            let (buffer, count) = (piece.as_ptr() as *const c_void, piece.len() as c_int);
            let status = ffi::MPI_Isend(
                buffer,
                count,
                ffi::RSMPI_UINT8_T,
                peer as c_int,
                0,
                ffi::RSMPI_COMM_WORLD,
                request.as_mut_ptr(),
            );
            check("MPI_Isend", status)?;
            Ok(Message { request: request.assume_init(), peer, expected: None })
        }
    }
}

impl Message {
    /// Asks MPI, which moves messages on whenever it is asked.
    fn is_done(&mut self, what: &str) -> Result<bool> {
        let (mut done, mut bytes) = (0, 0);
        let mut status = MaybeUninit::uninit();
        // SAFETY: a request that was posted and is not done; the status is read only once it is, when MPI has written it.
        unsafe {
            let tested = check("MPI_Test", ffi::MPI_Test(&mut self.request, &mut done, status.as_mut_ptr()));
            tested.map_err(|error| error.context(format!("{what} with rank {}", self.peer)))?;
            if done == 0 {
                return Ok(false);
            }
            if self.expected.is_some() {
                check("MPI_Get_count", ffi::MPI_Get_count(status.as_ptr(), ffi::RSMPI_UINT8_T, &mut bytes))?;
            }
        }
        match self.expected {
            Some(expected) if expected != bytes as usize => {
                let message = format!("{what}: rank {} sends {bytes} bytes, and {expected} were expected", self.peer);
                Err(Error::communication(message))
            }
            _ => Ok(true),
        }
    }
}

/// Turns a status of MPI into a communication error with MPI's own words.
fn check(function: &str, status: c_int) -> Result<()> {
    if status == ffi::MPI_SUCCESS as c_int {
        return Ok(());
    }
    let mut text = [0u8; ffi::MPI_MAX_ERROR_STRING as usize];
    let mut length = 0;
    // SAFETY: the buffer is as long as MPI's longest text.
    unsafe { ffi::MPI_Error_string(status, text.as_mut_ptr() as *mut c_char, &mut length) };
    let words = String::from_utf8_lossy(&text[..length as usize]).into_owned();
    Err(Error::communication(format!("{function} failed: {words}")))
}

/// The bytes of a tensor that the CPU can read.
fn host_bytes<'a>(x: View<'a>) -> Result<&'a [u8]> {
    if !x.space().is_host() {
        return Err(Error::internal(format!("MPI moves host memory, not {:?}", x.space())));
    }
    Ok(x.raw_bytes())
}

/// The rows of a matrix of `world` rows.
fn rows(bytes: &[u8], world: usize) -> Vec<&[u8]> {
    let row = bytes.len() / world;
    (0..world).map(|rank| &bytes[rank * row..][..row]).collect()
}

fn rows_mut(mut bytes: &mut [u8], world: usize) -> Vec<&mut [u8]> {
    let row = bytes.len() / world;
    let mut cut = || bytes.split_off_mut(..row).expect("a whole number of rows");
    (0..world).map(|_| cut()).collect()
}

impl Comm for Mpi {
    fn rank(&self) -> usize {
        self.rank
    }
    fn world(&self) -> usize {
        self.world
    }
    fn describe(&self) -> String {
        format!("{}, {} ranks", self.library, self.world)
    }

    fn all_gather(&self, part: View, whole: ViewMut) -> Result<()> {
        expect_sizes("all_gather", part, whole.as_view(), self.world)?;
        host_bytes(whole.as_view())?;
        let sent = vec![host_bytes(part)?; self.world];
        self.transfer("all_gather", &sent, &mut rows_mut(whole.raw_bytes(), self.world))
    }

    fn exchange(&self, sent: View, received: ViewMut) -> Result<()> {
        expect_rows(sent, received.as_view(), self.world)?;
        host_bytes(received.as_view())?;
        let sent = rows(host_bytes(sent)?, self.world);
        self.transfer("exchange", &sent, &mut rows_mut(received.raw_bytes(), self.world))
    }

    fn share(&self, bytes: &[u8]) -> Result<Vec<Vec<u8>>> {
        let length = (bytes.len() as u64).to_le_bytes();
        let mut lengths = vec![[0; 8]; self.world];
        let mut received: Vec<&mut [u8]> = lengths.iter_mut().map(|length| length.as_mut_slice()).collect();
        self.transfer("share", &vec![length.as_slice(); self.world], &mut received)?;
        let mut all: Vec<Vec<u8>> = lengths.iter().map(|length| vec![0; u64::from_le_bytes(*length) as usize]).collect();
        let mut received: Vec<&mut [u8]> = all.iter_mut().map(|bytes| bytes.as_mut_slice()).collect();
        self.transfer("share", &vec![bytes; self.world], &mut received)?;
        Ok(all)
    }

    fn heartbeats(&self, folder: &Path) -> Result<()> {
        self.heartbeat.start_with(self, folder)
    }
    fn begin_step(&self, step: usize) {
        self.heartbeat.begin_step(step);
    }
    fn note(&self, operation: &str) {
        self.heartbeat.note(operation);
    }
    fn abort(&self, error: &Error) {
        self.failed.set(true);
        self.heartbeat.abort(error);
    }
}

impl Drop for Mpi {
    /// MPI's own end has no patience, so it begins when all ranks are known to be here. A rank that failed skips it: that would wait for the others.
    fn drop(&mut self) {
        if !self.failed.get() && !std::thread::panicking() && self.share(&[]).is_ok() {
            // SAFETY: dropped once, here.
            unsafe { ManuallyDrop::drop(&mut self.universe) }
        }
    }
}
