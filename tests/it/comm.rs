//! Ranks that are processes. Each test starts this program again, once a rank, and every rank runs the test's own body: over NCCL's ABI (tests/fake_nccl) with the
//! emulator's memory, and under mpirun where MPI is built in.

use crate::fakes::compile;
use limo_engine::comm::nccl::{self, Bootstrap};
use limo_engine::comm::{Comm, threads};
use limo_engine::device::emulator::Emulator;
use limo_engine::device::{Launcher, Stream};
use limo_engine::error::{Error, Kind, Result};
use limo_engine::tensor::{DType, PinnedAllocator, Tensor};
use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// Of a rank: the folder of its run, and its number.
const RUN: &str = "LIMO_TEST_RUN";
const RANK: &str = "LIMO_TEST_RANK";
const RANKS: usize = 4;
/// For ranks that are all well.
const LONG: Duration = Duration::from_secs(60);
/// Where one is not.
const SHORT: Duration = Duration::from_secs(3);

/// What a test's body has, as one rank.
struct Rank<'a> {
    comm: &'a dyn Comm,
    /// The queue of the device that operands live on; none where that is the CPU.
    queue: Option<&'a dyn Launcher>,
    /// What the queue may still copy from.
    held: RefCell<Vec<Tensor>>,
}

impl<'a> Rank<'a> {
    fn new(comm: &'a dyn Comm, queue: Option<&'a dyn Launcher>) -> Self {
        Rank { comm, queue, held: RefCell::default() }
    }

    /// On a device, the bytes arrive as the queue gets there.
    fn tensor(&self, bytes: &[u8], shape: &[usize]) -> Tensor {
        let mut host = Tensor::alone(&PinnedAllocator, DType::U8, shape).unwrap();
        host.view_mut().raw_bytes().copy_from_slice(bytes);
        let Some(queue) = self.queue else { return host };
        let mut tensor = Tensor::alone(queue.allocator(), DType::U8, shape).unwrap();
        queue.copy(host.view(), tensor.view_mut()).unwrap();
        self.held.borrow_mut().push(host);
        tensor
    }

    fn bytes(&self, x: &Tensor) -> Vec<u8> {
        let mut bytes = vec![0; x.bytes()];
        match self.queue {
            None => bytes.copy_from_slice(x.view().raw_bytes()),
            Some(queue) => queue.download(x.view(), &mut bytes).unwrap(),
        }
        self.held.borrow_mut().clear();
        bytes
    }

    /// Waits for all collectives, as whoever needs their results.
    fn settle(&self) -> Result<()> {
        let mark = self.queue.map(|queue| queue.mark()).transpose()?;
        self.comm.settle(&|| mark.as_ref().map_or(Ok(true), |mark| mark.is_done()))
    }

    fn all_gather(&self, part: &[u8]) -> Result<Vec<u8>> {
        let mut whole = self.tensor(&vec![0xEE; RANKS * part.len()], &[RANKS * part.len()]);
        self.comm.all_gather(self.tensor(part, &[part.len()]).view(), whole.view_mut())?;
        Ok(self.bytes(&whole))
    }

    fn exchange(&self, sent: &[u8]) -> Result<Vec<u8>> {
        let shape = [RANKS, sent.len() / RANKS];
        let mut received = self.tensor(&vec![0xEE; sent.len()], &shape);
        self.comm.exchange(self.tensor(sent, &shape).view(), received.view_mut())?;
        Ok(self.bytes(&received))
    }
}

/// Bytes that differ from rank to rank and from place to place.
fn bytes_of(rank: usize, salt: usize, length: usize) -> Vec<u8> {
    (0..length).map(|i| (i * 31 + i / 251 + rank * 101 + salt * 13) as u8).collect()
}

/// Every collective at many sizes: the hash of all that this rank received.
fn all_collectives(rank: &Rank) -> Result<String> {
    let mut hash = blake3::Hasher::new();
    let own = rank.comm.rank();
    for (round, length) in [1, 5, 4096, 70_001, 3_000_003].into_iter().enumerate() {
        rank.comm.note(&format!("round {round}"));
        hash.update(&rank.all_gather(&bytes_of(own, round, length))?);
        hash.update(&rank.exchange(&bytes_of(own, round, length * RANKS))?);
        // Nothing, a little, and more than any staging buffer holds.
        let said = rank.comm.share(&bytes_of(own, round, (own + round) % RANKS * length))?;
        for said in said {
            hash.update(&said.len().to_le_bytes()).update(&said);
        }
    }
    Ok(hash.finalize().to_hex().to_string())
}

