//! What a sampling job was asked for, and of which model: `OUT.job.json` beside its output. Only the same job goes on with an output.

use crate::error::{Error, Result, io_error, write_error};
use crate::io::{TensorFiles, write_atomic};
use crate::ops::Narrowing;
use serde::Serialize;
use serde_json::{Map, Value};
use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Everything that the bytes of a row depend on, its prompt aside.
#[derive(Debug, Clone, Serialize)]
pub struct JobRecord {
    /// Name and version.
    pub program: String,
    /// Samples of each prompt, `-n`: may grow when the job goes on.
    pub samples: u32,
    pub seed: u64,
    #[serde(flatten)]
    pub narrowing: Narrowing,
    pub max_tokens: usize,
    pub stop: Vec<String>,
    pub stop_ids: BTreeSet<i32>,
    pub repetition_stop: bool,
    /// The system prompt of rows without their own; null: the template's own.
    pub system: Option<String>,
    pub logprobs: bool,
    pub token_ids: bool,
    pub dtype: String,
    pub kv_cache: String,
    pub model: Fingerprint,
}

/// What a model is, wherever it lies: hashes of 16 hexadecimal digits.
#[derive(Debug, Clone, Serialize)]
pub struct Fingerprint {
    /// Of config.json.
    pub config: String,
    /// Of tokenizer.json.
    pub tokenizer: String,
    /// Of tokenizer_config.json and chat_template.jinja, as far as they are there.
    pub template: String,
    /// Of every tensor's name, type and shape, and of some of its bytes.
    pub weights: String,
}

const PROGRAM: &str = "limo-engine ";

impl JobRecord {
    /// What `program` says of this program.
    pub fn program() -> String {
        format!("{PROGRAM}{}", env!("CARGO_PKG_VERSION"))
    }

    /// Where the record of an output lies: `OUT.job.json`.
    pub fn path(output: &Path) -> PathBuf {
        let mut name = output.as_os_str().to_os_string();
        name.push(".job.json");
        name.into()
    }

    /// The record at `path`; none if there is no file. Errors: usage, if the file is something else.
    pub(super) fn read(path: &Path) -> Result<Option<Map<String, Value>>> {
        let bytes = match std::fs::read(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            read => read.map_err(|e| io_error(path, e))?,
        };
        let record: Option<Map<String, Value>> = serde_json::from_slice(&bytes).ok();
        let ours = |record: &Map<String, Value>| record.get("program")?.as_str().map(|name| name.starts_with(PROGRAM));
        match record.filter(|record| ours(record) == Some(true)) {
            Some(record) => Ok(Some(record)),
            None => Err(Error::usage(format!("{} is not the record of a sampling job", path.display()))
                .help("choose another --output, or move that file away")),
        }
    }

    pub(super) fn write(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self).map_err(|e| Error::internal(e.to_string()))?;
        write_atomic(path, |out| writeln!(out, "{text}").map_err(|e| write_error(path, e)))
    }

    /// The first thing that differs from an earlier record, as "temperature was 1.0, is 0.7".
    pub(super) fn difference(&self, before: &Map<String, Value>) -> Result<Option<String>> {
        let text = serde_json::to_string(self).map_err(|e| Error::internal(e.to_string()))?;
        let now: Map<String, Value> = serde_json::from_str(&text).map_err(|e| Error::internal(e.to_string()))?;
        for (key, value) in now.iter().filter(|(key, _)| *key != "program") {
            let earlier = before.get(key).unwrap_or(&Value::Null);
            let grown = key == "samples" && earlier.as_u64() <= value.as_u64();
            if earlier == value || grown && earlier.is_u64() {
                continue;
            }
            let parts = |value: &Value| value.as_object().cloned().unwrap_or_default();
            let changed = parts(value).into_iter().find(|(part, value)| parts(earlier).get(part) != Some(value));
            return Ok(Some(match changed {
                Some((part, _)) => format!("the model's {part} is another one"),
                None if key == "samples" => format!("-n was {earlier}, is {value}: it may only grow"),
                None => format!("{key} was {earlier}, is {value}"),
            }));
        }
        Ok(None)
    }
}

impl Fingerprint {
    /// Of the model in `folder`, whose weights are `files`.
    ///
    /// Errors: data, if a file cannot be read.
    pub fn of(folder: &Path, files: &TensorFiles) -> Result<Fingerprint> {
        let of = |names: &[&str]| {
            let mut hash = blake3::Hasher::new();
            for path in names.iter().map(|name| folder.join(name)) {
                match std::fs::read(&path) {
                    Ok(bytes) => {
                        hash.update(&(bytes.len() as u64).to_le_bytes()).update(&bytes);
                    }
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                    Err(error) => return Err(io_error(&path, error)),
                }
            }
            Ok(short(&hash))
        };
        Ok(Fingerprint {
            config: of(&["config.json"])?,
            tokenizer: of(&["tokenizer.json"])?,
            template: of(&["tokenizer_config.json", "chat_template.jinja"])?,
            weights: Self::of_weights(files)?,
        })
    }

    /// Reads a few kilobytes of each tensor: two checkpoints of one run differ in some of them.
    fn of_weights(files: &TensorFiles) -> Result<String> {
        const PLACES: usize = 8;
        const BYTES: usize = 1024;
        let mut hash = blake3::Hasher::new();
        for name in files.names() {
            let (dtype, shape) = files.info(name)?;
            hash.update(format!("{name} {dtype} {shape:?}").as_bytes());
            let rows = shape.first().copied().unwrap_or(1);
            for place in 0..PLACES.min(rows) {
                let row = place * rows / PLACES.min(rows);
                let bytes = files.bytes(name, row..rows)?;
                hash.update(&bytes[..bytes.len().min(BYTES)]);
            }
        }
        Ok(short(&hash))
    }
}

fn short(hash: &blake3::Hasher) -> String {
    hash.finalize().to_hex()[..16].to_string()
}
