//! `kernels/adamw/`

use super::Ptr;
use bytemuck::{Pod, Zeroable};
use half::bf16;

/// Elements of a moment in 8 bits that share a scale.
pub const ADAMW_BLOCK: u32 = 256;

/// `adamw_*`. The kernel's name says what the operands without a type of their own hold.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub struct AdamWParams {
    /// [N]
    pub param: Ptr<bf16>,
    /// [N] the lower halves of the masters, or null: `param` is rounded stochastically.
    pub remainder: Ptr<u16>,
    /// [N] f32 or bf16
    pub grad: Ptr<u8>,
    /// [N] f32, bf16 or 8 bits
    pub m: Ptr<u8>,
    /// [N] of the same type
    pub v: Ptr<u8>,
    /// [⌈N/256⌉] where m has 8 bits
    pub m_scales: Ptr<f32>,
    /// [⌈N/256⌉]
    pub v_scales: Ptr<f32>,
    /// N
    pub count: u64,
    pub seed: u64,
    pub step: u64,
    /// The number of element 0, even.
    pub first: u64,
    /// 1 − lr·wd
    pub decay: f32,
    /// lr/(1 − β₁ᵏ)
    pub step_size: f32,
    /// √(1 − β₂ᵏ)
    pub v_root: f32,
    pub beta2: f32,
    /// 1 − β₁
    pub rest1: f32,
    /// 1 − β₂
    pub rest2: f32,
    pub eps: f32,
    pub grad_scale: f32,
}
