//! The weights of a training job as shards. A block is gathered into a slot when it is asked for, one block ahead of its use; a guard keeps the slot from being
//! overwritten, and leaves a mark behind that the next gather waits for.

use super::cut::{Cut, overlap};
use super::flat::{Flat, Kind, Piece, Saved};
use super::policy::Policy;
use crate::comm::Comm;
use crate::config::{MasterWeights, Offload};
use crate::error::{Error, Result};
use crate::model::{Block, BlockLayout, BlockWeights, Layout, ReadTensor, WeightSource, copy_f32, read_block, upload_f32};
use crate::ops::{Mark, Master, Ops};
use crate::tensor::{Arenas, DType, Tensor, View, ViewMut};
use half::bf16;
use std::cell::{Cell, RefCell};
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;

pub struct ShardedWeights {
    layout: Arc<Layout>,
    comm: Rc<dyn Comm>,
    cut: Cut,
    /// In the backend's storage type.
    shards: Flat,
    /// Beside bf16 weights that are trained exactly: the lower halves of their f32 masters, see [`Master::Remainder`].
    remainders: Option<Flat>,
    /// Guards alive, by block.
    held: Vec<Cell<usize>>,
    /// None where the shards are whole and on the device: they are given out as they are.
    gathered: Option<Gathered>,
}

/// Whole blocks on the device, for as long as they are needed.
struct Gathered {
    slots: Vec<Slot>,
    /// Of shards in host memory, before they are gathered from several ranks.
    staged: Option<Tensor>,
}

struct Slot {
    data: Tensor,
    state: RefCell<SlotState>,
}

#[derive(Default)]
struct SlotState {
    /// The block that it holds, or that is under way.
    block: Option<Block>,
    guards: usize,
    /// Behind the gather, until the computation waited for it.
    arrived: Option<Mark>,
    /// Behind the last use.
    released: Option<Mark>,
    /// Of a mark that a dropped guard could not leave.
    failed: Option<Error>,
}

impl ShardedWeights {
    pub fn new(arenas: &mut Arenas, layout: Arc<Layout>, comm: Rc<dyn Comm>, storage: DType, policy: &Policy) -> Result<Self> {
        let cut = Cut { rank: comm.rank(), world: comm.world() };
        let (on_host, remainder_on_host) = (policy.offloads(Offload::Weights), policy.offloads(Offload::Remainder));
        let mut flat = |name, dtype, offloaded: bool| {
            let kind = Kind { name, per: 1, dtype: &|_| Some(dtype), offloaded: &|_| offloaded };
            Flat::new(arenas, &layout, cut, policy.piece, kind)
        };
        let shards = flat("weights", storage, on_host)?;
        let exact = policy.master == MasterWeights::Exact && storage == DType::Bf16;
        let remainders = exact.then(|| flat("optimizer.remainder", DType::U16, remainder_on_host)).transpose()?;
        let resident = cut.world == 1 && !on_host;
        let gathered = (!resident).then(|| Gathered::new(arenas, &layout, cut, storage, on_host)).transpose()?;
        let held = layout.blocks.iter().map(|_| Cell::new(0)).collect();
        Ok(ShardedWeights { layout, comm, cut, shards, remainders, held, gathered })
    }

    /// What is at home in host memory and staged.
    pub fn staged(&self) -> bool {
        self.shards.any_staged() || self.remainders.as_ref().is_some_and(Flat::any_staged)
    }

    /// Brings a piece of weights and remainders to where an update finds them.
    pub fn fetch(&self, queue: &dyn Ops, piece: &Piece, turn: usize) -> Result<()> {
        self.shards.fetch(queue, piece, turn)?;
        self.remainders.iter().try_for_each(|remainders| remainders.fetch(queue, piece, turn))
    }

    pub fn store(&self, queue: &dyn Ops, piece: &Piece, turn: usize) -> Result<()> {
        self.shards.store(queue, piece, turn)?;
        self.remainders.iter().try_for_each(|remainders| remainders.store(queue, piece, turn))
    }

    /// Says that a block, here or in the shards of other ranks, is updated now: it must be gathered again after that.
    ///
    /// Errors: internal, while a guard of the block is alive.
    pub fn change(&self, block: usize) -> Result<()> {
        let name = self.layout.blocks[block].block;
        if self.held[block].get() > 0 {
            return Err(Error::internal(format!("the weights of {name} were updated while they were in use")));
        }
        if let Some(gathered) = &self.gathered {
            gathered.forget(&self.layout, name);
        }
        Ok(())
    }

    /// A piece of the weights and of what their masters have beyond them, after [`ShardedWeights::change`].
    ///
    /// # Safety
    /// One user at a time, in an order that queues keep, while no guard of the block is alive.
    pub unsafe fn part(&self, piece: &Piece, turn: usize) -> Result<(ViewMut<'_>, Master<'_>)> {
        // SAFETY: the caller's promise.
        unsafe {
            let master = match &self.remainders {
                None => Master::None,
                Some(remainders) => Master::Remainder(remainders.part(piece, turn)?),
            };
            Ok((self.shards.part(piece, turn)?, master))
        }
    }

