//! Every key of a configuration file: its type, its default, its range, and what this version does not do yet.

use super::hub;
use super::reader::{Choice, Document, Section};
use crate::error::{Error, Result, io_error};
use serde::{Serialize, Serializer};
use std::path::{Path, PathBuf};

/// Declares an enum whose variants are the words a key accepts.
macro_rules! choices {
    ($(#[$doc:meta])* $name:ident { $($(#[$word_doc:meta])* $variant:ident = $word:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
        pub enum $name { $($(#[$word_doc])* #[serde(rename = $word)] $variant),+ }
        impl Choice for $name {
            const WORDS: &'static [(&'static str, Self)] = &[$(($word, Self::$variant)),+];
        }
    };
}

choices! {
    /// What happens to a row of more than `data.max_tokens` tokens.
    Overlong { Error = "error", Drop = "drop", Truncate = "truncate" }
}
choices! {
    /// What the loss of a step is divided by.
    Normalize {
        /// The number of supervised tokens of the step.
        Tokens = "tokens",
        /// Each sequence by its own supervised tokens, then by the number of sequences.
        Sequences = "sequences",
    }
}
choices! {
    /// The course of the learning rate after warm-up.
    Schedule { Cosine = "cosine", Linear = "linear", Constant = "constant" }
}
choices! {
    /// How the AdamW moments are stored.
    StateDtype { Fp32 = "fp32", Bf16 = "bf16", Int8 = "int8" }
}
choices! {
    /// How the master weights are kept.
    MasterWeights { Exact = "exact", Stochastic = "stochastic" }
}
choices! {
    /// The gradient accumulator and wire type.
    GradientDtype { Fp32 = "fp32", Bf16 = "bf16" }
}
choices! {
    /// Which activations the backward pass computes again instead of reading them.
    Recompute { None = "none", Mlp = "mlp", Block = "block", Auto = "auto" }
}
choices! {
    /// What may live in host memory.
    Offload {
        Residuals = "residuals",
        Activations = "activations",
        Gradients = "gradients",
        Optimizer = "optimizer",
        /// The moments of the embedding and the head.
        Vocabulary = "vocabulary",
        Remainder = "remainder",
        Weights = "weights",
    }
}
choices! {
    /// The dtype of the exported weights; `Source` is the source folder's own.
    OutputDtype { Source = "source", Float32 = "float32", Bfloat16 = "bfloat16" }
}

impl Offload {
    /// As a configuration has it.
    pub fn word(self) -> &'static str {
        Self::WORDS.iter().find(|(_, what)| *what == self).map_or("", |(word, _)| word)
    }
}

/// How often something is done: at the end of each epoch, or every so many optimizer steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Every {
    Epoch,
    Steps(u64),
}

/// A whole configuration, resolved: every key has its value.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Config {
    pub model: ModelSource,
    pub data: DataConfig,
    pub train: TrainConfig,
    pub optimizer: OptimizerConfig,
    pub memory: MemoryConfig,
    pub samples: SamplesConfig,
    pub output: OutputConfig,
}

/// Where weights, architecture, tokenizer and chat template come from.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ModelSource {
    /// A folder, or a hub id to be found in the local Hugging Face cache.
    #[serde(serialize_with = "empty_if_none")]
    pub path: Option<PathBuf>,
    /// A `config.json`; without `path` it means random weights from `train.seed`.
    #[serde(serialize_with = "empty_if_none")]
    pub config: Option<PathBuf>,
    #[serde(serialize_with = "empty_if_none")]
    pub tokenizer: Option<PathBuf>,
    #[serde(serialize_with = "empty_if_none")]
    pub chat_template: Option<PathBuf>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DataConfig {
    pub train: Vec<PathBuf>,
    pub eval: Vec<PathBuf>,
    /// The system message of rows that have none of their own.
    #[serde(serialize_with = "empty_if_none")]
    pub system: Option<String>,
    pub max_tokens: usize,
    pub overlong: Overlong,
    pub shuffle: bool,
    pub fields: FieldNames,
}

