//! `kernels/classifier/`

use super::Ptr;
use bytemuck::{Pod, Zeroable};
use half::bf16;

/// `classifier_*`: a chunk of rows.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub struct ClassifierParams {
    /// [C, V] logits; with `scales`, replaced by the gradient.
    pub logits: Ptr<bf16>,
    /// [C]
    pub targets: Ptr<i32>,
    /// [C], or null: losses only.
    pub scales: Ptr<f32>,
    /// [C]
    pub losses: Ptr<f32>,
    /// V
    pub width: u32,
    /// Always zero.
    pub padding: u32,
}
