//! `kernels/classifier/`

use super::Ptr;
use bytemuck::{Pod, Zeroable};
use half::bf16;

/// Rounds of eight logits a thread that stay in shared memory between the passes: 96 KiB of 1024 threads.
pub const CLASSIFIER_KEPT_ROUNDS: u32 = 6;

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
