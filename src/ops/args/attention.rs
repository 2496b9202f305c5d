//! Causal attention over packed sequences.

use super::{Cost, expect, expect_dtype, expect_shape};
use crate::error::Result;
use crate::tensor::{DType, View, ViewMut};

/// How the heads of a fused projection lie side by side: Q query heads, then K key heads, then K value heads, each `dim` wide.
/// Query head q reads key/value head q / (Q/K).
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct HeadLayout {
    pub query: usize,
    pub kv: usize,
    pub dim: usize,
}

impl HeadLayout {
    /// Heads of the fused projection, Q + 2K.
    pub fn fused(&self) -> usize {
        self.query + 2 * self.kv
    }
    /// Query heads per key/value head.
    pub fn group(&self) -> usize {
        self.query / self.kv
    }
    /// The softmax scale, 1/√H.
    pub fn scale(&self) -> f32 {
        1.0 / (self.dim as f32).sqrt()
    }
}

/// out[t, q] = Σ_u softmax_u(scale · Q[t, q]·K[u, kv]) · V[u, kv] over the tokens u ≤ t of t's own sequence.
pub struct Attention<'a> {
    /// [T, Q + 2K, H] after RoPE.
    pub qkv: View<'a>,
    pub heads: HeadLayout,
    /// [S + 1] i32, where sequences begin; the last entry is T.
    pub cu_seqlens: View<'a>,
    /// The same numbers on the host, which compute launches.
    pub cu_seqlens_host: &'a [i32],
    /// [T, Q, H] overwritten.
    pub out: ViewMut<'a>,
    /// [Q, T] f32: log Σ_u exp(scale · Q·K), overwritten.
    pub lse: ViewMut<'a>,
}

/// Every query head has its key/value head.
pub(super) fn check_heads(op: &str, heads: HeadLayout) -> Result<()> {
    let HeadLayout { query, kv, dim } = heads;
    expect(op, kv > 0 && dim > 0 && query > 0 && query % kv == 0, || {
        format!("{query} query heads of {dim} do not share {kv} key/value heads evenly")
    })
}

fn check_packing(op: &str, cu_seqlens: &View, host: &[i32], t: usize) -> Result<()> {
    expect_shape(op, "cu_seqlens", cu_seqlens.shape(), &[host.len()])?;
    expect_dtype(op, "cu_seqlens", cu_seqlens.dtype(), DType::I32)?;
    let ordered = host.windows(2).all(|w| w[0] < w[1]);
    expect(op, ordered && host.first() == Some(&0) && host.last() == Some(&(t as i32)), || {
        format!("cu_seqlens must rise from 0 to {t}, not {host:?}")
    })
}

/// Multiply-adds of causal scores over these sequences: Σ n(n + 1)/2.
fn causal_pairs(cu_seqlens: &[i32]) -> f64 {
    cu_seqlens.windows(2).map(|w| (w[1] - w[0]) as f64).map(|n| n * (n + 1.0) / 2.0).sum()
}

impl Attention<'_> {
    pub fn check(&self) -> Result<()> {
        const OP: &str = "attention";
        check_heads(OP, self.heads)?;
        let t = self.qkv.shape()[0];
        let HeadLayout { query, dim, .. } = self.heads;
        expect_shape(OP, "qkv", self.qkv.shape(), &[t, self.heads.fused(), dim])?;
        expect_shape(OP, "out", self.out.shape(), &[t, query, dim])?;
        expect_shape(OP, "lse", self.lse.shape(), &[query, t])?;
        expect_dtype(OP, "out", self.out.dtype(), self.qkv.dtype())?;
        expect_dtype(OP, "lse", self.lse.dtype(), DType::F32)?;
        check_packing(OP, &self.cu_seqlens, self.cu_seqlens_host, t)
    }

    pub fn cost(&self) -> Cost {
        let pairs = causal_pairs(self.cu_seqlens_host) * self.heads.query as f64;
        let bytes = self.qkv.bytes() + self.out.bytes() + self.lse.bytes();
        Cost { flops: 4.0 * pairs * self.heads.dim as f64, bytes: bytes as f64 }
    }
}

