//! Whole training runs of four processes, as launchers start them: torchrun's variables with NCCL's ABI (tests/fake_nccl) over the emulator's memory, and mpirun on
//! CPUs where MPI is built in. Signals go to processes that ranks/N.json names, when metrics.jsonl shows that they train.

use crate::comm::fake_nccl;
use crate::command::{limo_engine, limo_engine_with, succeed};
use crate::engine::MODEL;
use crate::resume::{checkpoints, result};
use serde_json::Value;
use std::cell::RefCell;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

const RANKS: usize = 4;
/// For what happens at all, on a machine with much else to do.
const LONG: Duration = Duration::from_secs(180);
/// For ranks that wait in vain.
const PATIENCE: Duration = Duration::from_secs(5);
/// What ranks need to end, beyond their patience.
const MARGIN: Duration = Duration::from_secs(20);
/// More than any test waits for.
const ENDLESS: usize = 1_000_000;
/// The rank that is not like the others.
const ODD: usize = 2;

#[derive(Clone, Copy, PartialEq)]
enum Launcher {
    Torchrun,
    #[cfg(feature = "mpi")]
    Mpirun,
}

/// A configuration in a folder of its own, and who starts its ranks.
struct Setup {
    folder: tempfile::TempDir,
    launcher: Launcher,
    steps: usize,
}

