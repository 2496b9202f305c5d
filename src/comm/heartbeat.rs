//! What a rank that is a process lets the others know: FOLDER/ranks/N.json. Who waits in a collective reads the files of the others, and gives up when one of them
//! ended, or when one that is late shows nothing new for as long as the patience lasts. No thread beats on its own: a heartbeat says that a rank's own work goes on.

use super::{Comm, doing};
use crate::error::{Error, Result, write_error};
use serde::{Deserialize, Serialize};
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Between two writes of a file; a start and an end are written at once.
const INTERVAL: Duration = Duration::from_secs(1);
/// The longest time between two looks at the others' files.
const LOOK: Duration = Duration::from_millis(500);
/// Before the first sleep of a wait: most collectives end sooner.
const SPIN: Duration = Duration::from_micros(500);
const LONGEST_SLEEP: Duration = Duration::from_millis(2);

/// The content of N.json.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    pub rank: usize,
    pub host: String,
    pub pid: u32,
    /// The step that it is in, or was in last; 0 before the first.
    pub step: usize,
    /// What it does.
    pub operation: String,
    /// When it last began an operation or a collective, in unix seconds.
    pub since: f64,
    /// Collectives that it began.
    pub collectives: u64,
    /// The error that it ended with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<String>,
    /// It ended properly.
    #[serde(default)]
    pub done: bool,
    /// Tells this start of the job from earlier ones in the same folder.
    pub start: String,
}

/// One rank's file, and its eyes for the others'.
pub struct Heartbeat {
    world: usize,
    patience: Duration,
    state: Mutex<State>,
}

struct State {
    record: Record,
    /// FOLDER/ranks, once it is known.
    folder: Option<PathBuf>,
    written: Instant,
    /// The file says less than the record.
    stale: bool,
}

/// The ranks that a wait is for.
pub enum Missing {
    These(Vec<usize>),
    /// Those that began fewer collectives.
    Unknown,
}

impl Heartbeat {
    /// Silent until it is told a folder. Whoever waits longer than `patience` for a rank that begins nothing gives up.
    pub fn new(rank: usize, world: usize, patience: Duration) -> Self {
        let record = Record {
            rank,
            host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
            pid: std::process::id(),
            step: 0,
            operation: "starting".to_string(),
            since: unix_seconds(),
            collectives: 0,
            ended: None,
            done: false,
            start: String::new(),
        };
        let state = State { record, folder: None, written: Instant::now(), stale: false };
        Heartbeat { world, patience, state: Mutex::new(state) }
    }

    /// Writes FOLDER/ranks/N.json from now on. `start` is the same for all ranks of this start of the job, and for no other.
    pub fn start(&self, folder: &Path, start: &str) -> Result<()> {
        let ranks = folder.join("ranks");
        std::fs::create_dir_all(&ranks).map_err(|e| write_error(&ranks, e))?;
        let mut state = self.state();
        state.folder = Some(ranks);
        state.record.start = start.to_string();
        state.write()
    }

    /// Starts the heartbeats of all ranks of `comm`, which all call this.
    pub fn start_with(&self, comm: &dyn Comm, folder: &Path) -> Result<()> {
        let name = format!("{}-{}", std::process::id(), unix_seconds());
        self.start(folder, &String::from_utf8_lossy(&comm.share(name.as_bytes())?[0]))
    }

    /// This rank begins a step.
    pub fn begin_step(&self, step: usize) {
        let mut state = self.state();
        state.record.step = step;
        state.record.since = unix_seconds();
        state.changed();
    }

    /// Says what this rank does next.
    pub fn note(&self, operation: &str) {
        let mut state = self.state();
        operation.clone_into(&mut state.record.operation);
        state.record.since = unix_seconds();
        state.changed();
    }

    /// This rank ended with an error; the first one counts.
    pub fn abort(&self, error: &Error) {
        let mut state = self.state();
        if state.record.ended.is_none() {
            state.record.ended = Some(error.message.clone());
            state.record.since = unix_seconds();
            state.write_if_possible();
        }
    }

