//! A Hugging Face model folder out of our weights. Its bytes are a pure function of the weights and the source folder.

use super::atomic::{aside, remove_dir, replace_dir, sync_dir, write_synced};
use super::checkpoint::{Checkpoint, INDEX, SINGLE};
use crate::error::{Error, Result, io_error, write_error};
use crate::tensor::DType;
use half::bf16;
use serde_json::{Map, Value, json};
use std::fs;
use std::io::Write;
use std::ops::Range;
use std::path::Path;

/// The shard size that transformers writes by default.
pub const DEFAULT_SHARD_BYTES: usize = 5_000_000_000;
/// Elements asked for at once: what an export holds of the model in memory.
const CHUNK_ELEMENTS: usize = 1 << 22;
/// What a tokenizer may consist of.
const TOKENIZER_FILES: [&str; 7] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "chat_template.jinja",
];
const GENERATION: &str = "generation_config.json";

/// A tensor's Hugging Face name and its shape.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSpec {
    pub name: String,
    pub shape: Vec<usize>,
}

/// What an exported folder is made of, weights aside.
pub struct Export<'a> {
    /// config.json of the source: copied, with the element type set.
    pub config: &'a Path,
    /// The folder with the tokenizer's files, and generation_config.json where it is not beside `config`.
    pub tokenizer: &'a Path,
    /// Replaces the tokenizer's own chat template.
    pub chat_template: Option<&'a str>,
    /// The system prompt that the model was trained with.
    pub system: Option<&'a str>,
    /// Every tensor, in the order of the files.
    pub tensors: &'a [TensorSpec],
    /// F32 or Bf16 (rounded to nearest even).
    pub dtype: DType,
    /// A file of weights holds at most this many bytes of tensors, or one tensor.
    pub shard_bytes: usize,
}

/// Writes the folder `dir`, replacing what is there once the new one is complete, on disk, and verified by reading it.
///
/// `read` fills a slice with steps of a tensor's first dimension (of a scalar: row 0); it is called in the order of the file.
pub fn export(dir: &Path, spec: &Export, mut read: impl FnMut(&str, Range<usize>, &mut [f32]) -> Result<()>) -> Result<()> {
    let new = aside(dir, "tmp")?;
    remove_dir(&new)?;
    let done = write_verified(&new, spec, &mut read).and_then(|()| replace_dir(&new, dir));
    if done.is_err() {
        // The first failure is the one to report.
        let _ = remove_dir(&new);
    }
    done
}

fn write_verified(
    dir: &Path,
    spec: &Export,
    read: &mut impl FnMut(&str, Range<usize>, &mut [f32]) -> Result<()>,
) -> Result<()> {
    fs::create_dir_all(dir).map_err(|e| write_error(dir, e))?;
    let hashes = write_weights(dir, spec, read)?;
    write_companions(dir, spec)?;
    sync_dir(dir)?;
    verify(dir, spec, &hashes)
}

fn write_weights(
    dir: &Path,
    spec: &Export,
    read: &mut impl FnMut(&str, Range<usize>, &mut [f32]) -> Result<()>,
) -> Result<Vec<blake3::Hash>> {
    let shards = shards(spec)?;
    let name = |i: usize| match shards.len() {
        1 => SINGLE.to_string(),
        n => format!("model-{:05}-of-{n:05}.safetensors", i + 1),
    };
    let mut hashes = Vec::with_capacity(spec.tensors.len());
    for (i, tensors) in shards.iter().enumerate() {
        let path = dir.join(name(i));
        write_synced(&path, &path, |out| {
            let named = |error| write_error(&path, error);
            out.write_all(&header(tensors, spec.dtype)).map_err(named)?;
            for tensor in *tensors {
                let mut hash = blake3::Hasher::new();
                stream(tensor, spec.dtype, read, |bytes| {
                    hash.update(bytes);
                    out.write_all(bytes).map_err(named)
                })?;
                hashes.push(hash.finalize());
            }
            Ok(())
        })?;
    }
    if shards.len() > 1 {
        let place = |(i, tensors): (usize, &&[TensorSpec])| {
            tensors.iter().map(|t| (t.name.clone(), json!(name(i)))).collect::<Vec<_>>()
        };
        let weight_map: Map<String, Value> = shards.iter().enumerate().flat_map(place).collect();
        let total: usize = spec.tensors.iter().map(|t| bytes(t, spec.dtype)).sum();
        write_json(&dir.join(INDEX), &json!({ "metadata": { "total_size": total }, "weight_map": weight_map }))?;
    }
    Ok(hashes)
}

/// Cuts the list of tensors into runs of at most `shard_bytes`.
fn shards<'a>(spec: &Export<'a>) -> Result<Vec<&'a [TensorSpec]>> {
    if !matches!(spec.dtype, DType::F32 | DType::Bf16) {
        return Err(Error::internal(format!("a model is exported as f32 or bf16, not {}", spec.dtype)));
    }
    let (mut shards, mut start, mut size) = (Vec::new(), 0, 0);
    for (i, tensor) in spec.tensors.iter().enumerate() {
        let bytes = bytes(tensor, spec.dtype);
        if i > start && size + bytes > spec.shard_bytes {
            shards.push(&spec.tensors[start..i]);
            (start, size) = (i, 0);
        }
        size += bytes;
    }
    shards.push(&spec.tensors[start..]);
    Ok(shards)
}

fn bytes(tensor: &TensorSpec, dtype: DType) -> usize {
    tensor.shape.iter().product::<usize>() * dtype.size()
}

