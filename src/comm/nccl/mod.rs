//! One rank a GPU, over NCCL: processes on any number of machines, or threads of one process. NCCL is loaded when it is asked for. Nothing blocks: a call returns at
//! once, NCCL is asked how far it is, and a rank that is waited for too long ends the group. Over the emulator the memory is the host's (tests/fake_nccl).

mod api;
mod bootstrap;

pub use api::Id;
pub use bootstrap::{Bootstrap, new_id};

use super::heartbeat::{Heartbeat, Missing, Wait};
use super::{Comm, expect_rows, expect_sizes};
use crate::device::Launcher;
use crate::error::{Error, Result};
use crate::tensor::{DType, Tensor, View, ViewMut};
use api::{Api, BYTES, Communicator, Config, IN_PROGRESS, Status};
use std::cell::{Cell, RefCell};
use std::ffi::{c_int, c_void};
use std::path::Path;
use std::time::Duration;

/// Device memory that a rank reserves when it connects, for what `share` moves.
pub const STAGING_BYTES: usize = 1 << 20;
/// What every rank sends first: the length of its message, and how the message begins.
const FIRST: usize = 256;
const LENGTH: usize = size_of::<u64>();

/// One rank's end.
pub struct Nccl {
    api: Api,
    /// The device's second queue, which the collectives are issued to.
    queue: Box<dyn Launcher>,
    rank: usize,
    world: usize,
    /// Null before it is there, and after a failure.
    communicator: Cell<Communicator>,
    /// Bytes [STAGING_BYTES].
    staging: RefCell<Tensor>,
    heartbeat: Heartbeat,
}

/// Joins the other ranks. `queue` is the second queue of this rank's GPU. Whoever waits longer than `patience` for a rank that begins nothing gives up.
///
/// The end is a collective too, so a rank that goes because of an error calls `abort` first.
pub fn connect(queue: Box<dyn Launcher>, rank: usize, world: usize, bootstrap: &Bootstrap, patience: Duration) -> Result<Nccl> {
    let nccl = Nccl {
        api: Api::load()?,
        rank,
        world,
        communicator: Cell::new(std::ptr::null_mut()),
        staging: RefCell::new(Tensor::alone(queue.allocator(), DType::U8, &[STAGING_BYTES])?),
        queue,
        heartbeat: Heartbeat::new(rank, world, patience),
    };
    let joined = nccl.join(bootstrap).and_then(|()| nccl.warm_up()).inspect_err(|error| nccl.abort(error));
    if rank == 0 {
        bootstrap.clear();
    }
    joined.map(|()| nccl)
}

impl Nccl {
    fn join(&self, bootstrap: &Bootstrap) -> Result<()> {
        let mut wait = self.heartbeat.begin("connecting");
        let id = bootstrap.id(&self.api, self.rank, &mut wait)?;
        self.queue.lend(&self.staging.borrow_mut().view_mut())?;
        let mut communicator = std::ptr::null_mut();
        // SAFETY: the GPU's context is current, as the line above leaves it; both pointers are to values of this frame, which NCCL reads before it returns.
        let status = unsafe {
            let (world, rank) = (self.world as c_int, self.rank as c_int);
            (self.api.init_rank)(&mut communicator, world, id, rank, &mut Config::non_blocking())
        };
        self.communicator.set(communicator);
        self.accepted(status, &mut wait)
    }

    /// Runs a part of a collective; after an error the group is gone.
    fn guarded<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        if self.communicator.get().is_null() {
            return Err(Error::communication("an earlier operation of this group failed"));
        }
        work().inspect_err(|error| self.abort(error))
    }

    /// Waits until NCCL has issued what it was asked for, which returned `status`.
    fn accepted(&self, status: Status, wait: &mut Wait) -> Result<()> {
        self.api.check(wait.what(), status, self.communicator.get())?;
        while self.is_in_progress(wait.what())? {
            wait.pause(|| Missing::Unknown)?;
        }
        Ok(())
    }

    /// Asks NCCL, which tells errors of other ranks and of the network this way too.
    fn is_in_progress(&self, what: &str) -> Result<bool> {
        let mut state = IN_PROGRESS;
        let communicator = self.communicator.get();
        // SAFETY: a communicator that was neither destroyed nor aborted.
        let asked = unsafe { (self.api.async_error)(communicator, &mut state) };
        self.api.check(what, asked, communicator)?;
        self.api.check(what, state, communicator)?;
        Ok(state == IN_PROGRESS)
    }

    /// Lets NCCL reserve what it connects every pair of ranks with, before anybody asks how much memory is left.
    fn warm_up(&self) -> Result<()> {
        let mut staging = self.staging.borrow_mut();
        let (part, rest) = staging.view_mut().split_rows(self.world);
        let whole = rest.into_rows(0..self.world * self.world);
        self.all_gather(part.as_view(), whole)?;
        let (sent, received) = staging.view_mut().into_rows(0..2 * self.world).split_rows(self.world);
        self.exchange(sent.as_view(), received)?;
        let mark = self.queue.mark()?;
        self.settle(&|| mark.is_done())
    }

    /// Waits until the queue has done all its work.
    fn drain(&self, wait: &mut Wait) -> Result<()> {
        let mark = self.queue.mark()?;
        self.wait_until(&|| mark.is_done(), wait)
    }

    fn wait_until(&self, done: &dyn Fn() -> Result<bool>, wait: &mut Wait) -> Result<()> {
        while !done()? {
            self.is_in_progress(wait.what())?;
            wait.pause(|| Missing::Unknown)?;
        }
        Ok(())
    }

    /// The stream for a collective that reads `sent` and writes `received`.
    fn stream(&self, sent: View, received: &ViewMut) -> Result<*mut c_void> {
        if sent.space() != received.space() {
            let (from, to) = (sent.space(), received.space());
            return Err(Error::internal(format!("NCCL moves memory of one kind, not from {from:?} to {to:?} memory")));
        }
        self.queue.lend(received)
    }

    fn gather(&self, part: View, whole: ViewMut, wait: &mut Wait) -> Result<()> {
        let stream = self.stream(part, &whole)?;
        let (from, to, bytes) = (part.address() as *const c_void, whole.address() as *mut c_void, part.bytes());
        // SAFETY: memory of the device, of these sizes, which lives until the queue has done its work.
        let status = unsafe { (self.api.all_gather)(from, to, bytes, BYTES, self.communicator.get(), stream) };
        self.accepted(status, wait)
    }

    /// One round of `share`: the `width` bytes of every rank, in the order of the ranks.
    fn round(&self, mine: &[u8], width: usize) -> Result<Vec<u8>> {
        let mut wait = self.heartbeat.begin("share");
        // A copy waits for the collectives before it, without end where a rank is gone.
        self.drain(&mut wait)?;
        let mut padded = vec![0; width];
        padded[..mine.len()].copy_from_slice(mine);
        let mut staging = self.staging.borrow_mut();
        let (mut whole, rest) = staging.view_mut().split_rows(self.world * width);
        let mut part = rest.into_rows(0..width);
        self.queue.upload(&padded, part.reborrow())?;
        self.gather(part.as_view(), whole.reborrow(), &mut wait)?;
        self.drain(&mut wait)?;
        let mut all = vec![0; self.world * width];
        self.queue.download(whole.as_view(), &mut all)?;
        Ok(all)
    }
}

