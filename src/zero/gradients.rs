//! The gradients of a training job as shards. Each micro-batch's contribution to a block is formed whole, rounded once to the wire's type, exchanged, and added by
//! the owners of the shards in the order of the micro-batches: the sums are the same bits for any number of ranks.

use super::cut::Cut;
use super::flat::{Flat, Kind, Piece, pieces_of};
use super::optimizer::{Optimizer, Update};
use super::policy::Policy;
use super::weights::ShardedWeights;
use crate::comm::Comm;
use crate::config::{Offload, OptimizerConfig};
use crate::error::{Error, Result};
use crate::model::{Block, BlockGradients, GradSink, Layout, download_f32};
use crate::ops::{Accumulate, Mark, Ops};
use crate::tensor::{Arenas, DType, Tensor, View, ViewMut};
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;

/// The micro-batches that all ranks work on at the same time.
#[derive(Debug, Clone, Copy)]
pub struct MicroBatches {
    /// The number of rank 0's within its step.
    pub first: usize,
    /// The ranks that have one: the first of them.
    pub count: usize,
    /// Of stochastic rounding, and the update that these gradients are for.
    pub seed: u64,
    pub update: u64,
}

impl MicroBatches {
    /// The number of the sum that contribution `index` joins, among all under one seed. The stream differs from that of the updates, which draw for weights and moments.
    fn draw(&self, index: usize) -> (u64, u64) {
        const STREAM: u64 = 0x6772_6164_6965_6e74;
        (self.seed ^ STREAM, self.update << 24 | (self.first + index) as u64)
    }
}

pub struct ShardedGradients {
    layout: Arc<Layout>,
    comm: Rc<dyn Comm>,
    cut: Cut,
    policy: Policy,
    /// None where gradients are released.
    sums: Option<Flat>,
    /// Whether the sums of a block are still to be begun, by block.
    fresh: Vec<bool>,
    /// f32, whole blocks: see [`contribution_of`].
    contributions: Vec<Contribution>,
    /// Of several ranks: what is sent where it is not the f32 contribution itself, and what arrives, a row a rank.
    wire: Option<Tensor>,
    received: Option<Tensor>,
    batches: MicroBatches,
    open: Option<Block>,
    /// The head's part of a tied embedding is there, the embedding's own is still to come.
    half: bool,
}

struct Contribution {
    data: Tensor,
    /// Behind the last use by the second queue.
    used: Option<Mark>,
}

impl ShardedGradients {
    pub fn new(arenas: &mut Arenas, layout: Arc<Layout>, comm: Rc<dyn Comm>, policy: &Policy) -> Result<Self> {
        let cut = Cut { rank: comm.rank(), world: comm.world() };
        let dtype = policy.gradient_dtype();
        let offloaded = |_| policy.offloads(Offload::Gradients);
        let mut sums = || {
            let kind = Kind { name: "gradients", per: 1, dtype: &|_| Some(dtype), offloaded: &offloaded };
            Flat::new(arenas, &layout, cut, policy.piece, kind)
        };
        let sums = (!policy.gradient_release).then(&mut sums).transpose()?;
        let mut longest: Vec<usize> = Vec::new();
        for block in &layout.blocks {
            let index = contribution_of(&layout, cut, policy, block.block);
            longest.resize(longest.len().max(index + 1), 0);
            longest[index] = longest[index].max(cut.padded(block.elements));
        }
        let mut contribution = |(index, &elements): (usize, &usize)| {
            let data = arenas.device.tensor(&format!("contributions.{index}"), DType::F32, &[elements])?;
            Ok(Contribution { data, used: None })
        };
        let contributions = longest.iter().enumerate().map(&mut contribution).collect::<Result<Vec<_>>>()?;
        let longest = longest.iter().copied().max().unwrap_or_default();
        let mut buffer = |name: &str| arenas.device.tensor(name, dtype, &[longest]);
        let wire = (cut.world > 1 && dtype != DType::F32).then(|| buffer("wire.sent")).transpose()?;
        let received = (cut.world > 1).then(|| buffer("wire.received")).transpose()?;
        let fresh = vec![true; layout.blocks.len()];
        let batches = MicroBatches { first: 0, count: 1, seed: 0, update: 0 };
        let policy = policy.clone();
        Ok(ShardedGradients {
            layout,
            comm,
            cut,
            policy,
            sums,
            fresh,
            contributions,
            wire,
            received,
            batches,
            open: None,
            half: false,
        })
    }

