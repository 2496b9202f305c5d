//! The forward pass against the CPU backend.

use super::Case;
use crate::device::Launcher;
use crate::error::Result;
use crate::ops::cpu::Cpu;
use crate::ops::cuda::attention::{self as kernels, Version};
use crate::ops::{Attention, HeadLayout, Ops};
use crate::tensor::{DType, Tensor};
use crate::testing::buffer::{Behind, Buffer};
use crate::testing::compare::within_budget;
use crate::testing::{Outputs, round};
use std::f32::consts::{LN_2, LOG2_E};

/// Of the norm and of the largest value: what f32 sums in another order may add to the budget.
const ATOL: f64 = 2e-6;

/// out [T, Q, H] and lse [Q, T].
pub(super) struct Forward {
    pub out: Vec<f32>,
    pub lse: Vec<f32>,
}

/// Runs a version on a case and compares it with the oracle; an error says what is off.
pub fn forward(launcher: &dyn Launcher, version: &Version, case: &Case, behind: Behind) -> Result<Outputs> {
    let HeadLayout { query, dim, .. } = case.heads;
    let (t, qkv, cu_seqlens) = (case.tokens(), case.qkv(), case.cu_seqlens());
    let bounds: Vec<f32> = cu_seqlens.iter().map(|&bound| bound as f32).collect();
    let qkv_shape = [t, case.heads.fused(), dim];
    let qkv_buffer = Buffer::new(launcher, behind, "qkv", DType::Bf16, &qkv_shape, &qkv)?;
    let cu_seqlens_buffer = Buffer::new(launcher, behind, "cu_seqlens", DType::I32, &[bounds.len()], &bounds)?;
    let mut out_buffer = Buffer::poisoned(launcher, behind, "out", DType::Bf16, &[t, query, dim])?;
    let mut lse_buffer = Buffer::poisoned(launcher, behind, "lse", DType::F32, &[query, t])?;
    let op = Attention {
        qkv: qkv_buffer.view(),
        heads: case.heads,
        cu_seqlens: cu_seqlens_buffer.view(),
        cu_seqlens_host: &cu_seqlens,
        out: out_buffer.view_mut(),
        lse: lse_buffer.view_mut(),
    };
    kernels::attention(launcher, version, op)?;
    launcher.synchronize()?;
    let (out, lse) = (out_buffer.read()?, lse_buffer.read()?);

    let (oracle, naive) = (oracle(case, &qkv)?, naive(case, &qkv));
    within_budget("out", &out, &naive.out, &wide(&oracle.out), ATOL)?;
    within_budget("lse", &lse, &naive.lse, &wide(&oracle.lse), ATOL)?;
    Ok(vec![("out", out), ("lse", lse)])
}

/// The CPU backend, which keeps weights in f32.
pub(super) fn oracle(case: &Case, qkv: &[f32]) -> Result<Forward> {
    let HeadLayout { query, dim, .. } = case.heads;
    let (t, cu_seqlens) = (case.tokens(), case.cu_seqlens());
    let qkv = Tensor::from_f32(qkv, &[t, case.heads.fused(), dim]);
    let bounds = Tensor::from_i32(&cu_seqlens, &[cu_seqlens.len()]);
    let mut out = Tensor::host(DType::F32, &[t, query, dim]);
    let mut lse = Tensor::host(DType::F32, &[query, t]);
    Cpu.attention(Attention {
        qkv: qkv.view(),
        heads: case.heads,
        cu_seqlens: bounds.view(),
        cu_seqlens_host: &cu_seqlens,
        out: out.view_mut(),
        lse: lse.view_mut(),
    })?;
    Ok(Forward { out: out.view().f32().to_vec(), lse: lse.view().f32().to_vec() })
}

/// Row by row, rounding what tensor cores and storage must: weights (not their sum) and results. Exponents of two are one fused
/// product each, so a row's highest weight is not quite one where scores are large.
fn naive(case: &Case, qkv: &[f32]) -> Forward {
    let HeadLayout { query, kv, dim } = case.heads;
    let (t, fused, group) = (case.tokens(), case.heads.fused(), case.heads.group());
    let scale = case.heads.scale() * LOG2_E;
    let head = |token: usize, head: usize| &qkv[(token * fused + head) * dim..][..dim];
    let mut result = Forward { out: vec![0.0; t * query * dim], lse: vec![0.0; query * t] };
    for (&begin, &length) in case.cu_seqlens().iter().zip(case.lengths) {
        let begin = begin as usize;
        for (token, q) in (begin..begin + length).flat_map(|token| (0..query).map(move |q| (token, q))) {
            let dot = |u| head(token, q).iter().zip(head(u, query + q / group)).map(|(q, k)| q * k).sum::<f32>();
            let scores: Vec<f32> = (begin..=token).map(dot).collect();
            let highest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max) * scale;
            let weights: Vec<f32> = scores.iter().map(|score| score.mul_add(scale, -highest).exp2()).collect();
            let sum: f32 = weights.iter().sum();
            let out = &mut result.out[(token * query + q) * dim..][..dim];
            for (u, &weight) in (begin..).zip(&weights) {
                out.iter_mut().zip(head(u, query + kv + q / group)).for_each(|(out, v)| *out += round(weight) * v);
            }
            out.iter_mut().for_each(|out| *out = round(*out / sum));
            result.lse[q * t + token] = (highest + sum.log2()) * LN_2;
        }
    }
    result
}

pub(super) fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&value| value.into()).collect()
}
