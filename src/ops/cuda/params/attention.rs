//! `kernels/attention/`

use super::Ptr;
use bytemuck::{Pod, Zeroable};
use half::bf16;

/// `attention_forward_*`
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub struct AttentionForwardParams {
    /// [T, Q + 2K, H]
    pub qkv: Ptr<bf16>,
    /// [S + 1]
    pub cu_seqlens: Ptr<i32>,
    /// [T, Q, H]
    pub out: Ptr<bf16>,
    /// [Q, T]
    pub lse: Ptr<f32>,
    /// T
    pub tokens: u64,
    /// S
    pub sequences: u32,
    /// Q
    pub query_heads: u32,
    /// K
    pub kv_heads: u32,
    /// Of scores: 1/√H.
    pub scale: f32,
}
