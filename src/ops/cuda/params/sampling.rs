//! `kernels/sampling/`

use super::Ptr;
use bytemuck::{Pod, Zeroable};

/// L, the entries of a thread's list of candidates: 64 KiB a block.
pub const DRAW_TOKENS_LIST: u32 = 32;

/// `draw_tokens_*`
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub struct DrawTokensParams {
    /// [R, V]
    pub logits: Ptr<f32>,
    /// [R, 4]
    pub rows: Ptr<i32>,
    /// [X, ⌈V/32⌉], or null: no penalty.
    pub seen: Ptr<u32>,
    /// [R]
    pub tokens: Ptr<i32>,
    /// [R], or null.
    pub log_probabilities: Ptr<f32>,
    /// V
    pub width: u32,
    /// Ids from here on are never drawn.
    pub vocabulary: u32,
    /// log₂ e divided by the temperature.
    pub scale: f32,
    /// ln 2 times the temperature: by how much logits differ of which one weighs twice the other.
    pub unit: f32,
    pub penalty: f32,
    /// 0: all.
    pub top_k: u32,
    pub top_p: f32,
    /// Tokens that each have less than this share of the weight are outside of top-p.
    pub rest: f32,
    /// What min-p adds to the largest logit.
    pub min_p: f32,
    /// Whether tokens are drawn from another distribution than the model's.
    pub apart: u32,
}

/// `feed_tokens`
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub struct FeedTokensParams {
    /// [T]
    pub tokens: Ptr<i32>,
    /// [T]
    pub source: Ptr<i32>,
    /// [X]
    pub drawn: Ptr<i32>,
    /// [T]
    pub out: Ptr<i32>,
    /// T
    pub count: u64,
}
