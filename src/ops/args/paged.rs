//! Attention over a key/value cache in pages (Kwon et al. 2023, "Efficient memory management for large language model serving with
//! PagedAttention", arXiv 2309.06180). Further letters of the shape legend:
//!
//! | letter | meaning |
//! |---|---|
//! | N | pages of the cache |
//! | L | layers |
//! | W | pages that a row of a page table has room for |
//!
//! A cache is [N, L, 2, K · PAGE · H]: all layers of a page lie together, so that it moves as one; within a layer come the keys and then the values, and
//! within each of the two [K, PAGE, H], so that a head's keys of a page are contiguous.

use super::attention::check_heads;
use super::{Cost, HeadLayout, expect, expect_dtype, expect_shape};
use crate::error::Result;
use crate::tensor::{DType, View, ViewMut};

/// Tokens of a page.
pub const PAGE: usize = 64;

fn check_cache(op: &str, cache: &View, heads: HeadLayout, layer: usize) -> Result<()> {
    let [pages, layers] = [cache.shape()[0], cache.shape().get(1).copied().unwrap_or_default()];
    expect_shape(op, "cache", cache.shape(), &[pages, layers, 2, heads.kv * PAGE * heads.dim])?;
    expect(op, layer < layers, || format!("layer {layer} of a cache of {layers} layers"))
}

/// Rotates the query heads of a fused projection in place as [`super::Rope`] does, and writes the rotated key heads and the value heads of every token into
/// its row of the cache. The key and value heads of `qkv` stay as they are.
pub struct PagedRope<'a> {
    /// [T, Q + 2K, H]
    pub qkv: ViewMut<'a>,
    pub heads: HeadLayout,
    /// [T] i32, each in 0..P.
    pub positions: View<'a>,
    /// [T] i32: page · PAGE + token within the page; negative for a token that pads the batch and is not cached. No two tokens share a row.
    pub rows: View<'a>,
    /// [P, H/2] f32
    pub cos: View<'a>,
    /// [P, H/2] f32
    pub sin: View<'a>,
    /// [N, L, 2, K · PAGE · H]
    pub cache: ViewMut<'a>,
    pub layer: usize,
}

impl PagedRope<'_> {
    pub fn check(&self) -> Result<()> {
        const OP: &str = "paged_rope";
        check_heads(OP, self.heads)?;
        let [t, p] = [self.qkv.shape()[0], self.cos.shape()[0]];
        let HeadLayout { dim, .. } = self.heads;
        expect(OP, dim % 2 == 0, || format!("heads of {dim} elements have no two halves"))?;
        expect_shape(OP, "qkv", self.qkv.shape(), &[t, self.heads.fused(), dim])?;
        check_cache(OP, &self.cache.as_view(), self.heads, self.layer)?;
        expect_dtype(OP, "cache", self.cache.dtype(), self.qkv.dtype())?;
        for (operand, view) in [("positions", &self.positions), ("rows", &self.rows)] {
            expect_shape(OP, operand, view.shape(), &[t])?;
            expect_dtype(OP, operand, view.dtype(), DType::I32)?;
        }
        for (operand, view) in [("cos", &self.cos), ("sin", &self.sin)] {
            expect_shape(OP, operand, view.shape(), &[p, dim / 2])?;
            expect_dtype(OP, operand, view.dtype(), DType::F32)?;
        }
        Ok(())
    }

    pub fn cost(&self) -> Cost {
        let HeadLayout { query, kv, dim } = self.heads;
        let (tokens, size) = (self.positions.elements(), self.qkv.dtype().size());
        let rotated = tokens * (query + kv) * dim;
        let moved = 2 * tokens * self.heads.fused() * dim * size;
        Cost { flops: 3.0 * rotated as f64, bytes: (moved + tokens * (dim * 4 + 8)) as f64 }
    }
}

/// Which tokens ask.
#[derive(Clone, Copy)]
pub enum PagedQueries<'a> {
    /// One of each sequence, its last: T = S. Launches depend on the shapes alone, so that they can be recorded and repeated.
    Last,
    /// The last tokens of each sequence, a chunk of its prompt.
    Chunks {
        /// [S + 1] i32: where each sequence's chunk begins among the T; the last entry is T.
        cu_seqlens: View<'a>,
        /// The same numbers on the host, which compute launches.
        cu_seqlens_host: &'a [i32],
    },
}

