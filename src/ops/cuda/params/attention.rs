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

/// Warps that add to a row of dQ at once, each to its share of the columns, and each in turn.
pub const ATTENTION_BACKWARD_TURNS: u32 = 4;

/// `attention_backward_*`
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub struct AttentionBackwardParams {
    /// [T, Q + 2K, H]
    pub qkv: Ptr<bf16>,
    /// [T, Q, H]
    pub out: Ptr<bf16>,
    /// [T, Q, H]
    pub dout: Ptr<bf16>,
    /// [Q, T]
    pub lse: Ptr<f32>,
    /// [Q, T]
    pub delta: Ptr<f32>,
    /// [T, Q + 2K, H]
    pub dqkv: Ptr<bf16>,
    /// [T, Q, H] scratch: dQ / scale, added up in f32.
    pub dq: Ptr<f32>,
    /// [T, Q, ATTENTION_BACKWARD_TURNS] scratch: how many key tiles have been added to what begins at a row.
    pub turns: Ptr<u32>,
    /// [1] scratch: blocks that have started.
    pub ticket: Ptr<u32>,
    /// [S + 1]
    pub cu_seqlens: Ptr<i32>,
    /// T
    pub tokens: u64,
    /// Q
    pub query_heads: u32,
    /// K
    pub kv_heads: u32,
    /// S
    pub sequences: u32,
    /// Of scores: 1/√H.
    pub scale: f32,
}
