//! A Hugging Face model folder out of our weights. Its bytes are a pure function of the weights and the source folder.

use super::folder::NewFolder;
use super::tensor_files::{INDEX, SINGLE, TensorFiles};
use super::tensors::TensorSpec;
use crate::error::{Error, Result, io_error};
use crate::tensor::DType;
use half::bf16;
use serde_json::{Map, Value, json};
use std::fs;
use std::ops::Range;
use std::path::Path;

/// The shard size that transformers writes by default.
pub const DEFAULT_SHARD_BYTES: usize = 5_000_000_000;
/// What a tokenizer may consist of.
const TOKENIZER_FILES: [&str; 7] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    CHAT_TEMPLATE,
];
const CHAT_TEMPLATE: &str = "chat_template.jinja";
const GENERATION: &str = "generation_config.json";

/// All of a model folder but its weights, held in memory: what a run exports is what it was started with.
pub struct Companions {
    /// config.json of the source.
    config: Map<String, Value>,
    files: Vec<(String, Vec<u8>)>,
}

impl Companions {
    /// Reads the `config.json` at `config`, the tokenizer's files in the folder `tokenizer`, and generation_config.json there, else beside `config`:
    /// the order in which training looks for it, so that the stop tokens are those that were trained. `chat_template` replaces the tokenizer's own; `system` is
    /// the system prompt trained with, kept in limo.json.
    pub fn read(config: &Path, tokenizer: &Path, chat_template: Option<&Path>, system: Option<&str>) -> Result<Companions> {
        let read = |path: &Path| fs::read(path).map_err(|e| io_error(path, e));
        let text = read(config)?;
        let parsed = serde_json::from_slice(&text).map_err(|e| Error::data(format!("{}: {e}", config.display())))?;
        let mut files = vec![("limo.json".to_string(), json_text(&json!({ "system": system })))];
        let generation = [tokenizer.join(GENERATION), config.with_file_name(GENERATION)].into_iter().find(|path| path.exists());
        let own = TOKENIZER_FILES.iter().filter(|name| **name != CHAT_TEMPLATE || chat_template.is_none());
        for source in own.map(|name| tokenizer.join(name)).chain(generation).filter(|source| source.exists()) {
            let name = source.file_name().unwrap_or_default().to_string_lossy().into_owned();
            files.push((name, read(&source)?));
        }
        if let Some(template) = chat_template {
            files.push((CHAT_TEMPLATE.to_string(), read(template)?));
        }
        Ok(Companions { config: parsed, files })
    }
}

/// What an exported folder is made of, the values of the weights aside.
pub struct Export<'a> {
    pub companions: &'a Companions,
    /// Every tensor, in the order of the files; all f32 or all bf16 (rounded to nearest even).
    pub tensors: &'a [TensorSpec],
    /// A file of weights holds at most this many bytes of tensors, or one tensor.
    pub shard_bytes: usize,
}

/// Writes the model folder `dir`, replacing what is there once the new one is complete, on disk, and verified by reading it.
///
/// `read` fills a slice with steps of a tensor's first dimension (of a scalar: row 0); it is called in the order of the file. `progress` hears of the files as they are
/// verified.
pub fn export(
    dir: &Path,
    spec: &Export,
    read: impl FnMut(&str, Range<usize>, &mut [f32]) -> Result<()>,
    progress: &dyn Fn(&str),
) -> Result<()> {
    let mut folder = NewFolder::create(dir)?;
    write_model(&mut folder, spec, read)?;
    folder.finish(progress)
}

/// Reads all that [`export`] and [`write_model`] would read, in the same order, and writes nothing: what a rank does that only has a share in the values.
pub fn read_along(spec: &Export, mut read: impl FnMut(&str, Range<usize>, &mut [f32]) -> Result<()>) -> Result<()> {
    let mut values = Vec::new();
    for tensor in spec.tensors {
        let row: usize = tensor.shape.iter().skip(1).product();
        for rows in tensor.pieces() {
            values.resize(rows.len() * row, 0.0);
            read(&tensor.name, rows, &mut values)?;
        }
    }
    Ok(())
}

