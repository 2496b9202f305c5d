//! A byte-level BPE tokenizer as Qwen2's, and its chat template, as small as the task.

use super::problem::Problem;
use super::task::Failure;
use serde_json::{Value, json};
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::normalizers::NFC;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, SplitDelimiterBehavior, TokenizerImpl};

/// The byte alphabet and merges; the special tokens follow.
const BASE_VOCABULARY: u32 = 448;
pub const END_OF_TEXT: u32 = BASE_VOCABULARY;
pub const END_OF_TURN: u32 = BASE_VOCABULARY + 2;
const SPECIAL: [&str; 3] = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];
/// Qwen2's pattern: digits stand alone.
const PATTERN: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const DEFAULT_SYSTEM: &str = "Reason step by step.";

/// tokenizer.json
pub fn tokenizer(train: &[Problem]) -> Result<Vec<u8>, Failure> {
    let split = Split::new(SplitPattern::Regex(PATTERN.into()), SplitDelimiterBehavior::Isolated, false)?;
    let bytes = ByteLevel::new(false, false, false);
    let mut tokenizer: TokenizerImpl<BPE, NFC, Sequence, ByteLevel, ByteLevel> = TokenizerImpl::new(BPE::default());
    tokenizer
        .with_normalizer(Some(NFC))?
        .with_pre_tokenizer(Some(Sequence::new(vec![split.into(), bytes.into()])))
        .with_post_processor(Some(bytes))
        .with_decoder(Some(bytes));
    let mut trainer = BpeTrainer::builder()
        .vocab_size(BASE_VOCABULARY as usize)
        .show_progress(false)
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .build();
    let text = |p: &Problem| format!("system\n{DEFAULT_SYSTEM}user\n{}assistant\n{}", p.question, p.solution);
    tokenizer.train(&mut trainer, train.iter().map(text))?;
    if tokenizer.get_vocab_size(false) != BASE_VOCABULARY as usize {
        return Err("the texts are too uniform for so many merges: lower BASE_VOCABULARY".into());
    }
    tokenizer.add_special_tokens(SPECIAL.map(|token| AddedToken::from(token, true)))?;
    Ok((tokenizer.to_string(true)? + "\n").into_bytes())
}

/// tokenizer_config.json, with a ChatML template: a system turn first, the one given or the default.
pub fn tokenizer_config() -> Value {
    let turn = |role: &str, content: &str| format!("{{{{- '<|im_start|>' + {role} + '\\n' + {content} + '<|im_end|>\\n' -}}}}");
    let lines = [
        "{%- if messages[0].role != 'system' -%}".to_string(),
        turn("'system'", &format!("'{DEFAULT_SYSTEM}'")),
        "{%- endif -%}".to_string(),
        "{%- for message in messages -%}".to_string(),
        turn("message.role", "message.content"),
        "{%- endfor -%}".to_string(),
        "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}".to_string(),
    ];
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
        "chat_template": lines.join("\n")
    })
}
