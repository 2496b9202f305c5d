//! Causal attention over one sequence of a whole micro-batch, with the heads of each model.

use super::models::{Model, TOKENS};
use super::problem::{Device, Problem, Sets, integers, normal, tensors, zeros};
use super::{Ceiling, Ladder};
use crate::error::Result;
use crate::ops::cuda::attention::{self as kernels, FORWARD};
use crate::ops::{Attention, HeadLayout};
use crate::tensor::DType::{Bf16, F32};
use crate::tensor::Tensor;

/// One sequence.
const CU_SEQLENS: [i32; 2] = [0, TOKENS as i32];

pub fn ladders() -> Vec<Ladder> {
    vec![Ladder::new("attention", Ceiling::Product, FORWARD.iter().map(|v| (v.name, v.idea)), forward)]
}

fn shape(heads: HeadLayout) -> String {
    format!("T {TOKENS}, heads {}:{} x {}", heads.query, heads.kv, heads.dim)
}

fn forward_op<'a>(heads: HeadLayout, cu_seqlens: &'a Tensor, [qkv, out, lse]: &'a mut [Tensor; 3]) -> Attention<'a> {
    Attention {
        qkv: qkv.view(),
        heads,
        cu_seqlens: cu_seqlens.view(),
        cu_seqlens_host: &CU_SEQLENS,
        out: out.view_mut(),
        lse: lse.view_mut(),
    }
}

fn forward<'a>(device: Device<'a>, model: &Model) -> Result<Problem<'a>> {
    let heads = model.heads;
    let [cu_seqlens] = tensors(device.launcher, &[integers(CU_SEQLENS.to_vec())])?;
    let qkv = normal(Bf16, &[TOKENS, heads.fused(), heads.dim]);
    let operands = [qkv, zeros(Bf16, &[TOKENS, heads.query, heads.dim]), zeros(F32, &[heads.query, TOKENS])];
    let mut sets = Sets::new(device.launcher, operands)?;
    let cost = forward_op(heads, &cu_seqlens, sets.at(0)).cost();
    let issue = move |version: usize, i| {
        kernels::attention(device.launcher, &FORWARD[version], forward_op(heads, &cu_seqlens, sets.at(i)))
    };
    Ok(Problem::new(shape(heads), cost, issue))
}
