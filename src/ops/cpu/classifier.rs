//! Chunked linear + cross-entropy.

use super::math::{exp, max_of, sum_of, vectorised};
use super::rounded::updated;
use crate::error::{Error, Result};
use crate::ops::{Classifier, Gemm, IGNORE, Ops};
use rayon::prelude::*;

/// With the products and the storage type of `ops`.
pub fn classifier(ops: &dyn Ops, op: Classifier) -> Result<()> {
    op.check()?;
    let (rows, vocabulary) = (op.hidden.shape()[0], op.head.shape()[0]);
    let targets = op.targets.i32();
    if let Some(bad) = targets.iter().find(|&&t| t != IGNORE && !(0..vocabulary as i32).contains(&t)) {
        return Err(Error::internal(format!("classifier: target {bad} is outside the vocabulary of {vocabulary}")));
    }
    let losses = op.losses.f32();
    let (hidden, head, mut logits, mut gradients) = (op.hidden, op.head, op.logits, op.gradients);
    let chunk = logits.shape()[0].min(rows);

    for begin in (0..rows).step_by(chunk) {
        let range = begin..rows.min(begin + chunk);
        let targets = &targets[range.clone()];
        let losses = &mut losses[range.clone()];
        if targets.iter().all(|&t| t == IGNORE) {
            losses.fill(0.0);
            if let Some(gradients) = &mut gradients {
                ops.fill(gradients.dhidden.reborrow().into_rows(range), 0.0)?;
            }
            continue;
        }
        let mut logits = logits.reborrow().into_rows(0..range.len());
        ops.gemm(Gemm::linear(hidden.rows(range.clone()), head, None, logits.reborrow()))?;
        let scales = gradients.as_ref().map(|g| &g.scales.f32()[range.clone()]);
        updated(logits.reborrow(), |logits| {
            logits.f32().par_chunks_exact_mut(vocabulary).zip(losses).enumerate().for_each(|(row, (logits, loss))| {
                *loss = cross_entropy(logits, targets[row], scales.map(|s| s[row]));
            });
            Ok(())
        })?;
        if let Some(gradients) = &mut gradients {
            let dhidden = gradients.dhidden.reborrow().into_rows(range.clone());
            ops.gemm(Gemm::linear_input_gradient(logits.as_view(), head, dhidden))?;
            ops.gemm(Gemm::linear_weight_gradient(logits.as_view(), hidden.rows(range), gradients.dhead.reborrow()))?;
        }
    }
    Ok(())
}

/// The loss of one row; with a scale, the row is replaced by the gradient of scale · loss.
fn cross_entropy(logits: &mut [f32], target: i32, scale: Option<f32>) -> f32 {
    if target == IGNORE {
        logits.fill(0.0);
        return 0.0;
    }
    let target = target as usize;
    vectorised(|| {
        let max = max_of(logits);
        let sum = sum_of(logits.len(), |i| exp(logits[i] - max));
        let loss = sum.ln() + max - logits[target];
        if let Some(scale) = scale {
            let factor = scale / sum;
            logits.iter_mut().for_each(|x| *x = exp(*x - max) * factor);
            logits[target] -= scale;
        }
        loss
    })
}
