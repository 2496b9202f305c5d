//! `kernels/embedding/`

use super::Ptr;
use bytemuck::{Pod, Zeroable};
use half::bf16;

/// Columns of a row that one warp copies: four 16-byte chunks a lane.
pub const EMBEDDING_FORWARD_TILE: u32 = 1024;
/// Columns of a row that one warp adds up: one 16-byte chunk a lane.
pub const EMBEDDING_BACKWARD_TILE: u32 = 256;

/// `embedding_forward_*`
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub struct EmbeddingForwardParams {
    /// [V, D]
    pub table: Ptr<bf16>,
    /// [T]
    pub ids: Ptr<i32>,
    /// [T, D]
    pub out: Ptr<bf16>,
    /// T
    pub rows: u64,
    /// D
    pub width: u32,
    /// V
    pub vocabulary: u32,
}

/// `embedding_backward_*`
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub struct EmbeddingBackwardParams {
    /// [T, D]
    pub dout: Ptr<bf16>,
    /// [T]
    pub ids: Ptr<i32>,
    /// [T]
    pub order: Ptr<i32>,
    /// [V, D]
    pub dtable: Ptr<f32>,
    /// T
    pub rows: u32,
    /// D
    pub width: u32,
    /// V
    pub vocabulary: u64,
}
