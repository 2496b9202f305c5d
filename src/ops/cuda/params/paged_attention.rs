//! `kernels/paged_attention/`

use super::Ptr;
use bytemuck::{Pod, Zeroable};
use half::bf16;

/// Tokens of a page, [`PAGE`](crate::ops::PAGE).
pub const PAGED_PAGE: u32 = 64;
/// Tokens of a split, [`PagedAttention::SPLIT`](crate::ops::PagedAttention::SPLIT).
pub const PAGED_SPLIT: u32 = 512;

/// `paged_rope_*`
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub struct PagedRopeParams {
    /// [T, Q + 2K, H]
    pub qkv: Ptr<bf16>,
    /// [T]
    pub positions: Ptr<i32>,
    /// [T]
    pub rows: Ptr<i32>,
    /// [P, H/2]
    pub cos: Ptr<f32>,
    /// [P, H/2]
    pub sin: Ptr<f32>,
    /// The layer's part of page 0: [2, K, PAGE, H]
    pub cache: Ptr<bf16>,
    /// Elements from a page to the next.
    pub page_stride: u64,
    /// T
    pub tokens: u32,
    /// Q
    pub query_heads: u32,
    /// K
    pub kv_heads: u32,
    pub padding: u32,
}

/// `paged_decode_*`, `paged_combine_*`, `paged_prefill_*`
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub struct PagedAttentionParams {
    /// [T, Q + 2K, H]
    pub qkv: Ptr<bf16>,
    /// The layer's part of page 0: [2, K, PAGE, H]
    pub cache: Ptr<bf16>,
    /// [S, W]
    pub pages: Ptr<i32>,
    /// [S]
    pub lengths: Ptr<i32>,
    /// [S + 1]; prefill only.
    pub cu_seqlens: Ptr<i32>,
    /// [T, Q, H]
    pub out: Ptr<bf16>,
    /// [S, Q, splits, H] weighted values of a split, not yet divided by its sum; decode only.
    pub partial: Ptr<f32>,
    /// [S, Q, splits, 2] the highest exponent of a split, and the sum of its weights; decode only.
    pub sums: Ptr<f32>,
    /// Elements from a page to the next.
    pub page_stride: u64,
    /// S
    pub sequences: u32,
    /// Q
    pub query_heads: u32,
    /// K
    pub kv_heads: u32,
    /// W
    pub width: u32,
    /// That a sequence of W pages has; decode only.
    pub splits: u32,
    /// Of scores: log₂ e / √H, for the softmax is computed with powers of two.
    pub scale: f32,
}
