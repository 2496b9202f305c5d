//! Where weights come from. The layer loop only asks a [`WeightSource`]; here is the source that keeps all of them resident.

use super::layout::{Block, BlockLayout, Layout, Part, Role};
use crate::error::{Error, Result};
use crate::io::TensorFiles;
use crate::ops::{Master, Ops};
use crate::tensor::{Arena, DType, Tensor, View};
use half::bf16;
use std::ops::Range;
use std::sync::Arc;

/// Gives out the weights of one block at a time.
pub trait WeightSource {
    /// Says that `block` is needed next, so that its weights can be under way.
    fn prefetch(&self, block: Block) -> Result<()>;
    /// The weights of `block`, which stay valid while the guard lives.
    fn acquire(&self, block: Block) -> Result<BlockWeights<'_>>;
}

/// A block's weights, held until dropped.
pub struct BlockWeights<'a> {
    layout: &'a BlockLayout,
    data: View<'a>,
}

impl<'a> BlockWeights<'a> {
    pub fn new(layout: &'a BlockLayout, data: View<'a>) -> Self {
        BlockWeights { layout, data }
    }
    pub fn get(&self, role: Role) -> View<'_> {
        let parameter = self.layout.parameter(role);
        self.data.rows(parameter.offset..parameter.offset + parameter.elements()).reshape(&parameter.shape)
    }
}

const HEAD: &str = "lm_head.weight";
const REMAINDER: &str = "optimizer.remainder";

/// Every weight in device memory all the time.
pub struct ResidentWeights {
    layout: Arc<Layout>,
    /// A flat buffer a block, in the backend's storage type.
    pub blocks: Vec<Tensor>,
    /// Beside bf16 blocks that are trained: the lower halves of their f32 masters, see [`Master::Remainder`].
    pub remainders: Option<Vec<Tensor>>,
}

impl ResidentWeights {
    /// Weights that are only read.
    pub fn new(arena: &mut Arena, layout: Arc<Layout>, dtype: DType) -> Result<Self> {
        let blocks = flat(arena, &layout, "weights", dtype)?;
        Ok(ResidentWeights { layout, blocks, remainders: None })
    }

    /// Weights that are trained; with `exact`, to the precision of f32, however few bits the products read.
    pub fn trained(arena: &mut Arena, layout: Arc<Layout>, dtype: DType, exact: bool) -> Result<Self> {
        let mut weights = Self::new(arena, layout, dtype)?;
        if exact && dtype == DType::Bf16 {
            weights.remainders = Some(flat(arena, &weights.layout, REMAINDER, DType::U16)?);
        }
        Ok(weights)
    }

    pub fn layout(&self) -> &Arc<Layout> {
        &self.layout
    }

    /// The remainders, where there are any, by the names that they have in the ledger and in checkpoints.
    pub fn remainder_buffers(&self) -> impl Iterator<Item = (String, &Tensor)> {
        self.layout.blocks.iter().map(|b| format!("{REMAINDER}.{}", b.block)).zip(self.remainders.iter().flatten())
    }

    pub fn remainder_buffers_mut(&mut self) -> impl Iterator<Item = (String, &mut Tensor)> {
        self.layout.blocks.iter().map(|b| format!("{REMAINDER}.{}", b.block)).zip(self.remainders.iter_mut().flatten())
    }

