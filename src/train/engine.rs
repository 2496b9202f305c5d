//! Everything that one optimizer step needs, reserved at once: weights, gradients, moments, activations, of one rank.

use crate::comm::{Comm, Solo};
use crate::config::{MasterWeights, ModelConfig, Normalize, Offload, OptimizerConfig};
use crate::data::{IGNORE, MicroBatch};
use crate::error::{Error, Result};
use crate::io::TensorSpec;
use crate::model::{Activations, Block, Extent, GradSink, Keep, Packed, Parameter, Qwen2};
use crate::ops::Ops;
use crate::tensor::{Arenas, DType, Ledgers, ViewMut};
use crate::zero::{
    MicroBatches, Optimizer, Policy, ReleasedGradients, Saved, ShardedGradients, ShardedWeights, Update, clip_factor,
};
use std::rc::Rc;

pub struct Engine {
    pub ops: Box<dyn Ops>,
    pub comm: Rc<dyn Comm>,
    pub state: State,
    /// What was reserved, by name.
    pub ledgers: Ledgers,
}

/// All that an engine keeps in its arenas.
pub struct State {
    pub model: Qwen2,
    pub weights: ShardedWeights,
    pub gradients: ShardedGradients,
    pub optimizer: Optimizer,
    activations: Activations,
}

/// Asked in every loop that may take long: an error ends it. Ranks ask in step, and get the same answer.
pub type Stop<'a> = &'a dyn Fn() -> Result<()>;

/// What the buffers are sized for, and how they are kept.
#[derive(Debug, Clone)]
pub struct Sizes {
    /// The most tokens of a micro-batch.
    pub micro_tokens: usize,
    /// Positions of the longest sequence.
    pub positions: usize,
    pub keep: Keep,
    /// Parts that a micro-batch goes through the feed-forward blocks in.
    pub mlp_tiles: usize,
    pub policy: Policy,
}

impl Sizes {
    /// With the plain policy.
    pub fn new(micro_tokens: usize, positions: usize, keep: Keep) -> Sizes {
        Sizes { micro_tokens, positions, keep, mlp_tiles: 1, policy: Policy::plain() }
    }

    /// Whether weights stored as `storage` have exact masters beyond them.
    pub fn exact(&self, storage: DType) -> bool {
        storage == DType::Bf16 && self.policy.master == MasterWeights::Exact
    }

    fn extent(&self, multiple: usize) -> Extent {
        Extent {
            tokens: self.micro_tokens.next_multiple_of(multiple),
            keep: self.keep,
            classifier: true,
            mlp_tiles: self.mlp_tiles,
            offload_residuals: self.policy.offloads(Offload::Residuals),
            offload_activations: self.policy.offloads(Offload::Activations),
        }
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

/// How a step's gradients are applied.
#[derive(Debug, Clone, Copy)]
pub struct Apply<'a> {
    pub settings: &'a OptimizerConfig,
    pub lr: f64,
    /// Of stochastic rounding.
    pub seed: u64,
}

impl State {
    fn new(
        arenas: &mut Arenas,
        (storage, multiple): (DType, usize),
        comm: &Rc<dyn Comm>,
        config: &ModelConfig,
        sizes: &Sizes,
    ) -> Result<State> {
        let policy = &sizes.policy;
        let model = Qwen2::new(&mut arenas.device, config, sizes.positions.max(multiple))?;
        let layout = model.layout.clone();
        Ok(State {
            model,
            weights: ShardedWeights::new(arenas, layout.clone(), comm.clone(), storage, policy)?,
            gradients: ShardedGradients::new(arenas, layout.clone(), comm.clone(), policy)?,
            optimizer: Optimizer::new(arenas, layout, comm.clone(), policy)?,
            activations: Activations::new(arenas, config, storage, sizes.extent(multiple))?,
        })
    }

    fn checkpoint_bytes(&self, storage: DType) -> usize {
        let state: usize = self.saved().map(|saved| saved.whole * saved.numbers.dtype().size()).sum();
        self.model.layout.parameter_count() * storage.size() + state
    }

    /// What a step changes besides the weights, as far as it is this rank's.
    pub fn saved(&self) -> impl Iterator<Item = Saved<'_>> {
        self.optimizer.saved().chain(self.weights.saved())
    }

