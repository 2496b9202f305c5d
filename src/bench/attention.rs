//! Causal attention over one sequence of a whole micro-batch, with the heads of each model.

use super::models::{Model, TOKENS};
use super::problem::{Device, Problem, Sets, integers, normal, tensors, zeros};
use super::{Ceiling, Ladder};
use crate::error::Result;
use crate::ops::cuda::attention::{self as kernels, BACKWARD, FORWARD};
use crate::ops::{Attention, AttentionBackward, HeadLayout};
use crate::tensor::DType::{Bf16, F32, U8};
use crate::tensor::Tensor;

/// One sequence.
const CU_SEQLENS: [i32; 2] = [0, TOKENS as i32];

pub fn ladders() -> Vec<Ladder> {
    vec![
        Ladder::new("attention", Ceiling::Product, FORWARD.iter().map(|v| (v.name, v.idea)), forward),
        Ladder::new("attention", Ceiling::Product, BACKWARD.iter().map(|v| (v.name, v.idea)), backward),
    ]
}

fn shape(heads: HeadLayout) -> String {
    format!("T {TOKENS}, heads {}:{} x {}", heads.query, heads.kv, heads.dim)
}

fn forward_op<'a>(heads: HeadLayout, cu_seqlens: &'a Tensor, [qkv, out, lse]: [&'a mut Tensor; 3]) -> Attention<'a> {
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
    let cost = forward_op(heads, &cu_seqlens, sets.at(0).each_mut()).cost();
    let issue = move |version: usize, i| {
        kernels::attention(device.launcher, &FORWARD[version], forward_op(heads, &cu_seqlens, sets.at(i).each_mut()))
    };
    Ok(Problem::new(shape(heads), cost, issue))
}

fn backward<'a>(device: Device<'a>, model: &Model) -> Result<Problem<'a>> {
    fn op<'a>(
        heads: HeadLayout,
        cu_seqlens: &'a Tensor,
        [qkv, out, lse, dout, delta, scratch, dqkv]: &'a mut [Tensor; 7],
    ) -> AttentionBackward<'a> {
        AttentionBackward {
            qkv: qkv.view(),
            heads,
            cu_seqlens: cu_seqlens.view(),
            cu_seqlens_host: &CU_SEQLENS,
            out: out.view(),
            lse: lse.view(),
            dout: dout.view(),
            delta: delta.view_mut(),
            scratch: scratch.view_mut(),
            dqkv: dqkv.view_mut(),
        }
    }
    let heads = model.heads;
    let [cu_seqlens] = tensors(device.launcher, &[integers(CU_SEQLENS.to_vec())])?;
    let [fused, rows] = [[TOKENS, heads.fused(), heads.dim], [TOKENS, heads.query, heads.dim]];
    let operands = [
        normal(Bf16, &fused),
        zeros(Bf16, &rows),
        zeros(F32, &[heads.query, TOKENS]),
        normal(Bf16, &rows),
        zeros(F32, &[heads.query, TOKENS]),
        zeros(U8, &[AttentionBackward::scratch_bytes(Bf16, TOKENS, heads)]),
        zeros(Bf16, &fused),
    ];
    let mut sets = Sets::new(device.launcher, operands)?;
    let shipped = FORWARD.last().expect("a version");
    for [qkv, out, lse, ..] in &mut sets {
        kernels::attention(device.launcher, shipped, forward_op(heads, &cu_seqlens, [qkv, out, lse]))?;
    }
    let cost = op(heads, &cu_seqlens, sets.at(0)).cost();
    let issue = move |version: usize, i| {
        kernels::attention_backward(device.launcher, &BACKWARD[version], op(heads, &cu_seqlens, sets.at(i)))
    };
    Ok(Problem::new(shape(heads), cost, issue))
}
