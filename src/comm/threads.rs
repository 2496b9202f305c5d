//! Ranks that are threads of one process: on a CPU, in the emulator, or several on one GPU. Host memory is copied from rank to rank; memory of a
//! device by way of the host.

use super::{Comm, doing, expect_rows, expect_sizes};
use crate::device::Launcher;
use crate::error::{Error, Result};
use crate::tensor::{View, ViewMut};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// What the ranks have in common.
struct Group {
    state: Mutex<State>,
    changed: Condvar,
    /// How long a rank may do nothing while others wait for it.
    patience: Duration,
}

struct State {
    ranks: Vec<Rank>,
    /// The first rank that ended with an error, and the error.
    failed: Option<(usize, String)>,
}

impl State {
    /// Counts a rank as here; the number of its arrivals.
    fn arrive(&mut self, rank: usize) -> u64 {
        let rank = &mut self.ranks[rank];
        rank.reached += 1;
        rank.active = Instant::now();
        rank.reached
    }
}

/// What the others know of a rank.
struct Rank {
    /// Barriers that it has reached.
    reached: u64,
    offer: Offer,
    step: usize,
    operation: String,
    /// When it last began an operation.
    active: Instant,
}

/// What a rank lets the others read until they all have.
#[derive(Clone)]
enum Offer {
    Nothing,
    /// Address and length of host memory.
    Memory(usize, usize),
    Bytes(Arc<Vec<u8>>),
}

/// One rank's end.
pub struct Threads {
    rank: usize,
    world: usize,
    group: Arc<Group>,
    /// The second queue of the device that operands live on; none where that is the CPU.
    queue: Option<Box<dyn Launcher>>,
}

/// The ends of a group of `world` ranks, each for a thread of its own. Whoever waits longer than `patience` for a rank that begins no operation gives up.
pub fn group(world: usize, patience: Duration) -> Vec<Threads> {
    let rank =
        |_| Rank { reached: 0, offer: Offer::Nothing, step: 0, operation: "starting".to_string(), active: Instant::now() };
    let state = Mutex::new(State { ranks: (0..world).map(rank).collect(), failed: None });
    let group = Arc::new(Group { state, changed: Condvar::new(), patience });
    (0..world).map(|rank| Threads { rank, world, group: group.clone(), queue: None }).collect()
}

