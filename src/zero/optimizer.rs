//! AdamW over shards, and the gradient norm.

use super::cut::{Cut, overlap};
use super::flat::{Flat, Kind, Piece, Saved, pieces, pipelined};
use super::gradients::ShardedGradients;
use super::policy::Policy;
use super::weights::ShardedWeights;
use crate::comm::Comm;
use crate::config::{Offload, OptimizerConfig, StateDtype};
use crate::error::{Error, Result};
use crate::model::{Block, Layout, download_f32};
use crate::ops::{AdamW, Moment, Ops, SQUARE_SUMS_CHUNK, SquareSums};
use crate::tensor::{Arenas, DType, Tensor, View, ViewMut};
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;

/// AdamW and its moments, each in the type that `optimizer.state` gives its block.
pub struct Optimizer {
    moments: Moments,
    norm: Norm,
    pieces: Vec<Piece>,
    /// A piece of gradients that are released.
    released: Option<Tensor>,
    /// Updates done.
    pub step: u64,
}

/// What differs from update to update.
#[derive(Debug, Clone, Copy)]
pub struct Update {
    pub lr: f64,
    /// The clip factor.
    pub grad_scale: f32,
    /// Of stochastic rounding.
    pub seed: u64,
}

/// A moment of all blocks.
struct StoredMoment {
    values: Flat,
    /// Of 8-bit values: one a [`Moment::BLOCK`].
    scales: Option<Flat>,
}

impl StoredMoment {
    fn new(arenas: &mut Arenas, names: [&str; 2], layout: &Layout, cut: Cut, policy: &Policy) -> Result<Self> {
        let vocabulary = |block| matches!(block, Block::Embedding | Block::Head);
        let dtype = |block| match policy.state {
            StateDtype::Fp32 => DType::F32,
            StateDtype::Int8 if !vocabulary(block) => DType::U8,
            // Rows of the vocabulary differ too much in how often they are updated to share few bits.
            StateDtype::Bf16 | StateDtype::Int8 => DType::Bf16,
        };
        let offloaded =
            |block| policy.offloads(Offload::Optimizer) || (policy.offloads(Offload::Vocabulary) && vocabulary(block));
        let values = Kind { name: names[0], per: 1, dtype: &|block| Some(dtype(block)), offloaded: &offloaded };
        let of_eight_bits = |block| (dtype(block) == DType::U8).then_some(DType::F32);
        let scales = Kind { name: names[1], per: Moment::BLOCK, dtype: &of_eight_bits, offloaded: &offloaded };
        let mut flat = |kind| Flat::new(arenas, layout, cut, policy.piece, kind);
        let values = flat(values)?;
        let scales = (policy.state == StateDtype::Int8).then(|| flat(scales)).transpose()?;
        Ok(StoredMoment { values, scales })
    }

    fn flats(&self) -> impl Iterator<Item = &Flat> {
        std::iter::once(&self.values).chain(&self.scales)
    }

    /// # Safety
    /// As for [`Flat::part`].
    unsafe fn part(&self, piece: &Piece, turn: usize) -> Result<Moment<'_>> {
        let scales = self.scales.as_ref().filter(|scales| scales.has(piece.block));
        // SAFETY: the caller's promise.
        unsafe {
            Ok(Moment {
                values: self.values.part(piece, turn)?,
                scales: scales.map(|scales| scales.part(piece, turn)).transpose()?,
            })
        }
    }
}

/// Elements `range` of a moment, which begin and end with blocks that share a scale or with the moment.
fn cut_moment(moment: Moment, range: Range<usize>) -> Moment {
    let blocks = range.start / Moment::BLOCK..range.end.div_ceil(Moment::BLOCK);
    Moment { values: moment.values.into_rows(range), scales: moment.scales.map(|scales| scales.into_rows(blocks)) }
}

/// Both moments of this rank's shards.
struct Moments {
    layout: Arc<Layout>,
    cut: Cut,
    m: StoredMoment,
    v: StoredMoment,
}

impl Moments {
    fn flats(&self) -> impl Iterator<Item = &Flat> {
        self.m.flats().chain(self.v.flats())
    }

    /// Brings what an update of a piece reads from host memory, as far as it is there.
    fn fetch(&self, weights: &ShardedWeights, queue: &dyn Ops, piece: &Piece, turn: usize) -> Result<()> {
        weights.fetch(queue, piece, turn)?;
        self.flats().try_for_each(|flat| flat.fetch(queue, piece, turn))
    }

    /// Brings it back.
    fn store(&self, weights: &ShardedWeights, queue: &dyn Ops, piece: &Piece, turn: usize) -> Result<()> {
        weights.store(queue, piece, turn)?;
        self.flats().try_for_each(|flat| flat.store(queue, piece, turn))
    }

