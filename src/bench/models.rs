//! The shapes that benchmarks run at: one micro-batch of the Qwen2.5 models.

use crate::model::classifier_rows;
use crate::ops::HeadLayout;
use crate::tensor::DType;
use serde::Serialize;

/// Tokens of a micro-batch.
pub const TOKENS: usize = 16384;

/// What a model's kernels see of it.
#[derive(Debug, Serialize)]
pub struct Model {
    pub name: &'static str,
    /// D
    pub hidden: usize,
    pub heads: HeadLayout,
    /// F
    pub feed_forward: usize,
    /// V
    pub vocabulary: usize,
}

impl Model {
    /// C, the rows of logits that the engine holds at a time.
    pub fn classifier_rows(&self) -> usize {
        classifier_rows(DType::Bf16, self.vocabulary, TOKENS)
    }
}

pub const MODELS: [Model; 3] = [
    Model {
        name: "0.5B",
        hidden: 896,
        heads: HeadLayout { query: 14, kv: 2, dim: 64 },
        feed_forward: 4864,
        vocabulary: 151_936,
    },
    Model {
        name: "7B",
        hidden: 3584,
        heads: HeadLayout { query: 28, kv: 4, dim: 128 },
        feed_forward: 18_944,
        vocabulary: 152_064,
    },
    Model {
        name: "32B",
        hidden: 5120,
        heads: HeadLayout { query: 40, kv: 8, dim: 128 },
        feed_forward: 27_648,
        vocabulary: 152_064,
    },
];
