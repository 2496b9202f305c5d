//! What a sampling job says of itself.

use super::args::SamplingArgs;
use super::model::Model;
use crate::cli::say;
use crate::cli::terminal::visible;
use crate::config::read_json;
use crate::error::Result;
use crate::ops::PAGE;
use crate::sample::{Capacity, Counts, Stats, StepTimes, Times};
use crate::tensor::{Ledgers, format_bytes};
use serde_json::Value;
use std::path::Path;

/// Everything that the job uses, before it begins.
pub fn job(model: &Model, sampling: &SamplingArgs, capacity: Capacity, ledgers: &Ledgers) -> Result<()> {
    let (config, ops) = (&model.config, model.ops.as_ref());
    say!(
        "model: {}, {} layers, width {}, context {}, {} on {}",
        model.folder.display(),
        config.num_hidden_layers,
        config.hidden_size,
        config.max_position_embeddings,
        ops.dtype(),
        ops.device()
    )?;
    match &model.system {
        Some(system) => say!("system prompt: {:?}", visible(system))?,
        None => say!("system prompt: the template's own, where it has one")?,
    }
    let SamplingArgs { samples, temperature, top_p, top_k, min_p, repetition_penalty, max_tokens, seed, .. } = sampling;
    say!(
        "sampling: {samples} of each prompt, seed {seed}, temperature {temperature}, top-p {top_p}, top-k {top_k}, min-p {min_p}, \
         repetition penalty {repetition_penalty}, at most {max_tokens} tokens"
    )?;
    if let Some(others) = generation_config(&model.folder, sampling)? {
        say!("generation_config.json would have {others}: not taken")?;
    }
    let ids = model.stop_ids.iter().map(|&id| format!("{id} {:?}", visible(&model.chat.decode_raw(&[id]))));
    let texts = model.stop_texts.iter().map(|text| format!("text {text:?}"));
    let repetition = sampling.repetition_stop.then(|| "endless repetition".to_string());
    say!("an answer ends at: {}", ids.chain(texts).chain(repetition).collect::<Vec<_>>().join(", "))?;
    let Capacity { batch, chunk, pages, host_pages, .. } = capacity;
    let page = Capacity::page_bytes(config, ops.dtype());
    say!(
        "memory: {} in all; key/value cache of {pages} pages of {PAGE} tokens, {}; {host_pages} pages, {}, for samples that wait",
        format_bytes(ledgers.total()),
        format_bytes(pages * page),
        format_bytes(host_pages * page)
    )?;
    say!("batch: at most {batch} samples; prompts by {chunk} tokens")
}

/// The values of generation_config.json that are others than the job's.
fn generation_config(folder: &Path, sampling: &SamplingArgs) -> Result<Option<String>> {
    let path = folder.join("generation_config.json");
    if !path.exists() {
        return Ok(None);
    }
    let config = read_json(&path)?;
    let ours = [
        ("do_sample", Value::from(sampling.temperature > 0.0)),
        ("temperature", sampling.temperature.into()),
        ("top_p", sampling.top_p.into()),
        ("top_k", sampling.top_k.into()),
        ("min_p", sampling.min_p.into()),
        ("repetition_penalty", sampling.repetition_penalty.into()),
        ("max_new_tokens", sampling.max_tokens.into()),
    ];
    // Ours are 32-bit numbers.
    let same = |a: &Value, b: &Value| a == b || a.as_f64().zip(b.as_f64()).is_some_and(|(a, b)| a as f32 == b as f32);
    let other = |(key, ours): &(&str, Value)| {
        let theirs = config.get(*key).filter(|theirs| !theirs.is_null() && !same(theirs, ours))?;
        Some(visible(&format!("{key} {theirs}")))
    };
    let others: Vec<String> = ours.iter().filter_map(other).collect();
    Ok((!others.is_empty()).then(|| others.join(", ")))
}

/// Where the time went.
pub fn times(times: &Times, stats: &Stats) -> String {
    let Times { prefill, decode, replayed, idle } = *times;
    let milliseconds = |of: StepTimes| 1e3 * of.seconds / (of.steps as f64).max(1.0);
    let busy = prefill.seconds + decode.seconds;
    let rows = stats.drawn as f64 / (decode.steps as f64).max(1.0);
    let idle = idle.map(|idle| {
        format!(
            ", {replayed} of them replayed; device idle {:.1} % of the time",
            100.0 * idle / (busy + idle).max(f64::MIN_POSITIVE)
        )
    });
    format!(
        "steps: {} of prompts, {:.2} ms each, {} tokens; {} of answers, {:.2} ms each, {rows:.1} tokens each{}",
        prefill.steps,
        milliseconds(prefill),
        stats.prefilled,
        decode.steps,
        milliseconds(decode),
        idle.unwrap_or_default()
    )
}

/// What came of it.
pub fn summary(counts: &Counts, stats: &Stats, output: &Path, seconds: f64) -> String {
    let Counts { rows, broken, kept, finished, tokens, .. } = *counts;
    let left_out = if broken > 0 { format!(", {broken} of them left out") } else { String::new() };
    let rows = format!("{rows} rows{left_out}");
    match (finished, kept) {
        (0, 0) => format!("{rows}: nothing to sample: {}", output.display()),
        (0, _) => format!("{rows}: {} is finished, with {kept} samples; --overwrite starts over", output.display()),
        _ => format!(
            "{rows}: {} samples, {finished} of them new: {tokens} tokens in {seconds:.1} s, {:.0} tokens/s, {} preemptions: {}",
            kept + finished,
            tokens as f64 / seconds,
            stats.preemptions,
            output.display()
        ),
    }
}