    /// Updates a piece that was fetched, with its gradients.
    fn update(
        &self,
        ops: &dyn Ops,
        weights: &ShardedWeights,
        (piece, turn): (&Piece, usize),
        grad: View,
        settings: &OptimizerConfig,
        (step, update): (u64, Update),
    ) -> Result<()> {
        let layout = &self.layout.blocks[piece.block];
        let place: usize = self.layout.blocks[..piece.block].iter().map(|b| b.elements).sum();
        let start = self.cut.rank * self.cut.shard(layout.elements);
        weights.change(piece.block)?;
        for parameter in &layout.parameters {
            let whole = parameter.offset..parameter.offset + parameter.elements();
            let range = overlap(start, &piece.range, &whole);
            if range.is_empty() {
                continue;
            }
            // SAFETY: one update at a time, on one queue; pieces that are staged were fetched behind the update before; no guard is alive.
            let (param, master, m, v) = unsafe {
                let (param, master) = weights.part(piece, turn)?;
                (param, master, self.m.part(piece, turn)?, self.v.part(piece, turn)?)
            };
            ops.adamw(AdamW {
                param: param.into_rows(range.clone()),
                grad: grad.rows(range.clone()),
                master: master.into_rows(range.clone()),
                m: cut_moment(m, range.clone()),
                v: cut_moment(v, range.clone()),
                step,
                lr: update.lr,
                beta1: settings.betas[0],
                beta2: settings.betas[1],
                eps: settings.eps,
                weight_decay: if parameter.decays() { settings.weight_decay } else { 0.0 },
                grad_scale: update.grad_scale,
                seed: update.seed,
                first: (place + start + piece.range.start + range.start) as u64,
            })?;
        }
        Ok(())
    }
}

/// The gradient norm.
struct Norm {
    layout: Arc<Layout>,
    comm: Rc<dyn Comm>,
    cut: Cut,
    /// Partial sums of squares of all shards, in the order of the blocks.
    sums: Tensor,
    /// A piece of bf16 gradients in f32.
    wide: Option<Tensor>,
}

impl Norm {
    /// Squares a piece.
    fn add(&mut self, ops: &dyn Ops, piece: &Piece, x: View) -> Result<()> {
        let before: usize = self.layout.blocks[..piece.block].iter().map(|b| self.cut.shard(b.elements)).sum();
        let begin = (before + piece.range.start) / SQUARE_SUMS_CHUNK;
        let sums = self.sums.view_mut().into_rows(begin..begin + piece.range.len() / SQUARE_SUMS_CHUNK);
        match &mut self.wide {
            None => ops.square_sums(SquareSums { x, sums }),
            Some(wide) => {
                ops.cast(x, wide.rows_mut(x.elements()))?;
                ops.square_sums(SquareSums { x: wide.rows(x.elements()), sums })
            }
        }
    }

    /// The norm over all pieces of all ranks.
    fn get(&self, ops: &dyn Ops) -> Result<f64> {
        let mine = download_f32(ops, self.sums.view())?;
        let all: Vec<Vec<f32>> = match self.cut.world {
            1 => vec![mine],
            _ => {
                let all = self.comm.share(bytemuck::cast_slice(&mine))?;
                all.iter().map(|bytes| bytemuck::pod_collect_to_vec(bytes)).collect()
            }
        };
        // In the order of whole blocks: of each, every rank's shard.
        let (mut total, mut begin) = (0.0f64, 0);
        for block in &self.layout.blocks {
            let end = begin + self.cut.shard(block.elements) / SQUARE_SUMS_CHUNK;
            for sums in &all {
                let sums = sums.get(begin..end).ok_or_else(|| Error::internal("a rank has other partial sums"))?;
                total = sums.iter().fold(total, |total, &sum| total + f64::from(sum));
            }
            begin = end;
        }
        Ok(total.sqrt())
    }
}

impl Optimizer {
    pub fn new(arenas: &mut Arenas, layout: Arc<Layout>, comm: Rc<dyn Comm>, policy: &Policy) -> Result<Self> {
        let cut = Cut { rank: comm.rank(), world: comm.world() };
        let m = StoredMoment::new(arenas, ["optimizer.m", "optimizer.m.scales"], &layout, cut, policy)?;
        let v = StoredMoment::new(arenas, ["optimizer.v", "optimizer.v.scales"], &layout, cut, policy)?;
        let pieces = pieces(&layout, cut, policy.piece);
        let elements: usize = pieces.iter().map(|piece| piece.range.len()).sum();
        let sums = arenas.device.tensor("optimizer.square_sums", DType::F32, &[elements / SQUARE_SUMS_CHUNK])?;
        let longest = pieces.iter().map(|piece| piece.range.len()).max().unwrap_or_default();
        let dtype = policy.gradient_dtype();
        let mut piece = |name: &str, dtype| arenas.device.tensor(name, dtype, &[longest]);
        let wide = (dtype != DType::F32).then(|| piece("staging.gradients.f32", DType::F32)).transpose()?;
        let released = policy.gradient_release.then(|| piece("staging.gradients", dtype)).transpose()?;
        let norm = Norm { layout: layout.clone(), comm, cut, sums, wide };
        Ok(Optimizer { moments: Moments { layout, cut, m, v }, norm, pieces, released, step: 0 })
    }

