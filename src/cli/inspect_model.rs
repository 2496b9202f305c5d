//! `limo-engine inspect model`: what a model folder holds, and whether its weights are those that its config.json promises.

use super::model::trained_system;
use super::say;
use super::terminal::visible;
use crate::config::{ModelConfig, resolve_model};
use crate::error::{Error, Result};
use crate::io::{StoredDType, TensorFiles};
use crate::model::Layout;
use crate::tensor::format_bytes;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Describe a model folder and check its weights against its config.json
///
/// Example: limo-engine inspect model runs/tiny/model
#[derive(clap::Args)]
pub struct ModelArgs {
    /// A folder with config.json and safetensors files, or a hub id in the local Hugging Face cache
    dir: PathBuf,
    /// Also read every value: a NaN or an infinity is an error
    #[arg(long)]
    values: bool,
}

pub fn run(args: ModelArgs) -> Result<()> {
    let dir = resolve_model(&args.dir)?;
    let config = ModelConfig::from_file(&dir.join("config.json"))?;
    let stored = TensorFiles::open(&dir)?;
    describe(&config, &stored)?;
    if let Some(system) = trained_system(&dir)? {
        say!("system prompt  {system:?}")?;
    }
    list_tensors(&stored)?;
    compare(&config, &stored).map_err(|e| e.context(dir.display()))?;
    if args.values {
        Layout::new(&config).tensors().try_for_each(|(name, _)| stored.check_finite(name))?;
        say!("every value is finite")?;
    }
    Ok(())
}

fn describe(config: &ModelConfig, stored: &TensorFiles) -> Result<()> {
    let ModelConfig { num_hidden_layers, hidden_size, intermediate_size, vocab_size, .. } = config;
    let (query, kv, dim) = (config.num_attention_heads, config.num_key_value_heads, config.head_dim);
    let head = if config.tie_word_embeddings { "tied to the embedding" } else { "a matrix of its own" };
    say!("architecture   Qwen2: {num_hidden_layers} layers, hidden {hidden_size}, feed-forward {intermediate_size}")?;
    say!("attention      {query} query and {kv} key/value heads of {dim}, RoPE base {}", config.rope_theta)?;
    say!("norms          RMSNorm, eps {:e}", config.rms_norm_eps)?;
    say!("vocabulary     {vocab_size}, head {head}")?;
    say!("positions      {}", config.max_position_embeddings)?;
    say!("parameters     {}", Layout::new(config).parameter_count())?;
    let types = Vec::from_iter(stored.types()).join(", ");
    say!("stored as      {types}, {} on disk", format_bytes(stored.size_on_disk()))
}

/// One line a tensor; those that only differ in their layer share one.
fn list_tensors(stored: &TensorFiles) -> Result<()> {
    let mut kinds: BTreeMap<(String, StoredDType, &[usize]), usize> = BTreeMap::new();
    for name in stored.names() {
        let (dtype, shape) = stored.info(name)?;
        let part = |part: &str| if part.parse::<usize>().is_ok() { "*".to_string() } else { visible(part) };
        let kind = name.split('.').map(part).collect::<Vec<_>>().join(".");
        *kinds.entry((kind, dtype, shape)).or_default() += 1;
    }
    let width = kinds.keys().map(|(name, ..)| name.len()).max().unwrap_or_default();
    for ((name, dtype, shape), count) in kinds {
        let dtype = dtype.to_string();
        say!("  {count:>4} × {name:width$}  {dtype:<4} {shape:?}")?;
    }
    Ok(())
}

/// The tensors that config.json promises and those that are there. What is there beside them is told, but no error.
fn compare(config: &ModelConfig, stored: &TensorFiles) -> Result<()> {
    let layout = Layout::new(config);
    let expected: BTreeMap<&str, Vec<usize>> = layout.tensors().collect();
    let mut wrong = Vec::new();
    for (&name, shape) in &expected {
        match stored.info(name) {
            Err(_) => wrong.push(format!("missing     {name} {shape:?}")),
            Ok((_, found)) if found != shape => wrong.push(format!("misshapen   {name} {found:?}, config.json: {shape:?}")),
            Ok(_) => {}
        }
    }
    for name in stored.names().filter(|name| !expected.contains_key(name)) {
        say!("unexpected  {}: ignored", visible(name))?;
    }
    for line in &wrong {
        say!("{line}")?;
    }
    match wrong.len() {
        0 => say!("all {} tensors of config.json are there", expected.len()),
        n => Err(Error::data(format!("{n} of {} tensors are missing or misshapen", expected.len()))
            .help("config.json and the weights belong to different models, or a file is missing")),
    }
}