    /// Writes it back: `fill` gets what [`State::saved`] says of each kind of numbers, and where they go.
    pub fn restore(&mut self, fill: &mut dyn FnMut(Saved, ViewMut) -> Result<()>) -> Result<()> {
        self.optimizer.restore(fill)?;
        self.weights.restore(fill)
    }
}

impl Engine {
    /// Reserves everything. The weights are zeros until they are loaded or initialised.
    pub fn new(ops: Box<dyn Ops>, comm: Rc<dyn Comm>, config: &ModelConfig, sizes: &Sizes) -> Result<Engine> {
        let device = (ops.dtype(), ops.token_multiple());
        let cut = |arenas: &mut Arenas| State::new(arenas, device, &comm, config, sizes);
        let (mut state, ledgers) = Arenas::build(ops.allocator(), ops.host_allocator(), cut)?;
        state.model.upload_tables(ops.as_ref())?;
        Ok(Engine { ops, comm, state, ledgers })
    }

    /// The engine of a run with one rank.
    pub fn solo(ops: Box<dyn Ops>, config: &ModelConfig, sizes: &Sizes) -> Result<Engine> {
        Engine::new(ops, Rc::new(Solo), config, sizes)
    }

    /// The ledgers that [`Engine::new`] would reserve, and the bytes of its checkpoints, on a device that stores `storage` and pads micro-batches to a multiple of `multiple` tokens.
    pub fn plan(
        storage: DType,
        multiple: usize,
        comm: Rc<dyn Comm>,
        config: &ModelConfig,
        sizes: &Sizes,
    ) -> Result<(Ledgers, usize)> {
        let mut arenas = Arenas::dry();
        let state = State::new(&mut arenas, (storage, multiple), &comm, config, sizes)?;
        Ok((arenas.ledgers(), state.checkpoint_bytes(storage)))
    }

    /// Bytes of a checkpoint's tensors, of all ranks.
    pub fn checkpoint_bytes(&self) -> usize {
        self.state.checkpoint_bytes(self.ops.dtype())
    }

    /// Forms the gradients of one optimizer step from its micro-batches, which hold `rows` sequences between them and are dealt to the ranks in turn. `seed` is that of
    /// stochastic rounding.
    ///
    /// Errors: those of `stop`, which is asked before each round of micro-batches; the gradients are then of no use, weights and moments as before.
    pub fn accumulate(
        &mut self,
        batches: &[MicroBatch],
        rows: usize,
        normalize: Normalize,
        seed: u64,
        stop: Stop,
    ) -> Result<Loss> {
        let (ops, comm) = (self.ops.as_ref(), self.comm.as_ref());
        let State { model, weights, gradients, activations, optimizer } = &mut self.state;
        let counts = Counts::new(batches, rows);
        let mut sums = vec![0.0f64; rows];
        for (round, together) in batches.chunks(comm.world()).enumerate() {
            stop()?;
            let first = round * comm.world();
            gradients.begin(MicroBatches { first, count: together.len(), seed, update: optimizer.step + 1 });
            let mine = together.get(comm.rank());
            comm.note(&format!("micro-batch {}", first + comm.rank() + 1));
            pass(ops, model, weights, gradients, activations, mine.map(|batch| (batch, &counts, normalize)), &mut sums)?;
        }
        gradients.finish(ops)?;
        Ok(counts.loss(&merged(comm, sums)?, normalize))
    }

