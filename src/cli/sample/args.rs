//! The arguments of `limo-engine sample`, and what they mean.

use crate::cli::device::{DeviceChoice, Storage};
use crate::cli::memory::bytes;
use crate::ops::Narrowing;
use crate::sample::Shard;
use clap::ValueEnum;
use std::path::PathBuf;

/// Generate answers to prompts: a row of output for each sample, appended as it finishes
///
/// Example: limo-engine sample --model runs/tiny/model --input configs/tiny/heldout.jsonl --output samples.jsonl -n 4 --temperature 0.6 --top-p 0.95
///
/// The same command goes on where it was stopped or killed: docs/sampling.md.
#[derive(clap::Args)]
pub struct SampleArgs {
    /// Folder of a Hugging Face model, a checkpoint of a run, or a hub id in the local Hugging Face cache
    #[arg(long, value_name = "DIR")]
    pub model: PathBuf,
    /// Prompts: rows of messages, prompt, question or problem, with or without an id; .jsonl or .json, `-` for standard input
    #[arg(long, value_name = "FILE")]
    pub input: PathBuf,
    /// Rows of id, sample, text, tokens, finish_reason, prompt_hash. What the job is lies beside it, as FILE.job.json
    #[arg(long, value_name = "FILE")]
    pub output: PathBuf,
    #[command(flatten)]
    pub sampling: SamplingArgs,
    /// Also write the token ids of each sample, the stop token included
    #[arg(long)]
    pub token_ids: bool,
    /// auto: go on with the rows that the output holds; never: refuse an output that holds rows
    #[arg(long, value_enum, default_value_t = ResumeChoice::Auto)]
    pub resume: ResumeChoice,
    /// Start over, whatever file the output is
    #[arg(long)]
    pub overwrite: bool,
    /// Only the rows whose number, from 0, leaves the remainder i when divided by n; under a launcher each process takes its own
    #[arg(long, value_name = "i/n")]
    pub shard: Option<Shard>,
    #[command(flatten)]
    pub engine: EngineArgs,
}

/// How tokens are drawn, and where answers end
#[derive(clap::Args)]
#[command(allow_negative_numbers = true)]
pub struct SamplingArgs {
    /// Samples of each prompt
    #[arg(short = 'n', value_name = "SAMPLES", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub samples: u32,
    /// Divides the logits; 0: the likeliest token
    #[arg(long, value_name = "T", default_value = "1", value_parser = at_least_0)]
    pub temperature: f32,
    /// Only the likeliest tokens that together have this probability; 1: all
    #[arg(long, value_name = "P", default_value = "1", value_parser = share_above_0)]
    pub top_p: f32,
    /// Only this many of the likeliest tokens; 0: all
    #[arg(long, value_name = "K", default_value_t = 0)]
    pub top_k: u32,
    /// Only tokens at least this share as likely as the likeliest; 0: all
    #[arg(long, value_name = "P", default_value = "0", value_parser = share)]
    pub min_p: f32,
    /// Makes tokens less likely that prompt or answer hold already; 1: does not
    #[arg(long, value_name = "R", default_value = "1", value_parser = above_0)]
    pub repetition_penalty: f32,
    /// Tokens of the longest answer; the model's context may leave it fewer
    #[arg(long, value_name = "TOKENS", default_value_t = 32768, value_parser = clap::value_parser!(u32).range(1..=1 << 30))]
    pub max_tokens: u32,
    /// End an answer before this text; may be given several times. A special token's text, as <|endoftext|>, means that token
    #[arg(long, value_name = "TEXT")]
    pub stop: Vec<String>,
    /// End an answer that repeats itself endlessly, with finish_reason repetition
    #[arg(long)]
    pub repetition_stop: bool,
    /// Of all random numbers: a sample is a function of the model, its prompt, these flags, and seed, id and sample number
    #[arg(long, value_name = "SEED", default_value_t = 0)]
    pub seed: u64,
    /// System prompt of rows without their own; "" for none. Default: the one the model was trained with, else the template's
    #[arg(long, value_name = "TEXT")]
    pub system: Option<String>,
    /// Also write the log-probability of each token, as the model has it: before temperature and the rest
    #[arg(long)]
    pub logprobs: bool,
}

/// What runs the model, in what memory
#[derive(clap::Args)]
pub struct EngineArgs {
    /// At most this many samples at a time [default: 256]
    #[arg(long, value_name = "SAMPLES", value_parser = clap::value_parser!(u32).range(1..=65_535))]
    pub batch_cap: Option<u32>,
    /// Tokens of prompts that are read at a time
    #[arg(long, value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(1..))]
    pub chunk: Option<u32>,
    /// What keys and values are stored in [default: as activations are]
    #[arg(long, value_enum)]
    pub kv_cache: Option<KvCacheChoice>,
    /// Memory for keys and values, as 64GiB [default: what is free]
    #[arg(long, value_name = "BYTES", value_parser = bytes)]
    pub kv_memory: Option<usize>,
    #[arg(long, value_enum, default_value_t = DeviceChoice::Auto)]
    pub device: DeviceChoice,
    #[arg(long, value_enum)]
    pub dtype: Option<Storage>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ResumeChoice {
    Auto,
    Never,
}

/// The element type of keys and values
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum KvCacheChoice {
    Bf16,
    /// Not there yet
    Fp8,
}

impl SamplingArgs {
    pub fn narrowing(&self) -> Narrowing {
        let &SamplingArgs { temperature, top_k, top_p, min_p, repetition_penalty, .. } = self;
        Narrowing { temperature, top_k, top_p, min_p, repetition_penalty }
    }
}

fn number(text: &str, fits: impl Fn(f32) -> bool, range: &str) -> Result<f32, String> {
    match text.trim().parse::<f32>() {
        Ok(number) if number.is_finite() && fits(number) => Ok(number),
        Ok(number) if !number.is_finite() => Err("must be a finite 32-bit number".to_string()),
        _ => Err(format!("must be a number {range}")),
    }
}

fn at_least_0(text: &str) -> Result<f32, String> {
    number(text, |number| number >= 0.0, "of at least 0")
}

fn above_0(text: &str) -> Result<f32, String> {
    number(text, |number| number > 0.0, "above 0")
}

fn share(text: &str) -> Result<f32, String> {
    number(text, |number| (0.0..=1.0).contains(&number), "from 0 to 1")
}

fn share_above_0(text: &str) -> Result<f32, String> {
    number(text, |number| number > 0.0 && number <= 1.0, "above 0, at most 1")
}
