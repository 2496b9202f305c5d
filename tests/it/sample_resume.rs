//! Sampling jobs that are stopped, killed or find the disk full, and go on; and outputs that they may not go on with.

use crate::command::{limo_engine, succeed};
use crate::disk::{end, fake_disk, signal};
use crate::sample_command::{Job, expected, model, row, sorted};
use limo_engine::testing::random::Random;
use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

#[test]
fn a_finished_output_is_left_and_more_samples_are_added() {
    let job = Job::usual();
    succeed(job.run(&["-n", "1"]));
    let one = fs::read(job.out()).unwrap();
    let again = succeed(job.run(&["-n", "1"]));
    assert!(again.contains("is finished, with 8 samples"), "{again}");
    assert!(fs::read(job.out()).unwrap() == one);
    let output = succeed(job.run(&["-n", "3", "--batch-cap", "2"]));
    assert!(output.contains("which has 8 samples") && output.contains("24 samples, 16 of them new"), "{output}");
    assert!(fs::read(job.out()).unwrap().starts_with(&one) && sorted(&job.out()) == expected());
    job.refused(2, &["-n", "2"], &["-n was 3, is 2"]);
    // More rows, in another order.
    let rows: String = (0..9).rev().map(|i| row(i) + "\n").collect();
    fs::write(job.at("in.jsonl"), rows).unwrap();
    assert!(succeed(job.run(&["-n", "3"])).contains("27 samples, 3 of them new"));
    // An id whose prompt is another one is told, and its samples stay.
    fs::write(job.at("in.jsonl"), row(0).replace("How much", "How many")).unwrap();
    let before = fs::read(job.out()).unwrap();
    let (code, _, error) = job.run(&["-n", "3"]);
    assert!(code == 3 && error.contains("in.jsonl:1: ") && error.contains("another prompt"), "{code}: {error}");
    assert!(fs::read(job.out()).unwrap() == before);
}

#[test]
fn a_torn_last_row_is_written_again() {
    let job = Job::usual();
    succeed(job.run(&["-n", "3"]));
    let whole = fs::read(job.out()).unwrap();
    let last = whole[..whole.len() - 1].iter().rposition(|&byte| byte == b'\n').unwrap() + 1;
    for length in [whole.len() - 1, last + 1, last, 1] {
        fs::write(job.out(), &whole[..length]).unwrap();
        let output = succeed(job.run(&["-n", "3"]));
        assert_eq!(output.contains("its last row was cut off"), length != last, "{length}: {output}");
        assert!(sorted(&job.out()) == expected(), "{length}");
    }
    // Of a finished job too, where the row in question is asked for no more.
    fs::write(job.out(), [&whole[..], b"{\"id\":"].concat()).unwrap();
    let output = succeed(job.run(&["-n", "3"]));
    assert!(output.contains("its last row was cut off") && output.contains("is finished"), "{output}");
    assert!(fs::read(job.out()).unwrap() == whole);
    // A row in the middle is no accident of ours.
    let mut damaged = whole.clone();
    damaged[last / 2] = b'\n';
    fs::write(job.out(), &damaged).unwrap();
    job.refused(2, &["-n", "3"], &["out.jsonl:", "not a row of this job"]);
    assert!(fs::read(job.out()).unwrap() == damaged);
}

