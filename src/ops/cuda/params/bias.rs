//! `kernels/bias/`

use super::Ptr;
use bytemuck::{Pod, Zeroable};
use half::bf16;

/// The partial sums of dbias that [`BiasBackwardParams`] leaves behind.
pub const BIAS_PARTIALS: u32 = 64;

/// `bias_backward_*`
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub struct BiasBackwardParams {
    /// [T, N]
    pub dy: Ptr<bf16>,
    /// [BIAS_PARTIALS, N]
    pub partials: Ptr<f32>,
    /// T
    pub rows: u32,
    /// N
    pub width: u32,
}

/// `bias_total`
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub struct BiasTotalParams {
    /// [BIAS_PARTIALS, N]
    pub partials: Ptr<f32>,
    /// [N]
    pub dbias: Ptr<f32>,
    /// N
    pub width: u64,
}
