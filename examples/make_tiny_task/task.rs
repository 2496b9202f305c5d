//! The files of the tiny task.

use super::problems::{Problem, Random, problem};
use serde_json::{Value, json};
use std::collections::HashSet;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::normalizers::NFC;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, SplitDelimiterBehavior, TokenizerImpl};

const SEED: u64 = 250_203_387;
const TRAIN_ROWS: usize = 1500;
const HELD_OUT_ROWS: usize = 256;
/// Byte alphabet and merges; the three special tokens follow.
const BASE_VOCABULARY: usize = 460;
/// A multiple of 64: rows past the tokenizer exist, as in the released models, and must never be sampled.
const MODEL_VOCABULARY: usize = 512;
const SPECIAL: [&str; 3] = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];
/// Qwen2's pattern: digits stand alone.
const PATTERN: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// The default system turn of the chat template.
const SYSTEM: &str = "system\nReason step by step.";
/// ChatML: a system turn only where one is given, or the default.
const CHAT_TEMPLATE: &str = "{%- if messages[0].role != 'system' -%}\n\
    {{- '<|im_start|>system\\nReason step by step.<|im_end|>\\n' -}}\n\
    {%- endif -%}\n\
    {%- for message in messages -%}\n\
    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' -}}\n\
    {%- endfor -%}\n\
    {%- if add_generation_prompt -%}\n\
    {{- '<|im_start|>assistant\\n' -}}\n\
    {%- endif -%}\n";

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Name and content of every file, a pure function of the constants above.
pub fn files() -> Result<Vec<(&'static str, Vec<u8>)>, Failure> {
    let problems = distinct_problems();
    let (held_out, train) = problems.split_at(HELD_OUT_ROWS);
    let end = BASE_VOCABULARY + 2;
    Ok(vec![
        ("train.jsonl", rows(train)),
        ("heldout.jsonl", rows(held_out)),
        ("tokenizer.json", tokenizer(train)?),
        ("tokenizer_config.json", pretty(&tokenizer_config())?),
        ("config.json", pretty(&model_config())?),
        (
            "generation_config.json",
            pretty(&json!({ "eos_token_id": [end, end - 2], "pad_token_id": end - 2, "do_sample": false }))?,
        ),
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

fn tokenizer(train: &[Problem]) -> Result<Vec<u8>, Failure> {
    let split = Split::new(SplitPattern::Regex(PATTERN.into()), SplitDelimiterBehavior::Isolated, false)?;
    let bytes = ByteLevel::new(false, false, false);
    let mut tokenizer: TokenizerImpl<BPE, NFC, Sequence, ByteLevel, ByteLevel> = TokenizerImpl::new(BPE::default());
    tokenizer
        .with_normalizer(Some(NFC))?
        .with_pre_tokenizer(Some(Sequence::new(vec![split.into(), bytes.into()])))
        .with_post_processor(Some(bytes))
        .with_decoder(Some(bytes));
    let mut trainer = BpeTrainer::builder()
        .vocab_size(BASE_VOCABULARY)
        .show_progress(false)
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .build();
    tokenizer.train(&mut trainer, train.iter().map(|p| format!("{SYSTEM}user\n{}assistant\n{}", p.question, p.solution)))?;
    tokenizer.add_special_tokens(SPECIAL.map(|token| AddedToken::from(token, true)))?;
    Ok((tokenizer.to_string(true)? + "\n").into_bytes())
}

fn tokenizer_config() -> Value {
    json!({
        "tokenizer_class": "Qwen2Tokenizer",
        "add_bos_token": false,
        "add_prefix_space": false,
        "bos_token": null,
        "eos_token": SPECIAL[2],
        "pad_token": SPECIAL[0],
        "unk_token": null,
        "errors": "replace",
        "model_max_length": 512,
        "split_special_tokens": false,
        "clean_up_tokenization_spaces": false,
        "chat_template": CHAT_TEMPLATE
    })
}

fn model_config() -> Value {
    json!({
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_size": 128,
        "intermediate_size": 512,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "hidden_act": "silu",
        "vocab_size": MODEL_VOCABULARY,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "tie_word_embeddings": true,
        "use_sliding_window": false,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "bos_token_id": BASE_VOCABULARY,
        "eos_token_id": BASE_VOCABULARY + 2,
        "torch_dtype": "float32"
    })
}
