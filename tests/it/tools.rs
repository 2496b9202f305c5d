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
fn run(name: &str, arguments: &[&str], input: impl AsRef<[u8]>) -> (i32, Vec<Value>, String) {
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

fn lines(rows: &[Value]) -> String {
    rows.iter().map(|row| row.to_string() + "\n").collect()
}

fn succeed(name: &str, arguments: &[&str], rows: &[Value]) -> Vec<Value> {
    let (code, out, error) = run(name, arguments, lines(rows));
    assert_eq!(code, 0, "{name} {arguments:?}: {error}");
    out
}

struct Folder(TempDir);

impl Folder {
    fn new() -> Folder {
        Folder(tempfile::tempdir().unwrap())
    }
    fn at(&self, name: &str) -> String {
        self.0.path().join(name).display().to_string()
    }
    fn write(&self, name: &str, rows: &[Value]) -> String {
        fs::write(self.at(name), lines(rows)).unwrap();
        self.at(name)
    }
}

fn read(path: impl AsRef<Path>) -> Vec<Value> {
    fs::read_to_string(path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The problems of the tiny task, as a file of a benchmark has them.
fn tiny(name: &str, count: usize) -> Vec<Value> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("configs/tiny").join(name);
    read(path).into_iter().take(count).collect()
}

/// A response that ends in this answer.
fn response(answer: &str) -> String {
    format!("Let me think. Perhaps it is easy. Let me check: yes. Therefore the answer is \\boxed{{{answer}}}")
}

#[test]
fn from_a_pool_to_training_rows() {
    let folder = Folder::new();
    // A pool with a duplicate, a copy of a benchmark problem, and a broken row.
    let benchmark = folder.write("benchmark.jsonl", &tiny("heldout.jsonl", 40));
    let words = ["apples", "boats", "coins", "ducks", "eggs", "forks", "goats", "hats", "inks", "jars"];
    let problem = |i: usize| {
        let (what, from) = (words[i % 10], words[(i / 10 + 3) % 10]);
        let text = format!(
            "A farmer number {i} trades {} {what} for {} {from} on day {} of the market. How many {what} are {i} trades worth?",
            i + 2,
            3 * i + 1,
            i * i + 5
        );
        json!({"id": format!("p{i}"), "problem": text, "answer": (i * 7).to_string(), "subject": if i.is_multiple_of(3) { "algebra" } else { "counting" }, "level": 1 + i % 5})
    };
    let mut rows: Vec<Value> = (0..60).map(problem).collect();
    let mut again = problem(7);
    again["id"] = "again".into();
    let copied = json!({"id": "copied", "problem": tiny("heldout.jsonl", 5)[4]["question"], "answer": "1"});
    rows.extend([again, copied]);
    let raw = folder.write("raw.jsonl", &rows);
    let (code, pool, error) = run(
        "limo-pool",
        &[&raw, "--benchmark", &benchmark, "--dropped", &folder.at("dropped.jsonl"), "--report", &folder.at("pool.html")],
        "",
    );
    assert_eq!((code, pool.len()), (0, 60), "{error}");
    let dropped = read(folder.at("dropped.jsonl"));
    assert_eq!(
        dropped.iter().map(|row| row["dropped"]["reason"].as_str().unwrap()).collect::<Vec<_>>(),
        ["duplicate", "benchmark"]
    );
    assert!(dropped[0]["dropped"]["of"] == "p7" && dropped[1]["dropped"]["benchmark"] == "benchmark", "{dropped:?}");
    assert!(fs::read_to_string(folder.at("pool.html")).unwrap().contains("60 written, 2 dropped"));
    let pool_file = folder.write("pool.jsonl", &pool);

    // Problem i is solved i % 5 times of 4.
    let samples: Vec<Value> = (0..60usize)
        .flat_map(|i| {
            (0..4usize).map(move |sample| {
                let answer = if sample < i % 5 { i * 7 } else { i * 7 + 1 };
                json!({"id": format!("p{i}"), "sample": sample, "text": response(&answer.to_string())})
            })
        })
        .collect();
    let graded = succeed("limo-grade", &["--gold", &pool_file, "--k", "1,2,4"], &samples);
    assert!(graded.iter().zip(&samples).all(|(graded, sample)| {
        let i: u64 = sample["id"].as_str().unwrap()[1..].parse().unwrap();
        graded["correct"] == (sample["sample"].as_u64().unwrap() < i % 5) && graded["extracted"].is_string()
    }));
    let graded_file = folder.write("graded.jsonl", &graded);
    let samples_of = format!("small={graded_file}");
    let hard = succeed("limo-difficulty", &["--samples", &samples_of, "--rule", "1..=3 of 4"], &pool);
    assert_eq!(hard.len(), 36);
    assert!(hard.iter().all(|row| (1..=3).contains(&row["solved"]["small"]["correct"].as_u64().unwrap())));

    // Three chains of each, of which the second says most, and the third is wrong.
    let chains: Vec<Value> = hard
        .iter()
        .flat_map(|row| {
            [("a", 1, true), ("b", 9, true), ("c", 30, false)].map(|(model, times, correct)| {
                let mut chain = row.clone();
                chain["model"] = model.into();
                chain["response"] = "Perhaps we check this, because it might help. ".repeat(times).into();
                chain["correct"] = correct.into();
                chain
            })
        })
        .collect();
    let scored = succeed("limo-score", &["--report", &folder.at("score.html")], &chains);
    assert_eq!(scored.len(), chains.len());
    assert!(scored.iter().all(|row| row["quality"]
        == match row["model"].as_str().unwrap() {
            "a" => "L1",
            "b" => "L3",
            _ => "L5",
        }));
    let arguments = ["--top", "12", "--balance", "subject", "--seed", "3", "--review", &folder.at("review.html")];
    let chosen = succeed("limo-select", &arguments, &scored);
    assert_eq!(chosen.len(), 12);
    assert!(chosen.iter().all(|row| row["model"] == "b"
        && row["question"].is_string()
        && row["solution"].is_string()
        && row["answer"].is_string()));
    assert_eq!(chosen.iter().filter(|row| row["subject"] == "algebra").count(), 6);
    // A pure function: another order of the rows, the same selection.
    let mut other: Vec<Value> = scored.clone();
    other.reverse();
    assert_eq!(succeed("limo-select", &arguments, &other), chosen);

    // What a person decided.
    let html = fs::read_to_string(folder.at("review.html")).unwrap();
    let start = html.find("id=\"rows\">").unwrap() + "id=\"rows\">".len();
    let page: Value = serde_json::from_str(&html[start..start + html[start..].find("</script>").unwrap()]).unwrap();
    let items = page["rows"].as_array().unwrap();
    assert_eq!(items.len(), 12);
    let decisions = [
        json!({"key": items[0]["key"], "decision": "reject"}),
        json!({"key": items[1]["key"], "decision": "edit", "solution": "Shorter."}),
        json!({"key": items[2]["key"], "decision": "accept"}),
    ];
    let decided = folder.write("decisions.jsonl", &decisions);
    let after = succeed("limo-select", &[&arguments[..6], &["--decisions", &decided]].concat(), &scored);
    assert_eq!(after.len(), 12);
    let solution = |id: &Value| after.iter().find(|row| row["id"] == *id).map(|row| row["solution"].clone());
    assert_ne!(solution(&chosen[0]["id"]), Some(chosen[0]["solution"].clone()), "it was rejected");
    assert_eq!(solution(&chosen[1]["id"]), Some("Shorter.".into()));
    // The rows are training rows.
    let file = folder.write("limo.jsonl", &chosen);
    let inspect = [
        "inspect",
        "data",
        "configs/tiny.toml",
        "-s",
        &format!("data.train=[\"{file}\"]"),
        "-s",
        "data.eval=[]",
        "-s",
        "data.max_tokens=100000",
        "-s",
        "train.micro_tokens=100000",
    ];
    let output = crate::command::limo_engine(&inspect);
    crate::command::succeed(output);
}

/// Runs a script in a folder, with the tools by their names in capitals.
fn bash(folder: &Folder, script: &str) {
    let output = Command::new("bash")
        .args(["-c", &format!("set -euo pipefail\n{script}")])
        .env("ENGINE", env!("CARGO_BIN_EXE_limo-engine"))
        .env("POOL", env!("CARGO_BIN_EXE_limo-pool"))
        .env("GRADE", env!("CARGO_BIN_EXE_limo-grade"))
        .env("DIFFICULTY", env!("CARGO_BIN_EXE_limo-difficulty"))
        .env("SCORE", env!("CARGO_BIN_EXE_limo-score"))
        .env("SELECT", env!("CARGO_BIN_EXE_limo-select"))
        .env("ROWS", Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/problems"))
        .env("MODEL", crate::sample_command::model())
        .current_dir(folder.0.path())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// The whole way as docs/data.md has it, by pipes: four files of three formats, a solver that samples and solves nothing, another one that solves some.
#[test]
fn tools_are_joined_by_pipes() {
    let folder = Folder::new();
    bash(
        &folder,
        r#"cat "$ROWS/numina.jsonl" | "$POOL" - "$ROWS/gsm8k.jsonl" "$ROWS/math.jsonl" --benchmark "$ROWS/benchmark.jsonl" --dropped dropped.jsonl > pool.jsonl
        "$ENGINE" sample --model "$MODEL" --input pool.jsonl --output small.jsonl -n 2 --max-tokens 8 --device cpu
        "$GRADE" --gold <(grep '"answer"' pool.jsonl) small.jsonl --allow-errors | "$DIFFICULTY" <(grep '"answer"' pool.jsonl) --samples small=/dev/stdin --rule "0..=0 of 2" > hard.jsonl"#,
    );
    let dropped: Vec<Value> = read(folder.at("dropped.jsonl")).iter().map(|row| row["dropped"]["reason"].clone()).collect();
    assert_eq!(dropped, ["near-duplicate", "benchmark"]);
    let (pool, hard) = (read(folder.at("pool.jsonl")), read(folder.at("hard.jsonl")));
    assert_eq!((pool.len(), hard.len()), (11, 10), "a proof has no answer");
    assert!(pool.iter().any(|row| row["source"] == "cn_k12") && pool.iter().any(|row| row["level"] == 4));
    // Of 4 samples of problem i, i % 5 are right; the later ones say more.
    let sample = |i: usize, number: usize| {
        let answer = if number < i % 5 { hard[i]["answer"].as_str().unwrap() } else { "0.123" };
        let text =
            format!("{}So it is \\boxed{{{answer}}}.", "Wait, we check this, since perhaps it is wrong. ".repeat(number + 1));
        json!({"id": hard[i]["id"], "sample": number, "text": text})
    };
    let samples: Vec<Value> =
        (0..10).flat_map(|i| (0..4).map(move |number| (i, number))).map(|(i, number)| sample(i, number)).collect();
    folder.write("large.jsonl", &samples);
    bash(
        &folder,
        r#""$GRADE" --gold hard.jsonl large.jsonl > graded.jsonl
        "$DIFFICULTY" hard.jsonl --samples large=graded.jsonl --rule "1..=3 of 4" > problems.jsonl
        "$SCORE" graded.jsonl | "$SELECT" --problems problems.jsonl --top 4 --balance source > chosen.jsonl"#,
    );
    let chosen = read(folder.at("chosen.jsonl"));
    assert_eq!((read(folder.at("problems.jsonl")).len(), chosen.len()), (6, 4));
    for row in &chosen {
        let at = hard.iter().position(|problem| problem["id"] == row["id"]).unwrap();
        // The best right one is the last right one.
        assert!(
            row["question"] == hard[at]["problem"]
                && row["answer"] == hard[at]["answer"]
                && row["source"] == hard[at]["source"]
        );
        assert_eq!((row["correct"].as_bool(), row["sample"].as_u64()), (Some(true), Some(at as u64 % 5 - 1)), "{row}");
    }
    assert!(chosen.windows(2).all(|pair| pair[0]["score"].as_f64() >= pair[1]["score"].as_f64()));
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

/// What was decided in one round of a review is part of the next.
#[test]
fn reviews_go_on() {
    let folder = Folder::new();
    let chain = |id: usize| json!({"id": id, "problem": format!("Problem {id} of {}", "abcdefgh".repeat(id + 1)), "response": format!("chain {id}"), "score": id, "correct": true});
    let chains: Vec<Value> = (0..5).map(chain).collect();
    let page = folder.at("review.html");
    let shown = || {
        let html = fs::read_to_string(&page).unwrap();
        let start = html.find("id=\"rows\">").unwrap() + "id=\"rows\">".len();
        serde_json::from_str::<Value>(&html[start..start + html[start..].find("</script>").unwrap()]).unwrap()
    };
    let select = |more: &[&str]| succeed("limo-select", &[&["--top", "3", "--review", &page], more].concat(), &chains);
    select(&[]);
    let first = shown();
    let key = |at: usize| first["rows"][at]["key"].clone();
    let one = folder.write(
        "one.jsonl",
        &[json!({"key": key(0), "decision": "reject"}), json!({"key": key(1), "decision": "edit", "solution": "new"})],
    );
    select(&["--decisions", &one]);
    let second = shown();
    assert_eq!(second["others"], json!([{"key": key(0), "decision": "reject"}]));
    assert_eq!(second["rows"][0]["decision"]["solution"], "new");
    assert_eq!(second["rows"][0]["chain"], "new");
    // A later file wins.
    let two = folder.write("two.jsonl", &[json!({"key": key(0), "decision": "accept"})]);
    let chosen = select(&["--decisions", &one, "--decisions", &two]);
    assert_eq!(chosen.iter().map(|row| row["id"].clone()).collect::<Vec<_>>(), [4, 3, 2]);
    assert_eq!(chosen[1]["solution"], "new");
    let empty = folder.write("empty.jsonl", &[json!({"key": key(0), "decision": "edit", "solution": " "})]);
    let (code, _, error) = run("limo-select", &["--decisions", &empty], lines(&chains));
    assert!(code == 3 && error.contains("empty.jsonl:1: no text in \"solution\""), "{error}");
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

/// LIMO's experiments: the same problems at each level of quality, problems of some levels.
#[test]
fn chains_are_chosen_by_fields_and_by_problems() {
    let folder = Folder::new();
    let texts = ["How many apples weigh a ton?", "Is seven prime, and why?", "Find the sum of all squares below ten."];
    let chain = |problem: usize, quality: &str, score: f64| json!({"id": problem, "problem": texts[problem], "level": problem + 1, "quality": quality, "score": score, "response": quality.repeat(3), "correct": true});
    let chains: Vec<Value> =
        (0..3).flat_map(|at| [chain(at, "L1", 0.1 * at as f64), chain(at, "L5", 1.0 - 0.1 * at as f64)]).collect();
    let ids = |rows: &[Value]| rows.iter().map(|row| (row["id"].as_u64().unwrap(), row["quality"].clone())).collect::<Vec<_>>();
    let two = succeed("limo-select", &["--top", "2"], &chains);
    assert_eq!(ids(&two), [(0, json!("L5")), (1, json!("L5"))]);
    let two = folder.write("two.jsonl", &two);
    let low = succeed("limo-select", &["--only", "quality=L1", "--problems", &two], &chains);
    assert_eq!(ids(&low), [(1, json!("L1")), (0, json!("L1"))]);
    let easy = succeed("limo-select", &["--only", "level=1,3", "--only", "quality=L5"], &chains);
    assert_eq!(ids(&easy), [(0, json!("L5")), (2, json!("L5"))]);
    let (code, _, error) = run("limo-select", &["--only", "=x"], lines(&chains));
    assert!(code == 2 && error.contains("FIELD=VALUE"), "{error}");
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

/// A judge's answers come back to their chains.
#[test]
fn verdicts_join_their_chains() {
    let folder = Folder::new();
    let chain = |id: usize, model: &str, words: usize| json!({"id": id, "model": model, "problem": "P?", "response": "we check and perhaps ".repeat(words)});
    let chains = [chain(1, "a", 5), chain(1, "b", 50), chain(2, "a", 500), chain(3, "a", 2)];
    let requests = folder.at("requests.jsonl");
    succeed("limo-score", &["--rubric", &requests], &chains);
    let asked = read(&requests);
    assert!(
        asked.len() == 4
            && asked.iter().all(|row| row["messages"][1]["content"].as_str().unwrap().contains("<solution>\nwe check"))
    );
    let verdict = |at: usize, grade: u8| json!({"id": asked[at]["id"], "sample": 0, "text": format!("Well.\n{{\"structure\": {grade}, \"scaffolding\": {grade}, \"verification\": {grade}}}")});
    let answers = folder.write(
        "verdicts.jsonl",
        &[verdict(2, 5), verdict(0, 2), verdict(1, 4), json!({"id": asked[3]["id"], "sample": 0, "text": "3 of 5"})],
    );
    let (code, scored, error) = run("limo-score", &["--verdicts", &answers], lines(&chains));
    assert!(code == 3 && error.contains("verdicts.jsonl:4: the last line is no verdict"), "{error}");
    assert!(error.contains("rank correlation 1.000 over 3 chains"), "{error}");
    assert_eq!(
        scored.iter().map(|row| row["rubric"]["structure"].as_u64()).collect::<Vec<_>>(),
        [Some(2), Some(4), Some(5), None]
    );
}

/// The table of outputs of several models, one file each, as `limo-engine sample` writes them.
#[test]
fn outputs_are_compared_by_file() {
    let folder = Folder::new();
    let output = |text: &str, tokens: usize| json!({"id": 1, "sample": 0, "text": text, "tokens": tokens});
    let short = folder.write("short.jsonl", &[output("number number", 2), output("number", 4)]);
    let long = folder.write("long.jsonl", &[output("wait perhaps wait", 50)]);
    let (code, rows, error) = run("limo-score", &[&short, &long, "--by", "file"], "");
    assert_eq!((code, rows.len()), (0, 3), "{error}");
    let cells = |start: &str| {
        error.lines().find(|line| line.starts_with(start)).unwrap().split_whitespace().map(str::to_string).collect::<Vec<_>>()
    };
    let (short, long) = (cells(&short), cells(&long));
    assert_eq!((short[1].as_str(), short[4].as_str(), short[5].as_str()), ("2", "3", "number"));
    assert_eq!((long[1].as_str(), long[4].as_str(), long[5..].join(" ").as_str()), ("1", "50", "wait, perhaps"));
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