/// The gradient of [`Attention`]; probabilities are computed again from `lse` (FlashAttention, arXiv 2205.14135).
pub struct AttentionBackward<'a> {
    /// [T, Q + 2K, H]
    pub qkv: View<'a>,
    pub heads: HeadLayout,
    /// [S + 1] i32
    pub cu_seqlens: View<'a>,
    pub cu_seqlens_host: &'a [i32],
    /// [T, Q, H]
    pub out: View<'a>,
    /// [Q, T] f32
    pub lse: View<'a>,
    /// [T, Q, H]
    pub dout: View<'a>,
    /// [Q, T] f32 scratch: rowsum(dout ∘ out).
    pub delta: ViewMut<'a>,
    /// [B] u8, B ≥ [`AttentionBackward::scratch_bytes`].
    pub scratch: ViewMut<'a>,
    /// [T, Q + 2K, H] overwritten; before the inverse RoPE.
    pub dqkv: ViewMut<'a>,
}

impl AttentionBackward<'_> {
    /// Counters a query row and head has, for parts of its columns.
    pub const TURNS: usize = 4;

    /// Bytes of scratch for micro-batches of at most `tokens` tokens: with bf16 storage, the gradient of the queries [T, Q, H] in f32, to
    /// which key/value tiles add in order; counters that order them, [`Self::TURNS`] a query row and head; and one that hands out work.
    pub fn scratch_bytes(storage: DType, tokens: usize, heads: HeadLayout) -> usize {
        match storage {
            DType::Bf16 => (tokens * heads.query * (heads.dim + Self::TURNS) + 1) * 4,
            _ => 0,
        }
    }

    pub fn check(&self) -> Result<()> {
        const OP: &str = "attention_backward";
        check_heads(OP, self.heads)?;
        let t = self.qkv.shape()[0];
        let HeadLayout { query, dim, .. } = self.heads;
        expect_shape(OP, "qkv", self.qkv.shape(), &[t, self.heads.fused(), dim])?;
        expect_shape(OP, "out", self.out.shape(), &[t, query, dim])?;
        expect_shape(OP, "lse", self.lse.shape(), &[query, t])?;
        expect_shape(OP, "dout", self.dout.shape(), &[t, query, dim])?;
        expect_shape(OP, "delta", self.delta.shape(), &[query, t])?;
        expect_shape(OP, "dqkv", self.dqkv.shape(), &[t, self.heads.fused(), dim])?;
        for (operand, dtype) in [("out", self.out.dtype()), ("dout", self.dout.dtype()), ("dqkv", self.dqkv.dtype())] {
            expect_dtype(OP, operand, dtype, self.qkv.dtype())?;
        }
        expect_dtype(OP, "lse", self.lse.dtype(), DType::F32)?;
        expect_dtype(OP, "delta", self.delta.dtype(), DType::F32)?;
        expect_dtype(OP, "scratch", self.scratch.dtype(), DType::U8)?;
        let needed = Self::scratch_bytes(self.qkv.dtype(), t, self.heads);
        expect(OP, self.scratch.elements() >= needed, || {
            format!("{} bytes of scratch, not {needed}", self.scratch.elements())
        })?;
        check_packing(OP, &self.cu_seqlens, self.cu_seqlens_host, t)
    }

    pub fn cost(&self) -> Cost {
        let pairs = causal_pairs(self.cu_seqlens_host) * self.heads.query as f64;
        let bytes = self.qkv.bytes() + self.dqkv.bytes() + self.out.bytes() + self.dout.bytes() + 3 * self.lse.bytes();
        Cost { flops: 10.0 * pairs * self.heads.dim as f64, bytes: bytes as f64 }
    }
}
