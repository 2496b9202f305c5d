//! Runs whose process is stopped, killed or finds the disk full, as a user sees them: exit codes, messages, and what is left behind.

use crate::command::{limo_engine, limo_engine_with, succeed};
use crate::resume::{checkpoints, config, result, rows};
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use tempfile::TempDir;

/// A folder with the configuration of a run of twelve steps, its run folder, and how to start it.
struct Setup {
    folder: TempDir,
    config: String,
}

impl Setup {
    fn new(more: &str) -> Setup {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run.toml");
        fs::write(&path, config(folder.path(), more)).unwrap();
        Setup { config: path.to_str().unwrap().to_string(), folder }
    }

    fn run_folder(&self) -> PathBuf {
        self.folder.path().join("run")
    }

    fn arguments<'a>(&'a self, more: &[&'a str]) -> Vec<&'a str> {
        [&["train", &self.config, "--device", "cpu"], more].concat()
    }

    fn train(&self, more: &[&str]) -> (i32, String, String) {
        limo_engine(&self.arguments(more))
    }

    /// With the disk of tests/fake_disk. None without a C compiler.
    fn train_on(&self, disk: &[(&str, &str)]) -> Option<(Option<i32>, String)> {
        let library = fake_disk()?.to_str().unwrap();
        let mut command = command(&self.arguments(&[]));
        command.env("LD_PRELOAD", library).env("FAKE_DISK", self.run_folder()).envs(disk.iter().copied());
        let output = command.output().unwrap();
        Some((output.status.code(), String::from_utf8(output.stderr).unwrap()))
    }

    fn spawn(&self, more: &[&str]) -> Child {
        command(&self.arguments(more)).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }
}

pub fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_limo-engine"));
    command.args(arguments).current_dir(env!("CARGO_MANIFEST_DIR"));
    command
}

/// Compiled once. None without a C compiler.
pub fn fake_disk() -> Option<&'static Path> {
    static BUILT: OnceLock<Option<PathBuf>> = OnceLock::new();
    let build = || {
        let library = Path::new(env!("CARGO_TARGET_TMPDIR")).join("fake_disk.so");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fake_disk/disk.c");
        let mut compiler = Command::new(std::env::var("CC").unwrap_or("cc".into()));
        match compiler.args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(source).arg("-ldl").status() {
            Ok(status) => assert!(status.success(), "tests/fake_disk/disk.c does not compile"),
            Err(_) => {
                eprintln!("skipped: 1 test, no C compiler for the fake disk");
                return None;
            }
        }
        Some(library)
    };
    BUILT.get_or_init(build).as_deref()
}

pub fn signal(child: &Child, name: &str) {
    assert!(Command::new("kill").args([name, &child.id().to_string()]).status().unwrap().success());
}

/// Waits for a line of standard output that begins so.
fn wait_for(child: &mut Child, beginning: &str) {
    let mut lines = BufReader::new(child.stdout.as_mut().unwrap());
    let mut line = String::new();
    while !line.starts_with(beginning) {
        line.clear();
        assert!(lines.read_line(&mut line).unwrap() > 0, "the run ended before {beginning:?}");
    }
}

pub fn end(mut child: Child) -> (i32, String) {
    let mut error = String::new();
    child.stderr.take().unwrap().read_to_string(&mut error).unwrap();
    (child.wait().unwrap().code().expect("ended by a signal"), error)
}

#[test]
fn a_signal_saves_and_exits_with_75_and_the_same_command_goes_on() {
    // Long enough that no signal comes too late.
    let long = ["-s", "train.epochs=30"];
    let reference = Setup::new("");
    succeed(reference.train(&long));
    let expected = result(&reference.run_folder());
    let setup = Setup::new("");
    for (name, step) in [("-TERM", "step 2/"), ("-INT", "step 30/")] {
        let mut child = setup.spawn(&long);
        wait_for(&mut child, step);
        signal(&child, name);
        let (code, error) = end(child);
        assert_eq!(code, 75, "{error}");
        let said = format!("stopped by SIG{} after step ", &name[1..]);
        assert!(error.starts_with(&said) && error.contains("checkpoints/step-0000") && !error.contains("error:"), "{error}");
    }
    let output = succeed(setup.train(&long));
    assert!(output.contains("continuing after step "), "{output}");
    assert!(result(&setup.run_folder()) == expected);
    assert!(succeed(setup.train(&long)).contains("finished run"));
}

