//! The backward pass, written out by hand: layers from last to first, each computing again what the forward pass did not keep.

use super::activations::{Activations, BackwardScratch};
use super::forward::{AttentionMode, Entry, Packed, Qwen2};
use super::gradients::{BlockGradients, GradSink};
use super::layout::{Block, Role};
use super::weights::{BlockWeights, WeightSource, download_f32};
use crate::error::{Error, Result};
use crate::ops::*;
use crate::tensor::{Tensor, ViewMut};

impl Qwen2 {
    /// Uploads what [`Qwen2::backward`] reads besides the inputs of the forward pass. Called before that, nothing waits between the two.
    pub fn prepare_backward(
        &self,
        ops: &dyn Ops,
        activations: &mut Activations,
        batch: Packed,
        targets: &[i32],
        scales: &[f32],
    ) -> Result<()> {
        let t = batch.tokens.len();
        let mut order: Vec<i32> = (0..t as i32).collect();
        order.sort_by_key(|&at| batch.tokens[at as usize]);
        let inputs = &mut activations.inputs;
        ops.upload(bytemuck::cast_slice(&order), inputs.order.rows_mut(t))?;
        ops.upload(bytemuck::cast_slice(targets), inputs.targets.rows_mut(t))?;
        ops.upload(bytemuck::cast_slice(scales), inputs.scales.rows_mut(t))
    }

    /// After [`Qwen2::prepare_backward`] and [`Qwen2::forward`] of the same batch: pushes the gradients of Σ_t scales[t] · losses[t] into
    /// `sink` and returns the losses.
    pub fn backward(
        &self,
        ops: &dyn Ops,
        weights: &dyn WeightSource,
        sink: &mut dyn GradSink,
        activations: &mut Activations,
        batch: Packed,
    ) -> Result<Vec<f32>> {
        let _range = ops.range("backward");
        let t = batch.tokens.len();
        self.head_backward(ops, weights, sink, activations, t)?;
        for layer in (0..self.config.num_hidden_layers).rev() {
            let _range = ops.range(&format!("layer {layer}"));
            let block = weights.acquire(ops, Block::Layer(layer))?;
            if layer > 0 {
                weights.prefetch(ops, Block::Layer(layer - 1))?;
            }
            activations.prefetch(ops, layer, t)?;
            activations.await_layer(ops, layer)?;
            if layer > 0 {
                activations.prefetch(ops, layer - 1, t)?;
            }
            let kept = activations.mlp.holds(layer) && activations.mlp.of(layer).whole();
            if !activations.attention.holds(layer) {
                let mode = &mut AttentionMode::Train { cu_seqlens: batch.cu_seqlens };
                self.attention_part(ops, &block, activations, layer, t, Entry::Stream, mode)?;
                self.mlp_norm(ops, &block, activations, layer, t, Entry::AddDelta)?;
            } else if !activations.mlp.holds(layer) {
                self.mlp_norm(ops, &block, activations, layer, t, Entry::Stream)?;
            }
            let mut gradients = sink.open(ops, Block::Layer(layer))?;
            self.mlp_backward(ops, &block, &mut gradients, activations, layer, t, kept)?;
            self.attention_backward(ops, &block, &mut gradients, activations, layer, batch)?;
            sink.close(ops, Block::Layer(layer))?;
        }
        let scratch = scratch(&mut activations.backward)?;
        let mut gradients = sink.open(ops, Block::Embedding)?;
        ops.embedding_backward(EmbeddingBackward {
            dout: scratch.dstream.rows(t),
            ids: activations.inputs.tokens.rows(t),
            order: activations.inputs.order.rows(t),
            dtable: gradients.get(Role::Embedding),
        })?;
        sink.close(ops, Block::Embedding)?;
        download_f32(ops, activations.losses.rows(t))
    }

