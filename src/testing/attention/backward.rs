//! The backward pass against the CPU backend.

use super::Case;
use super::forward::{self, wide};
use crate::device::Launcher;
use crate::error::Result;
use crate::ops::cpu::Cpu;
use crate::ops::cuda::attention::{self as kernels, BackwardVersion};
use crate::ops::{AttentionBackward, HeadLayout, Ops};
use crate::tensor::{DType, Tensor};
use crate::testing::buffer::{Behind, Buffer};
use crate::testing::compare::within_budget;
use crate::testing::random::Random;
use crate::testing::{Outputs, round};
use std::ops::Range;

/// Of the norm and of the largest value: what f32 sums in another order may add to the budget.
const ATOL: f64 = 2e-6;

/// Probabilities are computed again from scores and a log-sum-exp in f32. Where those are so large that their f32 neighbours differ by more than
/// one, as scores of a billion are, that is impossible for any program, the oracle too.
pub(super) const LARGEST_SCALE: f64 = 100.0;

/// What the backward pass is given.
struct Inputs {
    /// [T, Q + 2K, H], as bf16 holds it.
    qkv: Vec<f32>,
    /// [T, Q, H] of the forward pass, as bf16 holds it.
    out: Vec<f32>,
    /// [Q, T]
    lse: Vec<f32>,
    /// [T, Q, H], as bf16 holds it.
    dout: Vec<f32>,
}

/// delta [Q, T] and dqkv [T, Q + 2K, H].
struct Gradients {
    delta: Vec<f32>,
    dqkv: Vec<f32>,
}

/// What f32 leaves of dP − delta where both are equal: a query that sees one key has a gradient of zero, and programs that add up in
/// different orders find different specks around it. Of the largest term of dQ or dK.
const SPECK: f32 = 4.0 * f32::EPSILON;

/// Runs a version on a case and compares it with the oracle; an error says what is off.
pub fn backward(launcher: &dyn Launcher, version: &BackwardVersion, case: &Case, behind: Behind) -> Result<Outputs> {
    let HeadLayout { query, kv, dim } = case.heads;
    let (t, cu_seqlens) = (case.tokens(), case.cu_seqlens());
    let inputs = Inputs::new(case)?;
    let bounds: Vec<f32> = cu_seqlens.iter().map(|&bound| bound as f32).collect();
    let (fused, rows) = ([t, case.heads.fused(), dim], [t, query, dim]);
    let bf16 = |name, shape: &[usize], values: &[f32]| Buffer::new(launcher, behind, name, DType::Bf16, shape, values);
    let (qkv_buffer, out_buffer) = (bf16("qkv", &fused, &inputs.qkv)?, bf16("out", &rows, &inputs.out)?);
    let dout_buffer = bf16("dout", &rows, &inputs.dout)?;
    let lse_buffer = Buffer::new(launcher, behind, "lse", DType::F32, &[query, t], &inputs.lse)?;
    let cu_seqlens_buffer = Buffer::new(launcher, behind, "cu_seqlens", DType::I32, &[bounds.len()], &bounds)?;
    let mut delta_buffer = Buffer::poisoned(launcher, behind, "delta", DType::F32, &[query, t])?;
    let scratch = AttentionBackward::scratch_bytes(DType::Bf16, t, case.heads);
    let mut scratch_buffer = Buffer::poisoned(launcher, behind, "scratch", DType::U8, &[scratch])?;
    let mut dqkv_buffer = Buffer::poisoned(launcher, behind, "dqkv", DType::Bf16, &fused)?;
    let op = AttentionBackward {
        qkv: qkv_buffer.view(),
        heads: case.heads,
        cu_seqlens: cu_seqlens_buffer.view(),
        cu_seqlens_host: &cu_seqlens,
        out: out_buffer.view(),
        lse: lse_buffer.view(),
        dout: dout_buffer.view(),
        delta: delta_buffer.view_mut(),
        scratch: scratch_buffer.view_mut(),
        dqkv: dqkv_buffer.view_mut(),
    };
    kernels::attention_backward(launcher, version, op)?;
    launcher.synchronize()?;
    scratch_buffer.read()?;
    let ours = Gradients { delta: delta_buffer.read()?, dqkv: dqkv_buffer.read()? };

    let (oracle, naive) = (oracle(case, &inputs)?, naive(case, &inputs));
    within_budget("delta", &ours.delta, &naive.delta, &wide(&oracle.delta), ATOL)?;
    // Each of the three on its own: their sizes may differ by orders of magnitude.
    let part = |dqkv: &[f32], heads: Range<usize>| -> Vec<f32> {
        dqkv.chunks(case.heads.fused() * dim).flat_map(|row| &row[heads.start * dim..heads.end * dim]).copied().collect()
    };
    let (keys, values) = (query..query + kv, query + kv..query + 2 * kv);
    let mut outputs = vec![("delta", ours.delta)];
    for (name, heads) in [("dq", 0..query), ("dk", keys), ("dv", values)] {
        let [ours, naive, oracle] = [&ours.dqkv, &naive.dqkv, &oracle.dqkv].map(|dqkv| part(dqkv, heads.clone()));
        let all_specks = name != "dv" && oracle.iter().chain(&ours).all(|value| value.abs() <= inputs.speck(case));
        if !all_specks {
            within_budget(name, &ours, &naive, &wide(&oracle), ATOL)?;
        }
        outputs.push((name, ours));
    }
    Ok(outputs)
}

