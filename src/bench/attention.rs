//! Causal attention over one sequence of a whole micro-batch, with the heads of each model.

use super::models::{Model, TOKENS};
use super::problem::{Device, Problem, Sets, integers, normal, tensors, zeros};
use super::{Ceiling, Ladder};
use crate::error::Result;
use crate::ops::cuda::attention::{self as kernels, BACKWARD, FORWARD};
use crate::ops::cuda::cached_attention::cached_attention;
use crate::ops::{Attention, AttentionBackward, CacheUse, CachedAttention, Cost, HeadLayout};
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

pub fn cached_ladders() -> Vec<Ladder> {
    let version = ("decode", "a block a sequence and head reads the cache once");
    vec![Ladder::new("cached_attention", Ceiling::Copy, [version], cached)]
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

/// Sequences that are sampled at once, and tokens that each has had.
const SEQUENCES: usize = 64;
const CACHED: usize = 2047;

fn cached<'a>(device: Device<'a>, model: &Model) -> Result<Problem<'a>> {
    let heads = model.heads;
    let host: [Vec<i32>; 3] =
        [(0..=SEQUENCES as i32).collect(), (0..SEQUENCES as i32).collect(), vec![CACHED as i32; SEQUENCES]];
    let [cu_seqlens, slots, lengths] = tensors(device.launcher, &host.clone().map(integers))?;
    let cache = [SEQUENCES, CACHED + 1, heads.kv, heads.dim];
    let operands = [
        normal(Bf16, &[SEQUENCES, heads.fused(), heads.dim]),
        normal(Bf16, &cache),
        normal(Bf16, &cache),
        zeros(Bf16, &[SEQUENCES, heads.query, heads.dim]),
    ];
    let mut sets = Sets::new(device.launcher, operands)?;
    let bytes: usize = sets.at(0).iter().map(Tensor::bytes).sum();
    let pairs = SEQUENCES * (CACHED + 1) * heads.query;
    let cost = Cost { flops: 4.0 * (pairs * heads.dim) as f64, bytes: bytes as f64 };
    let issue = move |_, i| {
        let [qkv, keys, values, out] = sets.at(i);
        let op = CachedAttention {
            qkv: qkv.view(),
            heads,
            cu_seqlens: cu_seqlens.view(),
            slots: slots.view(),
            cached: lengths.view(),
            host: CacheUse { cu_seqlens: &host[0], slots: &host[1], cached: &host[2] },
            keys: keys.view_mut(),
            values: values.view_mut(),
            out: out.view_mut(),
        };
        cached_attention(device.launcher, op)
    };
    let HeadLayout { query, kv, dim } = heads;
    Ok(Problem::new(format!("{SEQUENCES} sequences of {}, heads {query}:{kv} x {dim}", CACHED + 1), cost, issue))
}
