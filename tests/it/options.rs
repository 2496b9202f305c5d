//! Options end to end: schedules, evaluation, samples, what a step records, and contradictions.

use crate::command::{limo_engine, succeed};
use serde_json::Value;
use std::f64::consts::PI;
use std::fs;
use std::path::PathBuf;
use tempfile::TempDir;

struct Setup {
    folder: TempDir,
}

impl Setup {
    fn new() -> Setup {
        let folder = tempfile::tempdir().unwrap();
        let model = r#"{"model_type": "qwen2", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 600}"#;
        fs::write(folder.path().join("config.json"), model).unwrap();
        let row =
            |i: usize| format!("{{\"question\": \"{i} + 1?\", \"solution\": \"{}\", \"answer\": \"{}\"}}\n", i + 1, i + 1);
        fs::write(folder.path().join("rows.jsonl"), (0..10).map(row).collect::<String>()).unwrap();
        fs::write(folder.path().join("eval.jsonl"), (20..27).map(row).collect::<String>()).unwrap();
        Setup { folder }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Trains with these keys set; 10 rows in batches of 4, 2 epochs, are 6 steps.
    fn train(&self, settings: &[&str]) -> (i32, String, String) {
        let text = format!(
            "model = {{ config = {:?}, tokenizer = \"configs/tiny\" }}\ndata.train = [{:?}]\n\
             train = {{ batch = 4, epochs = 2 }}\noutput.dir = {:?}\n",
            self.at("config.json"),
            self.at("rows.jsonl"),
            self.at("run")
        );
        let config = self.at("run.toml");
        fs::write(&config, text).unwrap();
        let mut arguments = vec!["train", config.to_str().unwrap(), "--device", "cpu", "--overwrite"];
        arguments.extend(settings.iter().flat_map(|setting| ["-s", setting]));
        limo_engine(&arguments)
    }

    fn rows(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.at("run/metrics.jsonl")).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// One number of every row that has it.
    fn series(&self, key: &str) -> Vec<f64> {
        self.rows().iter().filter_map(|row| row.get(key)?.as_f64()).collect()
    }

    fn steps_with(&self, key: &str) -> Vec<u64> {
        self.rows().iter().filter(|row| row.get(key).is_some()).map(|row| row["step"].as_u64().unwrap()).collect()
    }

    fn refused(&self, settings: &[&str], expected: &[&str]) {
        let (code, _, error) = self.train(settings);
        assert_eq!(code, 2, "{error}");
        for expected in expected {
            assert!(error.contains(expected), "should mention {expected}: {error}");
        }
        assert!(!self.at("run").exists());
    }
}

/// transformers' get_cosine_schedule_with_warmup, get_linear_schedule_with_warmup and get_constant_schedule_with_warmup at step k of T.
#[test]
fn learning_rates_are_those_of_transformers() {
    let setup = Setup::new();
    let (lr, warm_up, total) = (0.01, 2.0, 6.0);
    let warmed = |k: f64, then: fn(f64) -> f64| if k < warm_up { k / warm_up } else { then((k - warm_up) / (total - warm_up)) };
    type Course = fn(f64) -> f64;
    let schedules: [(&str, Course); 3] =
        [("cosine", |p| 0.5 * (1.0 + (PI * p).cos())), ("linear", |p| 1.0 - p), ("constant", |_| 1.0)];
    for (name, then) in schedules {
        let schedule = format!("optimizer.schedule={name}");
        succeed(setup.train(&["optimizer.lr=0.01", &schedule, "optimizer.warmup_ratio=0.3"]));
        let rates = setup.series("lr");
        assert_eq!(rates.len(), 6);
        for (k, rate) in rates.into_iter().enumerate() {
            assert!((rate - lr * warmed(k as f64, then)).abs() < 1e-15, "{name} at step {k}: {rate}");
        }
    }
}

#[test]
fn steps_count_partial_batches_and_epochs() {
    let setup = Setup::new();
    succeed(setup.train(&[]));
    let rows = setup.rows();
    let tokens = setup.series("tokens");
    assert_eq!(setup.series("epoch"), [1.0 / 3.0, 2.0 / 3.0, 1.0, 4.0 / 3.0, 5.0 / 3.0, 2.0]);
    // The last batch of an epoch has two rows of ten; an epoch has every row once.
    assert!(tokens[2] < 0.7 * tokens[0] && tokens[..3].iter().sum::<f64>() == tokens[3..].iter().sum::<f64>(), "{tokens:?}");
    assert!(rows.iter().all(|row| row["supervised_tokens"].as_u64() < row["tokens"].as_u64()));
    // In the middle of an epoch.
    succeed(setup.train(&["train.max_steps=4"]));
    assert_eq!(setup.steps_with("loss"), [1, 2, 3, 4]);
    // A batch larger than the data is all of it.
    succeed(setup.train(&["train.batch=100"]));
    assert_eq!(setup.series("epoch"), [1.0, 2.0]);
}

#[test]
fn evaluations_come_when_they_are_asked_for() {
    let setup = Setup::new();
    let eval = format!("data.eval=[{:?}]", setup.at("eval.jsonl"));
    for (every, expected) in [("\"epoch\"", &[3, 6][..]), ("1", &[1, 2, 3, 4, 5, 6]), ("4", &[4, 6]), ("100", &[6])] {
        let every = format!("train.eval_every={every}");
        succeed(setup.train(&[&eval, &every]));
        assert_eq!(setup.steps_with("eval_loss"), expected, "{every}");
        for row in setup.rows().iter().filter(|row| row.get("eval_loss").is_some()) {
            assert!(row.get("loss").is_none() && row["supervised_tokens"].is_u64() && row["epoch"].is_number(), "{row}");
        }
        assert_eq!(setup.steps_with("loss"), [1, 2, 3, 4, 5, 6]);
    }
    // A token mean over all rows: that of `score` on the exported model, whose weights are those of the last evaluation.
    succeed(setup.train(&[&eval, "train.normalize=sequences"]));
    let [model, input, output] = ["run/model", "eval.jsonl", "scores.jsonl"].map(|name| setup.at(name).display().to_string());
    succeed(limo_engine(&["score", "--model", &model, "--input", &input, "--output", &output, "--device", "cpu"]));
    let (mut sum, mut count) = (0.0, 0.0);
    for line in fs::read_to_string(&output).unwrap().lines() {
        let row: Value = serde_json::from_str(line).unwrap();
        let tokens = row["supervised_tokens"].as_f64().unwrap();
        sum -= row["mean_logprob"].as_f64().unwrap() * tokens;
        count += tokens;
    }
    let last = *setup.series("eval_loss").last().unwrap();
    assert!((last / (sum / count) - 1.0).abs() < 1e-6, "{last} {}", sum / count);
}

#[test]
fn samples_are_answered_before_during_and_after() {
    let setup = Setup::new();
    let prompts = [
        r#"{"id": "q", "question": "3 + 4?", "answer": "7"}"#,
        r#"{"id": "m", "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1?"}, {"role": "assistant", "content": "2"}, {"role": "user", "content": "3?"}]}"#,
        r#"{"id": "p", "prompt": "5?", "response": "not shown"}"#,
        r#"{"id": "left out", "prompt": "6?"}"#,
    ];
    fs::write(setup.at("prompts.jsonl"), prompts.join("\n")).unwrap();
    let file = format!("samples.file={}", setup.at("prompts.jsonl").display());
    let output = succeed(setup.train(&[&file, "samples.n=3", "samples.max_tokens=5", "train.eval_every=3"]));
    for step in [0, 3, 6] {
        for id in ["\"q\": 3 + 4?", "\"m\": 3?", "\"p\": 5?"] {
            assert!(output.contains(&format!("sample at step {step}, id {id}\n")), "{step} {id}: {output}");
        }
        assert!(output.contains(&format!("exact match at step {step}: ")), "{output}");
    }
    assert!(!output.contains("left out") && !output.contains("not shown") && !output.contains("sample at step 1,"), "{output}");
}

#[test]
fn a_step_line_says_what_the_metrics_say() {
    let setup = Setup::new();
    let output = succeed(setup.train(&[]));
    let lines: Vec<&str> = output.lines().filter(|line| line.starts_with("step ")).collect();
    assert_eq!(lines.len(), 6, "a line a step away from a terminal: {output}");
    for (line, row) in lines.iter().zip(setup.rows()) {
        let number = |key: &str| row[key].as_f64().unwrap();
        for part in [
            format!("step {}/6", row["step"]),
            format!("loss {:.4}", number("loss")),
            format!("norm {:.3}", number("grad_norm")),
            format!("lr {:.2e}", number("lr")),
            format!("{:.0} tokens/s", number("tokens_per_s")),
            "MiB".into(),
            "ETA ".into(),
        ] {
            assert!(line.contains(&part), "should have {part}: {line}");
        }
    }
    assert!(lines[5].ends_with("ETA 0:00"));
}

#[test]
fn contradictions_and_mistakes_exit_with_2() {
    let setup = Setup::new();
    setup.refused(&["optimizer.warmup_steps=2", "optimizer.warmup_ratio=0.1"], &["warmup_steps", "warmup_ratio"]);
    setup.refused(&["samples.n=3"], &["samples.n", "samples.file"]);
    setup.refused(&["train.epoch=3"], &["train.epoch", "train.epochs"]);
    setup.refused(&["train.epochs=\"three\""], &["train.epochs", "three"]);
    setup.refused(&["train.batch=0"], &["train.batch"]);
    setup.refused(&["optimizer.betas=[0.9, 1.0]"], &["optimizer.betas"]);
    setup.refused(&["data.overlong=cut"], &["data.overlong", "truncate"]);
    setup.refused(&["optimizer.master=stochastic"], &["optimizer.master", "--dtype bf16"]);
    setup.refused(&["memory.gradient_release=true"], &["memory.gradient_release", "optimizer.clip"]);
}

/// A file in the way of the folder, and a folder that may not be written to.
#[test]
fn an_output_that_cannot_be_written_exits_with_2() {
    let setup = Setup::new();
    fs::write(setup.at("run"), "a file").unwrap();
    let (code, _, error) = setup.train(&[]);
    assert!(code == 2 && error.contains("output.dir is not a folder"), "{code}: {error}");
    fs::remove_file(setup.at("run")).unwrap();
    fs::create_dir(setup.at("run")).unwrap();
    fs::write(setup.at("run/notes.txt"), "mine").unwrap();
    let (code, _, error) = setup.train(&[]);
    assert!(code == 2 && error.contains("notes.txt") && error.contains("no run of limo-engine wrote"), "{code}: {error}");
    assert_eq!(fs::read_to_string(setup.at("run/notes.txt")).unwrap(), "mine");
    let (code, _, error) = setup.train(&["output.dir=/proc/limo"]);
    assert!(code == 2 && error.contains("/proc/limo cannot be written") && error.contains("help: "), "{code}: {error}");
}
