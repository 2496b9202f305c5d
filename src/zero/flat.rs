//! Flat buffers: of every block, this rank's shard of one kind of numbers, at home on the device or in host memory. What is at home in host memory is staged on the
//! device piece by piece.

use super::cut::Cut;
use crate::error::{Error, Result};
use crate::model::{Block, BlockLayout, Layout};
use crate::ops::Ops;
use crate::tensor::{Arenas, DType, Tensor, View, ViewMut};
use std::ops::Range;

/// A run of elements of a block's shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// Place of the block in the layout.
    pub block: usize,
    /// Elements of the shard.
    pub range: Range<usize>,
}

/// All shards of a rank in pieces of at most `most` elements, in the order of the blocks.
pub fn pieces(layout: &Layout, cut: Cut, most: usize) -> Vec<Piece> {
    (0..layout.blocks.len()).flat_map(|block| pieces_of(layout, cut, most, block)).collect()
}

/// Those of one block.
pub fn pieces_of(layout: &Layout, cut: Cut, most: usize, block: usize) -> Vec<Piece> {
    let shard = cut.shard(layout.blocks[block].elements);
    (0..shard).step_by(most).map(|begin| Piece { block, range: begin..shard.min(begin + most) }).collect()
}

pub struct Flat {
    name: String,
    cut: Cut,
    /// Elements of the block that one number stands for: 1, or those that share a scale.
    per: usize,
    blocks: Vec<Shard>,
    /// Where any is at home in host memory: two buffers of a piece, in bytes, on the device.
    stages: Vec<Tensor>,
}

struct Shard {
    name: String,
    /// Elements of the whole block.
    elements: usize,
    /// None where the block has no such numbers.
    home: Option<Tensor>,
    staged: bool,
}

/// What one kind of numbers looks like.
pub struct Kind<'a> {
    pub name: &'a str,
    pub per: usize,
    /// None where a block has no such numbers.
    pub dtype: &'a dyn Fn(Block) -> Option<DType>,
    /// Whether a block's are at home in host memory.
    pub offloaded: &'a dyn Fn(Block) -> bool,
}

impl Flat {
    /// Cuts it, with stages for pieces of at most `piece` elements.
    pub fn new(arenas: &mut Arenas, layout: &Layout, cut: Cut, piece: usize, kind: Kind) -> Result<Flat> {
        let Kind { name, per, dtype, offloaded } = kind;
        let mut stage_bytes = 0;
        let mut shard = |layout: &BlockLayout| -> Result<Shard> {
            let elements = cut.shard(layout.elements);
            let (name, staged) = (format!("{name}.{}", layout.block), offloaded(layout.block));
            let mut home = |dtype: DType| {
                if staged {
                    stage_bytes = stage_bytes.max(elements.min(piece) / per * dtype.size());
                }
                arenas.home(staged).tensor(&name, dtype, &[elements / per])
            };
            let home = dtype(layout.block).map(&mut home).transpose()?;
            Ok(Shard { name, elements: layout.elements, home, staged })
        };
        let blocks = layout.blocks.iter().map(&mut shard).collect::<Result<_>>()?;
        let mut stage = |i: usize| arenas.device.tensor(&format!("staging.{name}.{i}"), DType::U8, &[stage_bytes]);
        let stages = if stage_bytes > 0 { (0..2).map(&mut stage).collect::<Result<_>>()? } else { Vec::new() };
        Ok(Flat { name: name.to_string(), cut, per, blocks, stages })
    }

    fn home(&self, block: usize) -> Result<&Tensor> {
        let missing = || Error::internal(format!("{} has no numbers of {}", self.name, self.blocks[block].name));
        self.blocks[block].home.as_ref().ok_or_else(missing)
    }

    /// Whether there are numbers of a block.
    pub fn has(&self, block: usize) -> bool {
        self.blocks[block].home.is_some()
    }

    /// Whether a block's are at home in host memory.
    pub fn staged(&self, block: usize) -> bool {
        self.blocks[block].staged
    }

    /// Whether any are.
    pub fn any_staged(&self) -> bool {
        self.blocks.iter().any(|shard| shard.staged)
    }

