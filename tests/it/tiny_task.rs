//! configs/tiny is what its generator writes, and its held-out problems are new.

/// The generator itself, whose `main` nobody calls here.
#[allow(dead_code)]
#[path = "../../examples/make_tiny_task/main.rs"]
mod make_tiny_task;

use make_tiny_task::task;
use serde_json::Value;
use std::collections::HashSet;
use std::path::Path;

fn committed(name: &str) -> Vec<u8> {
    std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/tiny").join(name)).unwrap()
}

fn rows(name: &str) -> Vec<Value> {
    String::from_utf8(committed(name)).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn the_generator_writes_the_committed_bytes_every_time() {
    for (name, bytes) in task::files().unwrap().into_iter().chain(task::files().unwrap()) {
        assert!(bytes == committed(name), "configs/tiny/{name}: run `cargo run --release --example make_tiny_task`");
    }
}

#[test]
fn no_held_out_problem_is_in_the_training_set() {
    let (train, held_out) = (rows("train.jsonl"), rows("heldout.jsonl"));
    assert!(held_out.len() >= 200);
    // Neither the text nor, whatever the story around it, the sequence of equations.
    let equations = |row: &Value| {
        let solution = row["solution"].as_str().unwrap();
        let check = solution.split("check: ").nth(1).and_then(|rest| rest.split(" That").next()).unwrap();
        check.to_string()
    };
    let questions: HashSet<&Value> = train.iter().map(|row| &row["question"]).collect();
    let computations: HashSet<String> = train.iter().map(equations).collect();
    assert_eq!(questions.len(), train.len());
    for row in &held_out {
        assert!(!questions.contains(&row["question"]) && !computations.contains(&equations(row)), "{row}");
    }
}

/// Every equation in every solution is right, and the boxed number is the answer.
#[test]
fn the_solutions_are_true() {
    for row in rows("train.jsonl").iter().chain(&rows("heldout.jsonl")) {
        let solution = row["solution"].as_str().unwrap();
        let mut equations = 0;
        for word in solution.split([' ', '\n']).map(|word| word.trim_end_matches(['.', ','])) {
            let Some((left, right)) = word.split_once('=') else { continue };
            let (at, op) = left.char_indices().skip(1).find(|(_, c)| "+-*/".contains(*c)).unwrap();
            let number = |text: &str| text.parse::<i64>().unwrap();
            let (a, b) = (number(&left[..at]), number(&left[at + 1..]));
            let (value, exact) = match op {
                '+' => (a + b, true),
                '-' => (a - b, true),
                '*' => (a * b, true),
                _ => (a / b, a % b == 0),
            };
            assert!(exact && value == number(right), "{word} in {row}");
            equations += 1;
        }
        assert!(equations >= 4, "{row}");
        assert!(solution.starts_with("Okay, so I need to ") && solution.contains("Wait, let me check: "));
        assert!(solution.ends_with(&format!("**Final Answer**\n\\boxed{{{}}}", row["answer"].as_str().unwrap())));
    }
}
