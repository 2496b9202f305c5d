//! `kernels/rope/`

use super::Ptr;
use bytemuck::{Pod, Zeroable};
use half::bf16;

/// `rope_*`
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub struct RopeParams {
    /// [T, fused, H]
    pub qkv: Ptr<bf16>,
    /// [T]
    pub positions: Ptr<i32>,
    /// [P, H/2]
    pub cos: Ptr<f32>,
    /// [P, H/2]
    pub sin: Ptr<f32>,
    /// T
    pub rows: u32,
    /// Q + K: the heads of a token that are turned.
    pub turned: u32,
    /// Q + 2K
    pub fused: u32,
    /// H/2
    pub half: u32,
    /// 1, or −1 to turn back.
    pub sign: f32,
    pub padding: u32,
}
