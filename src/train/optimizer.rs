//! AdamW over all blocks, and the gradient norm.

use crate::config::{OptimizerConfig, StateDtype};
use crate::error::Result;
use crate::model::{AccumulatedGradients, Block, BlockLayout, Layout, ResidentWeights, download_f32};
use crate::ops::{AdamW, Master, Moment, Ops, SQUARE_SUMS_CHUNK, SquareSums};
use crate::tensor::{Arena, DType, Tensor};
use std::ops::Range;
use std::sync::Arc;

/// AdamW and its moments: flat buffers a block, each in the type that `optimizer.state` gives its block.
pub struct Optimizer {
    layout: Arc<Layout>,
    m: Vec<StoredMoment>,
    v: Vec<StoredMoment>,
    /// Partial sums of squares of all blocks.
    sums: Tensor,
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

/// A moment of one block.
struct StoredMoment {
    /// By the name that it has in the ledger and in checkpoints.
    name: String,
    values: Tensor,
    /// Of 8-bit values: one a [`Moment::BLOCK`].
    scales: Option<Tensor>,
}

impl StoredMoment {
    fn new(arena: &mut Arena, what: &str, layout: &BlockLayout, state: StateDtype) -> Result<Self> {
        let dtype = match (state, layout.block) {
            (StateDtype::Fp32, _) => DType::F32,
            // Rows of the vocabulary differ too much in how often they are updated to share few bits.
            (StateDtype::Bf16, _) | (StateDtype::Int8, Block::Embedding | Block::Head) => DType::Bf16,
            (StateDtype::Int8, Block::Layer(_)) => DType::U8,
        };
        let name = format!("optimizer.{what}.{}", layout.block);
        let values = arena.tensor(&name, dtype, &[layout.elements])?;
        let mut scales = || arena.tensor(&format!("{name}.scales"), DType::F32, &[layout.elements / Moment::BLOCK]);
        let scales = (dtype == DType::U8).then(&mut scales).transpose()?;
        Ok(StoredMoment { name, values, scales })
    }

    /// The moments of the elements of one parameter, which begins with a block of its own.
    fn part(&mut self, range: Range<usize>) -> Moment<'_> {
        let blocks = range.start / Moment::BLOCK..range.end.div_ceil(Moment::BLOCK);
        Moment {
            values: self.values.view_mut().into_rows(range),
            scales: self.scales.as_mut().map(|scales| scales.view_mut().into_rows(blocks)),
        }
    }

    fn buffers(&self) -> impl Iterator<Item = (String, &Tensor)> {
        let scales = self.scales.iter().map(|scales| (format!("{}.scales", self.name), scales));
        std::iter::once((self.name.clone(), &self.values)).chain(scales)
    }

    fn buffers_mut(&mut self) -> impl Iterator<Item = (String, &mut Tensor)> {
        let scales = self.scales.iter_mut().map(|scales| (format!("{}.scales", self.name), scales));
        std::iter::once((self.name.clone(), &mut self.values)).chain(scales)
    }
}

impl Optimizer {
    pub fn new(arena: &mut Arena, layout: Arc<Layout>, state: StateDtype) -> Result<Self> {
        let mut cut = |what: &str| -> Result<Vec<StoredMoment>> {
            layout.blocks.iter().map(|block| StoredMoment::new(arena, what, block, state)).collect()
        };
        let (m, v) = (cut("m")?, cut("v")?);
        let chunks = layout.blocks.iter().map(|b| b.elements.div_ceil(SQUARE_SUMS_CHUNK)).sum();
        let sums = arena.tensor("optimizer.square_sums", DType::F32, &[chunks])?;
        Ok(Optimizer { layout, m, v, sums, step: 0 })
    }

    /// Every tensor of the state, by the name that it has in the ledger and in checkpoints.
    pub fn buffers(&self) -> impl Iterator<Item = (String, &Tensor)> {
        self.m.iter().chain(&self.v).flat_map(StoredMoment::buffers)
    }

    pub fn buffers_mut(&mut self) -> impl Iterator<Item = (String, &mut Tensor)> {
        self.m.iter_mut().chain(&mut self.v).flat_map(StoredMoment::buffers_mut)
    }

    /// ‖g‖₂ over all gradients: partial sums of 4096 elements, added in order in f64.
    pub fn gradient_norm(&mut self, ops: &dyn Ops, gradients: &AccumulatedGradients) -> Result<f64> {
        let mut rest = self.sums.view_mut();
        for x in gradients.blocks() {
            let (sums, others) = rest.split_rows(x.elements().div_ceil(SQUARE_SUMS_CHUNK));
            ops.square_sums(SquareSums { x, sums })?;
            rest = others;
        }
        let sums = download_f32(ops, self.sums.view())?;
        Ok(sums.iter().fold(0.0, |total, &sum| total + f64::from(sum)).sqrt())
    }

    /// One update.
    pub fn update(
        &mut self,
        ops: &dyn Ops,
        weights: &mut ResidentWeights,
        gradients: &AccumulatedGradients,
        settings: &OptimizerConfig,
        Update { lr, grad_scale, seed }: Update,
    ) -> Result<()> {
        self.step += 1;
        // The place of each block among all parameters.
        let mut first = 0;
        for (index, (layout, grad)) in self.layout.blocks.iter().zip(gradients.blocks()).enumerate() {
            for parameter in &layout.parameters {
                let range = || parameter.offset..parameter.offset + parameter.elements();
                ops.adamw(AdamW {
                    param: weights.blocks[index].view_mut().into_rows(range()),
                    grad: grad.rows(range()),
                    master: match &mut weights.remainders {
                        None => Master::None,
                        Some(remainders) => Master::Remainder(remainders[index].view_mut().into_rows(range())),
                    },
                    m: self.m[index].part(range()),
                    v: self.v[index].part(range()),
                    step: self.step,
                    lr,
                    beta1: settings.betas[0],
                    beta2: settings.betas[1],
                    eps: settings.eps,
                    weight_decay: if parameter.decays() { settings.weight_decay } else { 0.0 },
                    grad_scale,
                    seed,
                    first: first + parameter.offset as u64,
                })?;
            }
            first += layout.elements as u64;
        }
        Ok(())
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
