//! Log-probabilities of given tokens.

use crate::config::ModelConfig;
use crate::data::MicroBatch;
use crate::error::Result;
use crate::io::Checkpoint;
use crate::model::{Activations, AttentionMode, Keep, Packed, Qwen2, ResidentWeights};
use crate::ops::Ops;
use crate::tensor::{Arena, Ledger};

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
        checkpoint: &Checkpoint,
        micro_tokens: usize,
        positions: usize,
    ) -> Result<Scorer> {
        let cut = |arena: &mut Arena| Self::cut(arena, ops, config, micro_tokens, positions);
        let (mut scorer, _) = Arena::build(ops.allocator(), cut)?;
        scorer.model.upload_tables(ops)?;
        scorer.weights.load_checkpoint(ops, checkpoint)?;
        Ok(scorer)
    }

    /// The ledger that [`Scorer::load`] would reserve.
    pub fn plan(ops: &dyn Ops, config: &ModelConfig, micro_tokens: usize, positions: usize) -> Result<Ledger> {
        let mut arena = Arena::dry();
        Self::cut(&mut arena, ops, config, micro_tokens, positions)?;
        Ok(arena.ledger().clone())
    }

    fn cut(arena: &mut Arena, ops: &dyn Ops, config: &ModelConfig, micro_tokens: usize, positions: usize) -> Result<Scorer> {
        let (storage, multiple) = (ops.dtype(), ops.token_multiple());
        let model = Qwen2::new(arena, config, positions.max(multiple))?;
        let weights = ResidentWeights::new(arena, model.layout.clone(), storage)?;
        let activations = Activations::new(arena, config, storage, micro_tokens.next_multiple_of(multiple), Keep::Nothing)?;
        Ok(Scorer { model, weights, activations })
    }

    /// Natural log-probability of each position's target, padding included; 0 where it has none.
    pub fn log_probabilities(&mut self, ops: &dyn Ops, batch: &MicroBatch) -> Result<Vec<f32>> {
        let batch = &batch.padded(ops.token_multiple());
        let packed = Packed { tokens: &batch.tokens, positions: &batch.positions, cu_seqlens: &batch.cu_seqlens };
        self.model.forward(ops, &self.weights, &mut self.activations, packed, AttentionMode::Train)?;
        let losses = self.model.losses(ops, &self.weights, &mut self.activations, &batch.targets)?;
        Ok(losses.into_iter().map(|loss| -loss).collect())
    }
}
