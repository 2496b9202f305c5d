//! The companion tools as a user meets them: alone, broken rows, and all of them joined by pipes.

use serde_json::{Value, json};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use tempfile::TempDir;

fn tool(name: &str) -> Command {
    let path = match name {
        "limo-pool" => env!("CARGO_BIN_EXE_limo-pool"),
        "limo-difficulty" => env!("CARGO_BIN_EXE_limo-difficulty"),
        "limo-grade" => env!("CARGO_BIN_EXE_limo-grade"),
        "limo-score" => env!("CARGO_BIN_EXE_limo-score"),
        "limo-select" => env!("CARGO_BIN_EXE_limo-select"),
        other => panic!("there is no tool {other}"),
    };
    let mut command = Command::new(path);
    command.current_dir(env!("CARGO_MANIFEST_DIR"));
    command
}

const TOOLS: [&str; 5] = ["limo-pool", "limo-difficulty", "limo-grade", "limo-score", "limo-select"];

#[test]
fn the_command_lines_are_frozen() {
    for name in TOOLS {
        let output = tool(name).arg("--help").output().unwrap();
        assert!(output.status.success() && output.stderr.is_empty());
        insta::assert_snapshot!(format!("help_{name}"), String::from_utf8(output.stdout).unwrap());
    }
}

/// Exit code, rows, standard error.
pub fn run(name: &str, arguments: &[&str], input: impl AsRef<[u8]>) -> (i32, Vec<Value>, String) {
    let mut child =
        tool(name).args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let (mut stdin, input) = (child.stdin.take().unwrap(), input.as_ref().to_vec());
    // A tool that reads no input may end before it is written.
    let writer = std::thread::spawn(move || drop(stdin.write_all(&input)));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let rows = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    (output.status.code().unwrap(), rows, String::from_utf8(output.stderr).unwrap())
}

pub fn lines(rows: &[Value]) -> String {
    rows.iter().map(|row| row.to_string() + "\n").collect()
}

pub fn succeed(name: &str, arguments: &[&str], rows: &[Value]) -> Vec<Value> {
    let (code, out, error) = run(name, arguments, lines(rows));
    assert_eq!(code, 0, "{name} {arguments:?}: {error}");
    out
}

pub struct Folder(pub TempDir);

impl Folder {
    pub fn new() -> Folder {
        Folder(tempfile::tempdir().unwrap())
    }
    pub fn at(&self, name: &str) -> String {
        self.0.path().join(name).display().to_string()
    }
    pub fn write(&self, name: &str, rows: &[Value]) -> String {
        fs::write(self.at(name), lines(rows)).unwrap();
        self.at(name)
    }
}

