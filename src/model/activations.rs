//! The buffers of a forward and backward pass, all cut once, for micro-batches of at most `capacity` tokens.

use super::layout::heads;
use super::per_layer::{AttentionStash, MlpStash, PerLayer, Stream};
use crate::config::ModelConfig;
use crate::error::Result;
use crate::ops::{AttentionBackward, BiasBackward, Ops, RmsNormBackward};
use crate::tensor::{Arenas, DType, Tensor};
use std::ops::Range;

/// What a forward pass keeps for the backward pass. All three give the same bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// Every intermediate of every layer: nothing is computed again.
    All,
    /// The residual stream and attention's intermediates; the second norm, gate/up and activation are computed again.
    Attention,
    /// The residual stream entering each layer; the layer is computed again.
    Stream,
    /// Nothing: there will be no backward pass.
    Nothing,
}

/// What the buffers of a forward and backward pass are sized for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// The most tokens of a micro-batch.
    pub tokens: usize,
    pub keep: Keep,
    /// Whether losses or logits will be asked for.
    pub classifier: bool,
    /// Parts that the tokens go through the feed-forward block in.
    pub mlp_tiles: usize,
    /// What is kept of the residual stream lives in host memory.
    pub offload_residuals: bool,
    /// What else is kept lives there.
    pub offload_activations: bool,
}

impl Extent {
    /// With the classifier, in one tile, all on the device.
    pub fn new(tokens: usize, keep: Keep) -> Extent {
        Extent { tokens, keep, classifier: true, mlp_tiles: 1, offload_residuals: false, offload_activations: false }
    }

    /// Tokens of a tile: vectors of 16 bytes begin where tiles do.
    fn tile(&self) -> usize {
        const MULTIPLE: usize = 8;
        self.tokens.div_ceil(self.mlp_tiles).next_multiple_of(MULTIPLE).min(self.tokens)
    }
}

/// The inputs of a micro-batch on the device.
pub struct Inputs {
    /// [T] i32
    pub tokens: Tensor,
    /// [T] i32: 0..T sorted by token id, for the embedding's gradient.
    pub order: Tensor,
    /// [T] i32
    pub positions: Tensor,
    /// [T + 1] i32; S + 1 are used.
    pub cu_seqlens: Tensor,
    /// [T] i32
    pub targets: Tensor,
    /// [T] f32
    pub scales: Tensor,
}

/// Scratch of the backward pass.
pub struct BackwardScratch {
    /// [T, D] gradient of the residual stream
    pub dstream: Tensor,
    /// [T, D] gradient of a norm's output
    pub dnorm: Tensor,
    /// [T, Q, H]
    pub dout: Tensor,
    /// [T, Q + 2K, H]
    pub dqkv: Tensor,
    /// [Q · T] f32
    pub delta: Tensor,
    /// [B] u8
    pub attention: Tensor,
    /// [tile, F]
    pub dact: Tensor,
    /// [tile, 2F]
    pub dgate_up: Tensor,
    /// f32: [PARTIALS, D] of a norm's weight gradient, or [PARTIALS, (Q + 2K) · H] of the bias gradient, whichever is larger
    pub partials: Tensor,
}

pub struct Activations {
    pub capacity: usize,
    /// Tokens that go through the feed-forward block at a time.
    pub tile: usize,
    pub inputs: Inputs,
    /// The residual stream entering each layer, and after the last; a single buffer where nothing is kept.
    pub stream: PerLayer<Stream>,
    pub attention: PerLayer<AttentionStash>,
    pub mlp: PerLayer<MlpStash>,
    /// [T, D] what the last sublayer adds to the residual stream
    pub delta: Tensor,
    /// [T, D] output of the final norm
    pub hidden: Tensor,
    /// [T] f32 of the final norm
    pub hidden_rstd: Tensor,
    /// [C, V]
    pub logits: Tensor,
    /// [C, D] rows gathered for `logits`
    pub gathered: Tensor,
    /// [T] f32
    pub losses: Tensor,
    pub backward: Option<BackwardScratch>,
}

/// Rows of the classifier's chunk. A GPU (storage in bf16) needs about 2000 to be as fast in the three products as in long ones, so its logits may take 640
/// MiB, in whole tiles of the products. On a CPU a hundred rows are enough, and 64 MiB.
pub fn classifier_rows(storage: DType, vocab: usize, capacity: usize) -> usize {
    const TILE: usize = 128;
    let budget = if storage == DType::Bf16 { 640 << 20 } else { 64 << 20 };
    let rows: usize = budget / (vocab * storage.size());
    if rows > TILE { (rows / TILE * TILE).min(capacity) } else { TILE.min(capacity) }
}