impl Setup {
    /// None where the ranks have nothing to talk through.
    fn new(launcher: Launcher, steps: usize) -> Option<Setup> {
        if launcher == Launcher::Torchrun && fake_nccl().is_none() {
            eprintln!("skipped: 1 test, no C compiler for the fake NCCL, or no emulator");
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        let rows = std::fs::read_to_string("configs/tiny/train.jsonl").unwrap();
        let rows =
            |range: std::ops::Range<usize>| rows.lines().skip(range.start).take(range.len()).collect::<Vec<_>>().join("\n");
        // One row a micro-batch: of two rows, two ranks have none.
        let config = format!(
            "model = {{ config = \"{0}/model.json\", tokenizer = \"configs/tiny\" }}\n\
             data = {{ train = [\"{0}/train.jsonl\"], eval = [\"{0}/eval.jsonl\"], max_tokens = 64, overlong = \"truncate\" }}\n\
             train = {{ batch = 2, micro_tokens = 64, packing = false, max_steps = {steps}, eval_every = {ENDLESS}, save_every = {ENDLESS} }}\n\
             optimizer = {{ lr = 3e-3, warmup_steps = 2, weight_decay = 1.0 }}\n",
            folder.path().display()
        );
        let files =
            [("config.toml", config), ("model.json", MODEL.into()), ("train.jsonl", rows(0..11)), ("eval.jsonl", rows(20..22))];
        files.iter().for_each(|(name, text)| std::fs::write(folder.path().join(name), text).unwrap());
        Some(Setup { folder, launcher, steps })
    }

    fn run(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn flags(&self, name: &str, patience: Duration) -> Vec<String> {
        let device = if self.launcher == Launcher::Torchrun { "emulator" } else { "cpu" };
        let config = self.run("config.toml").display().to_string();
        let flags = ["train", &config, "--device", device, "--patience", &patience.as_secs().to_string()].map(String::from);
        [&flags[..], &["-s".into(), format!("output.dir={}", self.run(name).display())]].concat()
    }

    /// Runs it in this machine's usual way: one process.
    fn alone(&self, name: &str, more: &[&str]) -> String {
        let flags = self.flags(name, LONG);
        succeed(limo_engine(&[&flags.iter().map(String::as_str).collect::<Vec<_>>()[..], more].concat()))
    }

    /// Starts four ranks. `odd` is a line of shell, which the odd rank runs before.
    fn start(&self, name: &str, patience: Duration, odd: &str) -> Job {
        static PORT: AtomicU16 = AtomicU16::new(0);
        let port = 20_000 + (std::process::id() as u16 % 1000) * 40 + 2 * PORT.fetch_add(1, Ordering::Relaxed);
        let logs = tempfile::tempdir().unwrap();
        // mpirun does not tell exit codes, and mixes what ranks print.
        let script = format!(
            "r=${{RANK:-$OMPI_COMM_WORLD_RANK}}; if [ $r = {ODD} ]; then :; {odd}\nfi; cd {1}\n\
             \"$0\" \"$@\" > {0}/out-$r 2> {0}/err-$r; code=$?; echo $code > {0}/.code-$r; mv {0}/.code-$r {0}/code-$r; exit $code",
            logs.path().display(),
            env!("CARGO_MANIFEST_DIR"),
        );
        let run = |command: &mut Command| {
            command.args(["-c", &script, env!("CARGO_BIN_EXE_limo-engine")]).args(self.flags(name, patience)).process_group(0);
            command.spawn().unwrap()
        };
        let started = match self.launcher {
            Launcher::Torchrun => (0..RANKS)
                .map(|rank| {
                    let mut command = Command::new("sh");
                    command.env("LIMO_CUDA_LIBS", fake_nccl().unwrap());
                    command.envs(
                        [("RANK", rank), ("LOCAL_RANK", rank), ("WORLD_SIZE", RANKS), ("LOCAL_WORLD_SIZE", RANKS)]
                            .map(|(k, v)| (k, v.to_string())),
                    );
                    run(command.env("MASTER_ADDR", "localhost").env("MASTER_PORT", port.to_string()))
                })
                .collect(),
            #[cfg(feature = "mpi")]
            Launcher::Mpirun => {
                let mut command = Command::new("mpirun");
                command.args(["-n", &RANKS.to_string(), "--allow-run-as-root", "--oversubscribe", "--enable-recovery", "sh"]);
                vec![run(&mut command)]
            }
        };
        Job { started_by: self.launcher, started: RefCell::new(started), logs, run: self.run(name) }
    }
}

/// Four ranks at work.
struct Job {
    started_by: Launcher,
    /// The ranks' shells, or mpirun.
    started: RefCell<Vec<Child>>,
    /// What each printed, and its exit code once it has one.
    logs: tempfile::TempDir,
    run: PathBuf,
}

/// How a rank ended.
#[derive(Debug)]
struct End {
    rank: usize,
    code: i32,
    /// Its standard error.
    said: String,
}

impl Job {
    /// What `look` finds, once it does. Panics where the time is up, or nobody is left to do it.
    fn wait<T>(&self, what: &str, look: impl Fn() -> Option<T>) -> T {
        let began = Instant::now();
        while began.elapsed() < LONG {
            let over = self.started.borrow_mut().iter_mut().all(|child| child.try_wait().unwrap().is_some());
            if let Some(found) = look() {
                return found;
            }
            if over {
                break;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let logs: Vec<String> = (0..RANKS).map(|rank| self.log("err", rank).unwrap_or_default()).collect();
        panic!("waited in vain for {what}: {logs:#?}")
    }

    fn log(&self, what: &str, rank: usize) -> Option<String> {
        std::fs::read_to_string(self.logs.path().join(format!("{what}-{rank}"))).ok()
    }

    fn ends(&self, ranks: &[usize]) -> Vec<End> {
        let end =
            |rank: usize| Some(End { rank, code: self.log("code", rank)?.trim().parse().ok()?, said: self.log("err", rank)? });
        ranks.iter().map(|&rank| self.wait(&format!("the end of rank {rank}"), || end(rank))).collect()
    }

    fn all_ends(&self) -> Vec<End> {
        self.ends(&[0, 1, 2, 3])
    }

    /// The odd rank's process, once the run has done a step and that rank has said that it trains.
    fn odd_process_in_training(&self) -> u64 {
        self.wait("a step", || {
            std::fs::read_to_string(self.run.join("metrics.jsonl")).ok().filter(|rows| rows.contains('\n'))?;
            let record: Value =
                serde_json::from_slice(&std::fs::read(self.run.join(format!("ranks/{ODD}.json"))).ok()?).ok()?;
            record["step"].as_u64().filter(|&step| step > 0)?;
            record["pid"].as_u64()
        })
    }
}

impl Drop for Job {
    /// Leaves no process behind, whatever the test found.
    fn drop(&mut self) {
        for child in self.started.get_mut() {
            if child.try_wait().is_ok_and(|end| end.is_none()) {
                // mpirun ends its ranks itself, which are not of its group.
                signal(if self.started_by == Launcher::Torchrun { "KILL" } else { "TERM" }, &format!("-{}", child.id()));
                let _ = child.wait();
            }
        }
    }
}

/// Sends a signal to a process, or to the group whose number is -`process`.
fn signal(name: &str, process: &str) {
    assert!(Command::new("kill").args(["-s", name, "--", process]).status().unwrap().success(), "{name} for {process}");
}

/// What the run exported and recorded, but for what depends on clocks and on the number of ranks.
fn outcome(run: &Path) -> (Vec<u8>, Vec<Value>) {
    let (weights, mut rows) = result(run);
    rows.iter_mut().for_each(|row| {
        row.as_object_mut().unwrap().remove("memory");
    });
    (weights, rows)
}

/// All of these ranks end with exit code 6, in time, and say all of `words`.
fn expect_communication_errors(ends: &[End], waited: Duration, words: &[&str]) {
    for end in ends {
        assert_eq!(end.code, 6, "{end:?}");
        assert!(words.iter().all(|word| end.said.contains(word)), "{words:?} in {end:?}");
    }
    assert!(waited < PATIENCE + MARGIN, "{waited:?}");
}

fn four_processes_train_as_one_does(launcher: Launcher) {
    let Some(setup) = Setup::new(launcher, 3) else { return };
    let job = setup.start("four", LONG, "");
    for end in job.all_ends() {
        assert_eq!(end.code, 0, "{end:?}");
    }
    let said: Vec<String> = (0..RANKS).map(|rank| job.log("out", rank).unwrap()).collect();
    assert!(said[0].contains("4 ranks") && said[1..].iter().all(String::is_empty), "rank 0 speaks, alone: {said:#?}");
    setup.alone("one", &[]);
    let [one, four] = ["one", "four"].map(|run| outcome(&setup.run(run)));
    assert_eq!(one.1.len(), 4, "three steps and an evaluation: {:?}", one.1);
    assert_eq!(four.1, one.1);
    assert!(four.0 == one.0, "other weights");
}

fn a_signal_to_one_stops_all_and_fewer_go_on(launcher: Launcher, steps: usize, more: &[&str]) {
    let Some(setup) = Setup::new(launcher, steps) else { return };
    let job = setup.start("parts", LONG, "");
    signal("TERM", &job.odd_process_in_training().to_string());
    for end in job.all_ends() {
        assert!(end.code == 75 && end.said.contains("stopped by SIGTERM after step "), "{end:?}");
    }
    let parts = setup.run("parts");
    let saved = checkpoints(&parts);
    let step: usize = saved[0].trim_start_matches("step-").parse().unwrap();
    assert!(saved.len() == 1 && (1..setup.steps).contains(&step) && !parts.join("model").exists(), "{saved:?}");
    let said = setup.alone("parts", more);
    assert!(said.contains(&format!("continuing after step {step}")), "{said}");
    setup.alone("whole", &[]);
    let [whole, parts] = [setup.run("whole"), parts].map(|run| outcome(&run));
    assert_eq!(parts.1, whole.1);
    assert!(parts.0 == whole.0, "other weights");
}

/// `silence` is the signal after which the odd rank does nothing more.
fn a_rank_that_does_nothing_is_named(launcher: Launcher, silence: &str) {
    let Some(setup) = Setup::new(launcher, ENDLESS) else { return };
    let job = setup.start("run", PATIENCE, "");
    let odd = job.odd_process_in_training().to_string();
    let began = Instant::now();
    signal(silence, &odd);
    let ends = job.ends(&[0, 1, 3]);
    let waited = began.elapsed();
    if silence == "STOP" {
        signal("KILL", &odd);
    }
    assert_eq!(job.ends(&[ODD])[0].code, 128 + 9);
    let (rank, process) = (format!("rank {ODD} ("), format!("process {odd}) is late: step "));
    // Who gives up first names the rank. To the others it is one that ended, with those words.
    expect_communication_errors(&ends, waited, &["does not end", &rank, &process]);
}

#[test]
fn under_a_launcher_ranks_are_its_own() {
    let variables = [("RANK", "0"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "localhost"), ("MASTER_PORT", "29500")];
    let (code, _, error) = limo_engine_with(&variables, &["train", "configs/tiny.toml", "--device", "cpu", "--ranks", "2"]);
    assert!(code == 2 && error.contains("--ranks 2: torchrun started this process as one of 2"), "{code}: {error}");
}

mod nccl {
    use super::*;
    use Launcher::Torchrun;

    #[test]
    fn four_processes_train_as_one_does() {
        super::four_processes_train_as_one_does(Torchrun);
    }

    #[test]
    fn a_signal_to_one_stops_all_and_one_goes_on() {
        a_signal_to_one_stops_all_and_fewer_go_on(Torchrun, 12, &[]);
    }

    #[test]
    fn a_killed_rank_is_named() {
        a_rank_that_does_nothing_is_named(Torchrun, "KILL");
    }

    #[test]
    fn a_rank_that_sleeps_is_named() {
        a_rank_that_does_nothing_is_named(Torchrun, "STOP");
    }

    #[test]
    fn another_configuration_is_an_error() {
        let Some(setup) = Setup::new(Torchrun, 3) else { return };
        let (job, began) = (setup.start("run", LONG, "set -- \"$@\" -s train.seed=7"), Instant::now());
        let ends = job.all_ends();
        expect_communication_errors(
            &ends,
            began.elapsed(),
            &["the ranks differ in the configuration: ", " on ranks 0, 1, 3; "],
        );
        assert!(!setup.run("run").exists(), "nothing was written");
    }

    #[test]
    fn another_number_of_ranks_is_an_error() {
        let Some(setup) = Setup::new(Torchrun, 3) else { return };
        let (job, began) = (setup.start("run", PATIENCE, "WORLD_SIZE=5"), Instant::now());
        for end in job.all_ends() {
            let world = if end.rank == ODD { "WORLD_SIZE=5" } else { "WORLD_SIZE=4" };
            expect_communication_errors(&[end], began.elapsed(), &["connecting", world]);
        }
    }

    #[test]
    fn an_error_of_rank_0_ends_all_at_once() {
        let Some(setup) = Setup::new(Torchrun, 3) else { return };
        std::fs::create_dir(setup.run("run")).unwrap();
        std::fs::write(setup.run("run").join("notes.txt"), "of somebody").unwrap();
        // Their patience is far longer than this test waits.
        for end in setup.start("run", 4 * LONG, "").all_ends() {
            assert!(end.code == 2 && end.said.contains("output.dir holds notes.txt"), "{end:?}");
            assert_eq!(end.said.contains("rank 0: "), end.rank > 0, "{end:?}");
        }
    }
}

#[cfg(not(feature = "mpi"))]
#[test]
fn mpi() {
    eprintln!("skipped: 5 tests, built without MPI (--features mpi)");
}

#[cfg(feature = "mpi")]
mod mpi {
    use super::*;
    use Launcher::Mpirun;

    #[test]
    fn four_processes_train_as_one_does() {
        super::four_processes_train_as_one_does(Mpirun);
    }

    #[test]
    fn a_signal_to_one_stops_all_and_two_threads_go_on() {
        a_signal_to_one_stops_all_and_fewer_go_on(Mpirun, 200, &["--ranks", "2"]);
    }

    #[test]
    fn a_killed_rank_is_named() {
        a_rank_that_does_nothing_is_named(Mpirun, "KILL");
    }

    #[test]
    fn a_rank_that_sleeps_is_named() {
        a_rank_that_does_nothing_is_named(Mpirun, "STOP");
    }

    #[test]
    fn a_place_that_mpi_does_not_know_is_an_error() {
        let Some(setup) = Setup::new(Mpirun, 3) else { return };
        let (job, began) = (setup.start("run", LONG, "export OMPI_COMM_WORLD_SIZE=5"), Instant::now());
        let words = ["Open MPI started this process as rank 2 of 5", "knows it as rank 2 of 4"];
        expect_communication_errors(&job.all_ends(), began.elapsed(), &words);
    }
}
