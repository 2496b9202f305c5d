//! `limo-engine score`.

use super::device::{DeviceChoice, Storage};
use super::launch::require_single_process;
use super::memory::{available_memory, does_not_fit};
use super::model::trained_system;
use super::replaced::refuse_to_replace_inputs;
use super::say;
use crate::config::{FieldNames, ModelConfig, resolve_model};
use crate::data::{Chat, Example, IGNORE, load_conversations, load_questions, pack};
use crate::error::{Error, Result, write_error};
use crate::io::{TensorFiles, TensorSpec, write_atomic, write_tensors};
use crate::model::Qwen2;
use crate::ops::Ops;
use crate::sample::Scorer;
use crate::tensor::{DType, format_bytes};
use clap::ValueEnum;
use serde::Serialize;
use serde_json::Value;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Log-probabilities of responses or prompts under a model, a row of output for each row of input
///
/// Example: limo-engine score --model runs/tiny/model --input configs/tiny/heldout.jsonl --output scores.jsonl
#[derive(clap::Args)]
pub struct ScoreArgs {
    /// Folder of a Hugging Face model, a checkpoint of a run, or a hub id in the local Hugging Face cache
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// Rows to score, .jsonl or .json
    #[arg(long, value_name = "FILE")]
    input: PathBuf,
    /// Rows of id, tokens, supervised_tokens, mean_logprob
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
    /// System prompt of rows without their own; "" for none. Default: the one the model was trained with, else the template's
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    #[arg(long, value_enum, default_value_t = Target::Response)]
    target: Target,
    /// Also write the token ids and log-probabilities of the scored tokens
    #[arg(long)]
    logprobs: bool,
    /// Also write the logits after every token of every row: safetensors, a tensor row.N [tokens, vocabulary] in f32 a row, and its token ids as
    /// tokens.N; for a few short rows
    #[arg(long, value_name = "FILE")]
    logits: Option<PathBuf>,
    #[arg(long, value_enum, default_value_t = DeviceChoice::Auto)]
    device: DeviceChoice,
    #[arg(long, value_enum)]
    dtype: Option<Storage>,
}

/// Which tokens are scored
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Target {
    /// The assistant turns and their ends
    Response,
    /// The text of the user turns
    Prompt,
}

#[derive(Serialize)]
struct Scored {
    id: Value,
    tokens: usize,
    supervised_tokens: usize,
    /// Natural logarithm.
    mean_logprob: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    token_ids: Option<Vec<i32>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    logprobs: Option<Vec<f32>>,
}

/// Refused beyond the size that somebody wants to compare.
const MOST_LOGITS: usize = 8 << 30;

fn write_logits(
    path: &Path,
    ops: &dyn Ops,
    scorer: &mut Scorer,
    rows: &[(Value, Example)],
    vocabulary: usize,
    micro_tokens: usize,
) -> Result<()> {
    let mut tensors = Vec::new();
    for (number, (_, example)) in rows.iter().enumerate() {
        let length = example.tokens.len();
        tensors.push(TensorSpec { name: format!("tokens.{number}"), dtype: DType::I32, shape: vec![length] });
        tensors.push(TensorSpec { name: format!("row.{number}"), dtype: DType::F32, shape: vec![length, vocabulary] });
    }
    let bytes: usize = tensors.iter().map(TensorSpec::bytes).sum();
    if bytes > MOST_LOGITS {
        let [bytes, most] = [bytes, MOST_LOGITS].map(format_bytes);
        return Err(Error::usage(format!("--logits {}: {bytes} of logits, at most {most} are written", path.display()))
            .help("give fewer or shorter rows"));
    }
    write_atomic(path, |out| {
        write_tensors(out, path, &tensors, |tensor, range, bytes| {
            let (kind, number) = tensor.name.split_once('.').unwrap_or_default();
            let example = &rows[number.parse::<usize>().unwrap_or_default()].1;
            if kind == "tokens" {
                bytes.copy_from_slice(bytemuck::cast_slice(&example.tokens[range]));
                return Ok(());
            }
            if range.start == 0 {
                scorer.forward(ops, &pack(&[example], micro_tokens, true)?[0])?;
            }
            scorer.logits(ops, range, bytemuck::cast_slice_mut(bytes))
        })
    })
}

