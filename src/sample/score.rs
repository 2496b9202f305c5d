//! Log-probabilities of given tokens.

use crate::config::ModelConfig;
use crate::data::MicroBatch;
use crate::error::Result;
use crate::io::TensorFiles;
use crate::model::{Activations, Extent, Keep, Packed, Qwen2, ResidentWeights, checkpoint_reader};
use crate::ops::Ops;
use crate::tensor::{Arenas, Ledger};
use std::ops::Range;

/// A model with the buffers of a forward pass.
pub struct Scorer {
    model: Qwen2,
    weights: ResidentWeights,
    activations: Activations,
}

impl Scorer {
    /// Loads a model for micro-batches of at most `micro_tokens` tokens and sequences of at most `positions`.
    pub fn load(
        ops: &dyn Ops,
        config: &ModelConfig,
        checkpoint: &TensorFiles,
        micro_tokens: usize,
        positions: usize,
    ) -> Result<Scorer> {
        let cut = |arenas: &mut Arenas| Self::cut(arenas, ops, config, micro_tokens, positions);
        let (mut scorer, _) = Arenas::build(ops.allocator(), ops.host_allocator(), cut)?;
        scorer.model.upload_tables(ops)?;
        let layout = scorer.model.layout.clone();
        scorer.weights.load(ops, &mut *checkpoint_reader(checkpoint, &layout)?)?;
        Ok(scorer)
    }

    /// The ledger that [`Scorer::load`] would reserve.
    pub fn plan(ops: &dyn Ops, config: &ModelConfig, micro_tokens: usize, positions: usize) -> Result<Ledger> {
        let mut arenas = Arenas::dry();
        Self::cut(&mut arenas, ops, config, micro_tokens, positions)?;
        Ok(arenas.ledgers().device)
    }

    fn cut(arenas: &mut Arenas, ops: &dyn Ops, config: &ModelConfig, micro_tokens: usize, positions: usize) -> Result<Scorer> {
        let (storage, multiple) = (ops.dtype(), ops.token_multiple());
        let model = Qwen2::new(&mut arenas.device, config, positions.max(multiple))?;
        let weights = ResidentWeights::new(&mut arenas.device, model.layout.clone(), storage)?;
        let extent = Extent::new(micro_tokens.next_multiple_of(multiple), Keep::Nothing);
        let activations = Activations::new(arenas, config, storage, extent)?;
        Ok(Scorer { model, weights, activations })
    }

    /// Natural log-probability of each position's target, padding included; 0 where it has none.
    pub fn log_probabilities(&mut self, ops: &dyn Ops, batch: &MicroBatch) -> Result<Vec<f32>> {
        self.forward(ops, batch)?;
        let targets = &batch.padded(ops.token_multiple()).targets;
        let losses = self.model.losses(ops, &self.weights, &mut self.activations, targets)?;
        Ok(losses.into_iter().map(|loss| -loss).collect())
    }

    /// Runs the model on one sequence, for [`Scorer::logits`].
    pub fn forward(&mut self, ops: &dyn Ops, batch: &MicroBatch) -> Result<()> {
        let batch = &batch.padded(ops.token_multiple());
        let packed = Packed { tokens: &batch.tokens, positions: &batch.positions, cu_seqlens: &batch.cu_seqlens };
        self.model.forward(ops, &self.weights, &mut self.activations, packed)
    }

    /// The logits after tokens `tokens` of the last [`Scorer::forward`]: [len, V] into `out`.
    pub fn logits(&mut self, ops: &dyn Ops, tokens: Range<usize>, out: &mut [f32]) -> Result<()> {
        let rows: Vec<i32> = tokens.map(|token| token as i32).collect();
        let width = out.len() / rows.len();
        let copy = |row: usize, logits: &[f32]| out[row * width..][..width].copy_from_slice(logits);
        self.model.logits(ops, &self.weights, &mut self.activations, &rows, copy)
    }
}
