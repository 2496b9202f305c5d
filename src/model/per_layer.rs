//! What the forward pass keeps of every layer for the backward pass: all of it on the device, or two layers there and all of it in host memory.

use crate::error::Result;
use crate::ops::{Mark, Ops};
use crate::tensor::{Arenas, DType, Tensor};
use std::ops::Range;

/// What is kept of one layer.
pub trait Kept {
    fn tensors(&self) -> Vec<&Tensor>;
    fn tensors_mut(&mut self) -> Vec<&mut Tensor>;
}

/// Layer i has slot i modulo their number.
pub struct PerLayer<T> {
    slots: Vec<Slot<T>>,
    /// By layer, in host memory; empty where nothing is offloaded.
    homes: Vec<Vec<Tensor>>,
}

struct Slot<T> {
    kept: T,
    /// The layer that it holds, or that is on its way there.
    layer: Option<usize>,
    /// Behind the copy to or from the slot that the computation has not waited for.
    moved: Option<Mark>,
}

impl<T: Kept> PerLayer<T> {
    /// `cut` makes the tensors of a slot by its index. With `homes` in host memory, for as many layers, there are two slots.
    pub fn new(
        arenas: &mut Arenas,
        name: &str,
        slots: usize,
        homes: usize,
        mut cut: impl FnMut(&mut Arenas, usize) -> Result<T>,
    ) -> Result<Self> {
        const RING: usize = 2;
        let layers = if slots > RING { homes } else { 0 };
        let count = if layers > 0 { RING } else { slots };
        let mut slot = |index| Ok(Slot { kept: cut(arenas, index)?, layer: None, moved: None });
        let made = (0..count).map(&mut slot).collect::<Result<Vec<_>>>()?;
        let mut homes = Vec::new();
        for layer in 0..layers {
            let mut home = Vec::new();
            for (index, tensor) in made[0].kept.tensors().into_iter().enumerate() {
                home.push(arenas.host.tensor(&format!("offloaded.{name}.{layer}.{index}"), tensor.dtype(), tensor.shape())?);
            }
            homes.push(home);
        }
        Ok(PerLayer { slots: made, homes })
    }

    fn index(&self, layer: usize) -> usize {
        layer % self.slots.len()
    }

    pub fn of(&self, layer: usize) -> &T {
        &self.slots[self.index(layer)].kept
    }

    pub fn of_mut(&mut self, layer: usize) -> &mut T {
        let index = self.index(layer);
        &mut self.slots[index].kept
    }

    /// What is kept of a layer, and of the one before it; none where both have the same slot.
    pub fn with_previous(&mut self, layer: usize) -> (&mut T, Option<&T>) {
        let (index, count) = (self.index(layer), self.slots.len());
        if count == 1 || layer == 0 {
            return (&mut self.slots[index].kept, None);
        }
        let previous = self.index(layer - 1);
        let (low, high) = self.slots.split_at_mut(index.max(previous));
        match index < previous {
            true => (&mut low[index].kept, Some(&high[0].kept)),
            false => (&mut high[0].kept, Some(&low[previous].kept)),
        }
    }

    /// Whether a layer is there, or under way, and complete.
    pub fn holds(&self, layer: usize) -> bool {
        self.slots[self.index(layer)].layer == Some(layer)
    }

    /// Lets the computation write a layer's slot.
    pub fn begin(&mut self, ops: &dyn Ops, layer: usize) -> Result<()> {
        let index = self.index(layer);
        let slot = &mut self.slots[index];
        slot.layer = None;
        slot.moved.take().map_or(Ok(()), |moved| ops.wait(&moved))
    }

    /// Says that a layer's slot was written, and brings it home where that is host memory: what `tokens` of `capacity` use of it.
    pub fn finish(&mut self, ops: &dyn Ops, layer: usize, tokens: usize, capacity: usize) -> Result<()> {
        let index = self.index(layer);
        self.slots[index].layer = Some(layer);
        let Some(home) = self.homes.get_mut(layer) else { return Ok(()) };
        let queue = ops.beside();
        queue.wait(&ops.mark()?)?;
        for (from, to) in self.slots[index].kept.tensors().into_iter().zip(home) {
            let rows = used(from, tokens, capacity);
            queue.copy(from.rows(rows), to.rows_mut(rows))?;
        }
        self.slots[index].moved = Some(queue.mark()?);
        Ok(())
    }

    /// Brings a layer back from host memory, unless it is there.
    pub fn prefetch(&mut self, ops: &dyn Ops, layer: usize, tokens: usize, capacity: usize) -> Result<()> {
        let index = self.index(layer);
        if self.homes.is_empty() || self.slots[index].layer == Some(layer) {
            return Ok(());
        }
        let queue = ops.beside();
        queue.wait(&ops.mark()?)?;
        for (from, to) in self.homes[layer].iter().zip(self.slots[index].kept.tensors_mut()) {
            let rows = used(from, tokens, capacity);
            queue.copy(from.rows(rows), to.rows_mut(rows))?;
        }
        self.slots[index].layer = Some(layer);
        self.slots[index].moved = Some(queue.mark()?);
        Ok(())
    }

