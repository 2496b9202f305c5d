//! Gradient norm and AdamW.

use super::math::{sum_of, vectorised};
use crate::error::Result;
use crate::ops::{AdamW, SQUARE_SUMS_CHUNK, SquareSums};
use rayon::prelude::*;

pub fn square_sums(op: SquareSums) -> Result<()> {
    op.check()?;
    let chunks = op.x.f32().par_chunks(SQUARE_SUMS_CHUNK);
    op.sums.f32().par_iter_mut().zip(chunks).for_each(|(sum, x)| {
        *sum = vectorised(|| sum_of(x.len(), |i| x[i] * x[i]));
    });
    Ok(())
}

pub fn adamw(op: AdamW) -> Result<()> {
    op.check()?;
    const CHUNK: usize = 16_384;
    let decay = (1.0 - op.lr * op.weight_decay) as f32;
    let step = op.step as i32;
    let step_size = (op.lr / (1.0 - op.beta1.powi(step))) as f32;
    let v_scale = (1.0 - op.beta2.powi(step)).sqrt() as f32;
    let (beta2, rest1, rest2, eps) = (op.beta2 as f32, (1.0 - op.beta1) as f32, (1.0 - op.beta2) as f32, op.eps as f32);
    let scale = op.grad_scale;
    let state = op.m.values.f32().par_chunks_mut(CHUNK).zip(op.v.values.f32().par_chunks_mut(CHUNK));
    let chunks = op.param.f32().par_chunks_mut(CHUNK).zip(op.grad.f32().par_chunks(CHUNK)).zip(state);
    chunks.for_each(|((param, grad), (m, v))| {
        vectorised(|| {
            for i in 0..param.len() {
                let g = grad[i] * scale;
                // m + (1 − β₁)(g − m), as torch's lerp.
                m[i] += rest1 * (g - m[i]);
                v[i] = v[i] * beta2 + rest2 * g * g;
                let denominator = v[i].sqrt() / v_scale + eps;
                param[i] = param[i] * decay - step_size * (m[i] / denominator);
            }
        })
    });
    Ok(())
}
