//! The forward pass: one layer loop for training, evaluation and sampling. What differs is the attention mode.

use super::activations::Activations;
use super::layout::{Block, Layout, Role, heads};
use super::per_layer::{AttentionStash, Stream};
use super::weights::{BlockWeights, WeightSource, download_f32};
use crate::config::ModelConfig;
use crate::error::{Error, Result};
use crate::ops::*;
use crate::tensor::{Arena, DType, Tensor, View, ViewMut};
use std::ops::Range;
use std::sync::Arc;

/// A Qwen2 model without its weights: the architecture, its parameter layout and the RoPE tables.
pub struct Qwen2 {
    pub config: ModelConfig,
    pub layout: Arc<Layout>,
    pub heads: HeadLayout,
    /// [P, H/2] f32
    pub(super) cos: Tensor,
    /// [P, H/2] f32
    pub(super) sin: Tensor,
    positions: usize,
}

/// A micro-batch: sequences back to back, positions counted from each sequence's start.
#[derive(Clone, Copy)]
pub struct Packed<'a> {
    /// [T]
    pub tokens: &'a [i32],
    /// [T]
    pub positions: &'a [i32],
    /// [S + 1]
    pub cu_seqlens: &'a [i32],
}

/// What the tokens of a forward pass attend to.
pub(super) enum AttentionMode<'a> {
    /// Their own sequences, which are whole and begin at these tokens: [S + 1].
    Train { cu_seqlens: &'a [i32] },
    /// What a cache holds of their sequences, which they join.
    Paged(Box<PagedStep<'a>>),
}

/// New tokens of sequences in a paged cache. All views are of the device.
pub struct PagedStep<'a> {
    /// [T] i32
    pub tokens: View<'a>,
    /// [T] i32
    pub positions: View<'a>,
    /// [T] i32: where each token is cached, see [`PagedRope`].
    pub rows: View<'a>,
    pub queries: PagedQueries<'a>,
    /// [S, W] i32
    pub pages: View<'a>,
    /// [S] i32
    pub lengths: View<'a>,
    /// [N, L, 2, K · PAGE · H]
    pub cache: ViewMut<'a>,
    /// See [`PagedAttention`].
    pub scratch: ViewMut<'a>,
    /// See [`Gemm::algorithm_rows`].
    pub algorithm_rows: usize,
}

impl AttentionMode<'_> {
    /// See [`Gemm::algorithm_rows`].
    fn algorithm_rows(&self) -> Option<usize> {
        match self {
            AttentionMode::Train { .. } => None,
            AttentionMode::Paged(step) => Some(step.algorithm_rows),
        }
    }
}

impl Qwen2 {
    /// Cuts RoPE tables for positions below `positions` from the arena; [`Qwen2::upload_tables`] fills them.
    pub fn new(arena: &mut Arena, config: &ModelConfig, positions: usize) -> Result<Self> {
        let shape = [positions, config.head_dim / 2];
        Ok(Qwen2 {
            config: config.clone(),
            layout: Arc::new(Layout::new(config)),
            heads: heads(config),
            cos: arena.tensor("tables.cos", DType::F32, &shape)?,
            sin: arena.tensor("tables.sin", DType::F32, &shape)?,
            positions,
        })
    }

    /// Refuses, as a usage error, an architecture that the backend has no code for.
    pub fn require(ops: &dyn Ops, config: &ModelConfig) -> Result<()> {
        let ModelConfig { hidden_size, intermediate_size, vocab_size, .. } = *config;
        let widths = [("hidden_size", hidden_size), ("intermediate_size", intermediate_size), ("vocab_size", vocab_size)];
        ops.require(heads(config), &widths)
    }

