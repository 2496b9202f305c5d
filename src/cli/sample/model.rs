//! The model of a sampling job, and what is asked of it.

use super::args::{EngineArgs, KvCacheChoice, SamplingArgs};
use crate::cli::memory::{budget, does_not_fit};
use crate::cli::model::trained_system;
use crate::config::ModelConfig;
use crate::data::Chat;
use crate::error::{Error, Result};
use crate::io::TensorFiles;
use crate::model::Qwen2;
use crate::ops::Ops;
use crate::sample::{Capacity, Fingerprint, JobRecord, Memory, Sampler, Wishes};
use crate::tensor::{DType, Ledgers};
use crate::train::Budget;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// A model folder without its weights in memory.
pub struct Model {
    pub folder: PathBuf,
    pub ops: Box<dyn Ops>,
    pub config: ModelConfig,
    pub chat: Chat,
    pub files: TensorFiles,
    /// Of rows without their own; none: the template's.
    pub system: Option<String>,
    pub stop_ids: BTreeSet<i32>,
    pub stop_texts: Vec<String>,
}

impl Model {
    pub fn open(folder: &Path, sampling: &SamplingArgs, engine: &EngineArgs, ordinal: usize) -> Result<Model> {
        let ops = engine.device.open(engine.dtype, ordinal)?.ops;
        require_kv_cache(engine.kv_cache, ops.dtype())?;
        let config = ModelConfig::from_file(&folder.join("config.json"))?;
        Qwen2::require(ops.as_ref(), &config)?;
        let chat = Chat::load(folder, None, config.vocab_size)?;
        let files = TensorFiles::open(folder)?;
        let system = match &sampling.system {
            Some(system) => Some(system.clone()),
            None => trained_system(folder)?,
        };
        // Special tokens have no text that an answer shows, so that they stop by their ids.
        let special = sampling.stop.iter().filter_map(|text| chat.special_id(text));
        let stop_ids = special.chain(chat.stop_ids().iter().copied()).collect();
        let stop_texts = sampling.stop.iter().filter(|text| chat.special_id(text).is_none()).cloned().collect();
        Ok(Model { folder: folder.to_path_buf(), ops, config, chat, files, system, stop_ids, stop_texts })
    }

    pub fn record(&self, sampling: &SamplingArgs, token_ids: bool) -> Result<JobRecord> {
        let dtype = self.ops.dtype().to_string();
        Ok(JobRecord {
            program: JobRecord::program(),
            samples: sampling.samples,
            seed: sampling.seed,
            narrowing: sampling.narrowing(),
            max_tokens: sampling.max_tokens as usize,
            stop: self.stop_texts.clone(),
            stop_ids: self.stop_ids.clone(),
            repetition_stop: sampling.repetition_stop,
            system: self.system.clone(),
            logprobs: sampling.logprobs,
            token_ids,
            kv_cache: dtype.clone(),
            dtype,
            model: Fingerprint::of(&self.folder, &self.files)?,
        })
    }

    /// What is reserved, for `processes` that share the machine, and `samples` to make, where that is known.
    ///
    /// Errors: does not fit.
    pub fn plan(&self, engine: &EngineArgs, processes: usize, samples: Option<usize>) -> Result<(Capacity, Ledgers)> {
        let ops = self.ops.as_ref();
        let budget = budget(ops, processes, 1)?;
        let memory = match budget {
            Budget::Two { device, host } => Memory { device, host: Some(host) },
            Budget::One(host) => Memory { device: host, host: None },
        };
        let wishes = Wishes {
            batch: engine.batch_cap.map(|samples| samples as usize),
            chunk: engine.chunk.map(|tokens| tokens as usize),
            kv_memory: engine.kv_memory,
            samples,
        };
        let capacity = Sampler::capacity(ops, &self.config, wishes, memory)?;
        let ledgers = Sampler::plan(ops, &self.config, capacity)?;
        let (needed, available) = match budget {
            Budget::Two { device, host } if ledgers.device.total() <= device => (ledgers.host.total(), host),
            Budget::Two { device, .. } => (ledgers.device.total(), device),
            Budget::One(host) => (ledgers.total(), host),
        };
        if needed > available {
            return Err(
                does_not_fit(ops, needed, available).help("lower --batch-cap, --chunk or --kv-memory, or use a smaller model")
            );
        }
        Ok((capacity, ledgers))
    }
}

fn require_kv_cache(choice: Option<KvCacheChoice>, storage: DType) -> Result<()> {
    match choice {
        Some(KvCacheChoice::Fp8) => Err(Error::usage("--kv-cache fp8 is not there yet").help("leave it out")),
        Some(KvCacheChoice::Bf16) if storage != DType::Bf16 => {
            let what = format!("--kv-cache bf16: keys and values are stored as activations are, {storage} here");
            Err(Error::usage(what).help("leave it out, or pass --dtype bf16"))
        }
        _ => Ok(()),
    }
}
