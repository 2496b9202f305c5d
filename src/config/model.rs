//! The architecture of a model, as its `config.json` states it.

use crate::error::{Error, Result, io_error};
use serde_json::{Map, Value};
use std::path::Path;

/// A Qwen2-family architecture (facts: hidden size, heads and so on are read, never assumed).
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// D, the width of the residual stream.
    pub hidden_size: usize,
    /// F, the width of the feed-forward block.
    pub intermediate_size: usize,
    pub num_hidden_layers: usize,
    /// Q
    pub num_attention_heads: usize,
    /// K
    pub num_key_value_heads: usize,
    /// H
    pub head_dim: usize,
    /// V, padding rows included.
    pub vocab_size: usize,
    pub max_position_embeddings: usize,
    pub rms_norm_eps: f64,
    pub rope_theta: f64,
    pub tie_word_embeddings: bool,
    /// Standard deviation of random initial matrices.
    pub initializer_range: f64,
}

/// Reads a JSON object from `path`: what an export copies, keys in their order. Errors: data errors that name the file and line.
pub fn read_json(path: &Path) -> Result<Map<String, Value>> {
    let bytes = std::fs::read(path).map_err(|error| io_error(path, error))?;
    match serde_json::from_slice(&bytes) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(_) => Err(Error::data(format!("{}: not a JSON object", path.display()))),
        Err(error) => Err(Error::data(format!("{}: {error}", path.display()))),
    }
}

impl ModelConfig {
    /// Reads a `config.json`. Errors: data errors that name the file and the key at fault.
    pub fn from_file(path: &Path) -> Result<ModelConfig> {
        ModelConfig::from_json(&read_json(path)?, path)
    }

    /// Reads the object of a `config.json`; `path` stands for it in errors.
    ///
    /// Whatever this engine would compute differently from what the file asks for is refused by name.
    pub fn from_json(json: &Map<String, Value>, path: &Path) -> Result<ModelConfig> {
        Reader { json }.read().map_err(|error| error.context(path.display()))
    }
}

/// The most rows or columns of a matrix. No real model comes near it, and a layer's 8 such matrices times [`MOST_LAYERS`] stay below
/// 2^56 parameters: their bytes, gradients and optimizer state are counted without overflow.
const LARGEST_SIZE: u64 = 1 << 20;
const MOST_LAYERS: u64 = 4096;
/// Positions are 32-bit integers.
const MOST_POSITIONS: u64 = i32::MAX as u64;

struct Reader<'a> {
    json: &'a Map<String, Value>,
}