/// The head of a file: its length, then JSON padded so that the data is aligned.
fn header(tensors: &[TensorSpec], dtype: DType) -> Vec<u8> {
    let mut entries = Map::from_iter([("__metadata__".to_string(), json!({ "format": "pt" }))]);
    let mut offset = 0;
    for tensor in tensors {
        let end = offset + bytes(tensor, dtype);
        let dtype = if dtype == DType::Bf16 { "BF16" } else { "F32" };
        entries.insert(tensor.name.clone(), json!({ "dtype": dtype, "shape": tensor.shape, "data_offsets": [offset, end] }));
        offset = end;
    }
    let mut text = Value::from(entries).to_string();
    text.extend(std::iter::repeat_n(' ', text.len().next_multiple_of(8) - text.len()));
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}

/// Reads a tensor piece by piece and hands on its bytes. A model that is not finite is not written.
fn stream(
    tensor: &TensorSpec,
    dtype: DType,
    read: &mut impl FnMut(&str, Range<usize>, &mut [f32]) -> Result<()>,
    mut write: impl FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    let rows = tensor.shape.first().copied().unwrap_or(1);
    let row_elements: usize = tensor.shape.iter().skip(1).product();
    let step = (CHUNK_ELEMENTS / row_elements.max(1)).clamp(1, rows.max(1));
    let mut values = vec![0.0; step * row_elements];
    for start in (0..rows).step_by(step) {
        let end = (start + step).min(rows);
        let part = &mut values[..(end - start) * row_elements];
        read(&tensor.name, start..end, part)?;
        if !part.iter().all(|v| v.is_finite()) {
            return Err(Error::non_finite(format!("tensor {} holds NaN or infinite values: it is not exported", tensor.name)));
        }
        match dtype {
            DType::Bf16 => write(bytemuck::cast_slice(&part.iter().map(|&v| bf16::from_f32(v)).collect::<Vec<_>>()))?,
            _ => write(bytemuck::cast_slice(part))?,
        }
    }
    Ok(())
}

/// Everything beside the weights.
fn write_companions(dir: &Path, spec: &Export) -> Result<()> {
    let text = fs::read(spec.config).map_err(|e| io_error(spec.config, e))?;
    let mut config: Map<String, Value> =
        serde_json::from_slice(&text).map_err(|e| Error::data(format!("{}: {e}", spec.config.display())))?;
    let key = if config.contains_key("dtype") { "dtype" } else { "torch_dtype" };
    config.insert(key.into(), json!(if spec.dtype == DType::Bf16 { "bfloat16" } else { "float32" }));
    write_json(&dir.join("config.json"), &config.into())?;
    write_json(&dir.join("limo.json"), &json!({ "system": spec.system }))?;

    // In the order in which training looked for it: the stop tokens must be those that were trained.
    let generation = [spec.tokenizer.join(GENERATION), spec.config.with_file_name(GENERATION)];
    let generation = generation.into_iter().find(|path| path.exists());
    let sources = TOKENIZER_FILES.iter().map(|name| spec.tokenizer.join(name)).chain(generation);
    for source in sources.filter(|source| source.exists()) {
        let content = fs::read(&source).map_err(|e| io_error(&source, e))?;
        write_bytes(&dir.join(source.file_name().unwrap_or_default()), &content)?;
    }
    match spec.chat_template {
        Some(template) => write_bytes(&dir.join("chat_template.jinja"), template.as_bytes()),
        None => Ok(()),
    }
}

fn write_json(path: &Path, value: &Value) -> Result<()> {
    write_bytes(path, format!("{value:#}\n").as_bytes())
}

fn write_bytes(path: &Path, content: &[u8]) -> Result<()> {
    write_synced(path, path, |out| out.write_all(content).map_err(|e| write_error(path, e)))
}

/// Opens what was written as any reader would, and compares every tensor with what was meant.
fn verify(dir: &Path, spec: &Export, hashes: &[blake3::Hash]) -> Result<()> {
    let written = Checkpoint::open(dir)?;
    for (tensor, hash) in spec.tensors.iter().zip(hashes) {
        let (_, shape) = written.info(&tensor.name)?;
        let rows = shape.first().copied().unwrap_or(1);
        if shape != tensor.shape || blake3::hash(written.bytes(&tensor.name, 0..rows)?) != *hash {
            return Err(Error::data(format!("{}: tensor {} does not read back as written", dir.display(), tensor.name))
                .help("the disk or its file system lost data: check it, then export again"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A disk that loses a bit is noticed before the old folder is replaced.
    #[test]
    fn a_flipped_bit_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let tensors = [TensorSpec { name: "w".into(), shape: vec![2, 3] }];
        let config = dir.path().join("config.json");
        fs::write(&config, "{}").unwrap();
        let spec = Export {
            config: &config,
            tokenizer: dir.path(),
            chat_template: None,
            system: None,
            tensors: &tensors,
            dtype: DType::F32,
            shard_bytes: DEFAULT_SHARD_BYTES,
        };
        let mut ones = |_: &str, _: Range<usize>, out: &mut [f32]| {
            out.fill(1.0);
            Ok(())
        };
        let hashes = write_weights(dir.path(), &spec, &mut ones).unwrap();
        verify(dir.path(), &spec, &hashes).unwrap();

        let weights = dir.path().join(SINGLE);
        let mut bytes = fs::read(&weights).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(&weights, bytes).unwrap();
        let error = verify(dir.path(), &spec, &hashes).unwrap_err();
        assert!(error.message.contains("tensor w does not read back as written"), "{error}");
    }
}