/// Names of row fields, where they differ from those the formats use.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct FieldNames {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub system: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub response: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub answer: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TrainConfig {
    pub epochs: usize,
    /// Sequences per optimizer step, over all ranks.
    pub batch: usize,
    /// The most tokens in one micro-batch.
    pub micro_tokens: usize,
    pub packing: bool,
    pub normalize: Normalize,
    pub seed: u64,
    /// 0: as many steps as the epochs take.
    pub max_steps: usize,
    #[serde(serialize_with = "every")]
    pub eval_every: Every,
    #[serde(serialize_with = "every")]
    pub save_every: Every,
    pub keep: usize,
    pub skip_nonfinite: bool,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct OptimizerConfig {
    pub lr: f64,
    pub schedule: Schedule,
    pub warmup_steps: usize,
    /// Share of all steps; at most one of the two warm-ups is set.
    pub warmup_ratio: f64,
    pub betas: [f64; 2],
    pub eps: f64,
    pub weight_decay: f64,
    /// The largest gradient norm; 0 turns clipping off.
    pub clip: f64,
    pub state: StateDtype,
    pub master: MasterWeights,
    pub gradients: GradientDtype,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MemoryConfig {
    pub recompute: Recompute,
    pub mlp_tiles: usize,
    pub offload: Vec<Offload>,
    pub gradient_release: bool,
}

/// Answers generated before, during and after training.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SamplesConfig {
    #[serde(serialize_with = "empty_if_none")]
    pub file: Option<PathBuf>,
    /// How many rows of the file, from its start; 0 means every row.
    pub n: usize,
    /// The longest answer, in tokens.
    pub max_tokens: usize,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct OutputConfig {
    pub dir: PathBuf,
    pub dtype: OutputDtype,
}

impl Config {
    /// Reads `path` and puts `overrides` (each `key=value`, as `-s` takes them) on top.
    ///
    /// Every mistake is a usage error that names the file, line and column, or the override, and is reported in one go.
    pub fn load(path: &Path, overrides: &[String]) -> Result<Config> {
        let bytes = std::fs::read(path).map_err(|error| Error { kind: crate::error::Kind::Usage, ..io_error(path, error) })?;
        let text = String::from_utf8(bytes).map_err(|error| {
            Error::usage(format!("{}: not UTF-8 after byte {}", path.display(), error.utf8_error().valid_up_to()))
        })?;
        Config::parse(&path.display().to_string(), &text, overrides)
    }

    /// Like [`Config::load`], from text; `name` stands for the file in errors.
    pub fn parse(name: &str, text: &str, overrides: &[String]) -> Result<Config> {
        let mut document = Document::parse(name, text, overrides)?;
        let config = Config {
            model: document.section("model", read_model),
            data: document.section("data", read_data),
            train: document.section("train", read_train),
            optimizer: document.section("optimizer", read_optimizer),
            memory: document.section("memory", read_memory),
            samples: document.section("samples", read_samples),
            output: document.section("output", read_output),
        };
        document.finish()?;
        config.refuse_contradictions().map_err(|error| error.context(name))?;
        Ok(config)
    }

    /// Refuses keys of different sections that do not go together.
    fn refuse_contradictions(&self) -> Result<()> {
        let Config { train, optimizer, memory, .. } = self;
        let refuse = |what: &str, help: &str| Err(Error::usage(what).help(help));
        if memory.gradient_release && optimizer.clip > 0.0 {
            return refuse(
                "memory.gradient_release applies gradients before their norm is known, so optimizer.clip must be 0",
                "keep the gradients (memory.offload = [\"gradients\"] moves them to the host), or set optimizer.clip = 0",
            );
        }
        if memory.gradient_release && train.skip_nonfinite {
            return refuse(
                "memory.gradient_release applies gradients before they are all known to be finite, so train.skip_nonfinite must be false",
                "drop one of the two",
            );
        }
        if optimizer.master == MasterWeights::Stochastic && memory.offload.contains(&Offload::Remainder) {
            return refuse(
                "optimizer.master = \"stochastic\" keeps no remainder that memory.offload could move",
                "drop one of the two",
            );
        }
        Ok(())
    }

    /// The resolved configuration as TOML, every key with its value: what the run folder's `config.toml` holds.
    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("a configuration serialises: numbers are in TOML's range, tables come last")
    }
}

impl ModelSource {
    /// The model folder, where there is one: `path` itself, or its snapshot in the local Hugging Face cache.
    pub fn folder(&self) -> Result<Option<PathBuf>> {
        self.path.as_deref().map(hub::resolve).transpose()
    }

    /// The architecture's `config.json`: the folder's own, unless there is no folder.
    pub fn config_file(&self) -> Result<PathBuf> {
        match &self.config {
            Some(file) => Ok(file.clone()),
            None => match self.folder()? {
                Some(folder) => Ok(folder.join("config.json")),
                None => Err(Error::usage("neither model.path nor model.config is set")),
            },
        }
    }

    /// The folder of the tokenizer.
    pub fn tokenizer_folder(&self) -> Result<PathBuf> {
        match &self.tokenizer {
            Some(folder) => hub::resolve(folder),
            None => self.folder()?.ok_or_else(|| {
                Error::usage("model.tokenizer is not set, and there is no model.path to take a tokenizer from")
                    .help("set model.tokenizer to a folder with tokenizer.json and tokenizer_config.json")
            }),
        }
    }
}

const ANY_COUNT: i64 = i64::MAX;
/// Positions, cumulative lengths and token ids are 32-bit on every backend.
const MOST_TOKENS: i64 = i32::MAX as i64;

fn read_model(s: &mut Section) -> ModelSource {
    let model = ModelSource {
        path: s.path("path"),
        config: s.path("config"),
        tokenizer: s.path("tokenizer"),
        chat_template: s.path("chat_template"),
    };
    if model.path.is_none() && model.config.is_none() {
        s.missing("path", "a model folder, or model.config for random weights");
    }
    model
}