    /// Says which micro-batches come next. The first of a step begin new sums.
    pub fn begin(&mut self, batches: MicroBatches) {
        if batches.first == 0 {
            self.fresh.fill(true);
        }
        (self.batches, self.open, self.half) = (batches, None, false);
    }

    /// Lets the computation see all sums.
    pub fn finish(&self, ops: &dyn Ops) -> Result<()> {
        if self.sums.is_none() || !overlapped(self.cut, &self.policy) {
            return Ok(());
        }
        self.settled(ops)
    }

    /// Lets the computation wait for the second queue, once that is sure to end.
    fn settled(&self, ops: &dyn Ops) -> Result<()> {
        let mark = ops.beside().mark()?;
        self.comm.settle(&|| ops.is_done(&mark))?;
        ops.wait(&mark)
    }

    /// The sums, where they are kept.
    pub fn sums(&self) -> Result<&Flat> {
        self.sums.as_ref().ok_or_else(|| Error::internal("gradients that were released have no sums"))
    }

    /// Calls `visit(name, values)` with this rank's part of the gradient of every tensor of the checkpoint, in ascending order within each.
    pub fn visit(&self, ops: &dyn Ops, mut visit: impl FnMut(&str, &[f32]) -> Result<()>) -> Result<()> {
        ops.synchronize()?;
        for (index, layout) in self.layout.blocks.iter().enumerate() {
            let owned = self.cut.owned(layout.elements);
            for parameter in &layout.parameters {
                for part in &parameter.parts {
                    let range = super::cut::overlap(owned.start, &(0..owned.len()), &parameter.part_range(part));
                    visit(&part.name, &download_f32(ops, self.sums()?.shard(index)?.rows(range))?)?;
                }
            }
        }
        Ok(())
    }

    fn contribution(&mut self, block: Block) -> &mut Contribution {
        let index = contribution_of(&self.layout, self.cut, &self.policy, block);
        &mut self.contributions[index]
    }

    /// Gives `block` its buffer: zeros, or the first half of a tied embedding.
    fn open(&mut self, ops: &dyn Ops, block: Block) -> Result<BlockGradients<'_>> {
        if let Some(open) = self.open.replace(block) {
            return Err(Error::internal(format!("gradients of {block} were opened while those of {open} were")));
        }
        let second_half = self.half && block == Block::Embedding;
        let index = self.layout.index(block);
        let elements = self.cut.padded(self.layout.blocks[index].elements);
        let contribution = self.contribution(block);
        if let Some(used) = contribution.used.take() {
            ops.wait(&used)?;
        }
        if !second_half {
            ops.fill(contribution.data.rows_mut(elements), 0.0)?;
        }
        let contribution = contribution_of(&self.layout, self.cut, &self.policy, block);
        let layout = &self.layout.blocks[index];
        Ok(BlockGradients::new(layout, self.contributions[contribution].data.rows_mut(layout.elements)))
    }

    /// Ends the work on `block`; true once its contribution is complete.
    fn close(&mut self, block: Block) -> Result<bool> {
        if self.open.take() != Some(block) {
            return Err(Error::internal(format!("gradients of {block} were closed without being open")));
        }
        if block == Block::Embedding && self.layout.tied {
            self.half = !self.half;
            return Ok(!self.half);
        }
        Ok(true)
    }

    /// Sends this rank's contribution to the owners, and takes theirs.
    fn exchange(&mut self, queue: &dyn Ops, block: Block) -> Result<()> {
        let Some(received) = &mut self.received else { return Ok(()) };
        self.comm.note(&format!("exchanging gradients of {block}"));
        let index = contribution_of(&self.layout, self.cut, &self.policy, block);
        let elements = self.cut.padded(self.layout.block(block).elements);
        let contribution = self.contributions[index].data.rows(elements);
        let sent = match &mut self.wire {
            None => contribution,
            Some(wire) => {
                queue.cast(contribution, wire.rows_mut(elements))?;
                wire.rows(elements)
            }
        };
        self.comm.exchange(sent, received.rows_mut(elements))
    }

    /// Adds the contributions to a piece of a block, in order, to `out`.
    fn add(&self, queue: &dyn Ops, piece: &Piece, mut out: ViewMut) -> Result<()> {
        let layout = &self.layout.blocks[piece.block];
        let shard = self.cut.shard(layout.elements);
        let place: usize = self.layout.blocks[..piece.block].iter().map(|b| b.elements).sum();
        let first = place + self.cut.rank * shard + piece.range.start;
        for index in 0..self.batches.count {
            let (seed, draw) = self.batches.draw(index);
            let x = self.arrived(layout.block, index * shard + piece.range.start..index * shard + piece.range.end);
            queue.accumulate(Accumulate { x, out: out.reborrow(), seed, draw, first: first as u64 })?;
        }
        Ok(())
    }

    /// Elements of what the ranks sent to this one, or of its own contribution where it is alone.
    fn arrived(&self, block: Block, range: Range<usize>) -> View<'_> {
        match &self.received {
            Some(received) => received.view().rows(range),
            None => self.contributions[contribution_of(&self.layout, self.cut, &self.policy, block)].data.view().rows(range),
        }
    }
}