#[test]
fn the_output_of_another_job_is_not_touched() {
    let job = Job::usual();
    let usual = ["-n", "2"];
    succeed(job.run(&usual));
    let files = || [job.out(), job.at("out.jsonl.job.json")].map(|path| fs::read(path).unwrap());
    let before = files();
    for (more, expected) in [
        (&["--temperature", "0.7"][..], "temperature was 1.0, is 0.7"),
        (&["--top-p", "0.5"], "top_p was 1.0, is 0.5"),
        (&["--top-k", "4"], "top_k was 0, is 4"),
        (&["--min-p", "0.5"], "min_p was 0.0, is 0.5"),
        (&["--repetition-penalty", "1.2"], "repetition_penalty was 1.0, is 1.2"),
        (&["--max-tokens", "61"], "max_tokens was 60, is 61"),
        (&["--seed", "1"], "seed was 0, is 1"),
        (&["--stop", "x"], "stop was [], is [\"x\"]"),
        (&["--stop", "<|im_start|>"], "stop_ids was [448,450], is [448,449,450]"),
        (&["--system", ""], "system was null, is \"\""),
        (&["--logprobs"], "logprobs was false, is true"),
        (&["--token-ids"], "token_ids was false, is true"),
        (&["--repetition-stop"], "repetition_stop was false, is true"),
        (&["--dtype", "bf16"], "dtype was \"f32\", is \"bf16\""),
        (&["--resume", "never"], "holds rows"),
    ] {
        job.refused(2, &[&usual, more].concat(), &["out.jsonl", expected, "--overwrite"]);
    }
    // Another model, by each of its parts; a copy of the same one goes on.
    let copy = job.at("model");
    let copied = || {
        fs::create_dir_all(&copy).unwrap();
        for entry in fs::read_dir(model()).unwrap() {
            let entry = entry.unwrap();
            fs::copy(entry.path(), copy.join(entry.file_name())).unwrap();
        }
    };
    for (file, part) in [
        ("config.json", "config"),
        ("tokenizer_config.json", "template"),
        ("tokenizer.json", "tokenizer"),
        ("model.safetensors", "weights"),
    ] {
        copied();
        let mut bytes = fs::read(copy.join(file)).unwrap();
        if file == "model.safetensors" {
            *bytes.last_mut().unwrap() ^= 1;
        } else {
            bytes.push(b'\n');
        }
        fs::write(copy.join(file), bytes).unwrap();
        let (code, _, error) = run_model(&job, &copy, &usual);
        assert!(code == 2 && error.contains(&format!("the model's {part} is another one")), "{code}: {error}");
    }
    copied();
    assert!(succeed(run_model(&job, &copy, &usual)).contains("is finished"));
    assert!(files() == before);

    // Files that no job of ours wrote.
    fs::write(job.at("out.jsonl.job.json"), "{\"mine\": 1}").unwrap();
    job.refused(2, &usual, &["out.jsonl.job.json", "not the record"]);
    job.refused(2, &[&usual[..], &["--overwrite"]].concat(), &["out.jsonl.job.json", "not the record"]);
    fs::remove_file(job.at("out.jsonl.job.json")).unwrap();
    job.refused(2, &usual, &["out.jsonl", "not the output of a sampling job"]);
    assert!(fs::read(job.out()).unwrap() == before[0]);
    succeed(job.run(&["-n", "3", "--overwrite"]));
    assert!(sorted(&job.out()) == expected());
    // Nothing is lost with an empty file.
    fs::write(job.out(), "").unwrap();
    succeed(job.run(&["-n", "1", "--seed", "9"]));
}

/// Until the model is known to be sound.
#[test]
fn overwrite_keeps_the_old_rows_as_long_as_it_can() {
    let job = Job::usual();
    succeed(job.run(&["-n", "1"]));
    let before = fs::read(job.out()).unwrap();
    let copy = job.at("model");
    fs::create_dir_all(&copy).unwrap();
    for entry in fs::read_dir(model()).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), copy.join(entry.file_name())).unwrap();
    }
    let config = fs::read_to_string(copy.join("config.json")).unwrap();
    for (from, to, expected) in [
        ("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 1", "config.json has 1 layers"),
        ("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 3", "model.layers.2."),
        ("\"intermediate_size\": ", "\"intermediate_size\": 1", "has shape"),
    ] {
        assert!(config.contains(from), "{config}");
        fs::write(copy.join("config.json"), config.replace(from, to)).unwrap();
        let (code, _, error) = run_model(&job, &copy, &["-n", "1", "--overwrite"]);
        assert!(code == 3 && error.contains(expected), "{code}: {error}");
        assert!(fs::read(job.out()).unwrap() == before);
    }
    fs::write(copy.join("config.json"), config).unwrap();
    succeed(run_model(&job, &copy, &["-n", "1", "--overwrite", "--seed", "3"]));
    assert!(fs::read(job.out()).unwrap() != before);
}

#[test]
fn a_link_to_nothing_is_no_rival() {
    let job = Job::usual();
    std::os::unix::fs::symlink("nowhere.jsonl", job.out()).unwrap();
    job.refused(2, &["-n", "1"], &["a link to a file that is not there"]);
    job.refused(2, &["-n", "1", "--output", "-"], &["--output -"]);
}

fn run_model(job: &Job, folder: &Path, more: &[&str]) -> (i32, String, String) {
    let arguments = job.arguments(more);
    let folder = folder.to_str().unwrap();
    let arguments: Vec<&str> = arguments.iter().map(|text| if text == model() { folder } else { text }).collect();
    limo_engine(&arguments)
}

#[test]
fn one_output_has_one_writer() {
    let job = Job::usual();
    succeed(job.run(&["-n", "2"]));
    let held = fs::File::open(job.out()).unwrap();
    held.lock().unwrap();
    job.refused(2, &["-n", "3"], &["another process is writing"]);
    job.refused(2, &["-n", "3", "--overwrite"], &["another process is writing"]);
    drop(held);
    succeed(job.run(&["-n", "3"]));
    assert!(sorted(&job.out()) == expected());
}

/// Killed at any operation on its files, a job goes on to the same rows.
#[test]
fn a_job_killed_anywhere_goes_on_to_the_same_rows() {
    let Some(library) = fake_disk() else { return };
    let (mut at, mut kills) = (1, 0);
    loop {
        let job = Job::usual();
        let mut killed = job.command(&["-n", "3"]);
        killed.env("LD_PRELOAD", library).env("FAKE_DISK", job.folder.path()).env("FAKE_DISK_KILL", at.to_string());
        let ended = killed.output().unwrap();
        if ended.status.code() == Some(0) {
            break;
        }
        assert_eq!(ended.status.code(), None, "operation {at}: {}", String::from_utf8_lossy(&ended.stderr));
        kills += 1;
        succeed(job.run(&["-n", "3"]));
        assert!(sorted(&job.out()) == expected(), "killed at operation {at}");
        at += if at < 6 { 1 } else { 3 };
    }
    assert!(kills > 10, "only {kills} kills");
}

