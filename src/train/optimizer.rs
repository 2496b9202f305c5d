//! AdamW over all blocks, and the gradient norm.

use crate::config::OptimizerConfig;
use crate::error::Result;
use crate::model::{AccumulatedGradients, BlockLayout, Layout, ResidentWeights, download_f32};
use crate::ops::{AdamW, Master, Moment, Ops, SQUARE_SUMS_CHUNK, SquareSums};
use crate::tensor::{Arena, DType, Tensor};
use std::sync::Arc;

/// The moments of AdamW: a flat f32 buffer a block each.
pub struct Optimizer {
    layout: Arc<Layout>,
    m: Vec<Tensor>,
    v: Vec<Tensor>,
    /// Partial sums of squares of all blocks.
    sums: Tensor,
    /// Updates done.
    pub step: u64,
}

impl Optimizer {
    pub fn new(arena: &mut Arena, layout: Arc<Layout>) -> Result<Self> {
        let mut cut = |what: &str| -> Result<Vec<Tensor>> {
            layout.blocks.iter().map(|b| arena.tensor(&buffer_name(what, b), DType::F32, &[b.elements])).collect()
        };
        let (m, v) = (cut("m")?, cut("v")?);
        let chunks = layout.blocks.iter().map(|b| b.elements.div_ceil(SQUARE_SUMS_CHUNK)).sum();
        let sums = arena.tensor("optimizer.square_sums", DType::F32, &[chunks])?;
        Ok(Optimizer { layout, m, v, sums, step: 0 })
    }

    /// Every tensor of the state, by the name that it has in the ledger and in checkpoints.
    pub fn buffers(&self) -> impl Iterator<Item = (String, &Tensor)> {
        let named = |what| self.layout.blocks.iter().map(move |b| buffer_name(what, b));
        named("m").zip(&self.m).chain(named("v").zip(&self.v))
    }

    pub fn buffers_mut(&mut self) -> impl Iterator<Item = (String, &mut Tensor)> {
        let named = |what| self.layout.blocks.iter().map(move |b| buffer_name(what, b));
        named("m").zip(&mut self.m).chain(named("v").zip(&mut self.v))
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

    /// One update with gradients scaled by `grad_scale`, the clip factor.
    pub fn update(
        &mut self,
        ops: &dyn Ops,
        weights: &mut ResidentWeights,
        gradients: &AccumulatedGradients,
        settings: &OptimizerConfig,
        lr: f64,
        grad_scale: f32,
    ) -> Result<()> {
        self.step += 1;
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
                    m: Moment::plain(self.m[index].view_mut().into_rows(range())),
                    v: Moment::plain(self.v[index].view_mut().into_rows(range())),
                    step: self.step,
                    lr,
                    beta1: settings.betas[0],
                    beta2: settings.betas[1],
                    eps: settings.eps,
                    weight_decay: if parameter.decays() { settings.weight_decay } else { 0.0 },
                    grad_scale,
                    seed: 0,
                    first: 0,
                })?;
            }
        }
        Ok(())
    }
}

fn buffer_name(what: &str, layout: &BlockLayout) -> String {
    format!("optimizer.{what}.{}", layout.block)
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