    /// Fills every tensor of the checkpoint from `read(name, shape, out)`, which writes f32 values.
    pub fn load(&mut self, ops: &dyn Ops, mut read: impl FnMut(&str, &[usize], &mut [f32]) -> Result<()>) -> Result<()> {
        let mut values = Vec::new();
        for (index, layout) in self.layout.blocks.iter().enumerate() {
            for parameter in &layout.parameters {
                for part in &parameter.parts {
                    let range = parameter.part_range(part);
                    values.resize(range.len(), 0.0);
                    read(&part.name, &parameter.part_shape(part), &mut values)?;
                    let out = self.blocks[index].view_mut().into_rows(range.clone());
                    match &mut self.remainders {
                        None => upload_f32(ops, &values, out)?,
                        Some(remainders) => {
                            let (weights, remainder): (Vec<bf16>, Vec<u16>) = values.iter().map(|&v| Master::split(v)).unzip();
                            ops.upload(bytemuck::cast_slice(&weights), out)?;
                            let out = remainders[index].view_mut().into_rows(range);
                            ops.upload(bytemuck::cast_slice(&remainder), out)?;
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// Loads a checkpoint, refusing tensors of another shape and values that are not finite.
    pub fn load_checkpoint(&mut self, ops: &dyn Ops, checkpoint: &TensorFiles) -> Result<()> {
        if self.layout.tied && checkpoint.contains(HEAD) {
            let all = |name| checkpoint.bytes(name, 0..checkpoint.info(name)?.1.first().copied().unwrap_or(1));
            if all(HEAD)? != all("model.embed_tokens.weight")? {
                return Err(Error::data(format!(
                    "config.json ties the head to the embedding (tie_word_embeddings), but {HEAD} is another matrix"
                ))
                .help("set tie_word_embeddings to false if the model has a head of its own"));
            }
        }
        self.load(ops, |name, shape, out| {
            let (_, stored) = checkpoint.info(name)?;
            if stored != shape {
                return Err(Error::data(format!("tensor {name} has shape {stored:?}, but config.json implies {shape:?}"))
                    .help("config.json and the weights are of different models"));
            }
            checkpoint.read_f32(name, 0..shape[0], out)?;
            match out.iter().position(|v| !v.is_finite()) {
                Some(at) => Err(Error::data(format!("tensor {name} holds {} at element {at}", out[at]))
                    .help("the checkpoint is damaged: download it again")),
                None => Ok(()),
            }
        })
    }

    /// Random weights as transformers initialises Qwen2: matrices normal with deviation `std`, norms 1, biases 0. A pure function of
    /// the seed and the tensor's name.
    pub fn initialise(&mut self, ops: &dyn Ops, seed: u64, std: f32) -> Result<()> {
        self.load(ops, |name, shape, out| {
            match shape.len() {
                1 if name.ends_with("norm.weight") => out.fill(1.0),
                1 => out.fill(0.0),
                _ => super::random::normal(seed, name, std, out),
            }
            Ok(())
        })
    }

    /// Rows `rows` of a tensor of the checkpoint: the f32 master where there is one.
    pub fn read(&self, ops: &dyn Ops, name: &str, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        let (index, range) = self.place(name, rows)?;
        let weights = self.blocks[index].view().rows(range.clone());
        let Some(remainders) = &self.remainders else { return copy_f32(ops, weights, out) };
        let (mut upper, mut lower) = (vec![bf16::ZERO; range.len()], vec![0u16; range.len()]);
        ops.download(weights, bytemuck::cast_slice_mut(&mut upper))?;
        ops.download(remainders[index].view().rows(range), bytemuck::cast_slice_mut(&mut lower))?;
        let halves = upper.into_iter().zip(lower);
        out.iter_mut().zip(halves).for_each(|(out, (upper, lower))| *out = Master::join(upper, lower));
        Ok(())
    }

    /// The same as the products read it, without what only the master has.
    pub fn read_stored(&self, ops: &dyn Ops, name: &str, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        let (index, range) = self.place(name, rows)?;
        copy_f32(ops, self.blocks[index].view().rows(range), out)
    }

    /// The block of rows `rows` of a tensor of the checkpoint, and their elements in it.
    fn place(&self, name: &str, rows: Range<usize>) -> Result<(usize, Range<usize>)> {
        for (index, layout) in self.layout.blocks.iter().enumerate() {
            for parameter in &layout.parameters {
                if let Some(part) = parameter.parts.iter().find(|part| part.name == name) {
                    let part = Part { rows: rows.len(), begin: part.begin + rows.start, ..part.clone() };
                    return Ok((index, parameter.part_range(&part)));
                }
            }
        }
        Err(Error::internal(format!("the model has no tensor {name}")))
    }
}

impl WeightSource for ResidentWeights {
    fn prefetch(&self, _block: Block) -> Result<()> {
        Ok(())
    }
    fn acquire(&self, block: Block) -> Result<BlockWeights<'_>> {
        Ok(BlockWeights::new(self.layout.block(block), self.blocks[self.layout.index(block)].view()))
    }
}

/// A flat buffer a block.
fn flat(arena: &mut Arena, layout: &Layout, what: &str, dtype: DType) -> Result<Vec<Tensor>> {
    layout.blocks.iter().map(|b| arena.tensor(&format!("{what}.{}", b.block), dtype, &[b.elements])).collect()
}

/// Uploads f32 values in the storage type of `out`.
pub fn upload_f32(ops: &dyn Ops, values: &[f32], out: crate::tensor::ViewMut) -> Result<()> {
    match out.dtype() {
        DType::F32 => ops.upload(bytemuck::cast_slice(values), out),
        DType::Bf16 => {
            let rounded: Vec<bf16> = values.iter().map(|&v| bf16::from_f32(v)).collect();
            ops.upload(bytemuck::cast_slice(&rounded), out)
        }
        other => Err(Error::internal(format!("weights cannot be stored as {other}"))),
    }
}

/// Downloads elements as f32.
pub fn download_f32(ops: &dyn Ops, x: View) -> Result<Vec<f32>> {
    let mut values = vec![0.0f32; x.elements()];
    copy_f32(ops, x, &mut values)?;
    Ok(values)
}

fn copy_f32(ops: &dyn Ops, x: View, out: &mut [f32]) -> Result<()> {
    match x.dtype() {
        DType::F32 => ops.download(x, bytemuck::cast_slice_mut(out)),
        DType::Bf16 => {
            let mut raw = vec![bf16::ZERO; x.elements()];
            ops.download(x, bytemuck::cast_slice_mut(&mut raw))?;
            out.iter_mut().zip(raw).for_each(|(v, r)| *v = r.to_f32());
            Ok(())
        }
        other => Err(Error::internal(format!("{other} elements were read as weights"))),
    }
}
