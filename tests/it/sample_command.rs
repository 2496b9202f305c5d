//! `limo-engine sample` as a user meets it: rows, broken input, usage, shards.

use crate::command::{limo_engine, limo_engine_with, succeed};
use crate::disk::{command, end};
use serde_json::{Value, json};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::OnceLock;
use std::time::Duration;
use tempfile::TempDir;

const CONTEXT: usize = 192;

/// A model of random weights with a context of 192 tokens, made once.
pub fn model() -> &'static str {
    static MADE: OnceLock<String> = OnceLock::new();
    MADE.get_or_init(|| {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("sample_model");
        fs::create_dir_all(&folder).unwrap();
        let mut config: Value = serde_json::from_slice(&fs::read("configs/tiny/config.json").unwrap()).unwrap();
        config["max_position_embeddings"] = CONTEXT.into();
        config["num_hidden_layers"] = 2.into();
        fs::write(folder.join("config.json"), config.to_string()).unwrap();
        fs::write(folder.join("rows.jsonl"), "{\"question\": \"1\", \"solution\": \"2\"}\n").unwrap();
        let toml = format!(
            "model = {{ config = \"{0}/config.json\", tokenizer = \"configs/tiny\" }}\ndata.train = [\"{0}/rows.jsonl\"]\n\
             train.max_steps = 1\noutput.dir = \"{0}/run\"\n",
            folder.display()
        );
        fs::write(folder.join("run.toml"), toml).unwrap();
        let file = folder.join("run.toml");
        succeed(limo_engine(&["train", file.to_str().unwrap(), "--device", "cpu", "--overwrite"]));
        folder.join("run/model").display().to_string()
    })
}

/// A folder with the input and output of a job.
pub struct Job {
    pub folder: TempDir,
}

impl Job {
    pub fn new(input: impl AsRef<[u8]>) -> Job {
        let job = Job { folder: tempfile::tempdir().unwrap() };
        fs::write(job.at("in.jsonl"), input).unwrap();
        job
    }

    /// Eight prompts of unlike lengths.
    pub fn usual() -> Job {
        Job::new((0..8).map(|i| row(i) + "\n").collect::<String>())
    }

    pub fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn out(&self) -> PathBuf {
        self.at("out.jsonl")
    }

    pub fn arguments(&self, more: &[&str]) -> Vec<String> {
        let mut arguments: Vec<String> = ["sample", "--model", model(), "--device", "cpu"].map(String::from).to_vec();
        for (flag, name) in [("--input", "in.jsonl"), ("--output", "out.jsonl")] {
            if !more.contains(&flag) {
                arguments.extend([flag.to_string(), self.at(name).display().to_string()]);
            }
        }
        if !more.contains(&"--max-tokens") {
            arguments.extend(["--max-tokens", "60"].map(String::from));
        }
        arguments.extend(more.iter().map(|text| text.to_string()));
        arguments
    }

    pub fn run(&self, more: &[&str]) -> (i32, String, String) {
        self.run_in(&[], more)
    }

    fn run_in(&self, variables: &[(&str, &str)], more: &[&str]) -> (i32, String, String) {
        let arguments = self.arguments(more);
        limo_engine_with(variables, &arguments.iter().map(String::as_str).collect::<Vec<_>>())
    }

    pub fn command(&self, more: &[&str]) -> std::process::Command {
        let arguments = self.arguments(more);
        command(&arguments.iter().map(String::as_str).collect::<Vec<_>>())
    }

    pub fn refused(&self, code: i32, more: &[&str], expected: &[&str]) {
        let (ended, _, error) = self.run(more);
        assert_eq!(ended, code, "{more:?}: {error}");
        assert!(error.contains("help: ") && !error.contains("panicked"), "{more:?}: {error}");
        for word in expected {
            assert!(error.contains(word), "{more:?} should mention {word}: {error}");
        }
    }

