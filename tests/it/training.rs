//! Whole runs: the tiny task, real data, the run folder, and what a run must not depend on.

use crate::command::{limo_engine, succeed};
use limo_engine::comm::Solo;
use limo_engine::config::{ModelConfig, Normalize};
use limo_engine::data::{Example, pack};
use limo_engine::model::{Keep, random_reader};
use limo_engine::ops::Ops;
use limo_engine::ops::cpu::{Cpu, CpuBf16};
use limo_engine::tensor::DType;
use limo_engine::testing::compare::distance;
use limo_engine::train::{Engine, Loss, Sizes};
use serde_json::Value;
use std::path::Path;
use std::rc::Rc;

fn jsonl(path: &Path) -> Vec<Value> {
    std::fs::read_to_string(path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The counts of a line "exact match at step N: C/T = …".
fn exact_match(line: &str) -> (usize, f64, f64) {
    let (step, counts) = line.strip_prefix("exact match at step ").unwrap().split_once(": ").unwrap();
    let (correct, total) = counts.split(' ').next().unwrap().split_once('/').unwrap();
    (step.parse().unwrap(), correct.parse().unwrap(), total.parse().unwrap())
}

#[test]
fn the_tiny_task_is_learnt() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("tiny");
    let output_dir = format!("output.dir={}", run.display());
    let train = ["train", "configs/tiny.toml", "--device", "cpu", "-s", &output_dir];
    let output = succeed(limo_engine(&train));

    let matches: Vec<_> = output.lines().filter(|line| line.starts_with("exact match")).map(exact_match).collect();
    let (&(first, before, total), &(last, after, _)) = (matches.first().unwrap(), matches.last().unwrap());
    assert!(first == 0 && last > 0 && total >= 200.0, "{matches:?}");
    let gain = 100.0 * (after - before) / total;
    println!("exact match {before} -> {after} of {total}: +{gain:.1} points");
    assert!(gain >= 20.0, "the tiny task gains {gain:.1} points: {matches:?}");

    let metrics = jsonl(&run.join("metrics.jsonl"));
    let steps: Vec<&Value> = metrics.iter().filter(|row| row.get("loss").is_some()).collect();
    assert_eq!(steps.len(), last);
    for (index, row) in steps.iter().enumerate() {
        assert_eq!(row["step"], index + 1);
        for key in ["epoch", "loss", "grad_norm", "lr", "tokens", "supervised_tokens", "tokens_per_s", "memory", "seconds"] {
            assert!(row[key].is_number(), "{key} of {row}");
        }
    }
    assert_eq!(steps[0]["lr"], 0.0, "the first step of a warm-up has rate 0");
    for file in
        ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "generation_config.json", "limo.json"]
    {
        assert!(run.join("model").join(file).is_file(), "the exported model has no {file}");
    }

    assert!(succeed(limo_engine(&train)).contains("finished run"));
    let (code, _, error) = limo_engine(&[&train[..], &["--resume", "never"]].concat());
    assert!(code == 2 && error.contains("--overwrite"), "{code}: {error}");

    let scores = folder.path().join("scores.jsonl");
    let model = run.join("model");
    let paths = [&model, &scores].map(|path| path.to_str().unwrap());
    let score = ["score", "--model", paths[0], "--input", "configs/tiny/heldout.jsonl", "--output", paths[1], "--logprobs"];
    succeed(limo_engine(&score));
    let rows = jsonl(&scores);
    let held_out = jsonl(Path::new("configs/tiny/heldout.jsonl"));
    assert_eq!(rows.len(), held_out.len());
    for (index, row) in rows.iter().enumerate() {
        assert_eq!(row["id"], held_out[index].get("id").cloned().unwrap_or(index.into()));
        let logprobs: Vec<f64> = row["logprobs"].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect();
        assert_eq!(logprobs.len() as u64, row["supervised_tokens"].as_u64().unwrap());
        assert_eq!(logprobs.len(), row["token_ids"].as_array().unwrap().len());
        let mean = logprobs.iter().sum::<f64>() / logprobs.len() as f64;
        assert!((mean - row["mean_logprob"].as_f64().unwrap()).abs() < 1e-6);
    }
    let mean = rows.iter().map(|row| row["mean_logprob"].as_f64().unwrap()).sum::<f64>() / rows.len() as f64;
    assert!(mean > -1.0, "a trained model finds held-out answers likely, not {mean}");
}

