//! Where weights come from. The layer loop only asks a [`WeightSource`]; here is the source that keeps all of them resident, and what fills any source.

use super::layout::{Block, BlockLayout, Layout, Role};
use super::random::normal;
use crate::error::{Error, Result};
use crate::io::TensorFiles;
use crate::ops::Ops;
use crate::tensor::{Arena, DType, Tensor, View};
use half::bf16;
use std::ops::Range;
use std::sync::Arc;

/// Gives out the weights of one block at a time.
pub trait WeightSource {
    /// Says that `block` is needed next, so that its weights can be under way.
    fn prefetch(&self, ops: &dyn Ops, block: Block) -> Result<()>;
    /// The weights of `block`, which stay valid while the guard lives.
    fn acquire<'a>(&'a self, ops: &'a dyn Ops, block: Block) -> Result<BlockWeights<'a>>;
    /// Whether every block always lies in the same place, and asking for it issues nothing: then what reads weights can be recorded.
    fn stays(&self) -> bool {
        false
    }
}

/// A block's weights, held until dropped.
pub struct BlockWeights<'a> {
    layout: &'a BlockLayout,
    data: View<'a>,
    /// Lets go of them when it is dropped.
    _hold: Box<dyn Hold + 'a>,
}

/// Whatever a source wants to have dropped with a guard.
pub trait Hold {}
impl<T> Hold for T {}

impl<'a> BlockWeights<'a> {
    /// `data` is the block's flat buffer; `hold` is dropped when nobody reads it any more.
    pub fn new(layout: &'a BlockLayout, data: View<'a>, hold: impl Hold + 'a) -> Self {
        BlockWeights { layout, data, _hold: Box::new(hold) }
    }
    pub fn get(&self, role: Role) -> View<'_> {
        let parameter = self.layout.parameter(role);
        self.data.rows(parameter.offset..parameter.offset + parameter.elements()).reshape(&parameter.shape)
    }
}

const HEAD: &str = "lm_head.weight";

/// Every weight in device memory all the time, only read.
pub struct ResidentWeights {
    layout: Arc<Layout>,
    /// A flat buffer a block, in the backend's storage type.
    blocks: Vec<Tensor>,
}

impl ResidentWeights {
    pub fn new(arena: &mut Arena, layout: Arc<Layout>, dtype: DType) -> Result<Self> {
        let flat = |b: &BlockLayout| arena.tensor(&format!("weights.{}", b.block), dtype, &[b.elements]);
        let blocks = layout.blocks.iter().map(flat).collect::<Result<_>>()?;
        Ok(ResidentWeights { layout, blocks })
    }

    /// Fills every tensor of the checkpoint; see [`read_block`].
    pub fn load(&mut self, ops: &dyn Ops, read: &mut ReadTensor) -> Result<()> {
        for (layout, block) in self.layout.blocks.iter().zip(&mut self.blocks) {
            let put = |range, values: &[f32]| upload_f32(ops, values, block.view_mut().into_rows(range));
            read_block(layout, 0..layout.elements, read, put)?;
        }
        Ok(())
    }
}

impl WeightSource for ResidentWeights {
    fn stays(&self) -> bool {
        true
    }
    fn prefetch(&self, _ops: &dyn Ops, _block: Block) -> Result<()> {
        Ok(())
    }
    fn acquire<'a>(&'a self, _ops: &'a dyn Ops, block: Block) -> Result<BlockWeights<'a>> {
        Ok(BlockWeights::new(self.layout.block(block), self.blocks[self.layout.index(block)].view(), ()))
    }
}

/// Writes elements of a tensor of a checkpoint, of this name and shape, as f32.
pub type ReadTensor<'a> = dyn FnMut(&str, &[usize], Range<usize>, &mut [f32]) -> Result<()> + 'a;

/// Asks `read` for all of a block's tensors that lies within elements `within` of its flat buffer, and gives it to `put` with its place there.
pub fn read_block(
    layout: &BlockLayout,
    within: Range<usize>,
    read: &mut ReadTensor,
    mut put: impl FnMut(Range<usize>, &[f32]) -> Result<()>,
) -> Result<()> {
    /// Values in host memory at a time.
    const PIECE: usize = 1 << 17;
    let mut values = Vec::new();
    for parameter in &layout.parameters {
        for part in &parameter.parts {
            let all = parameter.part_range(part);
            let (begin, end) = (all.start.max(within.start), all.end.min(within.end));
            for start in (begin..end).step_by(PIECE) {
                let piece = start..end.min(start + PIECE);
                values.resize(piece.len(), 0.0);
                read(&part.name, &parameter.part_shape(part), piece.start - all.start..piece.end - all.start, &mut values)?;
                put(piece, &values)?;
            }
        }
    }
    Ok(())
}

/// Reads a checkpoint, refusing tensors of another shape and values that are not finite.
pub fn checkpoint_reader<'a>(checkpoint: &'a TensorFiles, layout: &Layout) -> Result<Box<ReadTensor<'a>>> {
    if layout.tied && checkpoint.contains(HEAD) {
        let all = |name| checkpoint.bytes(name, 0..checkpoint.info(name)?.1.first().copied().unwrap_or(1));
        if all(HEAD)? != all("model.embed_tokens.weight")? {
            return Err(Error::data(format!(
                "config.json ties the head to the embedding (tie_word_embeddings), but {HEAD} is another matrix"
            ))
            .help("set tie_word_embeddings to false if the model has a head of its own"));
        }
    }
    let layers = layout.blocks.iter().filter(|layout| matches!(layout.block, Block::Layer(_))).count();
    let layer = |name: &&str| name.strip_prefix("model.layers.")?.split('.').next()?.parse::<usize>().ok();
    if let Some(name) = checkpoint.names().find(|name| layer(name).is_some_and(|layer| layer >= layers)) {
        return Err(Error::data(format!("config.json has {layers} layers (num_hidden_layers), but there is a tensor {name}"))
            .help("config.json and the weights are of different models"));
    }
    Ok(Box::new(|name, shape, range, out| {
        let (_, stored) = checkpoint.info(name)?;
        if stored != shape {
            return Err(Error::data(format!("tensor {name} has shape {stored:?}, but config.json implies {shape:?}"))
                .help("config.json and the weights are of different models"));
        }
        checkpoint.read_elements_f32(name, range.clone(), out)?;
        match out.iter().position(|v| !v.is_finite()) {
            Some(at) => Err(Error::data(format!("tensor {name} holds {} at element {}", out[at], range.start + at))
                .help("the checkpoint is damaged: download it again")),
            None => Ok(()),
        }
    }))
}

/// Random weights as transformers initialises Qwen2: matrices normal with deviation `std`, norms 1, biases 0. A pure function of
/// the seed, the tensor's name and the element.
pub fn random_reader(seed: u64, std: f32) -> Box<ReadTensor<'static>> {
    Box::new(move |name, shape, range, out| {
        match shape.len() {
            1 if name.ends_with("norm.weight") => out.fill(1.0),
            1 => out.fill(0.0),
            _ => normal(seed, name, std, range.start, out),
        }
        Ok(())
    })
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

/// Downloads elements as f32 into `out`.
pub fn copy_f32(ops: &dyn Ops, x: View, out: &mut [f32]) -> Result<()> {
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