/// Steps of one long micro-batch: the first signal waits for its end, the second does not.
#[test]
fn a_second_signal_ends_the_process_at_once() {
    let setup = Setup::new("");
    let model = r#"{"model_type": "qwen2", "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 8, "num_attention_heads": 8,
        "vocab_size": 600}"#;
    fs::write(setup.folder.path().join("config.json"), model).unwrap();
    let row = format!("{{\"question\": \"?\", \"solution\": \"{}\"}}\n", "So it is. ".repeat(1500));
    fs::write(setup.folder.path().join("rows.jsonl"), row).unwrap();
    let long = ["-s", "data.max_tokens=16384", "-s", "train.micro_tokens=16384"];
    let mut child = setup.spawn(&long);
    wait_for(&mut child, "disk: ");
    // The handlers are there when config.toml is.
    while !setup.run_folder().join("metrics.jsonl").exists() {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    // And some time later the first micro-batch is under way, which takes half a minute.
    std::thread::sleep(std::time::Duration::from_secs(2));
    signal(&child, "-INT");
    std::thread::sleep(std::time::Duration::from_millis(300));
    assert!(child.try_wait().unwrap().is_none(), "the first signal waits for the micro-batch");
    signal(&child, "-TERM");
    assert_eq!(end(child).0, 128 + 15);
    assert!(!setup.run_folder().join("checkpoints").exists());
}

/// Killed at any operation on its files, a run goes on to the same end.
#[test]
fn a_run_killed_anywhere_goes_on_to_the_same_end() {
    let reference = Setup::new("");
    succeed(reference.train(&[]));
    let expected = result(&reference.run_folder());
    // About 170 operations; every 13th is tried, and the first and last ones.
    let (mut at, mut kills) = (1, 0);
    loop {
        let setup = Setup::new("");
        let Some((code, error)) = setup.train_on(&[("FAKE_DISK_KILL", &at.to_string())]) else { return };
        if code == Some(0) {
            break;
        }
        assert_eq!(code, None, "operation {at}: {error}");
        kills += 1;
        succeed(setup.train(&[]));
        assert!(result(&setup.run_folder()) == expected, "killed at operation {at}");
        assert_eq!(checkpoints(&setup.run_folder()), ["step-00000008", "step-00000012"], "killed at operation {at}");
        at += 13;
    }
    assert!(kills > 8, "only {kills} kills");
}

#[test]
fn a_full_disk_is_told_and_spoils_nothing() {
    let reference = Setup::new("");
    succeed(reference.train(&[]));
    let expected = result(&reference.run_folder());
    let size = |path: &Path| -> u64 { fs::read_dir(path).unwrap().map(|e| e.unwrap().metadata().unwrap().len()).sum() };
    let one = size(&reference.run_folder().join("checkpoints/step-00000012"));
    // In the configuration, in a record of a step, in the first and second checkpoint, in the model.
    let cases = [
        (10, 2, "config.toml cannot be written", 0),
        (1_500, 2, " cannot be written", 0),
        (one / 2, 7, "the checkpoint of step 4 was not saved", 0),
        (one + one / 2, 7, "the checkpoint of step 8 was not saved", 1),
        (3 * one + 20_000, 2, "model", 2),
    ];
    for (bytes, expected_code, message, kept) in cases {
        let setup = Setup::new("");
        let Some((code, error)) = setup.train_on(&[("FAKE_DISK_BYTES", &bytes.to_string())]) else { return };
        assert_eq!(code, Some(expected_code), "{bytes} bytes: {error}");
        assert!(error.contains(message) && error.contains("No space left") && error.contains("help: "), "{bytes}: {error}");
        if kept > 0 {
            assert_eq!(checkpoints(&setup.run_folder()).len(), kept, "{bytes} bytes");
        }
        succeed(setup.train(&[]));
        assert!(result(&setup.run_folder()) == expected, "{bytes} bytes");
    }
}

/// What a write left that was cut off goes away, whatever step it was of; a file that somebody put there meanwhile does not.
#[test]
fn leftovers_are_removed_and_nothing_else() {
    let setup = Setup::new("");
    let long = ["-s", "train.epochs=30"];
    let mut child = setup.spawn(&long);
    wait_for(&mut child, "step 5/");
    signal(&child, "-TERM");
    assert_eq!(end(child).0, 75);
    let run = setup.run_folder();
    fs::create_dir(run.join("checkpoints/.step-00000077.tmp")).unwrap();
    fs::create_dir(run.join(".model.tmp")).unwrap();
    succeed(setup.train(&long));
    assert_eq!(checkpoints(&run).len(), 2);
    assert!(!run.join(".model.tmp").exists());
    // Between looking at the folder and writing to it.
    let mut child = setup.spawn(&["--overwrite", "-s", "train.max_steps=2"]);
    wait_for(&mut child, "model: ");
    fs::write(run.join("notes.txt"), "mine").unwrap();
    let (code, error) = end(child);
    assert_eq!((code, fs::read_to_string(run.join("notes.txt")).unwrap().as_str()), (0, "mine"), "{error}");
}

