//! `bench`, `selftest` and the queue for the first GPU, on a machine that may have none.

use crate::command::{limo_engine, limo_engine_with, succeed};
use limo_engine::device::gpu::visible_devices;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn no_gpu() -> bool {
    let absent = visible_devices().is_ok_and(|devices| devices == 0);
    if !absent {
        eprintln!("skipped: 1 test of a machine without a GPU");
    }
    absent
}

#[test]
fn without_a_gpu_bench_is_a_sentence() {
    if !no_gpu() {
        return;
    }
    for arguments in [&["bench"][..], &["bench", "rms_norm", "--device", "cuda"]] {
        let (code, _, error) = limo_engine(arguments);
        assert_eq!(code, 2, "{error}");
        assert!(error.contains("help:") && !error.contains("panicked"), "{error}");
    }
}

#[test]
fn unknown_names_list_the_known_ones() {
    for (arguments, known) in [(["bench", "dropout"], "ceilings, products"), (["selftest", "dropout"], "conformance, ")] {
        let (code, _, error) = limo_engine(&arguments);
        assert!(code == 2 && error.contains("dropout") && error.contains(known), "{error}");
    }
}

fn read_json(path: &Path) -> serde_json::Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

#[test]
fn on_the_emulator_bench_checks_and_times_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let json = folder.path().join("bench.json");
    let run = limo_engine(&["bench", "rms_norm", "--device", "emulator", "--json", json.to_str().unwrap()]);
    if run.2.contains("built without the emulator") {
        return eprintln!("skipped: 1 test, no C++ compiler for the emulator");
    }
    let output = succeed(run);
    let report = read_json(&json);
    let results = report["results"].as_array().unwrap();
    assert_eq!(results.len(), 10, "five versions forward, five backward");
    assert!(results.iter().all(|result| result.get("milliseconds").is_none()), "{report}");
    assert!(output.contains("says nothing about a GPU"));
}

#[test]
fn bench_lists_its_launches_without_running_anything() {
    let folder = tempfile::tempdir().unwrap();
    let json = folder.path().join("list.json");
    let output = succeed(limo_engine(&["bench", "rmsnorm", "--list", "--model", "7B", "--json", json.to_str().unwrap()]));
    assert!(output.contains("rms_norm_forward_1 ") && output.contains("T 16384, D 3584"), "{output}");
    let list = read_json(&json);
    let of = |version: &str| list.as_array().unwrap().iter().find(|line| line["version"] == version).unwrap().clone();
    let backward = of("backward 5");
    assert_eq!((&backward["ships"], &of("backward 4")["ships"]), (&true.into(), &false.into()));
    let launches = backward["launches"].as_array().unwrap();
    let kernels: Vec<&str> = launches.iter().map(|launch| launch["kernel"].as_str().unwrap()).collect();
    assert_eq!(kernels, ["rms_norm_backward_5", "rms_norm_weight_gradient"]);
    assert_eq!(launches[1]["grid"], serde_json::json!([112, 1, 1]));
    assert_eq!(launches[1]["shared_bytes"], 32 << 10);
}

#[test]
fn selftest_counts_what_no_gpu_could_run_and_can_insist_on_one() {
    if !no_gpu() {
        return;
    }
    let run = |require: &str| limo_engine_with(&[("LIMO_REQUIRE_GPU", require)], &["selftest", "conformance"]);
    let relaxed = run("0");
    if relaxed.2.contains("built without the emulator") {
        return eprintln!("skipped: 1 test, no C++ compiler for the emulator");
    }
    let report = succeed(relaxed);
    assert!(report.contains(": no GPU is visible") && report.contains(" 0 failed"), "{report}");
    let (code, _, error) = run("1");
    assert!(code == 1 && error.contains("LIMO_REQUIRE_GPU"), "{code}: {error}");
}

/// tools/gpu/queue.sh with a state folder of its own.
fn queue(state: &Path, binary: &Path, minutes: &str, arguments: &[&str]) -> Output {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tools/gpu/queue.sh");
    let mut command = Command::new("bash");
    command.arg(script).args(arguments);
    command.env("STATE", state).env("LIMO", binary).env("MINUTES", minutes).env("OUT", state).output().unwrap()
}

/// A stand-in for the binary that notes what it was asked to do, and has two case tables.
fn stand_in(folder: &Path, exit: i32) -> PathBuf {
    let path = folder.join(format!("limo-{exit}"));
    let list = "[ \"$2\" != --list ] || echo conformance rms_norm | tr ' ' '\\n'";
    let body = format!("#!/bin/sh\necho \"$@\" >>{}\n{list}\nexit {exit}\n", folder.join("calls").display());
    std::fs::write(&path, body).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path
}