/// Killed with SIGKILL at 20 random points, each life going on where the one before ended, with a cache too small for its samples.
#[test]
fn a_job_killed_twenty_times_loses_nothing() {
    const KILLS: u64 = 20;
    let rows: String = (0..200).map(|i| row(i) + "\n").collect();
    let more = ["-n", "3", "--kv-memory", "300KiB", "--chunk", "20"];
    let whole = Job::new(&rows);
    let output = succeed(whole.run(&["-n", "3"]));
    assert!(output.contains("600 samples, 600 of them new") && output.contains(" 0 preemptions"), "{output}");
    let total = fs::metadata(whole.out()).unwrap().len();

    let job = Job::new(&rows);
    let size = || fs::metadata(job.out()).map_or(0, |found| found.len());
    let mut random = Random::new(20);
    for kill in 0..KILLS {
        // A point between what it has and its share of the whole, and then some moments.
        let share = (total * 9 / 10 * (kill + 1) / KILLS).saturating_sub(size());
        let at = size() + random.below(share.max(1) as usize) as u64;
        let mut child = job.command(&more).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let began = Instant::now();
        while size() <= at {
            assert!(began.elapsed() < Duration::from_secs(60), "{at} of {total} bytes were not reached");
            assert!(child.try_wait().unwrap().is_none(), "it ended before {at} of {total} bytes");
            std::thread::sleep(Duration::from_micros(100));
        }
        std::thread::sleep(Duration::from_micros(random.below(20_000) as u64));
        child.kill().unwrap();
        assert_eq!(child.wait().unwrap().code(), None, "it had ended at {at} of {total} bytes");
    }
    let output = succeed(job.run(&more));
    let preemptions = output.rsplit_once(" preemptions").and_then(|(before, _)| before.rsplit_once(' ')).unwrap().1;
    println!("killed {KILLS} times; {preemptions} preemptions in the last life");
    assert!(preemptions.parse::<u64>().unwrap() > 0, "{output}");
    assert!(sorted(&job.out()) == sorted(&whole.out()));
}

#[test]
fn a_full_disk_is_told_and_keeps_whole_rows() {
    let Some(library) = fake_disk() else { return };
    let record = {
        let job = Job::usual();
        succeed(job.run(&["-n", "3"]));
        fs::metadata(job.at("out.jsonl.job.json")).unwrap().len()
    };
    for bytes in [10, record + 1, record + 100, record + 2000] {
        let job = Job::usual();
        let mut full = job.command(&["-n", "3"]);
        full.env("LD_PRELOAD", library).env("FAKE_DISK", job.folder.path()).env("FAKE_DISK_BYTES", bytes.to_string());
        let ended = full.output().unwrap();
        let error = String::from_utf8(ended.stderr).unwrap();
        assert_eq!(ended.status.code(), Some(2), "{bytes}: {error}");
        assert!(error.contains("out.jsonl") && error.contains("No space left") && error.contains("help: "), "{bytes}: {error}");
        let kept = sorted(&job.out());
        assert!(kept.iter().all(|row| expected().contains(row)), "{bytes}");
        succeed(job.run(&["-n", "3"]));
        assert!(sorted(&job.out()) == expected(), "{bytes}");
    }
}

/// Enough rows that a signal does not come too late.
#[test]
fn a_signal_keeps_the_rows_and_the_same_command_goes_on() {
    let rows: String = (0..4000).map(|i| row(i) + "\n").collect();
    let job = Job::new(&rows);
    let mut child = job.command(&["-n", "2"]).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let began = Instant::now();
    while fs::metadata(job.out()).map_or(0, |found| found.len()) < 2000 {
        assert!(began.elapsed() < Duration::from_secs(60) && child.try_wait().unwrap().is_none(), "no row came");
        std::thread::sleep(Duration::from_millis(5));
    }
    signal(&child, "-TERM");
    let (code, error) = end(child);
    assert_eq!(code, 75, "{error}");
    assert!(error.starts_with("stopped by SIGTERM after ") && error.contains("the same command goes on"), "{error}");
    let kept = sorted(&job.out());
    assert!(!kept.is_empty() && kept.len() < 8000, "{}", kept.len());
    // The rest would take a while: of some rows.
    fs::write(job.at("in.jsonl"), rows.lines().take(8).map(|row| row.to_string() + "\n").collect::<String>()).unwrap();
    succeed(job.run(&["-n", "2"]));
    let mine = sorted(&job.out());
    let two = expected().iter().enumerate().filter(|(number, _)| number % 3 < 2);
    assert!(two.clone().count() == 16 && two.into_iter().all(|(_, row)| mine.contains(row)));
}
