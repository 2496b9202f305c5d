//! Where gradients go. The backward loop pushes each block's contribution of one micro-batch into a [`GradSink`]; here is
//! the sink that accumulates whole gradients on one device.

use super::layout::{Block, BlockLayout, Layout, Role};
use crate::error::{Error, Result};
use crate::ops::Ops;
use crate::tensor::{Arena, DType, Tensor, View, ViewMut};
use std::sync::Arc;

/// Takes the gradients of one block at a time.
///
/// A tied embedding receives two contributions a micro-batch: the head's first, the embedding's last.
pub trait GradSink {
    /// Zeros to add a contribution to. One block is open at a time.
    fn open(&mut self, ops: &dyn Ops, block: Block) -> Result<BlockGradients<'_>>;
    /// The contribution to `block` is complete.
    fn close(&mut self, ops: &dyn Ops, block: Block) -> Result<()>;
}

/// The gradients of an open block, f32.
pub struct BlockGradients<'a> {
    layout: &'a BlockLayout,
    data: ViewMut<'a>,
}

impl<'a> BlockGradients<'a> {
    pub fn new(layout: &'a BlockLayout, data: ViewMut<'a>) -> Self {
        BlockGradients { layout, data }
    }
    pub fn get(&mut self, role: Role) -> ViewMut<'_> {
        let parameter = self.layout.parameter(role);
        let range = parameter.offset..parameter.offset + parameter.elements();
        self.data.reborrow().into_rows(range).into_shape(&parameter.shape)
    }
}

/// Adds the contributions of micro-batches in order.
///
/// Each contribution is formed on its own and then added, so that the sum is the same bits wherever the contributions were
/// formed.
pub struct AccumulatedGradients {
    layout: Arc<Layout>,
    /// A flat f32 buffer a block.
    blocks: Vec<Tensor>,
    /// As long as the longest block.
    contribution: Tensor,
    open: Option<Block>,
}

impl AccumulatedGradients {
    pub fn new(arena: &mut Arena, layout: Arc<Layout>) -> Result<Self> {
        let cut = |b: &BlockLayout| arena.tensor(&format!("gradients.{}", b.block), DType::F32, &[b.elements]);
        let blocks = layout.blocks.iter().map(cut).collect::<Result<_>>()?;
        let longest = layout.blocks.iter().map(|b| b.elements).max().unwrap_or_default();
        let contribution = arena.tensor("gradients.contribution", DType::F32, &[longest])?;
        Ok(AccumulatedGradients { layout, blocks, contribution, open: None })
    }

    pub fn zero(&mut self, ops: &dyn Ops) -> Result<()> {
        self.blocks.iter_mut().try_for_each(|block| ops.fill(block.view_mut(), 0.0))
    }

    /// The flat gradient of each block, in the order of the layout.
    pub fn blocks(&self) -> impl Iterator<Item = View<'_>> {
        self.blocks.iter().map(Tensor::view)
    }

    /// Calls `visit(name, values)` with the gradient of every tensor of the checkpoint.
    pub fn visit(&self, ops: &dyn Ops, mut visit: impl FnMut(&str, &[f32]) -> Result<()>) -> Result<()> {
        for (layout, data) in self.layout.blocks.iter().zip(&self.blocks) {
            for parameter in &layout.parameters {
                for part in &parameter.parts {
                    visit(&part.name, &super::weights::download_f32(ops, data.view().rows(parameter.part_range(part)))?)?;
                }
            }
        }
        Ok(())
    }
}

impl GradSink for AccumulatedGradients {
    fn open(&mut self, ops: &dyn Ops, block: Block) -> Result<BlockGradients<'_>> {
        if let Some(open) = self.open.replace(block) {
            return Err(Error::internal(format!("gradients of {block} were opened while those of {open} were")));
        }
        let layout = self.layout.block(block);
        let mut data = self.contribution.rows_mut(layout.elements);
        ops.fill(data.reborrow(), 0.0)?;
        Ok(BlockGradients::new(layout, data))
    }

    fn close(&mut self, ops: &dyn Ops, block: Block) -> Result<()> {
        if self.open.take() != Some(block) {
            return Err(Error::internal(format!("gradients of {block} were closed without being open")));
        }
        let index = self.layout.index(block);
        ops.add(self.contribution.rows(self.layout.blocks[index].elements), self.blocks[index].view_mut())
    }
}
