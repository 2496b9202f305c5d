//! Log-probabilities of given tokens.

use crate::config::ModelConfig;
use crate::data::MicroBatch;
use crate::error::Result;
use crate::io::Checkpoint;
use crate::model::{Activations, AttentionMode, Keep, Packed, Qwen2, ResidentWeights};
use crate::ops::Ops;
use crate::tensor::Arena;

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
        let (mut scorer, _) = Arena::build(ops.allocator(), |arena| {
            let model = Qwen2::new(arena, config, positions)?;
            let weights = ResidentWeights::new(arena, model.layout.clone(), ops.dtype())?;
            let activations = Activations::new(arena, config, ops.dtype(), micro_tokens, Keep::Nothing)?;
            Ok(Scorer { model, weights, activations })
        })?;
        scorer.model.upload_tables(ops)?;
        scorer.weights.load_checkpoint(ops, checkpoint)?;
        Ok(scorer)
    }

    /// Natural log-probability of each position's target; 0 where it has none.
    pub fn log_probabilities(&mut self, ops: &dyn Ops, batch: &MicroBatch) -> Result<Vec<f32>> {
        let packed = Packed { tokens: &batch.tokens, positions: &batch.positions, cu_seqlens: &batch.cu_seqlens };
        self.model.forward(ops, &self.weights, &mut self.activations, packed, AttentionMode::Train)?;
        let losses = self.model.losses(ops, &self.weights, &mut self.activations, &batch.targets)?;
        Ok(losses.into_iter().map(|loss| -loss).collect())
    }
}