    fn rows(&self) -> Vec<Value> {
        sorted(&self.out()).iter().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

pub fn row(i: usize) -> String {
    json!({"id": format!("row {i}"), "question": format!("How much is it? {}", "And then? ".repeat(i * i % 7))}).to_string()
}

/// The lines of a finished output by id and sample, none twice.
pub fn sorted(path: &Path) -> Vec<String> {
    let text = fs::read_to_string(path).unwrap();
    assert!(text.is_empty() || text.ends_with('\n'), "a torn last row");
    let mut lines: Vec<(String, u64, String)> = text
        .lines()
        .map(|line| {
            let row: Value = serde_json::from_str(line).unwrap();
            (row["id"].to_string(), row["sample"].as_u64().unwrap(), line.to_string())
        })
        .collect();
    lines.sort();
    assert!(lines.windows(2).all(|pair| (&pair[0].0, pair[0].1) != (&pair[1].0, pair[1].1)), "a sample stands there twice");
    lines.into_iter().map(|(_, _, line)| line).collect()
}

/// What the usual job gives with three samples.
pub fn expected() -> &'static [String] {
    static ROWS: OnceLock<Vec<String>> = OnceLock::new();
    ROWS.get_or_init(|| {
        let job = Job::usual();
        succeed(job.run(&["-n", "3"]));
        let rows = sorted(&job.out());
        assert_eq!(rows.len(), 24);
        rows
    })
}

#[test]
fn a_row_has_what_was_asked_for() {
    let job = Job::new(
        "{\"question\": \"1\"}\n\n{\"id\": 7, \"messages\": [{\"role\": \"user\", \"content\": \"2\"}], \"answer\": 4}\n{\"prompt\": \"3\"}",
    );
    let output = succeed(job.run(&["-n", "8", "--token-ids", "--logprobs", "--system", "Be brief.", "--seed", "5"]));
    for said in [
        "system prompt: \"Be brief.\"",
        "seed 5",
        "do_sample false: not taken",
        "450 \"<|im_end|>\"",
        "pages of 64",
        "24 samples",
    ] {
        assert!(output.contains(said), "{said}: {output}");
    }
    let rows = job.rows();
    assert_eq!(rows.len(), 24);
    let mut reasons = std::collections::BTreeMap::new();
    for (number, row) in rows.iter().enumerate() {
        assert_eq!((&row["id"], &row["sample"]), (&json!([0, 2, 7][number / 8]), &json!(number % 8)));
        let ids: Vec<i64> = row["token_ids"].as_array().unwrap().iter().map(|id| id.as_i64().unwrap()).collect();
        let values = row["logprobs"].as_array().unwrap();
        assert!(ids.len() == values.len() && row["tokens"] == json!(ids.len()), "{row}");
        assert!(values.iter().all(|value| value.as_f64().unwrap() <= 0.0), "{row}");
        let (stopped, reason) = ([448, 450].contains(ids.last().unwrap()), row["finish_reason"].as_str().unwrap());
        assert_eq!(reason, if stopped { "stop" } else { "length" }, "{row}");
        assert!(stopped || ids.len() == 60, "{row}");
        assert!(!row["text"].as_str().unwrap().contains("<|"), "{row}");
        assert_eq!(row["prompt_hash"], rows[number / 8 * 8]["prompt_hash"]);
        *reasons.entry(reason.to_string()).or_insert(0) += 1;
    }
    assert_eq!(reasons.len(), 2, "both ways to end: {reasons:?}");
    assert_ne!(rows[0]["text"], rows[1]["text"]);
    // Without the extras the same samples.
    let plain = Job::new(fs::read(job.at("in.jsonl")).unwrap());
    succeed(plain.run(&["-n", "2", "--system", "Be brief.", "--seed", "5"]));
    let keys: Vec<String> = plain.rows()[0].as_object().unwrap().keys().cloned().collect();
    assert_eq!(keys, ["id", "sample", "text", "tokens", "finish_reason", "prompt_hash"]);
    assert_eq!(plain.rows()[1]["text"], rows[1]["text"]);
    let other = Job::new(fs::read(job.at("in.jsonl")).unwrap());
    succeed(other.run(&["--system", "Be brief.", "--seed", "6"]));
    assert_ne!(other.rows()[0]["text"], rows[0]["text"], "another seed");
}

#[test]
fn an_answer_ends_before_a_stop_text() {
    let job = Job::usual();
    // Texts that the answers have.
    let found = |line: &String| serde_json::from_str::<Value>(line).unwrap()["text"].as_str().unwrap().to_string();
    let texts: Vec<String> = expected().iter().map(found).collect();
    let long = texts.iter().max_by_key(|text| text.len()).unwrap();
    let stop: String = long.chars().skip(long.chars().count() / 2).take(3).collect();
    let output = succeed(job.run(&["-n", "3", "--stop", &stop, "--stop", "<|im_start|>"]));
    assert!(output.contains(&format!("text {stop:?}")) && output.contains("449 \"<|im_start|>\""), "{output}");
    for (row, text) in job.rows().iter().zip(&texts) {
        let ours = row["text"].as_str().unwrap();
        match text.split_once(&stop) {
            Some((before, _)) => assert!(ours == before && row["finish_reason"] == "stop", "{row}"),
            // It may still end earlier, at <|im_start|>.
            None => assert!(text.starts_with(ours), "{row}"),
        }
    }
    assert!(job.rows().iter().any(|row| row["text"].as_str().unwrap().len() < long.len()));
}

#[test]
fn a_broken_row_is_told_by_its_line_and_the_job_goes_on() {
    let long = "word ".repeat(CONTEXT);
    let text = [
        row(0),
        "{\"question\": \"1\"".into(),
        "".into(),
        "{\"answer\": 3}".into(),
        "{\"prompt\": \"  \"}".into(),
        row(0),
        json!({ "prompt": long }).to_string(),
        "\u{1}[\u{1b}[31m".into(),
        row(1),
        "{\"id\": [], \"prompt\": \"x\"}".into(),
    ];
    let job = Job::new([text.join("\n").as_bytes(), b"\n{\"prompt\": \"\xff\"}\n"].concat());
    let (code, output, error) = job.run(&[]);
    assert_eq!(code, 0, "{error}");
    for said in [
        "in.jsonl:2: broken JSON",
        "in.jsonl:4: no prompt",
        "in.jsonl:5: the prompt is empty",
        "in.jsonl:6: its id \"row 0\" is that of line 1",
        "in.jsonl:7: the prompt has",
        "in.jsonl:8: broken JSON",
        "in.jsonl:10: field `id`",
        "in.jsonl:11: not UTF-8 at byte 13",
    ] {
        assert!(error.contains(said), "{said}: {error}");
    }
    assert!(error.lines().count() == 8 && !error.contains('\u{1b}'), "{error}");
    assert!(output.contains("10 rows, 8 of them left out: 2 samples"), "{output}");
    assert_eq!(job.rows().iter().map(|row| row["id"].as_str().unwrap().to_string()).collect::<Vec<_>>(), ["row 0", "row 1"]);

    for nothing in ["", "\n\n", "{\"answer\": 3}\nx\n", "[]", "[1,2]", "{\n\"prompt\": \"x\"\n}", "\u{1f}\u{8b}"] {
        Job::new(nothing).refused(3, &[], &["in.jsonl"]);
    }
    Job::usual().refused(3, &["--input", "no/such.jsonl"], &["no/such.jsonl"]);
}

#[test]
fn an_answer_ends_with_the_context_and_the_cache() {
    let near = json!({"id": "near", "prompt": "1 ".repeat(60)}).to_string();
    let job = Job::new(format!("{near}\n{}\n", row(0)));
    let (code, _, error) = job.run(&["--token-ids", "--max-tokens", "170", "--temperature", "0"]);
    assert_eq!(code, 0, "{error}");
    assert_eq!(error.matches("leaves the answer of id").count(), 1, "{error}");
    let cut = job.rows().into_iter().find(|row| row["id"] == "near").unwrap();
    if cut["finish_reason"] == "length" {
        assert!(cut["tokens"].as_u64().unwrap() < 170, "{cut}");
    }
    // A page is 64 tokens of 2 layers, 2 · 32 values in f32: three pages.
    let job = Job::new(format!("{near}\n{}\n", row(0)));
    let (code, _, error) = job.run(&["--max-tokens", "80", "--kv-memory", "98304"]);
    assert_eq!(code, 0, "{error}");
    assert!(error.contains("in.jsonl:1: ") && error.contains("--kv-memory"), "{error}");
    assert_eq!(job.rows().len(), 1);
}

#[test]
fn prompts_come_from_lists_and_pipes_too() {
    let list = format!("[{}\n]", (0..8).map(row).collect::<Vec<_>>().join(",\n"));
    let job = Job::new(&list);
    succeed(job.run(&["-n", "3"]));
    assert!(sorted(&job.out()) == expected());
    for text in [list, (0..8).map(|i| row(i) + "\n").collect()] {
        let job = Job::new("");
        let mut child = job.command(&["-n", "3", "--input", "-"]);
        let mut child = child.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut input = child.stdin.take().unwrap();
        for piece in text.as_bytes().chunks(50) {
            input.write_all(piece).unwrap();
            std::thread::sleep(Duration::from_millis(5));
        }
        drop(input);
        let (code, error) = end(child);
        assert_eq!(code, 0, "{error}");
        assert!(sorted(&job.out()) == expected());
    }
}

#[test]
fn input_model_and_what_is_no_file_are_never_written_to() {
    let job = Job::usual();
    let input = job.at("in.jsonl").display().to_string();
    let linked = job.at("link.jsonl").display().to_string();
    fs::hard_link(&input, &linked).unwrap();
    let inside = format!("{}/out.jsonl", model());
    let before = fs::read(&input).unwrap();
    for (output, expected) in [
        (input.as_str(), "--input"),
        (&linked, "--input"),
        (&inside, "a file of --model"),
        (job.folder.path().to_str().unwrap(), "is not a file"),
        ("/dev/null", "is not a file"),
        ("/proc/out.jsonl", "cannot be written"),
        ("no/such/folder/out.jsonl", "cannot be written"),
    ] {
        job.refused(2, &["--output", output, "--overwrite"], &[expected]);
    }
    // The record is an output too.
    fs::copy(&input, job.at("out.jsonl.job.json")).unwrap();
    job.refused(2, &["--input", job.at("out.jsonl.job.json").to_str().unwrap()], &["would replace --input"]);
    assert!(fs::read(&input).unwrap() == before && !Path::new(&inside).exists());
}

#[test]
fn mistakes_in_usage_exit_with_2() {
    let job = Job::usual();
    for (arguments, expected) in [
        (&["--temperature=-1"][..], "at least 0"),
        (&["--temperature", "-1"], "at least 0"),
        (&["--temperature", "nan"], "finite"),
        (&["--top-p", "0"], "above 0"),
        (&["--min-p", "1.5"], "from 0 to 1"),
        (&["--repetition-penalty", "0"], "above 0"),
        (&["-n", "0"], "0"),
        (&["--max-tokens", "0"], "--max-tokens"),
        (&["--shard", "2/2"], "i/n"),
        (&["--stop", ""], "--stop"),
        (&["--kv-cache", "fp8"], "fp8 is not there yet"),
        (&["--kv-cache", "bf16"], "--dtype bf16"),
        (&["--kv-memory", "12 XB"], "--kv-memory"),
        (&["--resume", "perhaps"], "auto"),
        (&["--chunk", "0"], "--chunk"),
        (&["--batch-cap", "0"], "--batch-cap"),
    ] {
        let (code, _, error) = job.run(arguments);
        assert!(code == 2 && error.contains(expected), "{arguments:?}: {code}: {error}");
    }
    assert!(!job.out().exists());
}

#[test]
fn too_little_memory_is_told_before_anything_is_written() {
    let job = Job::usual();
    job.refused(4, &["--chunk", "1000000000"], &["needs", "available", "--batch-cap"]);
    assert!(!job.out().exists());
}

/// Whatever runs beside a sample, in whatever order and memory.
#[test]
fn order_batch_chunk_and_memory_change_no_bytes() {
    let page = 2 * 2 * 64 * 32 * 4;
    let pages = |pages: usize| (pages * page).to_string();
    let [few, fewest] = [pages(7), pages(4)];
    let shuffled: String = [5, 2, 7, 0, 3, 1, 6, 4].into_iter().map(|i| row(i) + "\n").collect();
    let usual: String = (0..8).map(|i| row(i) + "\n").collect();
    for (input, more, preempts) in [
        (&shuffled, &["--batch-cap", "64"][..], false),
        (&usual, &["--batch-cap", "1"], false),
        (&shuffled, &["--batch-cap", "3", "--chunk", "7"], false),
        (&usual, &["--chunk", "1"], false),
        (&usual, &["--kv-memory", &few], true),
        (&shuffled, &["--kv-memory", &fewest, "--batch-cap", "8"], true),
    ] {
        let job = Job::new(input);
        let output = succeed(job.run(&[&["-n", "3"], more].concat()));
        assert!(sorted(&job.out()) == expected(), "{more:?}");
        assert_eq!(output.contains(" 0 preemptions"), !preempts, "{more:?}: {output}");
    }
}

#[test]
fn shards_make_the_bytes_of_the_whole() {
    let job = Job::usual();
    let mut rows = Vec::new();
    for shard in ["0/3", "1/3", "2/3"] {
        let output = job.at(&format!("part-{}.jsonl", &shard[..1]));
        succeed(job.run(&["-n", "3", "--shard", shard, "--output", output.to_str().unwrap()]));
        rows.extend(sorted(&output));
    }
    rows.sort();
    let mut whole = expected().to_vec();
    whole.sort();
    assert!(rows == whole);
    // The whole job goes on from a part.
    succeed(job.run(&["-n", "3", "--shard", "1/3"]));
    succeed(job.run(&["-n", "3"]));
    assert!(sorted(&job.out()) == expected());
    // Two rows share an id, in two shards: the first has it in both. A shard without rows is an empty file.
    let job = Job::new(format!("{}\n{}\n", row(0), row(0)));
    let (code, _, error) = job.run(&["--shard", "1/2"]);
    assert!(code == 0 && error.contains("in.jsonl:2: its id"), "{code}: {error}");
    assert!(succeed(job.run(&["--shard", "2/3", "--overwrite"])).contains("nothing to sample"));
    assert_eq!(fs::read(job.out()).unwrap(), b"");
}

#[test]
fn under_a_launcher_each_process_takes_a_shard() {
    let job = Job::usual();
    let torchrun = |rank| {
        let master = [("MASTER_ADDR", "localhost"), ("MASTER_PORT", "29500")];
        [[("RANK", rank), ("WORLD_SIZE", "2")], [("LOCAL_RANK", rank), ("LOCAL_WORLD_SIZE", "2")], master].concat()
    };
    let first = succeed(job.run_in(&torchrun("0"), &["-n", "3"]));
    let second = succeed(job.run_in(&torchrun("1"), &["-n", "3"]));
    assert!(first.contains("sampling: ") && first.contains("shard 0/2: 4 rows"), "{first}");
    assert!(!second.contains("sampling: ") && second.contains("shard 1/2: 4 rows"), "{second}");
    assert!(!job.out().exists());
    let parts = ["out.0-of-2.jsonl", "out.1-of-2.jsonl"].map(|name| fs::read_to_string(job.at(name)).unwrap());
    fs::write(job.out(), parts.concat()).unwrap();
    assert!(sorted(&job.out()) == expected());
    // Started again by torchrun, it goes on.
    let restarted = [&torchrun("0")[..], &[("TORCHELASTIC_RESTART_COUNT", "1")]].concat();
    let again = succeed(job.run_in(&restarted, &["-n", "3", "--overwrite"]));
    assert!(again.contains("shard 0/2: 4 rows: ") && again.contains("is finished"), "{again}");
    for more in [&["--shard", "0/2"][..], &["--input", "-"]] {
        let (code, _, error) = job.run_in(&torchrun("0"), more);
        assert!(code == 2 && error.contains("torchrun") && error.contains(more[0]), "{code}: {error}");
    }
}

/// Memory does not grow with the input, but for a few bytes a row.
#[test]
fn a_long_input_is_streamed() {
    const ROWS: usize = 300_000;
    let peak = |rows: usize| {
        let text = "x".repeat(200);
        let job = Job::new(
            (0..rows).map(|i| format!("{{\"id\": {i}, \"prompt\": \"1\", \"why\": \"{text}\"}}\n")).collect::<String>(),
        );
        // All rows are read, one is sampled.
        let shard = format!("0/{rows}");
        let output = succeed(job.run(&["--shard", &shard, "--kv-memory", "1MiB"]));
        assert_eq!(job.rows().len(), 1);
        let line = output.lines().find(|line| line.contains("peak: ")).unwrap();
        line.split_once('(').unwrap().1.split_once(' ').unwrap().0.parse::<usize>().unwrap()
    };
    let (short, long) = (peak(1000), peak(ROWS));
    assert!(long < short + 64 * ROWS, "{short} bytes for few rows, {long} for many");
}

/// What can be told of a row without reading tokens off it is, what can be told of a file without flooding the terminal too, and no room is made for samples that nobody wants.
#[test]
fn long_rows_many_broken_rows_and_large_batches_cost_little() {
    let long = json!({"id": "long", "prompt": "word ".repeat(3_000_000)}).to_string();
    let job = Job::new(format!("{long}\n{}\n{}", row(1), "x\n".repeat(1500)));
    let began = std::time::Instant::now();
    let (code, output, error) = job.run(&["--batch-cap", "60000", "--max-tokens", "5"]);
    assert_eq!(code, 0, "{error}");
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    assert!(error.contains("in.jsonl:1: a prompt of 15000000 bytes has more tokens than the model's context"), "{error}");
    assert!(error.lines().count() < 1010 && error.contains("no longer told"), "{}", error.lines().count());
    assert!(output.contains("batch: at most 1502 samples") && output.contains("1501 of them left out"), "{output}");
}