/// Adds the files of a model folder to `folder`; see [`export`].
pub fn write_model(
    folder: &mut NewFolder,
    spec: &Export,
    mut read: impl FnMut(&str, Range<usize>, &mut [f32]) -> Result<()>,
) -> Result<()> {
    let dtype = spec.tensors.first().map_or(DType::F32, |tensor| tensor.dtype);
    if !matches!(dtype, DType::F32 | DType::Bf16) || spec.tensors.iter().any(|tensor| tensor.dtype != dtype) {
        return Err(Error::internal("a model is exported with all its tensors in f32, or all in bf16"));
    }
    write_weights(folder, spec, &mut read)?;
    let mut config = spec.companions.config.clone();
    let key = if config.contains_key("dtype") { "dtype" } else { "torch_dtype" };
    config.insert(key.into(), json!(if dtype == DType::Bf16 { "bfloat16" } else { "float32" }));
    folder.write_bytes("config.json", &json_text(&config.into()))?;
    for (name, content) in &spec.companions.files {
        folder.write_bytes(name, content)?;
    }
    // As any reader would open it.
    let written = TensorFiles::open(folder.path())?;
    match spec.tensors.iter().find(|tensor| written.info(&tensor.name).is_ok_and(|(_, shape)| shape != tensor.shape)) {
        None => spec.tensors.iter().try_for_each(|tensor| written.info(&tensor.name).map(|_| ())),
        Some(tensor) => Err(Error::internal(format!("tensor {} was not written in its shape {:?}", tensor.name, tensor.shape))),
    }
}

fn write_weights(
    folder: &mut NewFolder,
    spec: &Export,
    read: &mut impl FnMut(&str, Range<usize>, &mut [f32]) -> Result<()>,
) -> Result<()> {
    let shards = shards(spec);
    let name = |i: usize| match shards.len() {
        1 => SINGLE.to_string(),
        n => format!("model-{:05}-of-{n:05}.safetensors", i + 1),
    };
    for (i, tensors) in shards.iter().enumerate() {
        folder.write_tensors(&name(i), tensors, |tensor, rows, bytes| match tensor.dtype {
            DType::Bf16 => {
                let mut values = vec![0.0; bytes.len() / 2];
                read_finite(read, &tensor.name, rows, &mut values)?;
                let rounded = bytemuck::cast_slice_mut::<u8, bf16>(bytes);
                rounded.iter_mut().zip(values).for_each(|(out, value)| *out = bf16::from_f32(value));
                Ok(())
            }
            _ => read_finite(read, &tensor.name, rows, bytemuck::cast_slice_mut(bytes)),
        })?;
    }
    if shards.len() > 1 {
        let place = |(i, tensors): (usize, &&[TensorSpec])| {
            tensors.iter().map(|t| (t.name.clone(), json!(name(i)))).collect::<Vec<_>>()
        };
        let weight_map: Map<String, Value> = shards.iter().enumerate().flat_map(place).collect();
        let total: usize = spec.tensors.iter().map(TensorSpec::bytes).sum();
        let index = json!({ "metadata": { "total_size": total }, "weight_map": weight_map });
        folder.write_bytes(INDEX, &json_text(&index))?;
    }
    Ok(())
}

/// Cuts the list of tensors into runs of at most `shard_bytes`.
fn shards<'a>(spec: &Export<'a>) -> Vec<&'a [TensorSpec]> {
    let (mut shards, mut start, mut size) = (Vec::new(), 0, 0);
    for (i, tensor) in spec.tensors.iter().enumerate() {
        if i > start && size + tensor.bytes() > spec.shard_bytes {
            shards.push(&spec.tensors[start..i]);
            (start, size) = (i, 0);
        }
        size += tensor.bytes();
    }
    shards.push(&spec.tensors[start..]);
    shards
}

/// A model that is not finite is not written.
fn read_finite(
    read: &mut impl FnMut(&str, Range<usize>, &mut [f32]) -> Result<()>,
    name: &str,
    rows: Range<usize>,
    values: &mut [f32],
) -> Result<()> {
    read(name, rows, values)?;
    match values.iter().all(|v| v.is_finite()) {
        true => Ok(()),
        false => Err(Error::non_finite(format!("tensor {name} holds NaN or infinite values: it is not exported"))),
    }
}

fn json_text(value: &Value) -> Vec<u8> {
    format!("{value:#}\n").into_bytes()
}