    /// Angles are products of f32 factors, each rounded where transformers rounds it (the released weights were trained with those): an ulp of a frequency is
    /// 1e-4 of an angle at position 2,000. Their sine and cosine are exact.
    pub fn upload_tables(&mut self, ops: &dyn Ops) -> Result<()> {
        let dim = self.config.head_dim;
        let wavelength = |i: usize| self.config.rope_theta.powf(((2 * i) as f32 / dim as f32) as f64) as f32;
        let frequency = |i: usize| 1.0 / wavelength(i);
        let angles = (0..self.positions).flat_map(|p| (0..dim / 2).map(move |i| (p as f32 * frequency(i)) as f64));
        let (cos, sin): (Vec<f32>, Vec<f32>) = angles.map(|a| (a.cos() as f32, a.sin() as f32)).unzip();
        ops.upload(bytemuck::cast_slice(&cos), self.cos.view_mut())?;
        ops.upload(bytemuck::cast_slice(&sin), self.sin.view_mut())
    }

    /// Runs every layer; `activations.hidden` then holds the final norm's output, [T, D].
    pub fn forward(
        &self,
        ops: &dyn Ops,
        weights: &dyn WeightSource,
        activations: &mut Activations,
        batch: Packed,
    ) -> Result<()> {
        self.check(batch, activations.capacity)?;
        let t = batch.tokens.len();
        let inputs = &mut activations.inputs;
        ops.upload(bytemuck::cast_slice(batch.tokens), inputs.tokens.rows_mut(t))?;
        ops.upload(bytemuck::cast_slice(batch.positions), inputs.positions.rows_mut(t))?;
        ops.upload(bytemuck::cast_slice(batch.cu_seqlens), inputs.cu_seqlens.rows_mut(batch.cu_seqlens.len()))?;
        self.run(ops, weights, activations, t, AttentionMode::Train { cu_seqlens: batch.cu_seqlens })
    }

    /// The same for new tokens of sequences in a cache: token ids and positions must lie within vocabulary and tables.
    pub fn forward_paged(
        &self,
        ops: &dyn Ops,
        weights: &dyn WeightSource,
        activations: &mut Activations,
        step: PagedStep,
    ) -> Result<()> {
        let t = step.tokens.elements();
        if !(1..=activations.capacity).contains(&t) {
            return Err(Error::internal(format!("a step of {t} tokens does not fit buffers for {}", activations.capacity)));
        }
        self.run(ops, weights, activations, t, AttentionMode::Paged(Box::new(step)))
    }

    /// The layer loop.
    fn run(
        &self,
        ops: &dyn Ops,
        weights: &dyn WeightSource,
        activations: &mut Activations,
        t: usize,
        mut mode: AttentionMode,
    ) -> Result<()> {
        let _range = ops.range("forward");
        let layers = self.config.num_hidden_layers;
        weights.prefetch(ops, Block::Embedding)?;
        {
            let embedding = weights.acquire(ops, Block::Embedding)?;
            weights.prefetch(ops, Block::Layer(0))?;
            activations.stream.begin(ops, 0)?;
            ops.embedding(Embedding {
                table: embedding.get(Role::Embedding),
                ids: match &mode {
                    AttentionMode::Train { .. } => activations.inputs.tokens.rows(t),
                    AttentionMode::Paged(step) => step.tokens,
                },
                out: activations.stream.of_mut(0).0.rows_mut(t),
            })?;
        }
        for layer in 0..layers {
            let _range = ops.range(&format!("layer {layer}"));
            let block = weights.acquire(ops, Block::Layer(layer))?;
            self.prefetch_after(ops, weights, layer)?;
            let entry = if layer == 0 { Entry::Stream } else { Entry::AddDelta };
            self.attention_part(ops, &block, activations, layer, t, entry, &mut mode)?;
            self.mlp_norm(ops, &block, activations, layer, t, Entry::AddDelta)?;
            for tile in activations.tiles(t) {
                self.mlp_tile(ops, &block, activations, layer, tile.clone(), mode.algorithm_rows())?;
                let stash = activations.mlp.of(layer);
                let (act, delta) = (stash.act.view().rows(stash.rows(&tile)), activations.delta.view_mut().into_rows(tile));
                ops.gemm(Gemm::linear(act, block.get(Role::DownWeight), None, delta).chosen_for(mode.algorithm_rows()))?;
            }
            let capacity = activations.capacity;
            activations.stream.finish(ops, layer, t, capacity)?;
            activations.attention.finish(ops, layer, t, capacity)?;
            activations.mlp.finish(ops, layer, t, capacity)?;
        }
        let head = weights.acquire(ops, Block::Head)?;
        activations.stream.begin(ops, layers)?;
        ops.rms_norm(RmsNorm {
            x: activations.attention.of(layers - 1).mid.rows(t),
            residual: Some(Residual { delta: activations.delta.rows(t), sum: activations.stream.of_mut(layers).0.rows_mut(t) }),
            weight: head.get(Role::FinalNorm),
            eps: self.config.rms_norm_eps as f32,
            y: activations.hidden.rows_mut(t),
            rstd: activations.hidden_rstd.rows_mut(t),
        })
    }