impl Reader<'_> {
    fn read(&self) -> Result<ModelConfig> {
        self.refuse_what_differs()?;
        let num_attention_heads = self.size("num_attention_heads", None, LARGEST_SIZE)?;
        let num_key_value_heads = self.size("num_key_value_heads", Some(num_attention_heads), LARGEST_SIZE)?;
        let hidden_size = self.size("hidden_size", None, LARGEST_SIZE)?;
        if num_attention_heads % num_key_value_heads != 0 {
            return Err(self.bad("num_key_value_heads", format!("must divide num_attention_heads ({num_attention_heads})")));
        }
        if self.get("head_dim").is_none() && hidden_size % num_attention_heads != 0 {
            return Err(self.bad("hidden_size", format!("must be a multiple of num_attention_heads ({num_attention_heads})")));
        }
        let head_dim = self.size("head_dim", Some(hidden_size / num_attention_heads), LARGEST_SIZE)?;
        if head_dim == 0 || head_dim % 2 != 0 {
            return Err(Error::data(format!("head dimension {head_dim}: must be even, rotary embeddings turn pairs")));
        }
        if (num_attention_heads * head_dim) as u64 > LARGEST_SIZE {
            let limit = format!("must be at most {LARGEST_SIZE} over all {num_attention_heads} heads");
            return Err(self.bad("head_dim", limit));
        }
        Ok(ModelConfig {
            hidden_size,
            intermediate_size: self.size("intermediate_size", None, LARGEST_SIZE)?,
            num_hidden_layers: self.size("num_hidden_layers", None, MOST_LAYERS)?,
            num_attention_heads,
            num_key_value_heads,
            head_dim,
            vocab_size: self.size("vocab_size", None, LARGEST_SIZE)?,
            max_position_embeddings: self.size("max_position_embeddings", Some(32768), MOST_POSITIONS)?,
            rms_norm_eps: self.positive("rms_norm_eps", self.get("rms_norm_eps"), 1e-6)?,
            rope_theta: self.rope_theta()?,
            tie_word_embeddings: self.boolean("tie_word_embeddings", false)?,
            initializer_range: self.positive("initializer_range", self.get("initializer_range"), 0.02)?,
        })
    }

    /// Refuses every option whose value would change the computation into one that is not implemented.
    fn refuse_what_differs(&self) -> Result<()> {
        match self.get("model_type").and_then(Value::as_str) {
            Some("qwen2") => {}
            _ => return Err(self.bad("model_type", "must be \"qwen2\", the one architecture this engine has".into())),
        }
        if !matches!(self.get("hidden_act").map(Value::as_str), None | Some(Some("silu"))) {
            return Err(self.bad("hidden_act", "must be \"silu\"".into()));
        }
        if self.boolean("use_sliding_window", false)? {
            return Err(self.bad("use_sliding_window", "must be false: attention is over the whole sequence".into()));
        }
        if let Some(layers) = self.get("layer_types") {
            let full = |layers: &Vec<Value>| layers.iter().all(|layer| layer.as_str() == Some("full_attention"));
            if !layers.as_array().is_some_and(full) {
                return Err(self.bad("layer_types", "every layer must be \"full_attention\"".into()));
            }
        }
        if self.number_or("attention_dropout", 0.0)? != 0.0 {
            return Err(self.bad("attention_dropout", "must be 0".into()));
        }
        if self.get("quantization_config").is_some() {
            return Err(
                self.bad("quantization_config", "quantised weights cannot be trained: use the unquantised model".into())
            );
        }
        Ok(())
    }

    /// The base of the rotary frequencies: `rope_theta`, or `rope_parameters.rope_theta` in newer files.
    fn rope_theta(&self) -> Result<f64> {
        for key in ["rope_scaling", "rope_parameters"] {
            let Some(value) = self.get(key) else { continue };
            let Some(rope) = value.as_object() else { return Err(self.bad(key, "must be an object or null".into())) };
            let kind = rope.get("rope_type").or_else(|| rope.get("type")).filter(|kind| !kind.is_null());
            if kind.is_some_and(|kind| kind.as_str() != Some("default")) {
                return Err(
                    self.bad(key, "scaled rotary embeddings (rope_type other than \"default\") are not implemented".into())
                );
            }
        }
        let nested = self.get("rope_parameters").and_then(|rope| rope.get("rope_theta")).filter(|theta| !theta.is_null());
        self.positive("rope_theta", nested.or_else(|| self.get("rope_theta")), 10_000.0)
    }

    /// The value of a key; null is as good as absent.
    fn get(&self, key: &str) -> Option<&Value> {
        self.json.get(key).filter(|value| !value.is_null())
    }

    fn size(&self, key: &str, default: Option<usize>, most: u64) -> Result<usize> {
        match (self.get(key), default) {
            (None, Some(default)) => Ok(default),
            (None, None) => Err(Error::data(format!("`{key}` is missing"))),
            (Some(value), _) => match value.as_u64() {
                Some(size @ 1..) if size <= most => Ok(size as usize),
                _ => Err(self.bad(key, format!("must be an integer from 1 to {most}"))),
            },
        }
    }

    fn positive(&self, key: &str, value: Option<&Value>, default: f64) -> Result<f64> {
        match value.map(Value::as_f64) {
            None => Ok(default),
            Some(Some(number)) if number > 0.0 && number.is_finite() => Ok(number),
            Some(_) => Err(self.bad(key, "must be a number above 0".into())),
        }
    }

    fn number_or(&self, key: &str, default: f64) -> Result<f64> {
        self.get(key).map_or(Ok(default), |value| value.as_f64().ok_or_else(|| self.bad(key, "must be a number".into())))
    }

    fn boolean(&self, key: &str, default: bool) -> Result<bool> {
        self.get(key).map_or(Ok(default), |value| value.as_bool().ok_or_else(|| self.bad(key, "must be true or false".into())))
    }

    fn bad(&self, key: &str, what: String) -> Error {
        let found = self.json.get(key).map_or("missing".to_string(), |value| value.to_string().chars().take(60).collect());
        Error::data(format!("`{key}` ({found}) {what}"))
    }
}