impl Comm for Nccl {
    fn rank(&self) -> usize {
        self.rank
    }
    fn world(&self) -> usize {
        self.world
    }
    fn describe(&self) -> String {
        format!("NCCL {}, {} ranks", self.api.version, self.world)
    }

    fn all_gather(&self, part: View, whole: ViewMut) -> Result<()> {
        expect_sizes("all_gather", part, whole.as_view(), self.world)?;
        self.guarded(|| self.gather(part, whole, &mut self.heartbeat.begin("all_gather")))
    }

    fn exchange(&self, sent: View, received: ViewMut) -> Result<()> {
        expect_rows(sent, received.as_view(), self.world)?;
        let row = sent.bytes() / self.world;
        self.guarded(|| {
            let mut wait = self.heartbeat.begin("exchange");
            let stream = self.stream(sent, &received)?;
            let communicator = self.communicator.get();
            let check = |status| self.api.check(wait.what(), status, communicator);
            // SAFETY: as in `gather`: rows of both operands, of the same size on all ranks.
            let status = unsafe {
                check((self.api.group_start)())?;
                for peer in 0..self.world {
                    let at = (peer * row) as u64;
                    let (from, to) = ((sent.address() + at) as *const c_void, (received.address() + at) as *mut c_void);
                    check((self.api.send)(from, row, BYTES, peer as c_int, communicator, stream))?;
                    check((self.api.receive)(to, row, BYTES, peer as c_int, communicator, stream))?;
                }
                (self.api.group_end)()
            };
            self.accepted(status, &mut wait)
        })
    }

    fn share(&self, bytes: &[u8]) -> Result<Vec<Vec<u8>>> {
        self.guarded(|| {
            let most = STAGING_BYTES / (self.world + 1);
            let mut message = (bytes.len() as u64).to_le_bytes().to_vec();
            message.extend_from_slice(bytes);
            let mut all = vec![Vec::new(); self.world];
            let (mut moved, mut longest, mut width) = (0, FIRST, FIRST.min(most));
            while moved < longest {
                let mine = &message[moved.min(message.len())..(moved + width).min(message.len())];
                let round = self.round(mine, width)?;
                all.iter_mut().zip(round.chunks(width)).for_each(|(said, piece)| said.extend_from_slice(piece));
                moved += width;
                longest = all.iter().map(|said| LENGTH + length_of(said)).max().unwrap_or(0);
                width = longest.saturating_sub(moved).min(most);
            }
            Ok(all.into_iter().map(|said| said[LENGTH..][..length_of(&said)].to_vec()).collect())
        })
    }

    fn settle(&self, done: &dyn Fn() -> Result<bool>) -> Result<()> {
        self.guarded(|| self.wait_until(done, &mut self.heartbeat.wait("the collectives")))
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
        self.heartbeat.abort(error);
        let communicator = self.communicator.replace(std::ptr::null_mut());
        if !communicator.is_null() {
            // SAFETY: aborted once, and not used again. Work of NCCL that is under way ends, and its status tells no more than `error`.
            unsafe { (self.api.abort)(communicator) };
        }
    }
}

/// The length that a rank's message begins with.
fn length_of(message: &[u8]) -> usize {
    message.first_chunk().map_or(0, |length| u64::from_le_bytes(*length) as usize)
}

impl Drop for Nccl {
    fn drop(&mut self) {
        let communicator = self.communicator.get();
        if std::thread::panicking() {
            self.abort(&Error::internal("a panic"));
        }
        // A failure has nobody left to be told to; it is in the heartbeat.
        let _ = self.guarded(|| {
            let mut wait = self.heartbeat.wait("the end");
            self.drain(&mut wait)?;
            // SAFETY: destroyed once, after all its work, and not used again.
            unsafe {
                self.accepted((self.api.finalize)(communicator), &mut wait)?;
                self.api.check(wait.what(), (self.api.destroy)(communicator), std::ptr::null_mut())?;
            }
            self.communicator.set(std::ptr::null_mut());
            Ok(())
        });
    }
}
