//! Fused residual addition and RMSNorm at the width of each model.

use super::models::{Model, TOKENS};
use super::problem::{Device, Problem, Sets, normal, tensors, zeros};
use super::{Ceiling, Ladder};
use crate::error::Result;
use crate::ops::cuda::rms_norm::{self as kernels, BACKWARD, FORWARD};
use crate::ops::{Residual, RmsNorm, RmsNormBackward};
use crate::tensor::DType::{Bf16, F32};
use crate::tensor::Tensor;

pub fn ladders() -> Vec<Ladder> {
    vec![
        Ladder::new("rms_norm", Ceiling::Copy, FORWARD.iter().map(|v| (v.name, v.idea)), forward),
        Ladder::new("rms_norm", Ceiling::Copy, BACKWARD.iter().map(|v| (v.name, v.idea)), backward),
    ]
}

fn forward<'a>(device: Device<'a>, model: &Model) -> Result<Problem<'a>> {
    fn op<'a>(weight: &'a Tensor, [x, delta, sum, y, rstd]: &'a mut [Tensor; 5]) -> RmsNorm<'a> {
        RmsNorm {
            x: x.view(),
            residual: Some(Residual { delta: delta.view(), sum: sum.view_mut() }),
            weight: weight.view(),
            eps: 1e-6,
            y: y.view_mut(),
            rstd: rstd.view_mut(),
        }
    }
    let (rows, width) = ([TOKENS, model.hidden], model.hidden);
    let [weight] = tensors(device.launcher, &[normal(Bf16, &[width])])?;
    let operands = [normal(Bf16, &rows), normal(Bf16, &rows), zeros(Bf16, &rows), zeros(Bf16, &rows), zeros(F32, &[TOKENS])];
    let mut sets = Sets::new(device.launcher, operands)?;
    let cost = op(&weight, sets.at(0)).cost();
    let issue = move |version: usize, i| kernels::rms_norm(device.launcher, &FORWARD[version], op(&weight, sets.at(i)));
    Ok(Problem::new(format!("T {TOKENS}, D {width}"), cost, issue))
}

/// The gradient is added to what arrives from above, as in a residual stream.
fn backward<'a>(device: Device<'a>, model: &Model) -> Result<Problem<'a>> {
    fn op<'a>(shared: &'a mut [Tensor; 3], [dy, sum, dsum, rstd]: &'a mut [Tensor; 4]) -> RmsNormBackward<'a> {
        let [weight, dweight, partials] = shared;
        RmsNormBackward {
            dy: dy.view(),
            sum: sum.view(),
            weight: weight.view(),
            rstd: rstd.view(),
            dsum: dsum.view_mut(),
            accumulate: true,
            dweight: dweight.view_mut(),
            partials: partials.view_mut(),
        }
    }
    let (rows, width) = ([TOKENS, model.hidden], model.hidden);
    // Every layer of a model shares the partial sums.
    let shared = [normal(Bf16, &[width]), zeros(F32, &[width]), zeros(F32, &[RmsNormBackward::PARTIALS, width])];
    let mut shared = tensors(device.launcher, &shared)?;
    let mut sets =
        Sets::new(device.launcher, [normal(Bf16, &rows), normal(Bf16, &rows), zeros(Bf16, &rows), normal(F32, &[TOKENS])])?;
    let cost = op(&mut shared, sets.at(0)).cost();
    let issue =
        move |version: usize, i| kernels::rms_norm_backward(device.launcher, &BACKWARD[version], op(&mut shared, sets.at(i)));
    Ok(Problem::new(format!("T {TOKENS}, D {width}"), cost, issue))
}
