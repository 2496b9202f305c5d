//! The emulated device behind its launchers: memory, and two streams of work. A stream runs its work in order; the two run side by side,
//! so where both have work, the seed decides which goes on, as far as events allow.

use super::KernelEntry;
use super::fiber::Stack;
use super::grid::{Grid, hash};
use super::memory::{Buffers, note_written};
use crate::device::{Launch, Stream};
use crate::error::{Error, Result};
use std::collections::VecDeque;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

/// When an event happened, once it did.
pub type Moment = Arc<OnceLock<Instant>>;

/// What a stream does next, which can be recorded but for uploads and events. Addresses are valid until all work was done: memory waits for that before it goes.
#[derive(Clone)]
pub enum Work {
    Launch {
        kernel: &'static KernelEntry,
        launch: Launch,
        params: Vec<u8>,
    },
    Fill {
        value: u8,
        to: u64,
        bytes: usize,
    },
    Copy {
        from: u64,
        to: u64,
        bytes: usize,
        /// Into the device's own memory, not the host's.
        known: bool,
    },
    /// A function of the host that writes this memory.
    Host {
        run: Arc<dyn Fn() + Send + Sync>,
        to: u64,
        bytes: usize,
    },
    Upload {
        data: Vec<u8>,
        to: u64,
    },
    Record(Moment),
    Wait(Moment),
}

pub struct Machine {
    pub checked: bool,
    /// Regions reserved so far.
    pub regions: AtomicUsize,
    buffers: Mutex<Buffers>,
    streams: Mutex<Streams>,
}

struct Streams {
    seed: u64,
    drawn: u64,
    queues: [VecDeque<Work>; 2],
    /// What is recorded of a stream instead of run.
    tapes: [Option<Vec<Work>>; 2],
    /// The second stream is in use.
    both: bool,
    stacks: Vec<Stack>,
    /// An error of work that nobody waited for.
    error: Option<Error>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Machine {
    pub fn new(checked: bool, seed: u64) -> Self {
        let streams = Streams {
            seed,
            drawn: 0,
            queues: Default::default(),
            tapes: [None, None],
            both: false,
            stacks: Vec::new(),
            error: None,
        };
        Machine { checked, regions: AtomicUsize::new(0), buffers: Mutex::default(), streams: Mutex::new(streams) }
    }

    /// A launch holds the lock, so no buffer goes away under a kernel.
    pub fn buffers(&self) -> MutexGuard<'_, Buffers> {
        lock(&self.buffers)
    }

    pub fn seed(&self) -> u64 {
        lock(&self.streams).seed
    }

    pub fn set_seed(&self, seed: u64) {
        self.finish_all();
        let mut streams = lock(&self.streams);
        (streams.seed, streams.drawn) = (seed, 0);
    }

    /// Adds work to a stream. It runs at once as long as only one stream is used, and in natural order; otherwise some work runs, of either.
    pub fn issue(&self, stream: Stream, work: Work) -> Result<()> {
        let mut streams = lock(&self.streams);
        if let Some(tape) = &mut streams.tapes[stream as usize] {
            if matches!(work, Work::Upload { .. } | Work::Record(_) | Work::Wait(_)) {
                return Err(Error::internal("uploads and events are not recorded"));
            }
            tape.push(work);
            return Ok(());
        }
        streams.queues[stream as usize].push_back(work);
        while !streams.both || streams.seed == 0 || streams.draw(2) == 1 {
            if !self.step(&mut streams)? {
                break;
            }
        }
        Ok(())
    }

    /// From now on, until the tape is taken, what is issued to this stream is recorded and not run.
    pub fn start_tape(&self, stream: Stream) {
        lock(&self.streams).tapes[stream as usize] = Some(Vec::new());
    }

    pub fn take_tape(&self, stream: Stream) -> Vec<Work> {
        lock(&self.streams).tapes[stream as usize].take().unwrap_or_default()
    }

    /// Somebody will issue to this stream.
    pub fn open(&self, stream: Stream) {
        lock(&self.streams).both |= stream == Stream::Copy;
    }

    /// Runs a stream's work to its end, and of the other one's as much as that needs, or more.
    pub fn finish(&self, stream: Stream) -> Result<()> {
        let mut streams = lock(&self.streams);
        if streams.tapes[stream as usize].is_some() {
            return Err(Error::internal("a stream that is being recorded is waited for"));
        }
        while !streams.queues[stream as usize].is_empty() {
            self.step(&mut streams)?;
        }
        streams.error.take().map_or(Ok(()), Err)
    }

    /// Runs all work. An error waits for whoever asks next.
    pub fn finish_all(&self) {
        for stream in [Stream::Compute, Stream::Copy] {
            if let Err(error) = self.finish(stream) {
                lock(&self.streams).error.get_or_insert(error);
            }
        }
    }

    /// Runs one piece of work of a stream that can go on; false where there is none.
    fn step(&self, streams: &mut Streams) -> Result<bool> {
        let ready = |queue: &VecDeque<Work>| match queue.front() {
            None => false,
            Some(Work::Wait(moment)) => moment.get().is_some(),
            Some(_) => true,
        };
        let first = streams.draw(2) as usize;
        let Some(chosen) = [first, 1 - first].into_iter().find(|&stream| ready(&streams.queues[stream])) else {
            return Ok(false);
        };
        let work = streams.queues[chosen].pop_front().expect("a queue that is ready");
        if let Err(error) = self.run(work, streams) {
            // As on a GPU, a fault ends all work. Events count as reached, so that nobody waits for ever.
            let rest = streams.queues.iter_mut().flat_map(|queue| queue.drain(..));
            rest.for_each(|work| {
                if let Work::Record(moment) = work {
                    record(&moment)
                }
            });
            return Err(error);
        }
        Ok(true)
    }

    fn run(&self, work: Work, streams: &mut Streams) -> Result<()> {
        let mut buffers = self.buffers();
        match work {
            Work::Launch { kernel, launch, params } => {
                let grid = Grid::new(kernel, &params, launch, &mut buffers, self.checked, streams.seed);
                grid.run(&mut streams.stacks)?;
            }
            Work::Fill { value, to, bytes } => {
                note_written(&mut buffers, to, bytes)?;
                // SAFETY: within a buffer, as was just found.
                unsafe { std::ptr::write_bytes(to as *mut u8, value, bytes) }
            }
            Work::Copy { from, to, bytes, known } => {
                if known {
                    note_written(&mut buffers, to, bytes)?;
                }
                // SAFETY: as above; the source was a view's memory, which is not freed before its work is done.
                unsafe { std::ptr::copy(from as *const u8, to as *mut u8, bytes) }
            }
            Work::Host { run, to, bytes } => {
                note_written(&mut buffers, to, bytes)?;
                run();
            }
            Work::Upload { data, to } => {
                note_written(&mut buffers, to, data.len())?;
                // SAFETY: within a buffer.
                unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), to as *mut u8, data.len()) }
            }
            Work::Record(moment) => record(&moment),
            Work::Wait(_) => {}
        }
        Ok(())
    }
}

impl Streams {
    /// One of `choices`, as the seed has it; in natural order the first.
    fn draw(&mut self, choices: u64) -> u64 {
        if self.seed == 0 {
            return 0;
        }
        self.drawn += 1;
        hash(self.seed.rotate_left(16) ^ self.drawn) % choices
    }
}

fn record(moment: &Moment) {
    moment.get_or_init(Instant::now);
}