pub fn run(mut args: ScoreArgs) -> Result<()> {
    /// Rows that are packed together; the output is written in input order after each group.
    const GROUP: usize = 256;
    const MICRO_TOKENS: usize = 4096;

    require_single_process()?;
    args.model = resolve_model(&args.model)?;
    let logits = args.logits.as_deref().map(|path| ("--logits", path));
    let outputs: Vec<_> = std::iter::once(("--output", args.output.as_path())).chain(logits).collect();
    refuse_to_replace_inputs(&[("--input", &args.input), ("--model", &args.model)], &outputs)?;
    let ops = args.device.ops(args.dtype)?;
    let config = ModelConfig::from_file(&args.model.join("config.json"))?;
    Qwen2::require(ops.as_ref(), &config)?;
    let chat = Chat::load(&args.model, None, config.vocab_size)?;
    let system = match args.system {
        Some(system) => Some(system),
        None => trained_system(&args.model)?,
    };
    match &system {
        Some(system) => say!("system prompt: {system:?}")?,
        None => say!("system prompt: the template's own, where it has one")?,
    }
    let read = match args.target {
        Target::Response => load_conversations,
        Target::Prompt => load_questions,
    };
    let rows: Vec<(Value, Example)> = read(&args.input, &FieldNames::default(), system.as_deref(), &chat)?;
    let longest = rows.iter().map(|(_, e)| e.tokens.len()).max().unwrap_or(1);
    let micro_tokens = longest.max(MICRO_TOKENS);
    let needed = Scorer::plan(ops.as_ref(), &config, micro_tokens, longest)?.total();
    match available_memory(ops.as_ref())? {
        Some(available) if needed > available => {
            return Err(
                does_not_fit(ops.as_ref(), needed, available).help("leave out the longest rows, or use a smaller model")
            );
        }
        _ => {}
    }
    let checkpoint = TensorFiles::open(&args.model)?;
    let mut scorer =
        Scorer::load(ops.as_ref(), &config, &checkpoint, micro_tokens, longest).map_err(|e| e.context(args.model.display()))?;

    if let Some(path) = &args.logits {
        write_logits(path, ops.as_ref(), &mut scorer, &rows, config.vocab_size, micro_tokens)?;
    }
    let (mut total, mut count) = (0.0, 0);
    write_atomic(&args.output, |out| {
        for group in rows.chunks(GROUP) {
            let examples: Vec<&Example> = group.iter().map(|(_, example)| example).collect();
            let mut scores: Vec<Vec<(i32, f32)>> = vec![Vec::new(); group.len()];
            for batch in pack(&examples, micro_tokens, true)? {
                let values = scorer.log_probabilities(ops.as_ref(), &batch)?;
                for (row, range) in batch.sequences() {
                    let pairs = batch.targets[range.clone()].iter().copied().zip(values[range].iter().copied());
                    scores[row] = pairs.filter(|&(target, _)| target != IGNORE).collect();
                }
            }
            for ((id, example), scores) in group.iter().zip(scores) {
                let sum: f64 = scores.iter().map(|&(_, value)| value as f64).sum();
                if !sum.is_finite() {
                    return Err(Error::non_finite(format!("row {id}: a log-probability is not finite; no output was written"))
                        .help("`limo-engine inspect model --values` looks for NaN in the weights"));
                }
                total += sum;
                count += scores.len();
                let scored = Scored {
                    id: id.clone(),
                    tokens: example.tokens.len(),
                    supervised_tokens: scores.len(),
                    mean_logprob: sum / scores.len() as f64,
                    token_ids: args.logprobs.then(|| scores.iter().map(|&(target, _)| target).collect()),
                    logprobs: args.logprobs.then(|| scores.iter().map(|&(_, value)| value).collect()),
                };
                serde_json::to_writer(&mut *out, &scored).map_err(|e| write_error(&args.output, e.into()))?;
                out.write_all(b"\n").map_err(|e| write_error(&args.output, e))?;
            }
        }
        Ok(())
    })?;
    say!("{} rows, {count} tokens, mean log-probability {:.4}: {}", rows.len(), total / count as f64, args.output.display())
}
