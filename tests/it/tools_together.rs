//! The companion tools one after another: from a pool to training rows, by pipes, reviewed, judged, and as LIMO's experiments need them.

use crate::tools::{Folder, lines, read, response, run, succeed, tiny};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use std::process::Command;

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
