//! Where gradients go: the backward loop pushes each block's contribution of one micro-batch into a [`GradSink`].

use super::layout::{Block, BlockLayout, Role};
use crate::error::Result;
use crate::ops::Ops;
use crate::tensor::ViewMut;

/// Takes the gradients of one block at a time.
///
/// A tied embedding receives two contributions a micro-batch: the head's first, the embedding's last.
pub trait GradSink {
    /// Zeros to add a contribution to; of a tied embedding, the second time, what the head left there. One block is open at a time.
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