    /// Fills this rank's part of every tensor of the checkpoint; see [`read_block`].
    pub fn load(&mut self, ops: &dyn Ops, read: &mut ReadTensor) -> Result<()> {
        for (index, layout) in self.layout.blocks.iter().enumerate() {
            let owned = self.cut.owned(layout.elements);
            read_block(layout, owned.clone(), read, |range, values| {
                let piece = Piece { block: index, range: range.start - owned.start..range.end - owned.start };
                // SAFETY: nothing else runs yet.
                let out = unsafe { self.shards.at_home(&piece)? };
                let Some(remainders) = &self.remainders else { return upload_f32(ops, values, out) };
                let (weights, lower): (Vec<bf16>, Vec<u16>) = values.iter().map(|&v| Master::split(v)).unzip();
                ops.upload(bytemuck::cast_slice(&weights), out)?;
                // SAFETY: as above.
                ops.upload(bytemuck::cast_slice(&lower), unsafe { remainders.at_home(&piece)? })
            })?;
        }
        self.gathered.iter().for_each(Gathered::forget_all);
        Ok(())
    }

    /// The remainders, where there are any; see [`Flat::saved`].
    pub fn saved(&self) -> impl Iterator<Item = Saved<'_>> {
        self.remainders.iter().flat_map(Flat::saved)
    }

    pub fn restore(&mut self, fill: &mut dyn FnMut(Saved, ViewMut) -> Result<()>) -> Result<()> {
        self.remainders.iter_mut().try_for_each(|remainders| remainders.restore(fill))
    }

    /// Rows `rows` of a tensor of the checkpoint: the f32 master where there is one. All ranks call it, and all get them.
    pub fn read(&self, ops: &dyn Ops, name: &str, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        self.read_as(ops, name, rows, out, self.remainders.as_ref())
    }

    /// The same as the products read it, without what only the master has.
    pub fn read_stored(&self, ops: &dyn Ops, name: &str, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        self.read_as(ops, name, rows, out, None)
    }

    fn read_as(&self, ops: &dyn Ops, name: &str, rows: Range<usize>, out: &mut [f32], lower: Option<&Flat>) -> Result<()> {
        let (index, range) = self.layout.place(name, rows)?;
        let owned = self.cut.owned(self.layout.blocks[index].elements);
        let part = overlap(owned.start, &(0..owned.len()), &range);
        let mut mine = vec![0.0f32; part.len()];
        if !part.is_empty() {
            ops.synchronize()?;
            read_range(ops, self.shards.shard(index)?.rows(part.clone()), lower, index, part, &mut mine)?;
        }
        if self.cut.world == 1 {
            out.copy_from_slice(&mine);
            return Ok(());
        }
        let all = self.comm.share(bytemuck::cast_slice(&mine))?.concat();
        if all.len() != size_of_val(out) {
            return Err(Error::internal(format!("the ranks hold {} bytes of {name}, not {}", all.len(), size_of_val(out))));
        }
        bytemuck::cast_slice_mut(out).copy_from_slice(&all);
        Ok(())
    }
}

fn read_range(
    ops: &dyn Ops,
    weights: View,
    lower: Option<&Flat>,
    block: usize,
    range: Range<usize>,
    out: &mut [f32],
) -> Result<()> {
    let Some(lower) = lower else { return copy_f32(ops, weights, out) };
    let (mut upper_halves, mut lower_halves) = (vec![bf16::ZERO; out.len()], vec![0u16; out.len()]);
    ops.download(weights, bytemuck::cast_slice_mut(&mut upper_halves))?;
    ops.download(lower.shard(block)?.rows(range), bytemuck::cast_slice_mut(&mut lower_halves))?;
    let halves = upper_halves.into_iter().zip(lower_halves);
    out.iter_mut().zip(halves).for_each(|(out, (upper, lower))| *out = Master::join(upper, lower));
    Ok(())
}

impl Gathered {
    /// Two slots for the layers, and one for the embedding and the head, which are never needed together unless they are tied; then the head is a norm, and has its own.
    fn new(arenas: &mut Arenas, layout: &Layout, cut: Cut, storage: DType, on_host: bool) -> Result<Gathered> {
        let mut longest = vec![0; if layout.tied { 4 } else { 3 }];
        for block in &layout.blocks {
            let slot = &mut longest[slot_of(layout, block.block)];
            *slot = cut.padded(block.elements).max(*slot);
        }
        let mut slot = |(index, &elements): (usize, &usize)| {
            let data = arenas.device.tensor(&format!("gathered.{index}"), storage, &[elements])?;
            Ok(Slot { data, state: RefCell::default() })
        };
        let slots = longest.iter().enumerate().map(&mut slot).collect::<Result<Vec<_>>>()?;
        let shard = longest.iter().max().map_or(0, |elements| elements / cut.world);
        let mut staged = || arenas.device.tensor("gathered.staged", storage, &[shard]);
        let staged = (on_host && cut.world > 1).then(&mut staged).transpose()?;
        Ok(Gathered { slots, staged })
    }