    /// Prefetches what a forward pass needs after a layer: the next one, or what the loss needs.
    fn prefetch_after(&self, ops: &dyn Ops, weights: &dyn WeightSource, layer: usize) -> Result<()> {
        if layer + 1 < self.config.num_hidden_layers {
            return weights.prefetch(ops, Block::Layer(layer + 1));
        }
        weights.prefetch(ops, Block::Head)?;
        match self.layout.classifier() {
            (Block::Head, _) => Ok(()),
            (classifier, _) => weights.prefetch(ops, classifier),
        }
    }

    /// Asks for weights as [`Qwen2::forward`] and the loss after it do, and drops them: what a rank without a micro-batch does while others have one.
    pub fn forward_idle(&self, ops: &dyn Ops, weights: &dyn WeightSource) -> Result<()> {
        weights.prefetch(ops, Block::Embedding)?;
        {
            let _embedding = weights.acquire(ops, Block::Embedding)?;
            weights.prefetch(ops, Block::Layer(0))?;
        }
        for layer in 0..self.config.num_hidden_layers {
            let _block = weights.acquire(ops, Block::Layer(layer))?;
            self.prefetch_after(ops, weights, layer)?;
        }
        weights.acquire(ops, Block::Head)?;
        weights.acquire(ops, self.layout.classifier().0)?;
        Ok(())
    }