pub fn read(path: impl AsRef<Path>) -> Vec<Value> {
    fs::read_to_string(path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The problems of the tiny task, as a file of a benchmark has them.
pub fn tiny(name: &str, count: usize) -> Vec<Value> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("configs/tiny").join(name);
    read(path).into_iter().take(count).collect()
}

/// A response that ends in this answer.
pub fn response(answer: &str) -> String {
    format!("Let me think. Perhaps it is easy. Let me check: yes. Therefore the answer is \\boxed{{{answer}}}")
}

/// Rows of published files rarely have ids, and files that are read together often have the same ones.
#[test]
fn several_files_keep_all_their_rows() {
    let folder = Folder::new();
    let words = ["apples", "boats", "coins", "ducks", "eggs", "forks"];
    let plain = |word: &&str| json!({"source": "olympiads", "problem": format!("How many {word} are there?"), "solution": "\\boxed{1}"});
    let rows: Vec<Value> = words.iter().map(plain).collect();
    let shards = [folder.write("a.jsonl", &rows[..3]), folder.write("b.jsonl", &rows[3..])];
    let (code, pool, error) = run("limo-pool", &[&shards[0], &shards[1]], "");
    assert_eq!((code, pool.len()), (0, 6), "{error}");
    let (_, other, _) = run("limo-pool", &[&shards[1], &shards[0]], "");
    let ids = |rows: &[Value]| rows.iter().map(|row| row["id"].to_string()).collect::<std::collections::BTreeSet<_>>();
    assert!(ids(&pool) == ids(&other) && ids(&pool).len() == 6, "ids do not depend on the order of files");
    let numbered = |from: usize| {
        rows[from..from + 3]
            .iter()
            .enumerate()
            .map(|(at, row)| {
                let mut row = row.clone();
                row["idx"] = at.into();
                row
            })
            .collect::<Vec<_>>()
    };
    let shards = [folder.write("c.jsonl", &numbered(0)), folder.write("d.jsonl", &numbered(3))];
    let (code, pool, error) = run("limo-pool", &[&shards[0], &shards[1]], "");
    assert!(code == 0 && error.contains("3 ids were those of rows of earlier files"), "{error}");
    assert_eq!(
        pool.iter().map(|row| row["id"].clone()).collect::<Vec<_>>(),
        [json!(0), json!(1), json!(2), json!("d-0"), json!("d-1"), json!("d-2")]
    );
    // In a file whose ids were renamed, too, an id comes once.
    let twice = folder.write("e.jsonl", &[numbered(3)[0].clone(), numbered(3)[0].clone()]);
    let (code, pool, error) = run("limo-pool", &[&shards[0], &twice], "");
    assert!(code == 3 && pool.len() == 4 && error.contains("e.jsonl:2: its id 0 is that of an earlier row"), "{error}");
    // Many equal texts take no time.
    let (code, _, error) = run("limo-pool", &[], lines(std::slice::from_ref(&rows[0])).repeat(30_000));
    assert!(code == 0 && error.contains("30000 rows read, 1 written, 29999 dropped"), "{error}");
    // Equal texts get different ids where they are kept.
    let (code, pool, error) = run("limo-pool", &["--keep-duplicates"], lines(&[rows[0].clone(), rows[0].clone()]));
    assert!(code == 0 && ids(&pool).len() == 2, "{error}");
}

/// Of a benchmark row nothing but its problem matters; a file without problems is no benchmark.
#[test]
fn benchmarks_of_any_form_are_compared_with() {
    let folder = Folder::new();
    let problem = "Every morning a gardener walks nine miles around the lake and rests at the old mill for forty minutes.";
    let strange =
        folder.write("strange.jsonl", &[json!({"question": problem, "solution": ["a", "b"], "answer": true, "level": []})]);
    let row = json!({"id": 1, "problem": problem, "answer": "1"});
    let (code, pool, error) = run("limo-pool", &["--benchmark", &strange], lines(std::slice::from_ref(&row)));
    assert!(code == 0 && pool.is_empty() && error.contains("dropped 1: benchmark"), "{error}");
    let none = folder.write("none.jsonl", &[json!({"text": problem})]);
    let (code, _, error) = run("limo-pool", &["--benchmark", &none, "--allow-errors"], lines(&[row]));
    assert!(code == 3 && error.contains("none.jsonl: no row has a problem"), "{error}");
}

#[test]
fn broken_rows_are_told_and_the_others_go_on() {
    let good = json!({"id": 1, "problem": "How many apples are there?", "answer": "5", "response": response("5"), "score": 0.5, "correct": true, "unknown": {"x": 1}});
    let folder = Folder::new();
    let mut other = good.clone();
    other["id"] = 2.into();
    other["problem"] = "What do seven pears weigh?".into();
    for (name, arguments) in [("limo-pool", &[][..]), ("limo-grade", &[]), ("limo-score", &[]), ("limo-select", &[])] {
        let mut input = format!("\u{feff}{good}\r\n{{\"id\": 3,\n[1]\n\n").into_bytes();
        input.extend(b"\"\xff\"\n{\"problem\": 5, \"id\": true}\n");
        input.extend(other.to_string().bytes());
        let (code, rows, error) = run(name, arguments, &input);
        assert_eq!((code, rows.len()), (3, 2), "{name}: {error}");
        for expected in
            [":2: broken JSON", ":3: a row must be a JSON object", ":5: not UTF-8", ":6: ", "4 of 6 rows could not be used"]
        {
            assert!(error.contains(expected), "{name} should say {expected}: {error}");
        }
        let dropped = folder.at("dropped.jsonl");
        let (code, _, error) = run(name, &[arguments, &["--allow-errors", "--dropped", &dropped]].concat(), &input);
        let kept = read(&dropped);
        assert_eq!(kept.iter().map(|row| row["dropped"]["line"].as_u64().unwrap()).collect::<Vec<_>>(), [2, 3, 5, 6]);
        assert!(kept[3]["problem"] == 5 && kept[3]["dropped"]["reason"] == "broken", "{kept:?}");
        assert!(code == 0 && error.contains("6 rows read, 2 written, 0 dropped, 4 broken"), "{name}: {error}");
        let (code, _, error) = run(name, &["no such file.jsonl"], "");
        assert!(code == 3 && error.contains("no such file.jsonl"), "{name}: {error}");
        let (code, _, error) = run(name, arguments, "");
        assert!(code == 3 && error.contains("the file is empty"), "{name}: {error}");
        let (code, _, error) = run(name, &["/dev/null", "--dropped", "/no/such/folder/x"], "");
        assert!(code == 2 && error.contains("cannot be written"), "{name}: {error}");
        // A file that is missing is told before the others are read.
        let (code, rows, error) = run(name, &["-", "no such file.jsonl"], lines(std::slice::from_ref(&good)));
        assert!(code == 3 && rows.is_empty() && error.contains("no such file.jsonl"), "{name}: {error}");
    }
}

#[test]
fn rows_that_belong_together_must_be_there() {
    let folder = Folder::new();
    let sample = |id: &str, number: usize| json!({"id": id, "sample": number, "text": response("5")});
    let gold = folder.write(
        "gold.jsonl",
        &[
            json!({"id": "a", "answer": 5}),
            json!({"id": "b", "answer": "6"}),
            json!({"id": "c"}),
            json!({"id": "a", "answer": 7}),
        ],
    );
    let rows = lines(&[sample("a", 0), sample("a", 0), sample("x", 0), sample("a", 1)]);
    let (code, graded, error) = run("limo-grade", &["--gold", &gold], &rows);
    assert_eq!((code, graded.len()), (3, 2), "{error}");
    for expected in [
        "sample 0 of id a was graded already",
        "no answer to id x",
        "id b has no samples",
        "gold.jsonl:3: no gold answer",
        "gold.jsonl:4: there is an answer to id a already",
    ] {
        assert!(error.contains(expected), "{expected}: {error}");
    }
    assert!(error.contains("2 of 4 rows could not be used, and 3 of other files"), "{error}");
    let graded = folder.write("graded.jsonl", &graded);
    let problems = [json!({"id": "a", "problem": "A?"}), json!({"id": "b", "problem": "B?"})];
    let (code, rows, error) = run("limo-difficulty", &["--samples", &graded, "--rule", "2..=2 of 2"], lines(&problems));
    assert_eq!((code, rows.len()), (3, 1), "{error}");
    assert!(error.contains("/dev/stdin:2: no samples of graded") && rows[0]["solved"]["graded"]["correct"] == 2, "{error}");
    let (code, _, error) = run("limo-difficulty", &["--samples", &graded, "--rule", "other=0..=0"], lines(&problems));
    assert!(code == 2 && error.contains("other"), "{error}");
    let (code, _, error) = run("limo-difficulty", &["--samples", &graded, "--rule", "3..=1"], "");
    assert!(code == 2 && error.contains("--rule"), "{error}");
}

/// Several models of one file are graded apart, and what a row lacks is the gold row's.
#[test]
fn models_are_graded_apart() {
    let folder = Folder::new();
    let gold = folder.write(
        "gold.jsonl",
        &[
            json!({"id": "a", "problem": "A?", "answer": 5, "level": 1}),
            json!({"id": "b", "question": "B?", "answer": "6", "source": "s"}),
        ],
    );
    let sample = |id: &str, model: &str, number: usize, answer: &str| json!({"id": id, "model": model, "sample": number, "text": response(answer)});
    let samples = [
        sample("a", "x", 0, "5"),
        sample("a", "x", 1, "5"),
        sample("b", "x", 0, "1"),
        sample("b", "x", 1, "6"),
        sample("a", "y", 0, "7"),
        sample("a", "y", 1, "7"),
    ];
    let (code, rows, error) = run("limo-grade", &["--gold", &gold, "--k", "2,1,2,3"], lines(&samples));
    assert!(code == 3 && error.contains("gold.jsonl:2: id b has no samples of y"), "{error}");
    assert!(error.contains("no pass@3 and maj@3: id a has 2 samples"), "{error}");
    let line = |start: &str| {
        error.lines().find(|line| line.starts_with(start)).unwrap().split_whitespace().map(str::to_string).collect::<Vec<_>>()
    };
    let (x, y) = (line("x "), line("y "));
    assert_eq!(
        (&x[1..5], x[x.len() - 6..].join(" ").as_str()),
        (&["2", "4", "75.0", "%"].map(String::from)[..], "75.0 % 100.0 % 75.0 %")
    );
    assert_eq!(
        (&y[1..5], y[y.len() - 6..].join(" ").as_str()),
        (&["1", "2", "0.0", "%"].map(String::from)[..], "0.0 % 0.0 % 0.0 %")
    );
    assert!(line("x, level: 1").len() > 5);
    assert!(rows[0]["problem"] == "A?" && rows[0]["answer"] == 5 && rows[2]["question"] == "B?" && rows[2]["source"] == "s");
}

/// A line of 100 MB, thousands of broken rows, another encoding.
#[test]
fn what_is_too_much_is_told_briefly() {
    let row = json!({"id": 1, "answer": "5", "response": response("5")}).to_string();
    let mut input = format!("{row}\n{{\"id\": 2, \"response\": \"").into_bytes();
    input.resize(100 << 20, b'x');
    input.extend(format!("\"}}\n{}\n", row.replace("1", "3")).bytes());
    let (code, rows, error) = run("limo-grade", &[], &input);
    assert!(code == 3 && rows.len() == 2 && error.contains("/dev/stdin:2: the row is longer than 16 MiB"), "{error}");
    let folder = Folder::new();
    let dropped = folder.at("dropped.jsonl");
    let (code, _, error) = run("limo-grade", &["--dropped", &dropped], format!("{row}\n{}", "{\"id\": 7}\n".repeat(5000)));
    assert_eq!((code, read(&dropped).len()), (3, 5000));
    assert!(error.lines().count() < 120 && error.contains("5000 of 5001 rows could not be used"), "{error}");
    let name = "n".repeat(1000) + "\n\u{202e}\u{1b}[31m";
    let (_, _, error) = run("limo-grade", &[], json!({"id": name, "sample": {}, "response": "x"}).to_string());
    assert!(error.len() < 1000 && !error.contains('\u{202e}') && !error.contains('\u{1b}'), "{error}");
    let utf16 = folder.at("utf16.jsonl");
    fs::write(&utf16, row.encode_utf16().fold(vec![0xff, 0xfe], |bytes, unit| [bytes, unit.to_le_bytes().to_vec()].concat()))
        .unwrap();
    let (code, _, error) = run("limo-grade", &[&utf16], "");
    assert!(code == 3 && error.contains("utf16.jsonl is UTF-16"), "{error}");
}

/// No tool writes over what it reads, and standard input is read once.
#[test]
fn files_are_not_confused() {
    let folder = Folder::new();
    let rows = folder
        .write("rows.jsonl", &[json!({"id": 1, "problem": "P?", "answer": 1, "response": "x", "score": 1, "correct": true})]);
    let before = fs::read(&rows).unwrap();
    let new = folder.at("new");
    let cases: [(&str, &[&str], &str); 7] = [
        ("limo-pool", &[&rows, "--dropped", &rows], "--dropped"),
        ("limo-pool", &["/dev/null", "--benchmark", &rows, "--report", &rows], "--report"),
        ("limo-grade", &["/dev/null", "--gold", &rows, "--dropped", &rows], "would replace --gold"),
        ("limo-score", &[&rows, "--rubric", &rows], "--rubric"),
        ("limo-select", &[&rows, "--review", &rows], "--review"),
        ("limo-select", &[&rows, "--review", &new, "--report", &new], "would replace --report"),
        ("limo-difficulty", &["--samples", "a=-", "--rule", "0..=0"], "both FILE and --samples are standard input"),
    ];
    for (name, arguments, expected) in cases {
        let (code, _, error) = run(name, arguments, "");
        assert!(code == 2 && error.contains(expected), "{name} {arguments:?}: {error}");
        assert_eq!(fs::read(&rows).unwrap(), before);
    }
}

/// Novelty of other problems is none.
#[test]
fn novelty_must_be_of_these_problems() {
    let folder = Folder::new();
    let chain = json!({"id": "a", "problem": "P?", "response": "R", "score": 1, "correct": true});
    let other = folder.write("novelty.jsonl", &[json!({"id": "b", "mean_logprob": -1.0})]);
    let (code, _, error) = run("limo-select", &["--novelty", &other], lines(std::slice::from_ref(&chain)));
    assert!(code == 3 && error.contains("--novelty knows none of the problems"), "{error}");
    let mut blank = chain.clone();
    blank["response"] = " ".into();
    let (code, rows, error) = run("limo-select", &[], lines(&[blank, chain]));
    assert!(code == 3 && rows.len() == 1 && error.contains(":1: no text in \"response\""), "{error}");
}

/// `| head -1` is no error.
#[test]
fn a_reader_that_goes_away_is_no_error() {
    let row = json!({"id": 1, "response": "a b c ".repeat(1000)}).to_string() + "\n";
    let mut child = tool("limo-score").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    drop(child.stdout.take());
    let written = child.stdin.take().unwrap().write_all(row.repeat(200).as_bytes());
    drop(written);
    assert_eq!(child.wait().unwrap().code(), Some(0));
}