    /// What the slot of `block` holds of it is out of date. The next gather waits for the update, not only for the last use.
    fn forget(&self, layout: &Layout, block: Block) {
        let mut state = self.slots[slot_of(layout, block)].state.borrow_mut();
        state.released = None;
        if state.block == Some(block) {
            state.block = None;
        }
    }

    fn forget_all(&self) {
        self.slots.iter().for_each(|slot| slot.state.borrow_mut().block = None);
    }
}

fn slot_of(layout: &Layout, block: Block) -> usize {
    match block {
        Block::Layer(layer) => layer % 2,
        Block::Embedding => 2,
        Block::Head => 2 + usize::from(layout.tied),
    }
}

impl ShardedWeights {
    /// Starts to gather `block`, unless its slot holds it.
    fn gather(&self, ops: &dyn Ops, gathered: &Gathered, block: Block) -> Result<()> {
        let slot = &gathered.slots[slot_of(&self.layout, block)];
        let mut state = slot.state.borrow_mut();
        if state.block == Some(block) {
            return Ok(());
        }
        if let Some(error) = state.failed.take() {
            return Err(error);
        }
        if let (Some(other), true) = (state.block, state.guards > 0) {
            return Err(Error::internal(format!("gathering {block} would overwrite {other}, which is in use")));
        }
        self.comm.note(&format!("gathering {block}"));
        let queue = ops.beside();
        // The last use of what the slot held, or the update of what is gathered now, whichever was issued last.
        let last = match state.released.take() {
            Some(mark) => mark,
            None => ops.mark()?,
        };
        queue.wait(&last)?;
        let index = self.layout.index(block);
        let (shard, padded) = (self.shards.shard(index)?, self.cut.padded(self.layout.blocks[index].elements));
        // SAFETY: no guard of the slot is alive, and the queue waits for what was computed from it.
        let whole = unsafe { slot.data.alias_mut() }.into_rows(0..padded);
        match &gathered.staged {
            _ if self.cut.world == 1 => queue.copy(shard, whole)?,
            None => self.comm.all_gather(shard, whole)?,
            Some(staged) => {
                // SAFETY: used here only, and in the order of one queue.
                let mut staged = unsafe { staged.alias_mut() }.into_rows(0..shard.elements());
                queue.copy(shard, staged.reborrow())?;
                self.comm.all_gather(staged.as_view(), whole)?;
            }
        }
        (state.block, state.arrived) = (Some(block), Some(queue.mark()?));
        Ok(())
    }
}

impl WeightSource for ShardedWeights {
    fn prefetch(&self, ops: &dyn Ops, block: Block) -> Result<()> {
        self.gathered.iter().try_for_each(|gathered| self.gather(ops, gathered, block))
    }

    fn acquire<'a>(&'a self, ops: &'a dyn Ops, block: Block) -> Result<BlockWeights<'a>> {
        let index = self.layout.index(block);
        let (layout, held) = (&self.layout.blocks[index], &self.held[index]);
        let Some(gathered) = &self.gathered else {
            return Ok(guard(layout, self.shards.shard(index)?, ops, held, None));
        };
        self.gather(ops, gathered, block)?;
        let slot = &gathered.slots[slot_of(&self.layout, block)];
        let mut state = slot.state.borrow_mut();
        if let Some(arrived) = state.arrived.take() {
            // With patience, before the computation waits without.
            self.comm.settle(&|| ops.is_done(&arrived))?;
            ops.wait(&arrived)?;
        }
        state.guards += 1;
        Ok(guard(layout, slot.data.view(), ops, held, Some(slot)))
    }
}

fn guard<'a>(
    layout: &'a BlockLayout,
    data: View<'a>,
    ops: &'a dyn Ops,
    held: &'a Cell<usize>,
    slot: Option<&'a Slot>,
) -> BlockWeights<'a> {
    held.set(held.get() + 1);
    BlockWeights::new(layout, data, Held { ops, held, slot })
}

/// Counts a guard of a block.
struct Held<'a> {
    ops: &'a dyn Ops,
    held: &'a Cell<usize>,
    slot: Option<&'a Slot>,
}

impl Drop for Held<'_> {
    /// Leaves a mark behind the last use. A failure is kept for the next gather.
    fn drop(&mut self) {
        self.held.set(self.held.get() - 1);
        let Some(slot) = self.slot else { return };
        let mut state = slot.state.borrow_mut();
        state.guards -= 1;
        match self.ops.mark() {
            Ok(mark) => state.released = Some(mark),
            Err(error) => state.failed = Some(error),
        }
    }
}