    /// Asks for weights and hands over gradients as [`Qwen2::backward`] does, all of them zeros: what a rank without a micro-batch does while others have one.
    pub fn backward_idle(&self, ops: &dyn Ops, weights: &dyn WeightSource, sink: &mut dyn GradSink) -> Result<()> {
        let last = self.config.num_hidden_layers - 1;
        let zeros = |sink: &mut dyn GradSink, block| {
            sink.open(ops, block)?;
            sink.close(ops, block)
        };
        {
            let classifier = self.layout.classifier().0;
            let _head = weights.acquire(ops, classifier)?;
            weights.prefetch(ops, Block::Layer(last))?;
            let _norm = weights.acquire(ops, Block::Head)?;
            if classifier != Block::Head {
                zeros(sink, classifier)?;
            }
            zeros(sink, Block::Head)?;
        }
        for layer in (0..=last).rev() {
            let _block = weights.acquire(ops, Block::Layer(layer))?;
            if layer > 0 {
                weights.prefetch(ops, Block::Layer(layer - 1))?;
            }
            zeros(sink, Block::Layer(layer))?;
        }
        zeros(sink, Block::Embedding)
    }

    /// Classifier and final norm; leaves the gradient of the last residual stream in `dstream`.
    fn head_backward(
        &self,
        ops: &dyn Ops,
        weights: &dyn WeightSource,
        sink: &mut dyn GradSink,
        activations: &mut Activations,
        t: usize,
    ) -> Result<()> {
        let Activations { inputs, stream, hidden, hidden_rstd, logits, losses, backward, .. } = activations;
        let scratch = scratch(backward)?;
        let (classifier, role) = self.layout.classifier();
        let head = weights.acquire(ops, classifier)?;
        weights.prefetch(ops, Block::Layer(self.config.num_hidden_layers - 1))?;
        let mut gradients = sink.open(ops, classifier)?;
        ops.classifier(Classifier {
            hidden: hidden.rows(t),
            head: head.get(role),
            targets: inputs.targets.rows(t),
            losses: losses.rows_mut(t),
            logits: logits.view_mut(),
            gradients: Some(ClassifierGradients {
                scales: inputs.scales.rows(t),
                dhidden: scratch.dnorm.rows_mut(t),
                dhead: gradients.get(role),
            }),
        })?;
        let norm = weights.acquire(ops, Block::Head)?;
        if classifier != Block::Head {
            sink.close(ops, classifier)?;
            gradients = sink.open(ops, Block::Head)?;
        }
        ops.rms_norm_backward(RmsNormBackward {
            dy: scratch.dnorm.rows(t),
            sum: stream.of(self.config.num_hidden_layers).0.rows(t),
            weight: norm.get(Role::FinalNorm),
            rstd: hidden_rstd.rows(t),
            dsum: scratch.dstream.rows_mut(t),
            accumulate: false,
            dweight: gradients.get(Role::FinalNorm),
            partials: partial_sums(&mut scratch.partials, RmsNormBackward::PARTIALS, self.config.hidden_size),
        })?;
        sink.close(ops, Block::Head)
    }

    /// The feed-forward block of one layer; `dstream` is the gradient of the stream leaving it, then of the stream entering it. Unless gate, up and activation are `kept`, they are
    /// computed again.
    #[allow(clippy::too_many_arguments)]
    fn mlp_backward(
        &self,
        ops: &dyn Ops,
        block: &BlockWeights,
        gradients: &mut BlockGradients,
        activations: &mut Activations,
        layer: usize,
        t: usize,
        kept: bool,
    ) -> Result<()> {
        for tile in activations.tiles(t) {
            if !kept {
                self.mlp_tile(ops, block, activations, layer, tile.clone(), None)?;
            }
            let Activations { mlp, backward, .. } = activations;
            let (scratch, stash, n) = (scratch(backward)?, mlp.of(layer), tile.len());
            let rows = stash.rows(&tile);
            // The stream's gradient is also that of the down projection's output.
            let dout = scratch.dstream.view().rows(tile.clone());
            let act = stash.act.view().rows(rows.clone());
            ops.gemm(Gemm::linear_weight_gradient(dout, act, gradients.get(Role::DownWeight)))?;
            ops.gemm(Gemm::linear_input_gradient(dout, block.get(Role::DownWeight), scratch.dact.rows_mut(n)))?;
            ops.swiglu_backward(SwiGluBackward {
                gate_up: stash.gate_up.view().rows(rows),
                dout: scratch.dact.rows(n),
                dgate_up: scratch.dgate_up.rows_mut(n),
            })?;
            let dgate_up = scratch.dgate_up.rows(n);
            let norm = stash.norm.view().rows(tile.clone());
            ops.gemm(Gemm::linear_weight_gradient(dgate_up, norm, gradients.get(Role::GateUpWeight)))?;
            let dnorm = scratch.dnorm.view_mut().into_rows(tile);
            ops.gemm(Gemm::linear_input_gradient(dgate_up, block.get(Role::GateUpWeight), dnorm))?;
        }
        let Activations { attention, mlp, backward, .. } = activations;
        let scratch = scratch(backward)?;
        ops.rms_norm_backward(RmsNormBackward {
            dy: scratch.dnorm.rows(t),
            sum: attention.of(layer).mid.rows(t),
            weight: block.get(Role::MlpNorm),
            rstd: mlp.of(layer).rstd.rows(t),
            dsum: scratch.dstream.rows_mut(t),
            accumulate: true,
            dweight: gradients.get(Role::MlpNorm),
            partials: partial_sums(&mut scratch.partials, RmsNormBackward::PARTIALS, self.config.hidden_size),
        })
    }

