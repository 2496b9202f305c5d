//! Everything that one optimizer step needs, reserved at once: weights, gradients, moments, activations.

use super::optimizer::{Optimizer, Update, clip_factor};
use crate::config::{MasterWeights, ModelConfig, Normalize, OptimizerConfig, StateDtype};
use crate::data::{IGNORE, MicroBatch};
use crate::error::Result;
use crate::io::TensorSpec;
use crate::model::{AccumulatedGradients, Activations, AttentionMode, Block, Keep, Packed, Parameter, Qwen2, ResidentWeights};
use crate::ops::Ops;
use crate::tensor::{Arena, DType, Ledger, Tensor};

pub struct Engine {
    pub ops: Box<dyn Ops>,
    pub state: State,
    /// What was reserved, by name.
    pub ledger: Ledger,
}

/// All that an engine keeps in its arena.
pub struct State {
    pub model: Qwen2,
    pub weights: ResidentWeights,
    pub gradients: AccumulatedGradients,
    pub optimizer: Optimizer,
    activations: Activations,
}

/// Asked in every loop that may take long: an error ends it.
pub type Stop<'a> = &'a dyn Fn() -> Result<()>;

/// What the buffers are sized for, and the types that may be chosen.
#[derive(Debug, Clone, Copy)]
pub struct Sizes {
    /// The most tokens of a micro-batch.
    pub micro_tokens: usize,
    /// Positions of the longest sequence.
    pub positions: usize,
    pub keep: Keep,
    pub state: StateDtype,
    pub master: MasterWeights,
}

impl Sizes {
    /// With moments in f32 and exact masters.
    pub fn new(micro_tokens: usize, positions: usize, keep: Keep) -> Sizes {
        Sizes { micro_tokens, positions, keep, state: StateDtype::Fp32, master: MasterWeights::Exact }
    }
}

/// The loss of one optimizer step or evaluation, before any update.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Loss {
    /// Normalised as asked.
    pub value: f64,
    pub tokens: usize,
    pub supervised_tokens: usize,
}

impl State {
    fn new(arena: &mut Arena, ops: &dyn Ops, config: &ModelConfig, sizes: Sizes) -> Result<State> {
        let (storage, multiple) = (ops.dtype(), ops.token_multiple());
        let model = Qwen2::new(arena, config, sizes.positions.max(multiple))?;
        let layout = model.layout.clone();
        Ok(State {
            model,
            weights: ResidentWeights::trained(arena, layout.clone(), storage, sizes.master == MasterWeights::Exact)?,
            gradients: AccumulatedGradients::new(arena, layout.clone())?,
            optimizer: Optimizer::new(arena, layout, sizes.state)?,
            activations: Activations::new(arena, config, storage, sizes.micro_tokens.next_multiple_of(multiple), sizes.keep)?,
        })
    }

    /// What a step changes besides the weights, by the names of the ledger.
    pub fn buffers(&self) -> impl Iterator<Item = (String, &Tensor)> {
        self.optimizer.buffers().chain(self.weights.remainder_buffers())
    }

    pub fn buffers_mut(&mut self) -> impl Iterator<Item = (String, &mut Tensor)> {
        self.optimizer.buffers_mut().chain(self.weights.remainder_buffers_mut())
    }
}

impl Engine {
    /// Reserves everything. The weights are zeros until they are loaded or initialised.
    pub fn new(ops: Box<dyn Ops>, config: &ModelConfig, sizes: Sizes) -> Result<Engine> {
        let (mut state, ledger) = Arena::build(ops.allocator(), |arena| State::new(arena, ops.as_ref(), config, sizes))?;
        state.model.upload_tables(ops.as_ref())?;
        Ok(Engine { ops, state, ledger })
    }

    /// The ledger that [`Engine::new`] would reserve.
    pub fn plan(ops: &dyn Ops, config: &ModelConfig, sizes: Sizes) -> Result<Ledger> {
        let mut arena = Arena::dry();
        State::new(&mut arena, ops, config, sizes)?;
        Ok(arena.ledger().clone())
    }

    /// Forms the gradients of one optimizer step from its micro-batches, which hold `rows` sequences between them.
    ///
    /// Errors: those of `stop`, which is asked before each micro-batch; the gradients are then of no use, weights and moments as before.
    pub fn accumulate(&mut self, batches: &[MicroBatch], rows: usize, normalize: Normalize, stop: Stop) -> Result<Loss> {
        let ops = self.ops.as_ref();
        let State { model, weights, gradients, activations, .. } = &mut self.state;
        let counts = Counts::new(batches, rows);
        let mut sums = vec![0.0f64; rows];
        gradients.zero(ops)?;
        for batch in batches {
            stop()?;
            let batch = &batch.padded(ops.token_multiple());
            let scales = counts.scales(batch, normalize);
            model.prepare_backward(ops, activations, packed(batch), &batch.targets, &scales)?;
            model.forward(ops, weights, activations, packed(batch), AttentionMode::Train)?;
            let losses = model.backward(ops, weights, gradients, activations, packed(batch))?;
            add_losses(batch, &losses, &mut sums);
        }
        Ok(counts.loss(&sums, normalize))
    }