impl Inputs {
    fn new(case: &Case) -> Result<Self> {
        let qkv = case.qkv();
        let forward = forward::oracle(case, &qkv)?;
        let mut random = Random::new(case.tokens() as u64 + 17);
        let dout = forward.out.iter().map(|_| round((0.1 + random.normal()) as f32)).collect();
        Ok(Inputs { qkv, out: forward.out.into_iter().map(round).collect(), lse: forward.lse, dout })
    }

    /// The size of a gradient that is nothing but rounding.
    fn speck(&self, case: &Case) -> f32 {
        let largest = |values: &[f32]| values.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
        let dp = case.heads.dim as f32 * largest(&self.dout) * largest(&self.out);
        SPECK * dp * largest(&self.qkv) * case.heads.scale()
    }
}

/// The CPU backend, which keeps probabilities and gradients of scores in f32.
fn oracle(case: &Case, inputs: &Inputs) -> Result<Gradients> {
    let HeadLayout { query, dim, .. } = case.heads;
    let (t, cu_seqlens) = (case.tokens(), case.cu_seqlens());
    let (fused, rows) = ([t, case.heads.fused(), dim], [t, query, dim]);
    let (qkv, out) = (Tensor::from_f32(&inputs.qkv, &fused), Tensor::from_f32(&inputs.out, &rows));
    let (lse, dout) = (Tensor::from_f32(&inputs.lse, &[query, t]), Tensor::from_f32(&inputs.dout, &rows));
    let bounds = Tensor::from_i32(&cu_seqlens, &[cu_seqlens.len()]);
    let mut delta = Tensor::host(DType::F32, &[query, t]);
    let mut scratch = Tensor::host(DType::U8, &[AttentionBackward::scratch_bytes(DType::F32, t, case.heads)]);
    let mut dqkv = Tensor::host(DType::F32, &fused);
    Cpu.attention_backward(AttentionBackward {
        qkv: qkv.view(),
        heads: case.heads,
        cu_seqlens: bounds.view(),
        cu_seqlens_host: &cu_seqlens,
        out: out.view(),
        lse: lse.view(),
        dout: dout.view(),
        delta: delta.view_mut(),
        scratch: scratch.view_mut(),
        dqkv: dqkv.view_mut(),
    })?;
    Ok(Gradients { delta: delta.view().f32().to_vec(), dqkv: dqkv.view().f32().to_vec() })
}

/// Pair by pair, rounding what tensor cores and storage must: probabilities, gradients of scores, and results.
fn naive(case: &Case, inputs: &Inputs) -> Gradients {
    let HeadLayout { query, kv, dim } = case.heads;
    let (t, fused, group, scale) = (case.tokens(), case.heads.fused(), case.heads.group(), case.heads.scale());
    let at = |token: usize, head: usize| (token * fused + head) * dim..(token * fused + head + 1) * dim;
    let row = |token: usize, head: usize| (token * query + head) * dim..(token * query + head + 1) * dim;
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
    let add = |sum: &mut [f32], weight: f32, x: &[f32]| sum.iter_mut().zip(x).for_each(|(sum, x)| *sum += weight * x);
    let mut result = Gradients { delta: vec![0.0; query * t], dqkv: vec![0.0; t * fused * dim] };
    for (&begin, &length) in case.cu_seqlens().iter().zip(case.lengths) {
        let begin = begin as usize;
        for (token, head) in (begin..begin + length).flat_map(|token| (0..query).map(move |head| (token, head))) {
            let (q, dout) = (&inputs.qkv[at(token, head)], &inputs.dout[row(token, head)]);
            let delta = dot(&inputs.out[row(token, head)], dout);
            result.delta[head * t + token] = delta;
            for key in begin..=token {
                let (k, v) = (at(key, query + head / group), at(key, query + kv + head / group));
                let p = (dot(q, &inputs.qkv[k.clone()]) * scale - inputs.lse[head * t + token]).exp();
                let ds = round(p * (dot(dout, &inputs.qkv[v.clone()]) - delta));
                add(&mut result.dqkv[v], round(p), dout);
                add(&mut result.dqkv[k.clone()], ds * scale, q);
                add(&mut result.dqkv[at(token, head)], ds * scale, &inputs.qkv[k]);
            }
        }
    }
    result.dqkv.iter_mut().for_each(|value| *value = round(*value));
    result
}