    /// Norm, projection, RoPE, attention and output projection of one layer; the result is `activations.delta`.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn attention_part(
        &self,
        ops: &dyn Ops,
        block: &BlockWeights,
        activations: &mut Activations,
        layer: usize,
        t: usize,
        entry: Entry,
        mode: &mut AttentionMode,
    ) -> Result<()> {
        let heads = self.heads;
        let Activations { inputs, stream, attention, delta, .. } = activations;
        let eps = self.config.rms_norm_eps as f32;
        let weight = block.get(Role::AttentionNorm);
        attention.begin(ops, layer)?;
        let (AttentionStash { norm, rstd, mid, .. }, previous) = attention.with_previous(layer);
        let (y, rstd) = (norm.rows_mut(t), rstd.rows_mut(t));
        match entry {
            Entry::Stream => {
                let x = stream.of(layer).0.rows(t);
                ops.rms_norm(RmsNorm { x, residual: None, weight, eps, y, rstd })?;
            }
            Entry::AddDelta => {
                stream.begin(ops, layer)?;
                let Stream(stream) = stream.of_mut(layer);
                let residual = Some(Residual { delta: delta.rows(t), sum: stream.rows_mut(t) });
                let x = previous.map_or(&*mid, |previous| &previous.mid).rows(t);
                ops.rms_norm(RmsNorm { x, residual, weight, eps, y, rstd })?;
            }
        }
        let stash = attention.of_mut(layer);
        let width = heads.fused() * heads.dim;
        let qkv = stash.qkv.rows_mut(t).into_shape(&[t, width]);
        let product = Gemm::linear(stash.norm.rows(t), block.get(Role::QkvWeight), Some(block.get(Role::QkvBias)), qkv);
        ops.gemm(product.chosen_for(mode.algorithm_rows()))?;
        let (cos, sin) = (self.cos.view(), self.sin.view());
        match mode {
            AttentionMode::Train { cu_seqlens } => {
                let (qkv, positions) = (stash.qkv.rows_mut(t), inputs.positions.rows(t));
                ops.rope(Rope { qkv, heads, positions, cos, sin, inverse: false })?;
                ops.attention(Attention {
                    qkv: stash.qkv.rows(t),
                    heads,
                    cu_seqlens: inputs.cu_seqlens.rows(cu_seqlens.len()),
                    cu_seqlens_host: cu_seqlens,
                    out: stash.out.rows_mut(t),
                    lse: stash.lse.rows_mut(heads.query * t).into_shape(&[heads.query, t]),
                })?;
            }
            AttentionMode::Paged(step) => {
                let (qkv, positions, rows, cache) = (stash.qkv.rows_mut(t), step.positions, step.rows, step.cache.reborrow());
                ops.paged_rope(PagedRope { qkv, heads, positions, rows, cos, sin, cache, layer })?;
                // Tokens behind the last sequence pad the products.
                let asking = match step.queries {
                    PagedQueries::Last => t,
                    PagedQueries::Chunks { cu_seqlens_host, .. } => cu_seqlens_host.last().map_or(0, |&end| end as usize),
                };
                ops.paged_attention(PagedAttention {
                    qkv: stash.qkv.rows(asking),
                    heads,
                    queries: step.queries,
                    cache: step.cache.as_view(),
                    layer,
                    pages: step.pages,
                    lengths: step.lengths,
                    scratch: step.scratch.reborrow(),
                    out: stash.out.rows_mut(asking),
                })?;
            }
        }
        let out = stash.out.rows(t).reshape(&[t, heads.query * heads.dim]);
        let product = Gemm::linear(out, block.get(Role::OutputWeight), None, delta.rows_mut(t));
        ops.gemm(product.chosen_for(mode.algorithm_rows()))
    }

    /// The second norm of one layer.
    pub(super) fn mlp_norm(
        &self,
        ops: &dyn Ops,
        block: &BlockWeights,
        activations: &mut Activations,
        layer: usize,
        t: usize,
        entry: Entry,
    ) -> Result<()> {
        let Activations { stream, attention, mlp, delta, .. } = activations;
        mlp.begin(ops, layer)?;
        let (mid, stash) = (&mut attention.of_mut(layer).mid, mlp.of_mut(layer));
        let (y, rstd) = (stash.norm.rows_mut(t), stash.rstd.rows_mut(t));
        let (weight, eps) = (block.get(Role::MlpNorm), self.config.rms_norm_eps as f32);
        match entry {
            Entry::Stream => ops.rms_norm(RmsNorm { x: mid.rows(t), residual: None, weight, eps, y, rstd }),
            Entry::AddDelta => {
                let residual = Some(Residual { delta: delta.rows(t), sum: mid.rows_mut(t) });
                ops.rms_norm(RmsNorm { x: stream.of(layer).0.rows(t), residual, weight, eps, y, rstd })
            }
        }
    }

    /// Gate, up and activation of a tile of one layer; what is left is the down projection.
    pub(super) fn mlp_tile(
        &self,
        ops: &dyn Ops,
        block: &BlockWeights,
        activations: &mut Activations,
        layer: usize,
        tile: Range<usize>,
        algorithm_rows: Option<usize>,
    ) -> Result<()> {
        let stash = activations.mlp.of_mut(layer);
        let rows = stash.rows(&tile);
        let gate_up = stash.gate_up.view_mut().into_rows(rows.clone());
        let product = Gemm::linear(stash.norm.view().rows(tile), block.get(Role::GateUpWeight), None, gate_up);
        ops.gemm(product.chosen_for(algorithm_rows))?;
        let gate_up = stash.gate_up.view().rows(rows.clone());
        ops.swiglu(SwiGlu { gate_up, out: stash.act.view_mut().into_rows(rows) })
    }

    /// −log p(target) of every token after [`Qwen2::forward`]; 0 where the target is [`IGNORE`].
    pub fn losses(
        &self,
        ops: &dyn Ops,
        weights: &dyn WeightSource,
        activations: &mut Activations,
        targets: &[i32],
    ) -> Result<Vec<f32>> {
        let t = targets.len();
        ops.upload(bytemuck::cast_slice(targets), activations.inputs.targets.rows_mut(t))?;
        let (block, role) = self.layout.classifier();
        let block = weights.acquire(ops, block)?;
        ops.classifier(Classifier {
            hidden: activations.hidden.rows(t),
            head: block.get(role),
            targets: activations.inputs.targets.rows(t),
            losses: activations.losses.rows_mut(t),
            logits: activations.logits.view_mut(),
            gradients: None,
        })?;
        download_f32(ops, activations.losses.rows(t))
    }

    /// Logits of some tokens after [`Qwen2::forward`]: calls `visit(index in rows, logits [V])` for each.
    pub fn logits(
        &self,
        ops: &dyn Ops,
        weights: &dyn WeightSource,
        activations: &mut Activations,
        rows: &[i32],
        mut visit: impl FnMut(usize, &[f32]),
    ) -> Result<()> {
        let (block, role) = self.layout.classifier();
        let block = weights.acquire(ops, block)?;
        let Activations { inputs, hidden, gathered, logits, .. } = activations;
        let chunk = logits.shape()[0];
        for (index, rows) in rows.chunks(chunk).enumerate() {
            let n = rows.len();
            ops.upload(bytemuck::cast_slice(rows), inputs.targets.rows_mut(n))?;
            let (table, ids) = (hidden.view(), inputs.targets.rows(n));
            ops.embedding(Embedding { table, ids, out: gathered.rows_mut(n) })?;
            ops.gemm(Gemm::linear(gathered.rows(n), block.get(role), None, logits.rows_mut(n)))?;
            let values = download_f32(ops, logits.rows(n))?;
            values.chunks_exact(self.config.vocab_size).enumerate().for_each(|(row, l)| visit(index * chunk + row, l));
        }
        Ok(())
    }

    /// Logits of the first tokens after [`Qwen2::forward_paged`], as many as `out` [R, V] f32 has rows.
    pub fn all_logits(
        &self,
        ops: &dyn Ops,
        weights: &dyn WeightSource,
        activations: &Activations,
        out: ViewMut,
        algorithm_rows: usize,
    ) -> Result<()> {
        let (block, role) = self.layout.classifier();
        let block = weights.acquire(ops, block)?;
        let hidden = activations.hidden.rows(out.shape()[0]);
        ops.gemm(Gemm::linear(hidden, block.get(role), None, out).chosen_for(Some(algorithm_rows)))
    }

    /// Refuses what the buffers or tables cannot hold, before any op reads out of bounds.
    fn check(&self, batch: Packed, capacity: usize) -> Result<()> {
        let t = batch.tokens.len();
        let vocab = self.config.vocab_size as i32;
        if t == 0 || t > capacity || batch.positions.len() != t {
            return Err(Error::internal(format!("a micro-batch of {t} tokens does not fit buffers for 1 to {capacity}")));
        }
        if let Some(id) = batch.tokens.iter().find(|id| !(0..vocab).contains(id)) {
            return Err(Error::data(format!("token id {id} is outside the model's vocabulary of {vocab}"))
                .help("the tokenizer does not belong to this model"));
        }
        if let Some(position) = batch.positions.iter().find(|p| !(0..self.positions as i32).contains(p)) {
            return Err(Error::internal(format!(
                "position {position} is outside RoPE tables for {} positions",
                self.positions
            )));
        }
        Ok(())
    }
}

/// How a norm finds the residual stream.
#[derive(Clone, Copy)]
pub(super) enum Entry {
    /// It is complete.
    Stream,
    /// `activations.delta` is still to be added.
    AddDelta,
}