impl Threads {
    /// For operands on a device, if there is one: they are used in the order of its `queue`.
    pub fn over(self, queue: Option<Box<dyn Launcher>>) -> Self {
        Threads { queue, ..self }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.group.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until all ranks are here. Either all ranks meet, or none does: who gives up is not here any more.
    fn meet(&self) -> Result<()> {
        let mut state = self.state();
        let here = state.arrive(self.rank);
        self.group.changed.notify_all();
        let (mut state, met) = self.wait_for_all(state, here);
        if let Err(error) = &met {
            state.ranks[self.rank].reached -= 1;
            state.failed.get_or_insert_with(|| (self.rank, error.message.clone()));
            self.group.changed.notify_all();
        }
        met
    }

    /// Waits until all ranks that met have read what was offered: they only copy, so it takes no patience.
    fn part(&self) {
        let mut state = self.state();
        let here = state.arrive(self.rank);
        self.group.changed.notify_all();
        while state.ranks.iter().any(|rank| rank.reached < here) {
            state = self.group.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn wait_for_all<'a>(&'a self, mut state: MutexGuard<'a, State>, here: u64) -> (MutexGuard<'a, State>, Result<()>) {
        loop {
            let Some(late) = state.ranks.iter().position(|rank| rank.reached < here) else { return (state, Ok(())) };
            if let Some((rank, error)) = &state.failed {
                let error = Error::communication(format!("rank {rank} ended: {error}"));
                return (state, Err(error));
            }
            let idle = state.ranks[late].active.elapsed();
            let Some(left) = self.group.patience.checked_sub(idle).filter(|left| !left.is_zero()) else {
                let Rank { step, operation, .. } = &state.ranks[late];
                let what = format!("rank {late} is late: {}, for {:.0} s", doing(*step, operation), idle.as_secs_f64());
                return (state, Err(Error::communication(what)));
            };
            state = self.group.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Offers memory or bytes, and calls `read` with those of every rank, its own too.
    fn meet_over(&self, offer: Offer, mut read: impl FnMut(usize, &[u8]) -> Result<()>) -> Result<()> {
        self.state().ranks[self.rank].offer = offer;
        self.meet()?;
        // From here to the end nothing may return: the others read what this rank offers.
        let offers: Vec<Offer> = self.state().ranks.iter().map(|rank| rank.offer.clone()).collect();
        let mut result = Ok(());
        for (rank, offer) in offers.iter().enumerate() {
            let bytes = match offer {
                Offer::Nothing => &[],
                // SAFETY: memory that rank `rank` borrowed for this call, which it does not return from before all have parted below.
                Offer::Memory(address, bytes) => unsafe { std::slice::from_raw_parts(*address as *const u8, *bytes) },
                Offer::Bytes(bytes) => bytes.as_slice(),
            };
            result = result.and_then(|()| read(rank, bytes));
        }
        self.part();
        result
    }

    fn offer(&self, x: View) -> Result<Offer> {
        Ok(match &self.queue {
            None => Offer::Memory(x.address() as usize, x.bytes()),
            Some(queue) => {
                let mut bytes = vec![0; x.bytes()];
                queue.download(x, &mut bytes)?;
                Offer::Bytes(Arc::new(bytes))
            }
        })
    }

    fn put(&self, bytes: &[u8], out: ViewMut) -> Result<()> {
        if bytes.len() != out.bytes() {
            let what = format!("a rank offers {} bytes where rank {} expects {}", bytes.len(), self.rank, out.bytes());
            return Err(Error::communication(what));
        }
        match &self.queue {
            None => {
                out.raw_bytes().copy_from_slice(bytes);
                Ok(())
            }
            Some(queue) => queue.upload(bytes, out),
        }
    }
}

impl Comm for Threads {
    fn rank(&self) -> usize {
        self.rank
    }
    fn world(&self) -> usize {
        self.world
    }
    fn describe(&self) -> String {
        format!("{} threads", self.world)
    }

    fn all_gather(&self, part: View, whole: ViewMut) -> Result<()> {
        expect_sizes("all_gather", part, whole.as_view(), self.world)?;
        let mut whole = whole.into_shape(&[self.world, part.elements()]);
        self.meet_over(self.offer(part)?, |rank, bytes| self.put(bytes, whole.reborrow().into_rows(rank..rank + 1)))
    }

    fn exchange(&self, sent: View, received: ViewMut) -> Result<()> {
        expect_rows(sent, received.as_view(), self.world)?;
        let row = sent.bytes() / self.world;
        let mut received = received.into_shape(&[self.world, sent.elements() / self.world]);
        self.meet_over(self.offer(sent)?, |rank, bytes| {
            let mine = bytes.get(self.rank * row..(self.rank + 1) * row).unwrap_or_default();
            self.put(mine, received.reborrow().into_rows(rank..rank + 1))
        })
    }

    fn share(&self, bytes: &[u8]) -> Result<Vec<Vec<u8>>> {
        let mut all = Vec::with_capacity(self.world);
        self.meet_over(Offer::Bytes(Arc::new(bytes.to_vec())), |_, bytes| {
            all.push(bytes.to_vec());
            Ok(())
        })?;
        Ok(all)
    }

    fn begin_step(&self, step: usize) {
        self.state().ranks[self.rank].step = step;
    }

    fn note(&self, operation: &str) {
        let mut state = self.state();
        let rank = &mut state.ranks[self.rank];
        operation.clone_into(&mut rank.operation);
        rank.active = Instant::now();
    }

    fn abort(&self, error: &Error) {
        self.state().failed.get_or_insert_with(|| (self.rank, error.message.clone()));
        self.group.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::comm::agree;
    use crate::error::Kind;
    use crate::tensor::Tensor;

    /// Runs `work` as each of `world` ranks.
    fn ranks<T: Send>(world: usize, patience: Duration, work: impl Fn(&Threads) -> T + Sync) -> Vec<T> {
        std::thread::scope(|scope| {
            let work = &work;
            let threads: Vec<_> = group(world, patience).into_iter().map(|comm| scope.spawn(move || work(&comm))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        })
    }

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn everybody_gets_what_everybody_has() {
        ranks(3, LONG, |comm| {
            for round in 0..20 {
                let value = |from: usize, to: usize, i: usize| (1000 * round + 100 * from + 10 * to + i) as f32;
                let part: Vec<f32> = (0..5).map(|i| value(comm.rank, 9, i)).collect();
                let mut whole = Tensor::from_f32(&[f32::NAN; 15], &[15]);
                comm.all_gather(Tensor::from_f32(&part, &[5]).view(), whole.view_mut()).unwrap();
                let expected: Vec<f32> = (0..15).map(|i| value(i / 5, 9, i % 5)).collect();
                assert_eq!(whole.view().f32(), expected);

                let sent: Vec<f32> = (0..15).map(|i| value(comm.rank, i / 5, i % 5)).collect();
                comm.exchange(Tensor::from_f32(&sent, &[15]).view(), whole.view_mut()).unwrap();
                let expected: Vec<f32> = (0..15).map(|i| value(i / 5, comm.rank, i % 5)).collect();
                assert_eq!(whole.view().f32(), expected);

                let said = comm.share(&vec![comm.rank as u8; comm.rank]).unwrap();
                assert_eq!(said, [vec![], vec![1], vec![2, 2]]);
            }
        });
    }

    #[test]
    fn the_first_error_is_everybodys() {
        let ends = ranks(3, LONG, |comm| match comm.rank {
            0 => agree(comm, Ok(())),
            rank => agree(comm, Err(Error::data(format!("broken {rank}")).help("mend it"))),
        });
        let messages = ends.into_iter().map(|end| end.unwrap_err()).map(|e| (e.kind, e.message, e.help.unwrap()));
        let messages: Vec<_> = messages.collect();
        let line = |message: &str| (Kind::Data, message.to_string(), "mend it".to_string());
        assert_eq!(messages, [line("rank 1: broken 1"), line("broken 1"), line("rank 1: broken 1")]);
    }

    #[test]
    fn who_is_late_or_gone_is_named() {
        let ends = ranks(3, Duration::from_millis(200), |comm| match comm.rank {
            2 => {
                comm.begin_step(7);
                comm.note("sleeping");
                std::thread::sleep(Duration::from_secs(1));
                Ok(Vec::new())
            }
            _ => comm.share(&[]),
        });
        for end in &ends[..2] {
            let error = end.as_ref().unwrap_err();
            assert!(error.kind == Kind::Communication && error.message.contains("rank 2 is late: step 7: sleeping"), "{error}");
        }
        // Who comes after the others gave up finds nobody, and reads nothing of theirs.
        let ends = ranks(3, Duration::from_millis(100), |comm| {
            if comm.rank == 2 {
                std::thread::sleep(Duration::from_millis(400));
            }
            let sent = Tensor::from_f32(&vec![1.0; 3 << 16], &[3 << 16]);
            let mut received = Tensor::from_f32(&vec![0.0; 3 << 16], &[3 << 16]);
            comm.exchange(sent.view(), received.view_mut())
        });
        assert!(ends.iter().all(|end| end.as_ref().is_err_and(|error| error.kind == Kind::Communication)), "{ends:?}");
        let ends = ranks(3, LONG, |comm| match comm.rank {
            1 => {
                comm.abort(&Error::data("a file is gone"));
                Ok(Vec::new())
            }
            _ => comm.share(&[]),
        });
        let error = ends[0].as_ref().unwrap_err();
        assert!(error.kind == Kind::Communication && error.message.contains("rank 1 ended: a file is gone"), "{error}");
    }
}