    /// A collective begins: a wait for it.
    pub fn begin(&self, what: &'static str) -> Wait<'_> {
        let mut state = self.state();
        state.record.collectives += 1;
        state.record.since = unix_seconds();
        state.changed();
        drop(state);
        self.wait(what)
    }

    /// A wait for what was begun before.
    pub fn wait(&self, what: &'static str) -> Wait<'_> {
        let now = Instant::now();
        Wait { heartbeat: self, what, began: now, looked: now, seen: vec![(None, now); self.world] }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn changed(&mut self) {
        self.stale = true;
        self.beat();
    }

    /// Writes what has changed, where the last write is long enough ago.
    fn beat(&mut self) {
        if self.stale && self.written.elapsed() >= INTERVAL {
            self.write_if_possible();
        }
    }

    /// A disk that is full for a while is no reason to end: who waits sees what was written last.
    fn write_if_possible(&mut self) {
        let _ = self.write();
    }

    /// Replaces the file: a reader sees the old or the new one.
    fn write(&mut self) -> Result<()> {
        let Some(folder) = &self.folder else { return Ok(()) };
        (self.written, self.stale) = (Instant::now(), false);
        let rank = self.record.rank;
        let (path, aside) = (folder.join(format!("{rank}.json")), folder.join(format!(".{rank}.json.tmp")));
        let text = serde_json::to_vec(&self.record).map_err(|e| Error::internal(e.to_string()))?;
        let written = std::fs::write(&aside, text).and_then(|()| std::fs::rename(&aside, &path));
        written.map_err(|e| write_error(&path, e))
    }
}

impl Drop for Heartbeat {
    fn drop(&mut self) {
        let mut state = self.state();
        if std::thread::panicking() {
            state.record.ended.get_or_insert_with(|| "a panic".to_string());
        }
        state.record.done = state.record.ended.is_none();
        state.record.since = unix_seconds();
        state.write_if_possible();
    }
}

/// One wait, as a loop of pauses.
pub struct Wait<'a> {
    heartbeat: &'a Heartbeat,
    /// For people: "all_gather".
    what: &'static str,
    began: Instant,
    /// When the files were last read.
    looked: Instant,
    /// By rank: what its file said, and when that was new.
    seen: Vec<(Option<Record>, Instant)>,
}

impl Wait<'_> {
    pub fn what(&self) -> &'static str {
        self.what
    }

    /// Sleeps for a moment. A communication error, which names the ranks that are late, where there is no point in waiting on.
    pub fn pause(&mut self, missing: impl FnOnce() -> Missing) -> Result<()> {
        let waited = self.began.elapsed();
        if waited < SPIN {
            std::thread::yield_now();
            return Ok(());
        }
        std::thread::sleep((waited / 8).min(LONGEST_SLEEP));
        if self.looked.elapsed() < LOOK.min(self.heartbeat.patience / 8) {
            return Ok(());
        }
        self.looked = Instant::now();
        self.look(missing())
    }

    fn look(&mut self, missing: Missing) -> Result<()> {
        let (own, folder) = {
            let mut state = self.heartbeat.state();
            state.beat();
            (state.record.clone(), state.folder.clone())
        };
        for rank in (0..self.heartbeat.world).filter(|&rank| rank != own.rank) {
            let record = folder.as_ref().and_then(|folder| read(folder, rank, &own.start));
            if record.is_some() && record != self.seen[rank].0 {
                self.seen[rank] = (record, self.looked);
            }
        }
        let records = self.seen.iter().filter_map(|(record, _)| record.as_ref());
        let ended = records.filter_map(|record| Some((record, record.ended.as_ref()?)));
        if let Some((first, error)) = ended.min_by(|a, b| a.0.since.total_cmp(&b.0.since)) {
            return Err(Error::communication(format!("rank {} ended: {error}", first.rank)));
        }
        let late = match missing {
            Missing::These(ranks) => ranks,
            Missing::Unknown => {
                let behind = |rank: &usize| self.seen[*rank].0.as_ref().is_none_or(|r| r.collectives < own.collectives);
                (0..self.heartbeat.world).filter(|rank| *rank != own.rank && behind(rank)).collect()
            }
        };
        self.judge(&late, folder.as_deref())
    }

    /// Gives up where a rank that is late has ended or stands still.
    fn judge(&self, late: &[usize], folder: Option<&Path>) -> Result<()> {
        let what = self.what;
        let record = |rank: usize| self.seen[rank].0.as_ref();
        if let Some(rank) = late.iter().find(|&&rank| record(rank).is_some_and(|record| record.done)) {
            return Err(Error::communication(format!("rank {rank} is done, and takes no part in {what}")));
        }
        let patience = self.heartbeat.patience;
        let idle = |rank: usize| self.looked.duration_since(self.seen[rank].1.max(self.began));
        let still: Vec<usize> = late.iter().copied().filter(|&rank| idle(rank) >= patience).collect();
        let all_here = late.is_empty() && (0..self.seen.len()).all(|rank| idle(rank) >= patience);
        if still.is_empty() && !all_here {
            return Ok(());
        }
        let waited = self.began.elapsed().as_secs_f64();
        let mut message = format!("{what} does not end, for {waited:.0} s");
        if all_here {
            message.push_str(", though no rank is late");
        }
        for rank in still {
            let _ = match record(rank) {
                None => write!(message, "; nothing was heard of rank {rank}"),
                Some(Record { host, pid, step, operation, since, .. }) => {
                    let doing = doing(*step, operation);
                    let seconds = (unix_seconds() - since).max(0.0);
                    write!(message, "; rank {rank} ({host}, process {pid}) is late: {doing}, for {seconds:.0} s")
                }
            };
        }
        let error = Error::communication(message);
        Err(match folder {
            Some(folder) => error.help(format!("{} says what each rank did last; see also what it printed", folder.display())),
            None => error.help("see what that rank printed: it ended, or waits for something else"),
        })
    }
}