#[test]
fn the_queue_and_its_page_list_the_same_steps() {
    let listed = text(&queue(Path::new("unused"), Path::new("unused"), "9", &["--list"]).stdout);
    let steps: Vec<&str> = listed.lines().filter_map(|line| line.split_once(' ')).map(|(name, _)| name).collect();
    let page = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/gpu-queue.md")).unwrap();
    let lines = page.lines().filter_map(|line| line.strip_prefix("| `tools/gpu/queue.sh ")?.split('`').next());
    assert_eq!(lines.collect::<Vec<_>>(), steps);
    assert!(steps.len() > 5, "{listed}");
    let seconds = listed.lines().filter_map(|line| line.split_once(' ')?.1.parse::<u32>().ok());
    assert!(seconds.clone().count() == steps.len() && seconds.max() < Some(9 * 60), "every step ends within nine minutes");
}

#[test]
fn the_queue_continues_where_it_stopped() {
    let folder = tempfile::tempdir().unwrap();
    let (state, limo) = (folder.path().join("state"), stand_in(folder.path(), 0));
    let calls = || std::fs::read_to_string(folder.path().join("calls")).unwrap_or_default();

    let output = queue(&state, &limo, "0", &[]);
    assert_eq!(output.status.code(), Some(75), "no time: everything is left");
    assert!(text(&output.stdout).contains("left for the next run: start conformance selftest"), "{output:?}");
    assert_eq!(calls(), "");

    let output = queue(&state, &limo, "9", &["conformance", "bench"]);
    assert!(output.status.success(), "{output:?}");
    let state_name = state.display();
    let conformance = format!("selftest conformance --device cuda --record {state_name}/records\n");
    let bench = |name: &str| format!("bench {name} --device cuda --json {state_name}/results/bench-{name}.json\n");
    assert_eq!(calls(), format!("{conformance}selftest --list\n{}{}", bench("ceilings"), bench("rms_norm")));

    // Two steps are done, and nothing else fits; a part that is done is not run again.
    let output = queue(&state, &limo, "0", &[]);
    let table = text(&output.stdout);
    assert!(table.contains("conformance  passed") && table.contains("selftest     not run"), "{table}");
    assert!(table.contains("left for the next run: start selftest memcheck"), "{table}");
    assert!(state.join("log.txt").exists(), "results are copied to OUT");
    std::fs::remove_file(state.join("parts/bench-rms_norm")).unwrap();
    std::fs::write(folder.path().join("calls"), "").unwrap();
    assert!(queue(&state, &limo, "9", &["bench"]).status.success());
    assert_eq!(calls(), format!("selftest --list\n{}", bench("rms_norm")));

    let output = queue(&state, &stand_in(folder.path(), 3), "9", &["conformance"]);
    assert_eq!(output.status.code(), Some(1), "a step that fails is a failure");
    assert!(text(&output.stdout).contains("conformance  FAILED"));
}

#[test]
fn runs_follow_each_other_only_within_their_limits() {
    let folder = tempfile::tempdir().unwrap();
    let metrics = |name: &str, losses: &[&str]| {
        let line = |loss: &&str| format!("{{\"step\": 1, \"loss\": {loss}, \"grad_norm\": 1.0}}\n");
        let path = folder.path().join(name);
        std::fs::write(&path, losses.iter().map(line).collect::<String>() + "{\"step\": 1, \"eval_loss\": 9}\n").unwrap();
        path
    };
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tools/gpu/follows.py");
    let cpu = metrics("cpu", &["2.0", "1.5"]);
    for (losses, follows) in
        [(&["2.01", "1.49"][..], true), (&["2.0", "1.6"], false), (&["2.0", "NaN"], false), (&["2.0"], false)]
    {
        let run = Command::new("python3").arg(&script).args([&cpu, &metrics("cuda", losses)]).output();
        let Ok(output) = run else { return eprintln!("skipped: 1 test, no python3") };
        assert_eq!(output.status.success(), follows, "{losses:?}: {output:?}");
    }
}

#[test]
fn the_queue_refuses_steps_it_does_not_have_and_a_missing_binary() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("missing");
    for (arguments, words) in [(["attention"], "there is no step 'attention'"), (["start"], "--pack makes it")] {
        let output = queue(folder.path(), &missing, "9", &arguments);
        assert!(output.status.code() == Some(2) && text(&output.stderr).contains(words), "{output:?}");
    }
}
