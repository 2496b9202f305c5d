//! What steps compute in: the cache of keys and values, inputs, results, activations.

use super::inputs::words;
use super::scheduler::Limits;
use crate::config::ModelConfig;
use crate::error::Result;
use crate::model::{Activations, Extent, Keep, heads};
use crate::ops::{Ops, PAGE, PagedAttention};
use crate::tensor::{Arenas, DType, Tensor};

/// What the buffers are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacity {
    /// Samples that decode together.
    pub batch: usize,
    /// Prompt tokens of a step.
    pub chunk: usize,
    /// Pages of the key/value cache, [`PAGE`] tokens each.
    pub pages: usize,
    /// Pages of host memory for samples that have to wait.
    pub host_pages: usize,
    /// Tokens of the longest sequence, prompt and answer.
    pub positions: usize,
}

impl Capacity {
    /// Bytes of a page: keys and values of all layers.
    pub fn page_bytes(config: &ModelConfig, storage: DType) -> usize {
        let heads = heads(config);
        config.num_hidden_layers * 2 * heads.kv * PAGE * heads.dim * storage.size()
    }

    pub(super) fn limits(&self) -> Limits {
        let Capacity { batch, chunk, pages, host_pages, .. } = *self;
        Limits { page: PAGE, pages, host_pages, batch, chunk }
    }

    /// Whether a prompt of so many tokens with samples of so many new ones finds room.
    pub fn fits(&self, prompt_tokens: usize, max_tokens: usize) -> bool {
        let longest = prompt_tokens.saturating_add(max_tokens);
        longest <= self.positions && self.limits().fits(prompt_tokens, max_tokens)
    }

    /// Pages that a sequence of the longest kind takes.
    fn width(&self) -> usize {
        self.positions.div_ceil(PAGE).min(self.pages)
    }
}

/// All memory that steps need, reserved before the first.
pub(super) struct Buffers {
    /// Rows of a full decode step, padding included: B.
    pub batch: usize,
    pub activations: Activations,
    /// [N, L, 2, K · PAGE · H]
    pub cache: Tensor,
    /// The same in host memory, of samples that wait.
    pub swapped: Tensor,
    /// i32: the arrays of a step
    pub inputs: Tensor,
    /// The host's copy of `inputs`, of two steps in turn.
    pub staging: [Tensor; 2],
    /// [B] i32: what the rows of a decode step compute
    pub fed: Tensor,
    /// [B] i32: what they drew
    pub drawn: Tensor,
    /// [B] f32
    pub log_probabilities: Tensor,
    /// [2 · B] i32 in host memory: tokens drawn, and the bits of their log-probabilities, of two steps in turn
    pub results: [Tensor; 2],
    /// [B, V] f32
    pub logits: Tensor,
    /// [B, ⌈V/32⌉] i32
    pub seen: Tensor,
    /// The same in host memory, of rows that begin in two steps in turn.
    pub seen_staging: [Tensor; 2],
    /// u8, of attention
    pub scratch: Tensor,
}

impl Buffers {
    pub fn cut(arenas: &mut Arenas, ops: &dyn Ops, config: &ModelConfig, capacity: Capacity) -> Result<Self> {
        let Capacity { pages, host_pages, .. } = capacity;
        let (storage, heads, vocab) = (ops.dtype(), heads(config), config.vocab_size);
        let batch = padded(ops, config, capacity.batch);
        let tokens = padded(ops, config, capacity.chunk).next_multiple_of(ops.token_multiple()).max(batch);
        let width = table_width(ops, capacity.width());
        let decode = words(&[batch, batch, batch, batch, batch, 4 * batch, batch * width]);
        let prefill = words(&[tokens, tokens, tokens, batch + 1, batch, batch * width]);
        let page = [config.num_hidden_layers, 2, heads.kv * PAGE * heads.dim];
        let scratch = PagedAttention::scratch_bytes(storage, batch, width, heads);
        let extent = Extent { classifier: false, ..Extent::new(tokens, Keep::Nothing) };
        let activations = Activations::new(arenas, config, storage, extent)?;
        let numbers = decode.max(prefill);
        let mut host = |name: &str, shape: &[usize], dtype| arenas.host.tensor(name, dtype, shape);
        let staging = [host("step.staging.0", &[numbers], DType::I32)?, host("step.staging.1", &[numbers], DType::I32)?];
        let results = [host("step.results.0", &[2 * batch], DType::I32)?, host("step.results.1", &[2 * batch], DType::I32)?];
        let bits = [batch, vocab.div_ceil(32)];
        let seen_staging = [host("step.seen.0", &bits, DType::I32)?, host("step.seen.1", &bits, DType::I32)?];
        let swapped = host("cache.swapped", &[host_pages, page[0], page[1], page[2]], storage)?;
        let mut device = |name: &str, shape: &[usize], dtype| arenas.device.tensor(name, dtype, shape);
        Ok(Buffers {
            batch,
            activations,
            inputs: device("step.inputs", &[numbers], DType::I32)?,
            fed: device("step.fed", &[batch], DType::I32)?,
            drawn: device("step.drawn", &[batch], DType::I32)?,
            log_probabilities: device("step.log_probabilities", &[batch], DType::F32)?,
            logits: device("step.logits", &[batch, vocab], DType::F32)?,
            seen: device("step.seen", &bits, DType::I32)?,
            seen_staging,
            scratch: device("step.scratch", &[scratch], DType::U8)?,
            cache: device("cache.pages", &[pages, page[0], page[1], page[2]], storage)?,
            staging,
            results,
            swapped,
        })
    }
}

/// Pages that a table for `pages` has room for.
pub(super) fn table_width(ops: &dyn Ops, pages: usize) -> usize {
    // Few extents, as for rows, and whole splits.
    const SPLIT: usize = PagedAttention::SPLIT / PAGE;
    if ops.overlaps() { pages.next_power_of_two().max(SPLIT) } else { pages }
}

/// Rows that a step of `rows` is padded to.
pub(super) fn padded(ops: &dyn Ops, config: &ModelConfig, rows: usize) -> usize {
    let ModelConfig { hidden_size, intermediate_size, vocab_size, .. } = *config;
    let heads = heads(config);
    let narrowest = hidden_size.min(2 * intermediate_size).min(vocab_size).min(heads.fused() * heads.dim);
    let rows = rows.max(ops.steady_rows(narrowest));
    // Few extents, so that launches can be recorded and few algorithms are chosen.
    match rows {
        rows if !ops.overlaps() => rows,
        0..=16 => rows.next_power_of_two(),
        17..=64 => rows.next_multiple_of(8),
        65..=256 => rows.next_multiple_of(16),
        rows => rows.next_multiple_of(64),
    }
}