    /// Attention of one layer, likewise.
    fn attention_backward(
        &self,
        ops: &dyn Ops,
        block: &BlockWeights,
        gradients: &mut BlockGradients,
        activations: &mut Activations,
        layer: usize,
        batch: Packed,
    ) -> Result<()> {
        let t = batch.tokens.len();
        let heads = self.heads;
        let (fused, query) = (heads.fused() * heads.dim, heads.query * heads.dim);
        let Activations { inputs, stream, attention, backward, .. } = activations;
        let scratch = scratch(backward)?;
        let attention = attention.of(layer);
        let dout = scratch.dstream.rows(t);
        let out = attention.out.rows(t).reshape(&[t, query]);
        ops.gemm(Gemm::linear_weight_gradient(dout, out, gradients.get(Role::OutputWeight)))?;
        let dattention = scratch.dout.rows_mut(t).into_shape(&[t, query]);
        ops.gemm(Gemm::linear_input_gradient(dout, block.get(Role::OutputWeight), dattention))?;
        ops.attention_backward(AttentionBackward {
            qkv: attention.qkv.rows(t),
            heads,
            cu_seqlens: inputs.cu_seqlens.rows(batch.cu_seqlens.len()),
            cu_seqlens_host: batch.cu_seqlens,
            out: attention.out.rows(t),
            lse: attention.lse.rows(heads.query * t).reshape(&[heads.query, t]),
            dout: scratch.dout.rows(t),
            delta: scratch.delta.rows_mut(heads.query * t).into_shape(&[heads.query, t]),
            scratch: scratch.attention.view_mut(),
            dqkv: scratch.dqkv.rows_mut(t),
        })?;
        ops.rope(Rope {
            qkv: scratch.dqkv.rows_mut(t),
            heads,
            positions: inputs.positions.rows(t),
            cos: self.cos.view(),
            sin: self.sin.view(),
            inverse: true,
        })?;
        let dqkv = scratch.dqkv.rows(t).reshape(&[t, fused]);
        let partials = partial_sums(&mut scratch.partials, BiasBackward::PARTIALS, fused);
        ops.bias_backward(BiasBackward { dy: dqkv, dbias: gradients.get(Role::QkvBias), partials })?;
        ops.gemm(Gemm::linear_weight_gradient(dqkv, attention.norm.rows(t), gradients.get(Role::QkvWeight)))?;
        ops.gemm(Gemm::linear_input_gradient(dqkv, block.get(Role::QkvWeight), scratch.dnorm.rows_mut(t)))?;
        ops.rms_norm_backward(RmsNormBackward {
            dy: scratch.dnorm.rows(t),
            sum: stream.of(layer).0.rows(t),
            weight: block.get(Role::AttentionNorm),
            rstd: attention.rstd.rows(t),
            dsum: scratch.dstream.rows_mut(t),
            accumulate: true,
            dweight: gradients.get(Role::AttentionNorm),
            partials: partial_sums(&mut scratch.partials, RmsNormBackward::PARTIALS, self.config.hidden_size),
        })
    }
}

/// The first `count` · `width` elements of the scratch for partial sums.
fn partial_sums(scratch: &mut Tensor, count: usize, width: usize) -> ViewMut<'_> {
    scratch.rows_mut(count * width).into_shape(&[count, width])
}

fn scratch(backward: &mut Option<BackwardScratch>) -> Result<&mut BackwardScratch> {
    backward.as_mut().ok_or_else(|| Error::internal("these activations were built without a backward pass"))
}
