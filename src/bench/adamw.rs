//! AdamW and the sums of squares of the gradient norm, over the largest matrix of a layer of each model: gate and up, [2F, D].

use super::models::Model;
use super::problem::{Device, Problem, Sets, normal, zeros};
use super::{Ceiling, Ladder};
use crate::error::Result;
use crate::ops::cuda::adamw::{ADAMW, Storage, Version, adamw};
use crate::ops::cuda::square_sums::{SQUARE_SUMS, square_sums};
use crate::ops::{AdamW, Master, Moment, SQUARE_SUMS_CHUNK, SquareSums};
use crate::tensor::DType::{Bf16, F32, U8, U16};
use crate::tensor::Tensor;

/// The default of training by every version, then what else the last one stores.
pub fn ladders() -> Vec<Ladder> {
    let others = [
        Storage { moments: Bf16, exact: true, grad: F32 },
        Storage { moments: U8, exact: true, grad: F32 },
        Storage { moments: U8, exact: false, grad: Bf16 },
    ];
    let ladder = |storage: Storage| {
        let versions: Vec<&'static Version> = ADAMW.iter().filter(|version| version.takes(storage)).collect();
        let names = versions.clone().into_iter().map(|v| (v.name, v.idea));
        Ladder::new("adamw", Ceiling::Copy, names, move |device, model| update(device, model, storage, versions.clone()))
    };
    [Storage::DEFAULT].into_iter().chain(others).map(ladder).collect()
}

pub fn square_sums_ladders() -> Vec<Ladder> {
    vec![Ladder::new("square_sums", Ceiling::Copy, SQUARE_SUMS.iter().map(|v| (v.name, v.idea)), norm)]
}

fn elements(model: &Model) -> usize {
    2 * model.feed_forward * model.hidden
}

/// Remainder and scales are empty where this storage has none.
fn update_op(storage: Storage, [param, remainder, grad, m, v, m_scales, v_scales]: &mut [Tensor; 7]) -> AdamW<'_> {
    fn moment<'a>(values: &'a mut Tensor, scales: &'a mut Tensor) -> Moment<'a> {
        let scaled = values.dtype() == U8;
        Moment { values: values.view_mut(), scales: scaled.then(|| scales.view_mut()) }
    }
    AdamW {
        param: param.view_mut(),
        master: if storage.exact { Master::Remainder(remainder.view_mut()) } else { Master::None },
        grad: grad.view(),
        m: moment(m, m_scales),
        v: moment(v, v_scales),
        step: 1,
        lr: 1e-5,
        beta1: 0.9,
        beta2: 0.999,
        eps: 1e-8,
        weight_decay: 0.0,
        grad_scale: 1.0,
        seed: 42,
        first: 0,
    }
}

fn update<'a>(device: Device<'a>, model: &Model, storage: Storage, versions: Vec<&'a Version>) -> Result<Problem<'a>> {
    let n = elements(model);
    let remainders = if storage.exact { n } else { 0 };
    let scales = if storage.moments == U8 { n.div_ceil(Moment::BLOCK) } else { 0 };
    let operands = [
        normal(Bf16, &[n]),
        zeros(U16, &[remainders]),
        normal(storage.grad, &[n]),
        zeros(storage.moments, &[n]),
        zeros(storage.moments, &[n]),
        zeros(F32, &[scales]),
        zeros(F32, &[scales]),
    ];
    let mut sets = Sets::new(device.launcher, operands)?;
    let cost = update_op(storage, sets.at(0)).cost();
    let master = if storage.exact { "exact" } else { "stochastic" };
    let shape = format!("N {n}, moments {}, {master}, gradient {}", storage.moments, storage.grad);
    let issue = move |version: usize, i| adamw(device.launcher, versions[version], update_op(storage, sets.at(i)));
    Ok(Problem::new(shape, cost, issue))
}

fn norm<'a>(device: Device<'a>, model: &Model) -> Result<Problem<'a>> {
    fn op([x, sums]: &mut [Tensor; 2]) -> SquareSums<'_> {
        SquareSums { x: x.view(), sums: sums.view_mut() }
    }
    let n = elements(model);
    let mut sets = Sets::new(device.launcher, [normal(F32, &[n]), zeros(F32, &[n.div_ceil(SQUARE_SUMS_CHUNK)])])?;
    let cost = op(sets.at(0)).cost();
    let issue = move |version: usize, i| square_sums(device.launcher, &SQUARE_SUMS[version], op(sets.at(i)));
    Ok(Problem::new(format!("N {n}"), cost, issue))
}
