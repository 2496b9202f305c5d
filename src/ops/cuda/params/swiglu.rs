//! `kernels/swiglu/`

use super::Ptr;
use bytemuck::{Pod, Zeroable};
use half::bf16;

/// Columns of `out` that one warp computes: two 16-byte chunks a lane.
pub const SWIGLU_FORWARD_TILE: u32 = 512;
pub const SWIGLU_BACKWARD_TILE: u32 = 512;

/// `swiglu_forward_*`
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub struct SwiGluForwardParams {
    /// [T, 2F]
    pub gate_up: Ptr<bf16>,
    /// [T, F]
    pub out: Ptr<bf16>,
    /// T
    pub rows: u32,
    /// F
    pub width: u32,
}

/// `swiglu_backward_*`
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub struct SwiGluBackwardParams {
    /// [T, 2F]
    pub gate_up: Ptr<bf16>,
    /// [T, F]
    pub dout: Ptr<bf16>,
    /// [T, 2F]
    pub dgate_up: Ptr<bf16>,
    /// T
    pub rows: u32,
    /// F
    pub width: u32,
}