/// What a rank of this start of the job says. A file of an earlier one is nothing, and so is one that cannot be read.
fn read(folder: &Path, rank: usize, start: &str) -> Option<Record> {
    let text = std::fs::read(folder.join(format!("{rank}.json"))).ok()?;
    serde_json::from_slice(&text).ok().filter(|record: &Record| record.start == start && record.rank == rank)
}

fn unix_seconds() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    const PATIENCE: Duration = Duration::from_millis(400);

    fn started(world: usize, folder: &Path) -> Vec<Heartbeat> {
        let all: Vec<Heartbeat> = (0..world).map(|rank| Heartbeat::new(rank, world, PATIENCE)).collect();
        all.iter().for_each(|heartbeat| heartbeat.start(folder, "now").unwrap());
        all
    }

    /// Waits until that is pointless, at most ten times the patience.
    fn wait_out(mut wait: Wait, missing: impl Fn() -> Missing) -> Error {
        while wait.began.elapsed() < 10 * PATIENCE {
            if let Err(error) = wait.pause(&missing) {
                assert_eq!(error.kind, Kind::Communication);
                return error;
            }
        }
        panic!("{} waits for ever", wait.what)
    }

    #[test]
    fn a_file_says_what_its_rank_does_and_how_it_ended() {
        let folder = tempfile::tempdir().unwrap();
        let ranks = folder.path().join("ranks");
        let mut all = started(3, folder.path());
        let file = |rank| read(&ranks, rank, "now").unwrap();
        assert_eq!((file(2).rank, file(2).pid, file(2).operation.as_str()), (2, std::process::id(), "starting"));
        assert!((unix_seconds() - file(2).since).abs() < 60.0 && !file(2).host.is_empty());
        assert_eq!(read(&ranks, 2, "an earlier start"), None);

        // At most once a second, but what was held back comes with the next beat.
        all[2].note("step 1");
        assert_eq!(file(2).operation, "starting");
        std::thread::sleep(INTERVAL);
        all[2].note("step 2");
        assert_eq!(file(2).operation, "step 2");
        all[1].abort(&Error::data("a file is gone"));
        all[1].abort(&Error::communication("what follows from it"));
        assert_eq!(file(1).ended.as_deref(), Some("a file is gone"));
        all.truncate(2);
        assert!(file(2).done && file(2).ended.is_none());
        drop(all);
        assert!(!file(1).done && file(0).done);
    }

    #[test]
    fn who_stands_still_is_named_and_who_goes_on_is_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let all = started(3, folder.path());
        all[2].begin("share");
        all[2].begin_step(7);
        all[2].note("reading");
        std::thread::sleep(INTERVAL);
        all[2].state().beat();
        let began = Instant::now();
        let error = std::thread::scope(|scope| {
            scope.spawn(|| {
                for _ in 0..6 {
                    std::thread::sleep(PATIENCE / 2);
                    let mut state = all[1].state();
                    state.record.since = unix_seconds();
                    state.write().unwrap();
                }
            });
            wait_out(all[0].begin("all_gather"), || Missing::These(vec![1]))
        });
        assert!(began.elapsed() > 3 * PATIENCE, "rank 1 went on for a while");
        assert!(error.message.contains("all_gather") && error.message.contains("rank 1 "), "{error}");
        // Rank 2 began as many collectives as this one: rank 1 is late.
        let error = wait_out(all[0].wait("share"), || Missing::Unknown);
        assert!(error.message.contains("rank 1 ") && !error.message.contains("rank 2 "), "{error}");
        let error = wait_out(all[0].begin("exchange"), || Missing::Unknown);
        assert!(error.message.contains("process") && error.message.contains("is late: step 7: reading, for"), "{error}");
        assert!(error.message.contains("rank 1 ") && error.message.contains("rank 2 "), "{error}");
    }

    #[test]
    fn who_ended_is_named_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let patient = Heartbeat::new(0, 3, Duration::from_secs(600));
        patient.start(folder.path(), "now").unwrap();
        let mut others = started(3, folder.path()).into_iter().skip(1);
        drop(others.next());
        let error = wait_out(patient.begin("share"), || Missing::Unknown);
        assert!(error.message.contains("rank 1 is done"), "{error}");
        others.next().unwrap().abort(&Error::data("a file is gone"));
        let error = wait_out(patient.begin("share"), || Missing::Unknown);
        assert!(error.message.contains("rank 2 ended: a file is gone"), "{error}");
    }

    #[test]
    fn without_a_folder_the_patience_holds_too() {
        let alone = Heartbeat::new(0, 2, PATIENCE);
        let error = wait_out(alone.begin("connecting"), || Missing::Unknown);
        assert!(error.message.contains("connecting") && error.message.contains("heard of rank 1"), "{error}");
    }
}