/// One epoch over real problems with their solutions, under a tokenizer that was made for another text.
#[test]
fn one_epoch_of_math500() {
    let data = Path::new("../shared/data/benchmarks/math.jsonl");
    if !data.exists() {
        println!("skipped: 1 test needs {}", data.display());
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let config = folder.path().join("math.toml");
    std::fs::write(
        &config,
        format!(
            r#"
            model = {{ config = "{0}/config.json", tokenizer = "configs/tiny" }}
            data = {{ train = ["{1}"], fields = {{ prompt = "problem", response = "solution" }}, max_tokens = 768, overlong = "drop" }}
            train = {{ batch = 8, micro_tokens = 4096 }}
            optimizer = {{ lr = 3e-3, warmup_steps = 4 }}
            output = {{ dir = "{2}" }}"#,
            folder.path().display(),
            data.display(),
            run.display()
        ),
    )
    .unwrap();
    let mut model: Value = serde_json::from_str(&std::fs::read_to_string("configs/tiny/config.json").unwrap()).unwrap();
    for (key, value) in [("hidden_size", 64), ("intermediate_size", 192), ("num_hidden_layers", 2), ("num_attention_heads", 4)]
    {
        model[key] = value.into();
    }
    std::fs::write(folder.path().join("config.json"), model.to_string()).unwrap();

    let output = succeed(limo_engine(&["train", config.to_str().unwrap(), "--device", "cpu"]));
    let line = output.lines().find(|line| line.starts_with("train: ")).unwrap();
    let numbers: Vec<usize> = line.split([' ', ',']).filter_map(|word| word.parse().ok()).collect();
    let [rows, used, rejected] = numbers[..3] else { panic!("{line}") };
    assert_eq!((rows, used + rejected), (500, 500), "{line}");
    assert_eq!(output.lines().filter(|line| line.starts_with("  rejected ")).count(), rejected);
    assert!(used > 300, "{line}");
    let losses: Vec<f64> = jsonl(&run.join("metrics.jsonl")).iter().map(|row| row["loss"].as_f64().unwrap()).collect();
    assert_eq!(losses.len(), used.div_ceil(8));
    let mean = |losses: &[f64]| losses.iter().sum::<f64>() / losses.len() as f64;
    let (first, last) = (mean(&losses[..4]), mean(&losses[losses.len() - 4..]));
    println!("{line}\nloss {first:.3} -> {last:.3}");
    assert!(last < 0.75 * first, "the loss does not fall: {losses:?}");
}

/// A small model with what makes layouts go wrong: grouped heads, odd widths.
fn small_model() -> ModelConfig {
    ModelConfig {
        hidden_size: 36,
        intermediate_size: 50,
        num_hidden_layers: 3,
        num_attention_heads: 6,
        num_key_value_heads: 2,
        head_dim: 6,
        vocab_size: 70,
        max_position_embeddings: 128,
        rms_norm_eps: 1e-6,
        rope_theta: 10_000.0,
        tie_word_embeddings: true,
        initializer_range: 0.1,
    }
}

fn examples() -> Vec<Example> {
    let example = |(row, length): (usize, &usize)| Example {
        id: row.to_string(),
        tokens: (0..*length).map(|t| ((t * t + 7 * row + 3 * t) % 70) as i32).collect(),
        supervised: (0..*length).map(|t| t >= length / 3).collect(),
    };
    [9, 31, 4, 17, 23].iter().enumerate().map(example).collect()
}

/// Loss and gradients of one step, whose micro-batches are padded to a multiple of `multiple` tokens.
fn step(ops: impl Ops + 'static, keep: Keep, multiple: usize) -> (Loss, Vec<f32>) {
    let examples = examples();
    let rows: Vec<&Example> = examples.iter().collect();
    let sizes = Sizes::new(48usize.next_multiple_of(multiple), multiple.max(31), keep);
    let mut engine = Engine::solo(Box::new(ops), &small_model(), &sizes).unwrap();
    engine.state.weights.load(engine.ops.as_ref(), &mut *random_reader(7, 0.1)).unwrap();
    let batches: Vec<_> = pack(&rows, 48, true).unwrap().iter().map(|batch| batch.padded(multiple)).collect();
    let loss = engine.accumulate(&batches, rows.len(), Normalize::Sequences, 0, &|| Ok(())).unwrap();
    let mut all = Vec::new();
    let visited = engine.state.gradients.visit(engine.ops.as_ref(), |_, values| {
        all.extend_from_slice(values);
        Ok(())
    });
    visited.unwrap();
    (loss, all)
}

fn gradients(keep: Keep) -> Vec<f32> {
    step(Cpu, keep, 1).1
}

#[test]
fn recomputation_changes_no_bits() {
    let kept = gradients(Keep::All);
    assert!(kept.iter().all(|g| g.is_finite()) && kept.iter().any(|&g| g != 0.0));
    for keep in [Keep::Attention, Keep::Stream] {
        assert!(gradients(keep) == kept, "{keep:?} differs from All");
    }
}

#[test]
fn padding_changes_no_bits() {
    assert!(step(Cpu, Keep::All, 64) == step(Cpu, Keep::All, 1), "in f32");
    assert!(step(CpuBf16, Keep::All, 64) == step(CpuBf16, Keep::All, 1), "in bf16");
}

/// Against f32: a gradient of bf16 activations errs by some of their roundings, 2⁻⁹ each, and is the same however it is recomputed.
#[test]
fn storage_in_bf16_follows_f32() {
    let (exact, exact_gradients) = step(Cpu, Keep::All, 1);
    let (loss, gradients) = step(CpuBf16, Keep::All, 1);
    let reference: Vec<f64> = exact_gradients.iter().map(|&g| g.into()).collect();
    let error = distance(&gradients, &reference).relative_l2;
    println!("loss {} in f32, {} in bf16; gradients differ by {error:.2e}", exact.value, loss.value);
    assert!((1e-4..2e-2).contains(&error), "{error:e}");
    assert!((loss.value / exact.value - 1.0).abs() < 1e-3 && loss.value != exact.value, "{loss:?} {exact:?}");
    for keep in [Keep::Attention, Keep::Stream] {
        assert!(step(CpuBf16, keep, 1) == (loss, gradients.clone()), "{keep:?} differs from All");
    }
}

#[test]
fn threads_change_no_bits() {
    let with_threads = |n| rayon::ThreadPoolBuilder::new().num_threads(n).build().unwrap().install(|| gradients(Keep::All));
    assert!(with_threads(1) == with_threads(3));
}

#[test]
fn a_changed_neighbour_changes_nothing() {
    let losses = |examples: &[Example]| {
        let rows: Vec<&Example> = examples.iter().collect();
        let mut engine = Engine::solo(Box::new(Cpu), &small_model(), &Sizes::new(96, 31, Keep::All)).unwrap();
        engine.state.weights.load(&Cpu, &mut *random_reader(7, 0.1)).unwrap();
        let batch = &pack(&rows, 96, true).unwrap()[0];
        let bounds = batch.cu_seqlens.clone();
        (engine.token_losses(batch).unwrap(), bounds, batch.rows.clone())
    };
    let mut changed = examples();
    changed[1].tokens.iter_mut().for_each(|token| *token = (*token + 11) % 70);
    let ((before, bounds, rows), (after, _, _)) = (losses(&examples()), losses(&changed));
    assert_eq!(rows, [0, 1, 2, 3, 4]);
    for row in 0..5 {
        let range = bounds[row] as usize..bounds[row + 1] as usize;
        assert_eq!(before[range.clone()] == after[range], row != 1, "row {row}");
    }
}

/// What one row of a packed micro-batch contributes to the gradient, whatever stands in the others.
#[test]
fn a_changed_neighbour_changes_no_gradient() {
    let gradients = |row: usize, shift: i32| {
        let mut examples = examples();
        for (other, example) in examples.iter_mut().enumerate().filter(|(other, _)| *other != row) {
            example.tokens.iter_mut().for_each(|token| *token = (*token + shift * (other as i32 + 1)) % 70);
            // One target has a scale of its own; the neighbours' is 0 all the same.
            example.supervised.fill(false);
        }
        let rows: Vec<&Example> = examples.iter().collect();
        let batches = pack(&rows, 96, true).unwrap();
        assert_eq!(batches.len(), 1, "all rows are packed together");
        let sizes = Sizes::new(96, 31, Keep::All);
        let mut engine = Engine::solo(Box::new(Cpu), &small_model(), &sizes).unwrap();
        engine.state.weights.load(&Cpu, &mut *random_reader(7, 0.1)).unwrap();
        engine.accumulate(&batches, rows.len(), Normalize::Tokens, 0, &|| Ok(())).unwrap();
        let mut all = Vec::new();
        let visited = engine.state.gradients.visit(&Cpu, |_, values| {
            all.extend_from_slice(values);
            Ok(())
        });
        visited.unwrap();
        all
    };
    for row in 0..5 {
        let before = gradients(row, 0);
        assert!(before.iter().any(|&g| g != 0.0) && gradients(row, 11) == before, "row {row}");
    }
    assert!(gradients(0, 0) != gradients(1, 0));
}

#[test]
fn the_plan_is_what_is_reserved() {
    let sizes = Sizes::new(48, 31, Keep::Stream);
    let engine = Engine::solo(Box::new(Cpu), &small_model(), &sizes).unwrap();
    assert_eq!(Engine::plan(DType::F32, 1, Rc::new(Solo), &small_model(), &sizes).unwrap().0, engine.ledgers);
}