/// The same, by ranks that are threads.
fn by_threads() -> Vec<String> {
    std::thread::scope(|scope| {
        let run = |comm| scope.spawn(move || all_collectives(&Rank::new(&comm, None)).unwrap());
        let ranks: Vec<_> = threads::group(RANKS, LONG).into_iter().map(run).collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

/// How a rank ended.
#[derive(Debug)]
struct End {
    code: i32,
    seconds: f64,
    /// What the body returned, or the error's message.
    said: String,
}

/// Runs the body as the rank that this process is, and ends the process as the command line would.
fn run_rank<C: Comm>(
    number: usize,
    connect: impl FnOnce() -> Result<C>,
    queue: Option<&dyn Launcher>,
    body: impl Fn(&Rank) -> Result<String>,
) -> ! {
    let run = std::env::var_os(RUN).unwrap();
    let began = Instant::now();
    let result = connect().and_then(|comm| {
        comm.heartbeats(run.as_ref())?;
        body(&Rank::new(&comm, queue)).inspect_err(|error| comm.abort(error))
    });
    let (code, said) = match result {
        Ok(said) => (0, said),
        Err(error) => (error.kind.exit_code(), error.message),
    };
    let end = Path::new(&run).join(format!("end-{number}"));
    std::fs::write(end, format!("{:.3} {said}", began.elapsed().as_secs_f64())).unwrap();
    std::process::exit(code.into())
}

/// What the ranks left in the folder of their run: with the exit codes that `code` knows.
fn ends(run: &Path, code: impl Fn(usize) -> Option<i32>) -> Vec<Option<End>> {
    let end = |rank| {
        let text = std::fs::read_to_string(run.join(format!("end-{rank}"))).ok()?;
        let (seconds, said) = text.split_once(' ')?;
        Some(End { code: code(rank)?, seconds: seconds.parse().ok()?, said: said.to_string() })
    };
    (0..RANKS).map(end).collect()
}

/// Everything went well, and the ranks received what threads receive.
fn expect_what_threads_get(ends: Vec<Option<End>>) {
    for (end, expected) in ends.into_iter().zip(by_threads()) {
        let end = end.expect("all ranks end");
        assert!(end.code == 0 && end.said == expected, "{end:?}");
    }
}

/// All but `gone`, where that is a rank, end with exit code 6, in time, and say all of `words`.
fn expect_communication_errors(ends: &[Option<End>], gone: usize, words: &[&str]) {
    for (rank, end) in ends.iter().enumerate().filter(|(rank, _)| *rank != gone) {
        let end = end.as_ref().unwrap_or_else(|| panic!("rank {rank} did not end"));
        assert_eq!(end.code, 6, "rank {rank}: {end:?}");
        assert!(end.seconds < 2.0 * SHORT.as_secs_f64(), "rank {rank}: {end:?}");
        assert!(words.iter().all(|word| end.said.contains(word)), "rank {rank}: {words:?} in {end:?}");
    }
}

/// Rank 2 works for a while, and then ends by SIGKILL.
fn one_is_killed(rank: &Rank) -> Result<String> {
    rank.all_gather(&[7; 100])?;
    if rank.comm.rank() == 2 {
        let own = std::process::id().to_string();
        Command::new("kill").args(["-KILL", &own]).status().unwrap();
        std::thread::sleep(LONG);
    }
    rank.settle()?;
    rank.comm.share(b"next")?;
    Ok("went on".to_string())
}

/// Rank 2 says what it does next, and sleeps longer than the others wait.
fn one_is_asleep(rank: &Rank) -> Result<String> {
    rank.all_gather(&[7; 100])?;
    if rank.comm.rank() == 2 {
        std::thread::sleep(Duration::from_millis(1100)); // a file is written once a second
        rank.comm.note("step 3: asleep");
        std::thread::sleep(3 * SHORT);
        std::process::exit(0);
    }
    rank.exchange(&[1; 4000])?;
    rank.settle()?;
    rank.comm.share(b"next")?;
    Ok("went on".to_string())
}

/// Rank 2 ends with an error of its own.
fn one_fails(rank: &Rank) -> Result<String> {
    rank.all_gather(&[7; 100])?;
    if rank.comm.rank() == 2 {
        return Err(Error::new(Kind::Checkpoint, "a file is broken"));
    }
    rank.comm.share(b"next")?;
    Ok("went on".to_string())
}

/// Rank 2 gathers more than the others.
fn sizes_differ(rank: &Rank) -> Result<String> {
    let length = if rank.comm.rank() == 2 { 200 } else { 100 };
    rank.all_gather(&vec![7; length])?;
    rank.settle()?;
    rank.comm.share(b"next")?;
    Ok("went on".to_string())
}

/// Rank 1 exchanges where the others gather.
fn orders_differ(rank: &Rank) -> Result<String> {
    match rank.comm.rank() {
        1 => rank.exchange(&[7; 400])?,
        _ => rank.all_gather(&[7; 100])?,
    };
    rank.comm.share(b"next")?;
    Ok("went on".to_string())
}

/// The folder of the fake NCCL, compiled once. None without a C compiler, or without the emulator.
pub fn fake_nccl() -> Option<&'static Path> {
    static BUILT: OnceLock<Option<PathBuf>> = OnceLock::new();
    let build = || {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("fake_nccl");
        (Emulator::plain(0).is_ok() && compile("fake_nccl/nccl.c", &folder.join("libnccl.so.2"), "")).then_some(folder)
    };
    BUILT.get_or_init(build).as_deref()
}

/// A rank that is told a wrong number of ranks.
const MISTAKEN: &str = "LIMO_TEST_MISTAKEN";

/// Runs the body as four processes that meet through NCCL. None where that cannot be.
fn run(
    test: &str,
    patience: Duration,
    variables: &[(&str, &str)],
    body: impl Fn(&Rank) -> Result<String>,
) -> Option<Vec<Option<End>>> {
    let variable = |name| std::env::var(name).ok();
    if let Some(rank) = variable(RANK) {
        let number: usize = rank.parse().unwrap();
        let world = RANKS + usize::from(variable(MISTAKEN) == Some(rank));
        let folder = PathBuf::from(variable(RUN).unwrap());
        let bootstrap = match variable("NCCL_COMM_ID") {
            Some(address) => Bootstrap::Address(address),
            None => Bootstrap::File(folder.join(".nccl-id")),
        };
        let queue = Emulator::checked(1 + number as u64).unwrap().on(Stream::Copy);
        let connect = || nccl::connect(queue.on(Stream::Copy), number, world, &bootstrap, patience);
        run_rank(number, connect, Some(&*queue), body);
    }
    let Some(library) = fake_nccl() else {
        eprintln!("skipped: 1 test, no C compiler for the fake NCCL, or no emulator");
        return None;
    };
    let run = tempfile::tempdir().unwrap();
    let start = |rank: usize| {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args([&format!("comm::{test}"), "--exact", "--nocapture"]).envs(variables.iter().copied());
        command.env("LIMO_CUDA_LIBS", library).env(RUN, run.path()).env(RANK, rank.to_string());
        command.spawn().unwrap()
    };
    let mut ranks: Vec<_> = (0..RANKS).map(start).collect();
    let codes: Vec<_> = ranks.iter_mut().map(|rank| rank.wait().unwrap().code()).collect();
    assert!(!run.path().join(".nccl-id").exists(), "rank 0 removes the id");
    Some(ends(run.path(), |rank| codes[rank]))
}

#[test]
fn everybody_gets_what_threads_get() {
    let Some(ends) = run("everybody_gets_what_threads_get", LONG, &[], all_collectives) else { return };
    expect_what_threads_get(ends);
}

#[test]
fn ranks_meet_at_an_address() {
    let address = format!("localhost:{}", std::process::id());
    let variables = [("NCCL_COMM_ID", address.as_str())];
    let Some(ends) = run("ranks_meet_at_an_address", LONG, &variables, all_collectives) else { return };
    expect_what_threads_get(ends);
}

#[test]
fn a_killed_rank_is_named() {
    let Some(ends) = run("a_killed_rank_is_named", SHORT, &[], one_is_killed) else { return };
    expect_communication_errors(&ends, 2, &["share", "rank 2 ("]);
    assert!(ends[2].is_none());
}

#[test]
fn a_rank_that_sleeps_is_named() {
    let Some(ends) = run("a_rank_that_sleeps_is_named", SHORT, &[], one_is_asleep) else { return };
    expect_communication_errors(&ends, 2, &["exchange", "rank 2 (", "step 3: asleep"]);
}

#[test]
fn an_error_of_one_rank_ends_all_at_once() {
    let Some(ends) = run("an_error_of_one_rank_ends_all_at_once", LONG, &[], one_fails) else { return };
    expect_communication_errors(&ends, 2, &["rank 2 ended: a file is broken"]);
    assert_eq!(ends[2].as_ref().unwrap().code, 7);
}

#[test]
fn sizes_that_differ_are_an_error() {
    let Some(ends) = run("sizes_that_differ_are_an_error", LONG, &[], sizes_differ) else { return };
    expect_communication_errors(&ends, RANKS, &["ncclAllGather of 100", "of 200", "rank 2"]);
}

#[test]
fn an_order_that_differs_is_an_error() {
    let Some(ends) = run("an_order_that_differs_is_an_error", LONG, &[], orders_differ) else { return };
    expect_communication_errors(&ends, RANKS, &["ncclAllGather of 100", "rank 1"]);
}

#[test]
fn an_error_of_nccl_ends_all() {
    let variables = [("FAKE_NCCL_FAIL", "1:4")];
    let Some(ends) = run("an_error_of_nccl_ends_all", LONG, &variables, all_collectives) else { return };
    expect_communication_errors(&ends, RANKS, &["NCCL 2.28: unhandled system error (a failure on demand)"]);
    assert!(ends[3].as_ref().unwrap().said.contains("rank 1 ended: "), "{ends:?}");
}

#[test]
fn a_collective_that_never_ends_is_given_up() {
    let variables = [("FAKE_NCCL_HANG", "1:4")];
    let Some(ends) = run("a_collective_that_never_ends_is_given_up", SHORT, &variables, all_collectives) else { return };
    expect_communication_errors(&ends, RANKS, &["does not end, for ", "though no rank is late"]);
}

#[test]
fn another_number_of_ranks_is_an_error() {
    let variables = [(MISTAKEN, "3")];
    let Some(ends) = run("another_number_of_ranks_is_an_error", SHORT, &variables, all_collectives) else { return };
    expect_communication_errors(&ends, RANKS, &["connecting"]);
    assert!(ends[3].as_ref().unwrap().said.contains("another number of ranks"), "{ends:?}");
}

#[cfg(not(feature = "mpi"))]
#[test]
fn mpi_ranks() {
    eprintln!("skipped: 5 tests, built without MPI (--features mpi)");
}

#[cfg(feature = "mpi")]
mod mpi {
    use super::*;
    use limo_engine::comm::mpi;
    use std::process::Output;

    /// Runs the body as four ranks under mpirun.
    fn run(test: &str, patience: Duration, body: impl Fn(&Rank) -> Result<String>) -> Vec<Option<End>> {
        if let Ok(rank) = std::env::var("OMPI_COMM_WORLD_RANK") {
            run_rank(rank.parse().unwrap(), || mpi::connect(patience), None, body);
        }
        let run = tempfile::tempdir().unwrap();
        let Output { status, stdout, stderr } = Command::new("mpirun")
            .args(["-n", &RANKS.to_string(), "--allow-run-as-root", "--oversubscribe", "--enable-recovery", "sh", "-c"])
            // mpirun does not tell the exit codes.
            .arg(r#""$0" "$@"; code=$?; echo $code > "$LIMO_TEST_RUN/code-$OMPI_COMM_WORLD_RANK"; exit $code"#)
            .arg(std::env::current_exe().unwrap())
            .args([&format!("comm::mpi::{test}"), "--exact", "--nocapture"])
            .env(RUN, run.path())
            .output()
            .expect("mpirun is installed");
        println!("{status}: {}{}", String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
        let code = |rank| std::fs::read_to_string(run.path().join(format!("code-{rank}"))).ok()?.trim().parse().ok();
        ends(run.path(), code)
    }

    #[test]
    fn everybody_gets_what_threads_get() {
        expect_what_threads_get(run("everybody_gets_what_threads_get", LONG, all_collectives));
    }

    #[test]
    fn a_killed_rank_is_named() {
        let ends = run("a_killed_rank_is_named", SHORT, one_is_killed);
        expect_communication_errors(&ends, 2, &["share", "rank 2 ("]);
    }

    #[test]
    fn a_rank_that_sleeps_is_named() {
        let ends = run("a_rank_that_sleeps_is_named", SHORT, one_is_asleep);
        expect_communication_errors(&ends, 2, &["exchange", "rank 2 (", "step 3: asleep"]);
    }

    #[test]
    fn an_error_of_one_rank_ends_all_at_once() {
        let ends = run("an_error_of_one_rank_ends_all_at_once", LONG, one_fails);
        expect_communication_errors(&ends, 2, &["rank 2 ended: a file is broken"]);
        assert_eq!(ends[2].as_ref().unwrap().code, 7);
    }

    #[test]
    fn sizes_that_differ_are_an_error() {
        let ends = run("sizes_that_differ_are_an_error", SHORT, sizes_differ);
        expect_communication_errors(&ends, RANKS, &["all_gather", "rank "]);
    }
}
