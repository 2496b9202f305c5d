//! Fused residual addition and RMSNorm.

use super::math::{sum_of, vectorised};
use crate::error::Result;
use crate::ops::{RmsNorm, RmsNormBackward};
use rayon::prelude::*;

pub fn forward(op: RmsNorm) -> Result<()> {
    op.check()?;
    let d = op.weight.elements();
    let (x, weight, eps) = (op.x.f32(), op.weight.f32(), op.eps);
    let normalise = |sum: &[f32], y: &mut [f32], rstd: &mut f32| {
        vectorised(|| {
            let square_sum = sum_of(d, |i| sum[i] * sum[i]);
            *rstd = 1.0 / (square_sum / d as f32 + eps).sqrt();
            for ((y, &s), &w) in y.iter_mut().zip(sum).zip(weight) {
                *y = s * *rstd * w;
            }
        })
    };
    let rows = (op.y.f32().par_chunks_exact_mut(d), op.rstd.f32().par_iter_mut());
    match op.residual {
        None => (rows, x.par_chunks_exact(d)).into_par_iter().for_each(|((y, rstd), x)| normalise(x, y, rstd)),
        Some(residual) => {
            let delta = residual.delta.f32();
            let sums = residual.sum.f32().par_chunks_exact_mut(d);
            let inputs = x.par_chunks_exact(d).zip(delta.par_chunks_exact(d));
            (rows, sums, inputs).into_par_iter().for_each(|((y, rstd), sum, (x, delta))| {
                for ((sum, x), delta) in sum.iter_mut().zip(x).zip(delta) {
                    *sum = x + delta;
                }
                normalise(sum, y, rstd);
            });
        }
    }
    Ok(())
}

pub fn backward(op: RmsNormBackward) -> Result<()> {
    op.check()?;
    let d = op.weight.elements();
    let rows = op.rstd.elements();
    let rows_per_partial = rows.div_ceil(RmsNormBackward::PARTIALS).max(1);
    let (dy, sum, weight, rstd, accumulate) = (op.dy.f32(), op.sum.f32(), op.weight.f32(), op.rstd.f32(), op.accumulate);
    let partials = op.partials.f32();
    let used = rows.div_ceil(rows_per_partial);

    let block = rows_per_partial * d;
    (partials.par_chunks_exact_mut(d), op.dsum.f32().par_chunks_mut(block), dy.par_chunks(block), sum.par_chunks(block))
        .into_par_iter()
        .enumerate()
        .for_each(|(p, (partial, dsum, dy, sum))| {
            partial.fill(0.0);
            for (row, dsum) in dsum.chunks_exact_mut(d).enumerate() {
                let (dy, sum) = (&dy[row * d..][..d], &sum[row * d..][..d]);
                let rstd = rstd[p * rows_per_partial + row];
                vectorised(|| {
                    // x̂ = sum · rstd, so mean(dx̂ · x̂) = rstd · mean(dy · w · sum).
                    let mean = rstd * sum_of(d, |i| dy[i] * weight[i] * sum[i]) / d as f32;
                    for i in 0..d {
                        let normalised = sum[i] * rstd;
                        let gradient = rstd * (dy[i] * weight[i] - normalised * mean);
                        dsum[i] = if accumulate { dsum[i] + gradient } else { gradient };
                        partial[i] += dy[i] * normalised;
                    }
                });
            }
        });
    let dweight = op.dweight.f32();
    for partial in partials.chunks_exact(d).take(used) {
        dweight.iter_mut().zip(partial).for_each(|(out, p)| *out += p);
    }
    Ok(())
}