fn read_data(s: &mut Section) -> DataConfig {
    let data = DataConfig {
        train: s.paths("train"),
        eval: s.paths("eval"),
        system: s.string("system"),
        max_tokens: s.integer("max_tokens", 16384, 1..=MOST_TOKENS),
        overlong: s.choice("overlong", Overlong::Error),
        shuffle: s.boolean("shuffle", true),
        fields: s.subsection("fields", |f| FieldNames {
            id: f.string("id"),
            system: f.string("system"),
            prompt: f.string("prompt"),
            response: f.string("response"),
            answer: f.string("answer"),
        }),
    };
    if data.train.is_empty() {
        s.missing("train", "one or more .jsonl or .json files");
    }
    data
}

fn read_train(s: &mut Section) -> TrainConfig {
    TrainConfig {
        epochs: s.integer("epochs", 1, 1..=ANY_COUNT),
        batch: s.integer("batch", 16, 1..=ANY_COUNT),
        micro_tokens: s.integer("micro_tokens", 16384, 1..=MOST_TOKENS),
        packing: s.boolean("packing", true),
        normalize: s.choice("normalize", Normalize::Tokens),
        seed: s.integer("seed", 42, 0..=i64::MAX),
        max_steps: s.integer("max_steps", 0, 0..=ANY_COUNT),
        eval_every: s.every("eval_every"),
        save_every: s.every("save_every"),
        keep: s.integer("keep", 2, 1..=ANY_COUNT),
        skip_nonfinite: s.boolean("skip_nonfinite", false),
    }
}

fn read_optimizer(s: &mut Section) -> OptimizerConfig {
    let optimizer = OptimizerConfig {
        lr: s.float("lr", 5e-6, 0.0..=1.0),
        schedule: s.choice("schedule", Schedule::Cosine),
        warmup_steps: s.integer("warmup_steps", 0, 0..=ANY_COUNT),
        warmup_ratio: s.float("warmup_ratio", 0.0, 0.0..=1.0),
        betas: s.pair("betas", [0.9, 0.999], 0.0..=1.0 - f64::EPSILON, "two numbers, each at least 0 and below 1"),
        eps: s.float("eps", 1e-8, f64::MIN_POSITIVE..=1.0),
        weight_decay: s.float("weight_decay", 0.0, 0.0..=f64::MAX),
        clip: s.float("clip", 1.0, 0.0..=f64::MAX),
        state: s.choice("state", StateDtype::Fp32),
        master: s.choice("master", MasterWeights::Exact),
        gradients: s.choice("gradients", GradientDtype::Fp32),
    };
    if optimizer.warmup_steps > 0 && optimizer.warmup_ratio > 0.0 {
        s.contradiction("warmup_ratio", "optimizer.warmup_steps and optimizer.warmup_ratio are both set", "set one of the two");
    }
    optimizer
}

fn read_memory(s: &mut Section) -> MemoryConfig {
    let memory = MemoryConfig {
        recompute: s.choice("recompute", Recompute::Auto),
        mlp_tiles: s.integer("mlp_tiles", 1, 1..=ANY_COUNT),
        offload: s.choices("offload"),
        gradient_release: s.boolean("gradient_release", false),
    };
    let offloads = |what| memory.offload.contains(&what);
    if memory.recompute == Recompute::Block && offloads(Offload::Activations) {
        s.contradiction(
            "offload",
            "memory.recompute = \"block\" keeps no activations that memory.offload could move",
            "offload \"residuals\" instead, or set memory.recompute to \"mlp\" or \"none\"",
        );
    }
    if memory.gradient_release && offloads(Offload::Gradients) {
        s.contradiction(
            "offload",
            "memory.gradient_release keeps no gradients that memory.offload could move",
            "drop one of the two",
        );
    }
    memory
}

fn read_samples(s: &mut Section) -> SamplesConfig {
    let samples = SamplesConfig {
        file: s.path("file"),
        n: s.integer("n", 0, 0..=ANY_COUNT),
        max_tokens: s.integer("max_tokens", 512, 1..=MOST_TOKENS),
    };
    if samples.file.is_none() && samples.n > 0 {
        s.contradiction(
            "n",
            "samples.n is set, but samples.file is not",
            "set samples.file to a file of prompts, or drop samples.n",
        );
    }
    samples
}

fn read_output(s: &mut Section) -> OutputConfig {
    let dir = s.path("dir");
    if dir.is_none() {
        s.missing("dir", "the run's folder");
    }
    OutputConfig { dir: dir.unwrap_or_default(), dtype: s.choice("dtype", OutputDtype::Source) }
}

/// TOML has no null: an unset text is the empty string, which reads back as unset.
fn empty_if_none<T: AsRef<std::ffi::OsStr>, S: Serializer>(value: &Option<T>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&value.as_ref().map_or(Default::default(), |text| text.as_ref().to_string_lossy()))
}

fn every<S: Serializer>(value: &Every, serializer: S) -> Result<S::Ok, S::Error> {
    match value {
        Every::Epoch => serializer.serialize_str("epoch"),
        Every::Steps(steps) => serializer.serialize_u64(*steps),
    }
}
