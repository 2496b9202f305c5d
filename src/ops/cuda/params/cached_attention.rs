//! `kernels/cached_attention/`

use super::Ptr;
use bytemuck::{Pod, Zeroable};
use half::bf16;

/// The widest head: eight elements a lane.
pub const CACHED_ATTENTION_WIDEST: u32 = 256;

/// `cached_attention_*`
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub struct CachedAttentionParams {
    /// [T, Q + 2K, H]
    pub qkv: Ptr<bf16>,
    /// [slots, capacity, K, H]
    pub keys: Ptr<bf16>,
    /// [slots, capacity, K, H]
    pub values: Ptr<bf16>,
    /// [T, Q, H]
    pub out: Ptr<bf16>,
    /// [S + 1]
    pub cu_seqlens: Ptr<i32>,
    /// [S]
    pub slots: Ptr<i32>,
    /// [S]
    pub cached: Ptr<i32>,
    /// Tokens of a slot.
    pub capacity: u64,
    /// T
    pub rows: u32,
    /// Q
    pub query: u32,
    /// K
    pub kv: u32,
    /// H
    pub dim: u32,
    /// 1/√H · log₂ e: the softmax is computed with powers of two.
    pub scale: f32,
    pub padding: u32,
}