impl Activations {
    pub fn new(arenas: &mut Arenas, config: &ModelConfig, storage: DType, extent: Extent) -> Result<Self> {
        let ModelConfig { hidden_size: d, intermediate_size: f, vocab_size: v, num_hidden_layers: layers, .. } = *config;
        let Extent { tokens: t, keep, offload_residuals, offload_activations, .. } = extent;
        let heads = heads(config);
        let (fused, query) = (heads.fused(), heads.query);
        let tile = extent.tile();
        let (streams, attention, mlp) = match keep {
            Keep::All => (layers + 1, layers, layers),
            Keep::Attention => (layers + 1, layers, 1),
            Keep::Stream => (layers + 1, 1, 1),
            Keep::Nothing => (1, 1, 1),
        };
        let homes = |offload| if offload { layers } else { 0 };
        let stream = PerLayer::new(arenas, "stream", streams, homes(offload_residuals), |arenas, i| {
            arenas.device.tensor(&format!("activations.stream.{i}"), storage, &[t, d]).map(Stream)
        })?;
        let attention = PerLayer::new(arenas, "attention", attention, homes(offload_activations), |arenas, i| {
            AttentionStash::new(arenas, i, storage, t, d, [fused, query, heads.dim])
        })?;
        let wide = if keep == Keep::All { t } else { tile };
        let mlp = PerLayer::new(arenas, "mlp", mlp, homes(offload_activations), |arenas, i| {
            MlpStash::new(arenas, i, storage, [t, wide], [d, f])
        })?;
        let mut cut = |name: &str, dtype, shape: &[usize]| arenas.device.tensor(name, dtype, shape);
        let inputs = Inputs {
            tokens: cut("inputs.tokens", DType::I32, &[t])?,
            order: cut("inputs.order", DType::I32, &[t])?,
            positions: cut("inputs.positions", DType::I32, &[t])?,
            cu_seqlens: cut("inputs.cu_seqlens", DType::I32, &[t + 1])?,
            targets: cut("inputs.targets", DType::I32, &[t])?,
            scales: cut("inputs.scales", DType::F32, &[t])?,
        };
        let rows = if extent.classifier { classifier_rows(storage, v, t) } else { 0 };
        let partials = (RmsNormBackward::PARTIALS * d).max(BiasBackward::PARTIALS * fused * heads.dim);
        let backward = match keep {
            Keep::Nothing => None,
            _ => Some(BackwardScratch {
                dstream: cut("backward.dstream", storage, &[t, d])?,
                dnorm: cut("backward.dnorm", storage, &[t, d])?,
                dout: cut("backward.dout", storage, &[t, query, heads.dim])?,
                dqkv: cut("backward.dqkv", storage, &[t, fused, heads.dim])?,
                delta: cut("backward.delta", DType::F32, &[query * t])?,
                attention: cut("backward.attention", DType::U8, &[AttentionBackward::scratch_bytes(storage, t, heads)])?,
                dact: cut("backward.dact", storage, &[tile, f])?,
                dgate_up: cut("backward.dgate_up", storage, &[tile, 2 * f])?,
                partials: cut("backward.partials", DType::F32, &[partials])?,
            }),
        };
        Ok(Activations {
            capacity: t,
            tile,
            inputs,
            stream,
            attention,
            mlp,
            delta: cut("activations.delta", storage, &[t, d])?,
            hidden: cut("activations.hidden", storage, &[t, d])?,
            hidden_rstd: cut("activations.hidden_rstd", DType::F32, &[t])?,
            logits: cut("classifier.logits", storage, &[rows, v])?,
            gathered: cut("classifier.gathered", storage, &[rows, d])?,
            losses: cut("classifier.losses", DType::F32, &[if extent.classifier { t } else { 0 }])?,
            backward,
        })
    }
}

impl Activations {
    /// The runs of tokens that go through the feed-forward block one after another.
    pub fn tiles(&self, tokens: usize) -> impl Iterator<Item = Range<usize>> + use<> {
        let tile = self.tile;
        (0..tokens).step_by(tile).map(move |begin| begin..tokens.min(begin + tile))
    }

    /// Brings back what is kept of a layer in host memory.
    pub fn prefetch(&mut self, ops: &dyn Ops, layer: usize, tokens: usize) -> Result<()> {
        let capacity = self.capacity;
        self.stream.prefetch(ops, layer, tokens, capacity)?;
        self.attention.prefetch(ops, layer, tokens, capacity)?;
        self.mlp.prefetch(ops, layer, tokens, capacity)
    }

    /// Lets the computation read it.
    pub fn await_layer(&mut self, ops: &dyn Ops, layer: usize) -> Result<()> {
        self.stream.await_layer(ops, layer)?;
        self.attention.await_layer(ops, layer)?;
        self.mlp.await_layer(ops, layer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logits_are_long_enough_for_a_gpu_and_within_their_limit() {
        const LIMIT: usize = (13 << 30) / 10;
        for (vocab, tokens, hidden) in [(152_064, 16_384, 5120), (151_936, 16_384, 896), (151_936, 1 << 19, 3584)] {
            let rows = classifier_rows(DType::Bf16, vocab, tokens);
            assert!(rows >= 2048 && rows.is_multiple_of(128), "{rows} rows of {vocab}");
            let (logits, gathered, losses) = (rows * vocab * 2, rows * hidden * 2, tokens * 4);
            assert!(logits + gathered + losses <= LIMIT, "{rows} rows of {vocab}");
        }
        assert_eq!(classifier_rows(DType::F32, 152_064, 16_384), 128);
        assert_eq!(classifier_rows(DType::F32, 2000, 100), 100);
        assert_eq!(classifier_rows(DType::Bf16, 1 << 20, 7), 7);
        assert_eq!(classifier_rows(DType::Bf16, 32, 256), 256);
    }
}