#[test]
fn a_damaged_checkpoint_is_passed_over() {
    let setup = Setup::new("");
    succeed(setup.train(&[]));
    let run = setup.run_folder();
    let expected = result(&run);
    let continued = |damage: &dyn Fn(&Path)| {
        fs::remove_dir_all(run.join("model")).unwrap();
        damage(&run.join("checkpoints/step-00000012"));
        let output = succeed(setup.train(&[]));
        assert!(result(&run) == expected);
        output
    };
    let output = continued(&|_| ());
    let only_exported =
        output.contains("continuing after step 12") && !output.contains("step 12/12") && !output.contains("NaN");
    assert!(only_exported, "{output}");
    type Damage = fn(&Path);
    let damages: [(Damage, &str); 8] = [
        (|c| fs::write(c.join("manifest.json"), "{").unwrap(), "manifest.json: EOF"),
        (|c| fs::remove_file(c.join("manifest.json")).unwrap(), "manifest.json: No such file"),
        (|c| flip(&c.join("model.safetensors")), "model.safetensors is damaged"),
        (|c| flip(&c.join("optimizer.safetensors")), "optimizer.safetensors is damaged"),
        (|c| cut(&c.join("optimizer.safetensors")), "were written"),
        (|c| fs::remove_file(c.join("config.toml")).unwrap(), "config.toml: No such file"),
        (|c| replace(&c.join("manifest.json"), "\"step\": 12", "\"step\": 10"), "manifest.json is damaged"),
        (|c| replace(&c.join("manifest.json"), "\"format\": 1", "\"format\": 9"), "format 9"),
    ];
    for (damage, message) in damages {
        let output = continued(&damage);
        let line = output.lines().find(|line| line.starts_with("checkpoint not used: ")).unwrap();
        assert!(line.contains("step-00000012") && line.contains(message), "{line}");
        assert!(output.contains("continuing after step 8"), "{output}");
        assert_eq!(checkpoints(&run), ["step-00000008", "step-00000012"]);
    }
    // All of them: from the start again, and said so.
    flip(&run.join("checkpoints/step-00000008/model.safetensors"));
    let output = continued(&|newest| flip(&newest.join("model.safetensors")));
    assert_eq!(output.lines().filter(|line| line.starts_with("checkpoint not used: ")).count(), 2);
    assert!(output.contains("no checkpoint to go on from"), "{output}");
    assert_eq!(rows(&run).iter().filter(|row| row.get("loss").is_some()).count(), 12);
}

fn flip(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 4;
    fs::write(path, bytes).unwrap();
}

fn cut(path: &Path) {
    let file = fs::OpenOptions::new().write(true).open(path).unwrap();
    file.set_len(file.metadata().unwrap().len() - 1).unwrap();
}

fn replace(path: &Path, from: &str, to: &str) {
    let text = fs::read_to_string(path).unwrap();
    assert!(text.contains(from), "{text}");
    fs::write(path, text.replace(from, to)).unwrap();
}

#[test]
fn checkpoints_are_inspected_and_read_as_models() {
    let setup = Setup::new("");
    succeed(setup.train(&[]));
    let run = setup.run_folder();
    let inspect = |path: &Path| limo_engine(&["inspect", "checkpoint", path.to_str().unwrap()]);
    let output = succeed(inspect(&run));
    for expected in ["step-00000008: valid", "step-00000012: valid", "after step 12", "weights F32, optimizer m F32, v F32"] {
        assert!(output.contains(expected), "{output}");
    }
    let newest = run.join("checkpoints/step-00000012");
    assert!(succeed(inspect(&newest)).contains("after step 12"));
    assert!(
        succeed(limo_engine(&["inspect", "model", newest.to_str().unwrap(), "--values"])).contains("every value is finite")
    );
    flip(&newest.join("optimizer.safetensors"));
    let (code, _, error) = inspect(&newest);
    assert!(code == 7 && error.contains("optimizer.safetensors is damaged"), "{code}: {error}");
    let (code, output, error) = inspect(&run);
    assert!(code == 7 && output.contains("step-00000012: NOT VALID") && error.contains("1 of 2"), "{code}: {output}{error}");
    let (code, _, error) = inspect(setup.folder.path());
    assert!(code == 7 && error.contains("manifest.json"), "{code}: {error}");
    let (code, _, error) = inspect(Path::new("/nowhere"));
    assert!(code == 2 && error.contains("/nowhere: no such folder"), "{code}: {error}");
}