    /// The shard of a block where it is at home.
    pub fn shard(&self, block: usize) -> Result<View<'_>> {
        self.home(block).map(Tensor::view)
    }

    fn numbers(&self, range: &Range<usize>) -> Range<usize> {
        range.start / self.per..range.end.div_ceil(self.per)
    }

    /// The bytes of a piece in stage `turn` % 2.
    fn stage(&self, piece: &Piece, turn: usize) -> Result<ViewMut<'_>> {
        let dtype = self.home(piece.block)?.dtype();
        let bytes = self.numbers(&piece.range).len() * dtype.size();
        // SAFETY: stages are written by copies and ops that the queues order: a piece is fetched after the one before in the same stage was stored.
        Ok(unsafe { self.stages[turn % 2].alias_mut() }.into_rows(0..bytes).reinterpret(dtype))
    }

    /// A piece at home, wherever that is.
    ///
    /// # Safety
    /// Nobody else may use these elements, but in an order that queues and guards keep.
    pub unsafe fn at_home(&self, piece: &Piece) -> Result<ViewMut<'_>> {
        // SAFETY: the caller's promise.
        Ok(unsafe { self.home(piece.block)?.alias_mut() }.into_rows(self.numbers(&piece.range)))
    }

    /// Brings a piece from host memory to its stage; nothing where it is at home on the device.
    pub fn fetch(&self, queue: &dyn Ops, piece: &Piece, turn: usize) -> Result<()> {
        if !self.has(piece.block) || !self.staged(piece.block) {
            return Ok(());
        }
        queue.copy(self.shard(piece.block)?.rows(self.numbers(&piece.range)), self.stage(piece, turn)?)
    }

    /// Brings it back.
    pub fn store(&self, queue: &dyn Ops, piece: &Piece, turn: usize) -> Result<()> {
        if !self.has(piece.block) || !self.staged(piece.block) {
            return Ok(());
        }
        let stage = self.stage(piece, turn)?;
        // SAFETY: as for `part`: of the same piece, whose user this copy follows.
        queue.copy(stage.as_view(), unsafe { self.at_home(piece)? })
    }

    /// A piece where ops can use it: in its stage, once it was fetched, or at home.
    ///
    /// # Safety
    /// One user at a time, in an order that queues keep; and no guard of the block's weights is alive where they are written.
    pub unsafe fn part(&self, piece: &Piece, turn: usize) -> Result<ViewMut<'_>> {
        match self.staged(piece.block) {
            true => self.stage(piece, turn),
            // SAFETY: the caller's promise.
            false => unsafe { self.at_home(piece) },
        }
    }

    /// What a checkpoint keeps of them.
    pub fn saved(&self) -> impl Iterator<Item = Saved<'_>> {
        self.blocks.iter().filter_map(|shard| {
            let (owned, home) = (self.cut.owned(shard.elements), shard.home.as_ref()?);
            let range = owned.start / self.per..owned.end.div_ceil(self.per);
            let whole = shard.elements.div_ceil(self.per);
            Some(Saved { name: &shard.name, whole, numbers: home.rows(range.len()), range })
        })
    }

    /// Writes the numbers of this rank: `fill` gets what [`Flat::saved`] says of them, and where they go.
    pub fn restore(&mut self, fill: &mut dyn FnMut(Saved, ViewMut) -> Result<()>) -> Result<()> {
        for saved in self.saved() {
            let shard = self.blocks.iter().find(|shard| shard.name == saved.name);
            let Some(home) = shard.and_then(|shard| shard.home.as_ref()) else { continue };
            // SAFETY: borrowed exclusively; `saved` is not read.
            let out = unsafe { home.alias_mut() }.into_rows(0..saved.range.len());
            fill(saved, out)?;
        }
        Ok(())
    }
}

/// Numbers of a block that a rank has, without what pads them.
pub struct Saved<'a> {
    /// By the name that the block's numbers have in the ledger and in checkpoints.
    pub name: &'a str,
    /// How many there are on all ranks.
    pub whole: usize,
    /// Which of them these are.
    pub range: Range<usize>,
    pub numbers: View<'a>,
}

/// Calls `work` on every piece. `fetch` runs a piece ahead of it and `store` behind it, on the second queue, where `staged`.
pub fn pipelined(
    ops: &dyn Ops,
    pieces: &[Piece],
    staged: bool,
    fetch: impl Fn(&dyn Ops, &Piece, usize) -> Result<()>,
    mut work: impl FnMut(&Piece, usize) -> Result<()>,
    store: impl Fn(&dyn Ops, &Piece, usize) -> Result<()>,
) -> Result<()> {
    if !staged {
        return pieces.iter().enumerate().try_for_each(|(turn, piece)| work(piece, turn));
    }
    let beside = ops.beside();
    // What comes first must not overtake the computation so far.
    beside.wait(&ops.mark()?)?;
    let fetched = |turn: usize| match pieces.get(turn) {
        None => Ok(None),
        Some(piece) => {
            fetch(beside, piece, turn)?;
            beside.mark().map(Some)
        }
    };
    let mut next = fetched(0)?;
    for (turn, piece) in pieces.iter().enumerate() {
        let Some(arrived) = next else { return Err(Error::internal("a piece was never fetched")) };
        next = fetched(turn + 1)?;
        ops.wait(&arrived)?;
        work(piece, turn)?;
        beside.wait(&ops.mark()?)?;
        store(beside, piece, turn)?;
    }
    ops.wait(&beside.mark()?)
}
