//! The files of the tiny task.

use super::problem::{Problem, problem};
use super::random::Random;
use super::tokenizer::{END_OF_TEXT, END_OF_TURN, tokenizer, tokenizer_config};
use serde_json::{Value, json};
use std::collections::HashSet;

const SEED: u64 = 250_203_387;
const TRAIN_ROWS: usize = 1500;
const HELD_OUT_ROWS: usize = 256;
/// A multiple of 64: rows past the tokenizer exist, as in the released models, and must never be sampled.
const MODEL_VOCABULARY: usize = 512;

pub type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Name and content of every file, a pure function of the constants here.
pub fn files() -> Result<Vec<(&'static str, Vec<u8>)>, Failure> {
    let problems = distinct_problems();
    let (held_out, train) = problems.split_at(HELD_OUT_ROWS);
    Ok(vec![
        ("train.jsonl", rows(train)),
        ("heldout.jsonl", rows(held_out)),
        ("tokenizer.json", tokenizer(train)?),
        ("tokenizer_config.json", pretty(&tokenizer_config())?),
        ("config.json", pretty(&model_config())?),
        ("generation_config.json", pretty(&generation_config())?),
    ])
}

/// No two problems share a computation, so no held-out answer can be looked up.
fn distinct_problems() -> Vec<Problem> {
    let mut random = Random(SEED);
    let mut seen = HashSet::new();
    let mut problems = Vec::new();
    while problems.len() < TRAIN_ROWS + HELD_OUT_ROWS {
        problems.extend(problem(&mut random).filter(|p| seen.insert(p.computation.clone())));
    }
    problems
}

fn rows(problems: &[Problem]) -> Vec<u8> {
    let row = |p: &Problem| json!({ "question": p.question, "solution": p.solution, "answer": p.answer.to_string() });
    problems.iter().map(|p| format!("{}\n", row(p))).collect::<String>().into_bytes()
}

fn pretty(value: &Value) -> Result<Vec<u8>, Failure> {
    Ok((serde_json::to_string_pretty(value)? + "\n").into_bytes())
}

fn generation_config() -> Value {
    json!({ "eos_token_id": [END_OF_TURN, END_OF_TEXT], "pad_token_id": END_OF_TEXT, "do_sample": false })
}

fn model_config() -> Value {
    json!({
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_size": 96,
        "intermediate_size": 384,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
        "hidden_act": "silu",
        "vocab_size": MODEL_VOCABULARY,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "tie_word_embeddings": true,
        "use_sliding_window": false,
        "attention_dropout": 0.0,
        // About 1/√96: with transformers' 0.02, made for wider models, some seeds learn much slower.
        "initializer_range": 0.1,
        "eos_token_id": END_OF_TURN,
        "pad_token_id": END_OF_TEXT,
        "torch_dtype": "float32"
    })
}