    /// Lets the computation read a layer's slot.
    pub fn await_layer(&mut self, ops: &dyn Ops, layer: usize) -> Result<()> {
        let index = self.index(layer);
        self.slots[index].moved.take().map_or(Ok(()), |moved| ops.wait(&moved))
    }
}

/// Rows of a tensor for `capacity` tokens that `tokens` use: some tensors have several a token.
fn used(tensor: &Tensor, tokens: usize, capacity: usize) -> usize {
    tensor.shape()[0] / capacity * tokens
}

/// The residual stream entering a layer: [T, D].
pub struct Stream(pub Tensor);

impl Kept for Stream {
    fn tensors(&self) -> Vec<&Tensor> {
        vec![&self.0]
    }
    fn tensors_mut(&mut self) -> Vec<&mut Tensor> {
        vec![&mut self.0]
    }
}

/// Attention's intermediates of a layer.
pub struct AttentionStash {
    /// [T, D]
    pub norm: Tensor,
    /// [T] f32
    pub rstd: Tensor,
    /// [T, Q + 2K, H] after RoPE
    pub qkv: Tensor,
    /// [T, Q, H]
    pub out: Tensor,
    /// [Q · T] f32; a micro-batch of t tokens uses the first Q · t.
    pub lse: Tensor,
    /// [T, D] the residual stream after attention
    pub mid: Tensor,
}

impl Kept for AttentionStash {
    fn tensors(&self) -> Vec<&Tensor> {
        vec![&self.norm, &self.rstd, &self.qkv, &self.out, &self.lse, &self.mid]
    }
    fn tensors_mut(&mut self) -> Vec<&mut Tensor> {
        vec![&mut self.norm, &mut self.rstd, &mut self.qkv, &mut self.out, &mut self.lse, &mut self.mid]
    }
}

/// The feed-forward block's intermediates of a layer. Gate, up and activation have a row a token, or those of one tile.
pub struct MlpStash {
    /// [T, D]
    pub norm: Tensor,
    /// [T] f32
    pub rstd: Tensor,
    /// [T or tile, 2F]
    pub gate_up: Tensor,
    /// [T or tile, F]
    pub act: Tensor,
}

impl Kept for MlpStash {
    fn tensors(&self) -> Vec<&Tensor> {
        vec![&self.norm, &self.rstd, &self.gate_up, &self.act]
    }
    fn tensors_mut(&mut self) -> Vec<&mut Tensor> {
        vec![&mut self.norm, &mut self.rstd, &mut self.gate_up, &mut self.act]
    }
}

impl AttentionStash {
    /// On the device, for `t` tokens of width `d`, [`Q + 2K`, `Q`, `H`] heads.
    pub fn new(
        arenas: &mut Arenas,
        index: usize,
        storage: DType,
        t: usize,
        d: usize,
        [fused, query, dim]: [usize; 3],
    ) -> Result<Self> {
        let mut cut = |what: &str, dtype, shape: &[usize]| {
            arenas.device.tensor(&format!("activations.attention.{index}.{what}"), dtype, shape)
        };
        Ok(AttentionStash {
            norm: cut("norm", storage, &[t, d])?,
            rstd: cut("rstd", DType::F32, &[t])?,
            qkv: cut("qkv", storage, &[t, fused, dim])?,
            out: cut("out", storage, &[t, query, dim])?,
            lse: cut("lse", DType::F32, &[query * t])?,
            mid: cut("mid", storage, &[t, d])?,
        })
    }
}

impl MlpStash {
    /// Whether it has gate, up and activation of all tokens.
    pub fn whole(&self) -> bool {
        self.gate_up.shape()[0] == self.norm.shape()[0]
    }

    /// The rows of gate, up and activation that a tile of tokens has.
    pub fn rows(&self, tile: &Range<usize>) -> Range<usize> {
        if self.whole() { tile.clone() } else { 0..tile.len() }
    }

    /// On the device, for `t` tokens of width `d`, the wide parts for `tile` of them at a time.
    pub fn new(arenas: &mut Arenas, index: usize, storage: DType, [t, tile]: [usize; 2], [d, f]: [usize; 2]) -> Result<Self> {
        let mut cut =
            |what: &str, dtype, shape: &[usize]| arenas.device.tensor(&format!("activations.mlp.{index}.{what}"), dtype, shape);
        Ok(MlpStash {
            norm: cut("norm", storage, &[t, d])?,
            rstd: cut("rstd", DType::F32, &[t])?,
            gate_up: cut("gate_up", storage, &[tile, 2 * f])?,
            act: cut("act", storage, &[tile, f])?,
        })
    }
}