#[test]
fn a_run_goes_on_from_the_checkpoint_that_is_named() {
    let setup = Setup::new("");
    succeed(setup.train(&["-s", "train.keep=3"]));
    let run = setup.run_folder();
    let expected = result(&run);
    let named = run.join("checkpoints/step-00000004");
    let named = named.to_str().unwrap();
    // Its own run, from an earlier step: what came later is trained again.
    let output = succeed(setup.train(&["--resume", named, "-s", "train.keep=3"]));
    assert!(output.contains("continuing after step 4") && output.contains("step 5/12"), "{output}");
    assert!(result(&run) == expected);
    // Another folder.
    let fork = setup.folder.path().join("fork");
    let output_dir = format!("output.dir={}", fork.display());
    succeed(setup.train(&["--resume", named, "-s", &output_dir]));
    assert!(result(&fork).0 == expected.0);
    let first = rows(&fork).into_iter().find(|row| row.get("loss").is_some()).unwrap();
    assert_eq!(first["step"], 5);
    assert!(run.join("checkpoints/step-00000004").is_dir());

    let refused = |more: &[&str], expected_code: i32, message: &str| {
        let (code, _, error) = setup.train(more);
        assert!(code == expected_code && error.contains(message), "{more:?}: {code}: {error}");
        assert!(error.contains("help: "), "{error}");
    };
    refused(&["--resume", named, "-s", &output_dir], 2, "holds another run");
    refused(&["--resume", named, "--overwrite"], 2, "--overwrite would delete");
    refused(&["--resume", "/nowhere", "-s", "output.dir=/tmp/new"], 2, "--resume /nowhere: no such folder");
    let empty = setup.folder.path().to_str().unwrap();
    refused(&["--resume", empty, "-s", "output.dir=/tmp/new"], 7, "manifest.json: No such file");
    let other = format!("output.dir={}", setup.folder.path().join("other").display());
    refused(&["--resume", named, "-s", &other, "-s", "train.batch=2"], 2, "train.batch was 3, is 2");
    refused(&["--resume", named, "-s", &other, "--dtype", "bf16"], 2, "--dtype was f32, is bf16");
    assert!(!setup.folder.path().join("other").exists());
}

#[test]
fn what_may_change_between_stop_and_start_is_what_changes_no_bits() {
    let setup = Setup::new("");
    succeed(setup.train(&[]));
    let run = setup.run_folder();
    let expected = result(&run).0;
    let stop_at_8 = || {
        fs::remove_dir_all(run.join("model")).unwrap();
        fs::remove_dir_all(run.join("checkpoints/step-00000012")).unwrap();
    };
    stop_at_8();
    let safe = ["train.save_every=1", "train.keep=4", "train.eval_every=5", "data.eval=[]", "memory.recompute=block"];
    let flags: Vec<&str> = safe.iter().flat_map(|key| ["-s", key]).collect();
    let output = succeed(setup.train(&flags));
    assert!(output.contains("continuing after step 8") && result(&run).0 == expected, "{output}");
    assert_eq!(checkpoints(&run), ["step-00000009", "step-00000010", "step-00000011", "step-00000012"]);

    fs::remove_dir_all(run.join("model")).unwrap();
    for (key, message) in [
        ("optimizer.lr=0.5", "optimizer.lr was 0.01, is 0.5"),
        ("train.epochs=4", "train.epochs was 3, is 4"),
        ("train.micro_tokens=97", "train.micro_tokens was 96, is 97"),
        ("output.dtype=bfloat16", "output.dtype was"),
    ] {
        let (code, _, error) = setup.train(&["-s", key]);
        assert!(code == 2 && error.contains(message) && error.contains("help: "), "{key}: {code}: {error}");
    }
    let rows = setup.folder.path().join("rows.jsonl");
    let text = fs::read_to_string(&rows).unwrap();
    fs::write(&rows, text.replace("So it", "Is it")).unwrap();
    let (code, _, error) = setup.train(&flags);
    assert!(code == 2 && error.contains("data.train gives other tokens"), "{code}: {error}");
    assert_eq!(checkpoints(&run).len(), 4, "a refused run changes nothing");
}

#[test]
fn a_disk_without_room_is_told_before_any_work() {
    let setup = Setup::new("");
    // More checkpoints than any disk holds.
    let (code, output, error) =
        setup.train(&["-s", "train.keep=1000000000000", "-s", "train.save_every=1", "-s", "train.max_steps=1000000000000"]);
    assert!(code == 4 && error.contains("the disk has") && error.contains("train.keep"), "{code}: {output}{error}");
    assert!(!setup.run_folder().exists());
    let (code, _, error) = limo_engine_with(&[], &["train", &setup.config, "--device", "cpu", "-s", "output.dir=/proc/run"]);
    assert!(code == 2 && error.contains("output.dir: /proc/run cannot be written"), "{code}: {error}");
}
