//! A model and the engine that samples from it, in memory that is reserved at once.

use super::{Capacity, Engine};
use crate::config::ModelConfig;
use crate::error::Result;
use crate::io::TensorFiles;
use crate::model::{Qwen2, ResidentWeights, checkpoint_reader};
use crate::ops::{Ops, PAGE};
use crate::tensor::{Arenas, LazyAllocator, Ledgers};

pub struct Sampler {
    pub model: Qwen2,
    pub weights: ResidentWeights,
    pub engine: Engine,
}

/// What a sampler is to be made for, as far as somebody said so.
#[derive(Debug, Clone, Copy, Default)]
pub struct Wishes {
    /// Samples that decode together.
    pub batch: Option<usize>,
    /// Prompt tokens of a step.
    pub chunk: Option<usize>,
    /// Bytes of keys and values.
    pub kv_memory: Option<usize>,
    /// Samples of the whole job, where that is known: there is no use in room for more.
    pub samples: Option<usize>,
}

/// Bytes that there are.
#[derive(Debug, Clone, Copy)]
pub struct Memory {
    pub device: usize,
    /// None where the device's memory is the host's.
    pub host: Option<usize>,
}

impl Sampler {
    /// Reserves and loads.
    pub fn load(ops: &dyn Ops, config: &ModelConfig, files: &TensorFiles, capacity: Capacity) -> Result<Sampler> {
        let cut = |arenas: &mut Arenas| Self::cut(arenas, ops, config, capacity);
        // On a CPU the cache may be gigabytes of which a job needs some.
        let device = if ops.overlaps() { ops.allocator() } else { &LazyAllocator };
        let (mut sampler, _) = Arenas::build(device, ops.host_allocator(), cut)?;
        sampler.model.upload_tables(ops)?;
        let layout = sampler.model.layout.clone();
        sampler.weights.load(ops, &mut *checkpoint_reader(files, &layout)?)?;
        Ok(sampler)
    }

    /// The ledgers that [`Sampler::load`] would reserve.
    pub fn plan(ops: &dyn Ops, config: &ModelConfig, capacity: Capacity) -> Result<Ledgers> {
        let mut arenas = Arenas::dry();
        Self::cut(&mut arenas, ops, config, capacity)?;
        Ok(arenas.ledgers())
    }

    fn cut(arenas: &mut Arenas, ops: &dyn Ops, config: &ModelConfig, capacity: Capacity) -> Result<Sampler> {
        let model = Qwen2::new(&mut arenas.device, config, capacity.positions.max(ops.token_multiple()))?;
        let weights = ResidentWeights::new(&mut arenas.device, model.layout.clone(), ops.dtype())?;
        let engine = Engine::cut(arenas, ops, config, capacity)?;
        Ok(Sampler { model, weights, engine })
    }

    /// The capacity that `wishes` and `memory` make: as many pages as there is memory for, but no more than a full batch of the longest samples takes.
    ///
    /// It always has two pages; whether it fits is for [`Sampler::plan`] to tell.
    pub fn capacity(ops: &dyn Ops, config: &ModelConfig, wishes: Wishes, memory: Memory) -> Result<Capacity> {
        /// Where reading keys and values takes longer than reading weights, more samples at a time gain little.
        const BATCH: usize = 256;
        const CHUNK: usize = 2048;
        let batch = wishes.batch.unwrap_or(BATCH).min(wishes.samples.unwrap_or(usize::MAX).max(1));
        let chunk = wishes.chunk.unwrap_or(CHUNK);
        let positions = config.max_position_embeddings;
        let longest = positions.div_ceil(PAGE);
        let page = Capacity::page_bytes(config, ops.dtype());
        // One page more than all samples need is never taken.
        let most = batch.saturating_mul(longest) + 1;
        let bytes = match wishes.kv_memory {
            Some(bytes) => bytes,
            None => {
                let least = Capacity { batch, chunk, pages: longest, host_pages: 0, positions };
                let fixed = Self::plan(ops, config, least)?.device.total() - longest * page;
                // Other programs, and what libraries and launches take on their own, need some too.
                let share = if memory.host.is_some() { memory.device / 16 * 15 } else { memory.device / 2 };
                share.saturating_sub(fixed)
            }
        };
        let pages = (bytes / page).clamp(2, most.max(2));
        // Where there are pages for all, none has to wait.
        let waiting = if pages < most { pages / 4 } else { 0 };
        let host_pages = waiting.min(memory.host.unwrap_or(memory.device) / 4 / page);
        Ok(Capacity { batch, chunk, pages, host_pages, positions })
    }
}
