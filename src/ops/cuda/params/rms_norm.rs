//! `kernels/rms_norm/`

use super::Ptr;
use bytemuck::{Pod, Zeroable};
use half::bf16;

/// The partial sums of dweight that [`RmsNormBackwardParams`] leaves behind.
pub const RMS_NORM_PARTIALS: u32 = 256;

/// Elements of a row that one warp keeps in registers: four 16-byte chunks a lane forward, two backward.
pub const RMS_NORM_FORWARD_WARP_WIDTH: u32 = 1024;
pub const RMS_NORM_BACKWARD_WARP_WIDTH: u32 = 512;

/// `rms_norm_forward_*`
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub struct RmsNormForwardParams {
    /// [T, D]
    pub x: Ptr<bf16>,
    /// [T, D], or null: nothing is added and `sum` is not written.
    pub delta: Ptr<bf16>,
    /// [D]
    pub weight: Ptr<bf16>,
    /// [T, D]
    pub sum: Ptr<bf16>,
    /// [T, D]
    pub y: Ptr<bf16>,
    /// [T]
    pub rstd: Ptr<f32>,
    /// T
    pub rows: u64,
    /// D
    pub width: u32,
    pub eps: f32,
}

/// `rms_norm_backward_*`
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub struct RmsNormBackwardParams {
    /// [T, D]
    pub dy: Ptr<bf16>,
    /// [T, D]
    pub sum: Ptr<bf16>,
    /// [D]
    pub weight: Ptr<bf16>,
    /// [T]
    pub rstd: Ptr<f32>,
    /// [T, D]
    pub dsum: Ptr<bf16>,
    /// [RMS_NORM_PARTIALS, D]
    pub partials: Ptr<f32>,
    /// T
    pub rows: u64,
    /// D
    pub width: u32,
    /// 1: the result is added to `dsum`; 0: it replaces it.
    pub accumulate: u32,
}

/// `rms_norm_weight_gradient`
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub struct RmsNormWeightGradientParams {
    /// [RMS_NORM_PARTIALS, D]
    pub partials: Ptr<f32>,
    /// [D]
    pub dweight: Ptr<f32>,
    /// D
    pub width: u64,
}