/// out[t, q] = Σ_u softmax_u(scale · Q[t, q]·K[u, kv]) · V[u, kv] over the cached tokens u of t's sequence up to t itself.
///
/// What a token gets depends on nothing but its own sequence: neither on the other sequences of the batch, nor on the shape of the page table, nor on how
/// many of its own sequence's tokens ask with it. So the keys are walked in tiles of [`PAGE`] tokens from position 0, and where a backend
/// splits them, it splits every [`PagedAttention::SPLIT`] tokens.
pub struct PagedAttention<'a> {
    /// [T, Q + 2K, H]: rotated queries; key and value heads are not read.
    pub qkv: View<'a>,
    pub heads: HeadLayout,
    pub queries: PagedQueries<'a>,
    /// [N, L, 2, K · PAGE · H]
    pub cache: View<'a>,
    pub layer: usize,
    /// [S, W] i32: the pages of each sequence in order. Entries beyond a sequence's length are not read.
    pub pages: View<'a>,
    /// [S] i32: tokens of each sequence in the cache, those that ask included; at most W · PAGE. 0 with [`PagedQueries::Last`]: the token pads the batch,
    /// and its output is zeros.
    pub lengths: View<'a>,
    /// [B] u8, B ≥ [`PagedAttention::scratch_bytes`].
    pub scratch: ViewMut<'a>,
    /// [T, Q, H] overwritten.
    pub out: ViewMut<'a>,
}

impl PagedAttention<'_> {
    /// Tokens of a sequence that a block of a GPU walks for the last token's query heads.
    pub const SPLIT: usize = 512;

    /// Bytes of scratch for `sequences` last tokens over tables of `width` pages: with bf16 storage, and where there is more than one split, each split's unscaled
    /// output, largest score and sum, [S, Q, splits, H + 2] in f32.
    pub fn scratch_bytes(storage: DType, sequences: usize, width: usize, heads: HeadLayout) -> usize {
        let splits = (width * PAGE).div_ceil(Self::SPLIT);
        if storage == DType::Bf16 && splits > 1 { sequences * heads.query * splits * (heads.dim + 2) * 4 } else { 0 }
    }

    pub fn check(&self) -> Result<()> {
        const OP: &str = "paged_attention";
        check_heads(OP, self.heads)?;
        let HeadLayout { query, dim, .. } = self.heads;
        let t = self.qkv.shape()[0];
        let [s, w] = [self.pages.shape()[0], self.pages.shape().row_elements()];
        expect_shape(OP, "qkv", self.qkv.shape(), &[t, self.heads.fused(), dim])?;
        expect_shape(OP, "out", self.out.shape(), &[t, query, dim])?;
        expect_shape(OP, "pages", self.pages.shape(), &[s, w])?;
        expect_shape(OP, "lengths", self.lengths.shape(), &[s])?;
        check_cache(OP, &self.cache, self.heads, self.layer)?;
        for (operand, dtype) in [("cache", self.cache.dtype()), ("out", self.out.dtype())] {
            expect_dtype(OP, operand, dtype, self.qkv.dtype())?;
        }
        for (operand, dtype) in [("pages", self.pages.dtype()), ("lengths", self.lengths.dtype())] {
            expect_dtype(OP, operand, dtype, DType::I32)?;
        }
        match self.queries {
            PagedQueries::Last => {
                expect(OP, t == s, || format!("{t} last tokens of {s} sequences"))?;
                let needed = Self::scratch_bytes(self.qkv.dtype(), s, w, self.heads);
                expect(OP, self.scratch.dtype() == DType::U8 && self.scratch.bytes() >= needed, || {
                    format!("scratch has {} bytes, {needed} are needed", self.scratch.bytes())
                })
            }
            PagedQueries::Chunks { cu_seqlens, cu_seqlens_host: host } => {
                expect_shape(OP, "cu_seqlens", cu_seqlens.shape(), &[s + 1])?;
                expect_dtype(OP, "cu_seqlens", cu_seqlens.dtype(), DType::I32)?;
                let ordered =
                    host.len() == s + 1 && host[0] == 0 && host[s] == t as i32 && host.windows(2).all(|w| w[0] < w[1]);
                expect(OP, ordered, || format!("cu_seqlens must rise from 0 to {t} over {s} sequences, not {host:?}"))
            }
        }
    }

    /// Of `pairs` pairs of a query token and a cached token that it attends to, over sequences of `cached` tokens together.
    pub fn cost(&self, pairs: f64, cached: f64) -> Cost {
        let HeadLayout { query, kv, dim } = self.heads;
        let size = self.out.dtype().size();
        let bytes = cached * (2 * kv * dim * size) as f64 + 2.0 * self.out.bytes() as f64;
        Cost { flops: 4.0 * pairs * (query * dim) as f64, bytes }
    }
}