    /// The same, but each block is updated as soon as its gradients are complete: the whole step, with at most one micro-batch a rank and without clipping. Returns the loss and the
    /// gradients' norm.
    ///
    /// Errors: internal, for more micro-batches. After any error but those of `stop` the weights are of no use.
    pub fn apply_released(
        &mut self,
        batches: &[MicroBatch],
        rows: usize,
        normalize: Normalize,
        Apply { settings, lr, seed }: Apply,
        stop: Stop,
    ) -> Result<(Loss, f64)> {
        let (ops, comm) = (self.ops.as_ref(), self.comm.as_ref());
        if batches.len() > comm.world() {
            let (count, world) = (batches.len(), comm.world());
            return Err(Error::internal(format!("gradients of {count} micro-batches cannot be released on {world} ranks")));
        }
        stop()?;
        let State { model, weights, gradients, activations, optimizer } = &mut self.state;
        let counts = Counts::new(batches, rows);
        let mut sums = vec![0.0f64; rows];
        optimizer.step += 1;
        comm.note(&format!("micro-batch {}", comm.rank() + 1));
        gradients.begin(MicroBatches { first: 0, count: batches.len(), seed, update: optimizer.step });
        let mine = batches.get(comm.rank()).map(|batch| (batch, &counts, normalize));
        let update = Update { lr, grad_scale: 1.0, seed };
        let mut sink = ReleasedGradients { gradients, weights, optimizer, settings, update, closed: None };
        pass(ops, model, weights, &mut sink, activations, mine, &mut sums)?;
        sink.settle(ops)?;
        let norm = optimizer.released_norm(ops)?;
        Ok((counts.loss(&merged(comm, sums)?, normalize), norm))
    }

    /// The token mean of the loss over `batches`, without gradients.
    pub fn evaluate(&mut self, batches: &[MicroBatch], rows: usize, stop: Stop) -> Result<Loss> {
        let mut sums = vec![0.0f64; rows];
        for together in batches.chunks(self.comm.world()) {
            stop()?;
            match together.get(self.comm.rank()) {
                Some(batch) => {
                    let losses = self.token_losses(batch)?;
                    add_losses(batch, &losses, &mut sums);
                }
                None => self.state.model.forward_idle(self.ops.as_ref(), &self.state.weights)?,
            }
        }
        Ok(Counts::new(batches, rows).loss(&merged(self.comm.as_ref(), sums)?, Normalize::Tokens))
    }

    /// −log p of the target of every token of a batch, padding included, 0 where it has none.
    pub fn token_losses(&mut self, batch: &MicroBatch) -> Result<Vec<f32>> {
        let ops = self.ops.as_ref();
        let State { model, weights, activations, .. } = &mut self.state;
        let batch = &batch.padded(ops.token_multiple());
        model.forward(ops, weights, activations, packed(batch))?;
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

    /// Applies the accumulated gradients, whose norm is `norm`.
    pub fn update(&mut self, norm: f64, Apply { settings, lr, seed }: Apply) -> Result<()> {
        let State { weights, gradients, optimizer, .. } = &mut self.state;
        let _range = self.ops.range("optimizer");
        self.comm.note("optimizer");
        let update = Update { lr, grad_scale: clip_factor(norm, settings.clip), seed };
        optimizer.update(self.ops.as_ref(), weights, gradients, settings, update)
    }
}

/// Forward and backward pass of this rank's micro-batch, if it has one; adds its losses to those of its rows.
fn pass(
    ops: &dyn Ops,
    model: &Qwen2,
    weights: &ShardedWeights,
    sink: &mut dyn GradSink,
    activations: &mut Activations,
    work: Option<(&MicroBatch, &Counts, Normalize)>,
    sums: &mut [f64],
) -> Result<()> {
    let Some((batch, counts, normalize)) = work else {
        model.forward_idle(ops, weights)?;
        return model.backward_idle(ops, weights, sink);
    };
    let batch = &batch.padded(ops.token_multiple());
    let scales = counts.scales(batch, normalize);
    model.prepare_backward(ops, activations, packed(batch), &batch.targets, &scales)?;
    model.forward(ops, weights, activations, packed(batch))?;
    let losses = model.backward(ops, weights, sink, activations, packed(batch))?;
    add_losses(batch, &losses, sums);
    Ok(())
}

/// The sums of all rows, each of which one rank has.
fn merged(comm: &dyn Comm, sums: Vec<f64>) -> Result<Vec<f64>> {
    if comm.world() == 1 {
        return Ok(sums);
    }
    let mut total = vec![0.0f64; sums.len()];
    for bytes in comm.share(bytemuck::cast_slice(&sums))? {
        let sums: Vec<f64> = bytemuck::pod_collect_to_vec(&bytes);
        total.iter_mut().zip(sums).for_each(|(total, sum)| *total += sum);
    }
    Ok(total)
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