    /// This rank's part of the state by name; see [`Flat::saved`].
    pub fn saved(&self) -> impl Iterator<Item = Saved<'_>> {
        self.moments.flats().flat_map(Flat::saved)
    }

    pub fn restore(&mut self, fill: &mut dyn FnMut(Saved, ViewMut) -> Result<()>) -> Result<()> {
        let Moments { m, v, .. } = &mut self.moments;
        let mut flats = [m, v].into_iter().flat_map(|m| std::iter::once(&mut m.values).chain(&mut m.scales));
        flats.try_for_each(|flat| flat.restore(fill))
    }

    /// ‖g‖₂ over the gradients of all ranks: partial sums of 4096 elements, added in order in f64.
    pub fn gradient_norm(&mut self, ops: &dyn Ops, gradients: &ShardedGradients) -> Result<f64> {
        let flat = gradients.sums()?;
        let norm = &mut self.norm;
        let work = |piece: &Piece, turn| {
            // SAFETY: only read, after the sums were finished.
            let x = unsafe { flat.part(piece, turn)? };
            norm.add(ops, piece, x.as_view())
        };
        pipelined(
            ops,
            &self.pieces,
            flat.any_staged(),
            |queue, piece, turn| flat.fetch(queue, piece, turn),
            work,
            |_, _, _| Ok(()),
        )?;
        self.norm.get(ops)
    }

    /// The norm of the gradients that were released since the last update.
    pub fn released_norm(&self, ops: &dyn Ops) -> Result<f64> {
        self.norm.get(ops)
    }

    /// One update of all blocks.
    pub fn update(
        &mut self,
        ops: &dyn Ops,
        weights: &ShardedWeights,
        gradients: &ShardedGradients,
        settings: &OptimizerConfig,
        update: Update,
    ) -> Result<()> {
        self.step += 1;
        let (flat, moments, step) = (gradients.sums()?, &self.moments, self.step);
        let staged = flat.any_staged() || weights.staged() || moments.flats().any(Flat::any_staged);
        let fetch = |queue: &dyn Ops, piece: &Piece, turn| {
            flat.fetch(queue, piece, turn)?;
            moments.fetch(weights, queue, piece, turn)
        };
        let work = |piece: &Piece, turn| {
            // SAFETY: only read, after the sums were finished.
            let grad = unsafe { flat.part(piece, turn)? };
            moments.update(ops, weights, (piece, turn), grad.as_view(), settings, (step, update))
        };
        let store = |queue: &dyn Ops, piece: &Piece, turn| moments.store(weights, queue, piece, turn);
        pipelined(ops, &self.pieces, staged, fetch, work, store)
    }

    /// Updates pieces of one block, as a part of update `step`, with gradients that `form` writes into a buffer, and squares those.
    pub fn release(
        &mut self,
        ops: &dyn Ops,
        weights: &ShardedWeights,
        pieces: &[Piece],
        settings: &OptimizerConfig,
        update: Update,
        form: impl Fn(&Piece, ViewMut) -> Result<()>,
    ) -> Result<()> {
        let Optimizer { moments, norm, released, step, .. } = self;
        let released = released.as_mut().ok_or_else(|| Error::internal("these gradients are summed, not released"))?;
        let moments = &*moments;
        let staged = weights.staged() || moments.flats().any(Flat::any_staged);
        let fetch = |queue: &dyn Ops, piece: &Piece, turn| moments.fetch(weights, queue, piece, turn);
        let store = |queue: &dyn Ops, piece: &Piece, turn| moments.store(weights, queue, piece, turn);
        let work = |piece: &Piece, turn| {
            let n = piece.range.len();
            form(piece, released.rows_mut(n))?;
            norm.add(ops, piece, released.rows(n))?;
            moments.update(ops, weights, (piece, turn), released.rows(n), settings, (*step, update))
        };
        pipelined(ops, pieces, staged, fetch, work, store)
    }
}

/// min(1, clip / (norm + 1e-6)); `clip = 0` turns clipping off.
pub fn clip_factor(norm: f64, clip: f64) -> f32 {
    if clip == 0.0 { 1.0 } else { (clip / (norm + 1e-6)).min(1.0) as f32 }
}

#[cfg(test)]
mod tests {
    use super::clip_factor;

    #[test]
    fn clipping_only_ever_shrinks() {
        assert_eq!(clip_factor(0.5, 1.0), 1.0);
        assert!((clip_factor(4.0, 1.0) - 0.25).abs() < 1e-6);
        assert_eq!(clip_factor(4.0, 0.0), 1.0);
    }
}
