//! The architecture of a model, as its `config.json` states it.

/// A Qwen2-family architecture (facts: hidden size, heads and so on are read, never assumed).
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// D, the width of the residual stream.
    pub hidden_size: usize,
    /// F, the width of the feed-forward block.
    pub intermediate_size: usize,
    pub num_hidden_layers: usize,
    /// Q
    pub num_attention_heads: usize,
    /// K
    pub num_key_value_heads: usize,
    /// H
    pub head_dim: usize,
    /// V, padding rows included.
    pub vocab_size: usize,
    pub max_position_embeddings: usize,
    pub rms_norm_eps: f64,
    pub rope_theta: f64,
    pub tie_word_embeddings: bool,
}