/// Whether contributions join their sums on the second queue, while the computation goes on with the next block.
fn overlapped(cut: Cut, policy: &Policy) -> bool {
    cut.world > 1 || policy.offloads(Offload::Gradients)
}

/// The buffer that a block's contribution is formed in: one for all; a second one for every other layer where sums run beside the computation; and one of its own for a
/// tied embedding, which collects from the head's gradient to its own.
fn contribution_of(layout: &Layout, cut: Cut, policy: &Policy, block: Block) -> usize {
    let others = usize::from(overlapped(cut, policy)) + 1;
    match block {
        Block::Embedding if layout.tied => others,
        Block::Layer(layer) => layer % others,
        Block::Embedding | Block::Head => 0,
    }
}

impl GradSink for ShardedGradients {
    fn open(&mut self, ops: &dyn Ops, block: Block) -> Result<BlockGradients<'_>> {
        ShardedGradients::open(self, ops, block)
    }

    fn close(&mut self, ops: &dyn Ops, block: Block) -> Result<()> {
        if !ShardedGradients::close(self, block)? {
            return Ok(());
        }
        let queue = if overlapped(self.cut, &self.policy) { ops.beside() } else { ops };
        queue.wait(&ops.mark()?)?;
        self.exchange(queue, block)?;
        let index = self.layout.index(block);
        let (sums, fresh) = (self.sums()?, self.fresh[index]);
        for piece in pieces_of(&self.layout, self.cut, self.policy.piece, index) {
            // SAFETY: one queue uses the sums while gradients are formed; `finish` orders what comes after.
            let mut part = unsafe { sums.part(&piece, 0)? };
            match fresh {
                true => queue.fill(part.reborrow(), 0.0)?,
                false => sums.fetch(queue, &piece, 0)?,
            }
            self.add(queue, &piece, part)?;
            sums.store(queue, &piece, 0)?;
        }
        self.fresh[index] = false;
        let used = queue.mark()?;
        self.contribution(block).used = Some(used);
        Ok(())
    }
}

/// Applies gradients instead of summing them: each block is updated once the backward pass has left it. Every rank has at most one micro-batch.
pub struct ReleasedGradients<'a> {
    pub gradients: &'a mut ShardedGradients,
    pub weights: &'a ShardedWeights,
    pub optimizer: &'a mut Optimizer,
    pub settings: &'a OptimizerConfig,
    pub update: Update,
    /// Closed, and not applied yet: its weights are still in use.
    pub closed: Option<Block>,
}

impl ReleasedGradients<'_> {
    /// Applies what is left. Called after the backward pass.
    pub fn settle(&mut self, ops: &dyn Ops) -> Result<()> {
        let Some(block) = self.closed.take() else { return Ok(()) };
        let gradients = &mut *self.gradients;
        let queue = ops.beside();
        queue.wait(&ops.mark()?)?;
        gradients.exchange(queue, block)?;
        gradients.settled(ops)?;
        let index = gradients.layout.index(block);
        let pieces = pieces_of(&gradients.layout, gradients.cut, gradients.policy.piece, index);
        self.optimizer.release(ops, self.weights, &pieces, self.settings, self.update, |piece, mut out| {
            ops.fill(out.reborrow(), 0.0)?;
            gradients.add(ops, piece, out)
        })
    }
}

impl GradSink for ReleasedGradients<'_> {
    fn open(&mut self, ops: &dyn Ops, block: Block) -> Result<BlockGradients<'_>> {
        self.settle(ops)?;
        self.gradients.open(ops, block)
    }

    fn close(&mut self, _ops: &dyn Ops, block: Block) -> Result<()> {
        if self.gradients.close(block)? {
            self.closed = Some(block);
        }
        Ok(())
    }
}
