//! `kernels/square_sums/`

use super::Ptr;
use bytemuck::{Pod, Zeroable};

/// Elements of a partial sum.
pub const SQUARE_SUMS_ELEMENTS: u32 = 4096;

/// `square_sums_*`
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub struct SquareSumsParams {
    /// [N]
    pub x: Ptr<f32>,
    /// [⌈N/4096⌉]
    pub sums: Ptr<f32>,
    /// N
    pub count: u64,
}