    /// The token mean of the loss over `batches`, without gradients.
    pub fn evaluate(&mut self, batches: &[MicroBatch], rows: usize, stop: Stop) -> Result<Loss> {
        let mut sums = vec![0.0f64; rows];
        for batch in batches {
            stop()?;
            let losses = self.token_losses(batch)?;
            add_losses(batch, &losses, &mut sums);
        }
        Ok(Counts::new(batches, rows).loss(&sums, Normalize::Tokens))
    }

    /// −log p of the target of every token of a batch, padding included, 0 where it has none.
    pub fn token_losses(&mut self, batch: &MicroBatch) -> Result<Vec<f32>> {
        let ops = self.ops.as_ref();
        let State { model, weights, activations, .. } = &mut self.state;
        let batch = &batch.padded(ops.token_multiple());
        model.forward(ops, weights, activations, packed(batch), AttentionMode::Train)?;
        model.losses(ops, weights, activations, &batch.targets)
    }

    /// Floating-point operations of one step's products and attention, forward and backward, padding and recomputation not counted.
    pub fn step_flops(&self, batches: &[MicroBatch]) -> f64 {
        let Qwen2 { layout, heads, config, .. } = &self.state.model;
        let (classifier, _) = layout.classifier();
        let blocks = layout.blocks.iter().filter(|b| b.block != Block::Embedding || b.block == classifier);
        let matrices = blocks.flat_map(|b| &b.parameters).filter(|p| p.decays()).map(Parameter::elements).sum::<usize>() as f64;
        let width = (config.num_hidden_layers * heads.query * heads.dim) as f64;
        let lengths = batches.iter().flat_map(MicroBatch::sequences).map(|(_, range)| range.len() as f64);
        lengths.map(|n| 6.0 * matrices * n + 12.0 * width * n * (n + 1.0) / 2.0).sum()
    }

    /// Every tensor of the model as a checkpoint of `dtype` holds it.
    pub fn model_tensors(&self, dtype: DType) -> Vec<TensorSpec> {
        let tensors = self.state.model.layout.tensors();
        tensors.map(|(name, shape)| TensorSpec { name: name.to_string(), dtype, shape }).collect()
    }

    /// The norm of the accumulated gradients.
    pub fn gradient_norm(&mut self) -> Result<f64> {
        self.state.optimizer.gradient_norm(self.ops.as_ref(), &self.state.gradients)
    }

    /// Applies the accumulated gradients, whose norm is `norm`. `seed` is that of stochastic rounding.
    pub fn update(&mut self, settings: &OptimizerConfig, lr: f64, norm: f64, seed: u64) -> Result<()> {
        let State { weights, gradients, optimizer, .. } = &mut self.state;
        let _range = self.ops.range("optimizer");
        let update = Update { lr, grad_scale: clip_factor(norm, settings.clip), seed };
        optimizer.update(self.ops.as_ref(), weights, gradients, settings, update)
    }
}

fn packed(batch: &MicroBatch) -> Packed<'_> {
    Packed { tokens: &batch.tokens, positions: &batch.positions, cu_seqlens: &batch.cu_seqlens }
}

/// Adds each sequence's losses in token order.
fn add_losses(batch: &MicroBatch, losses: &[f32], sums: &mut [f64]) {
    for (row, range) in batch.sequences() {
        sums[row] = losses[range].iter().fold(sums[row], |sum, &loss| sum + loss as f64);
    }
}

/// Supervised tokens of each sequence of a step, and in all: what losses are divided by, once.
struct Counts {
    tokens: usize,
    supervised: Vec<usize>,
}

impl Counts {
    fn new(batches: &[MicroBatch], rows: usize) -> Self {
        let mut supervised = vec![0; rows];
        for batch in batches {
            for (row, range) in batch.sequences() {
                supervised[row] += batch.targets[range].iter().filter(|&&t| t != IGNORE).count();
            }
        }
        Counts { tokens: batches.iter().flat_map(|b| b.sequences()).map(|(_, range)| range.len()).sum(), supervised }
    }

    fn total(&self) -> usize {
        self.supervised.iter().sum()
    }

    /// The weight of each token's loss.
    fn scales(&self, batch: &MicroBatch, normalize: Normalize) -> Vec<f32> {
        let mut scales = vec![0.0; batch.tokens.len()];
        for (row, range) in batch.sequences() {
            let divisor = match normalize {
                Normalize::Tokens => self.total(),
                Normalize::Sequences => self.supervised[row] * self.supervised.len(),
            };
            scales[range].fill((1.0 / divisor as f64) as f32);
        }
        scales
    }

    fn loss(&self, sums: &[f64], normalize: Normalize) -> Loss {
        let value = match normalize {
            Normalize::Tokens => sums.iter().sum::<f64>() / self.total() as f64,
            Normalize::Sequences => {
                sums.iter().zip(&self.supervised).map(|(sum, &n)| sum / n as f64).sum::<f64>() / sums.len() as f64
            }
        };
        Loss { value, tokens: self.tokens, supervised_tokens: self.total() }
    }
}
