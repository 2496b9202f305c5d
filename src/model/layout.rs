//! What the parameters of a Qwen2 model are, which block each belongs to, and where it lies in its block.
//!
//! A block is the unit that weights are gathered in and gradients handed over in: the embedding, each decoder layer, and
//! the head. Its parameters lie one after another in one flat buffer. Projections that read the same input are fused by stacking rows,
//! so every tensor of a checkpoint is a run of rows of a fused parameter.

use crate::config::ModelConfig;
use crate::error::{Error, Result};
use crate::ops::{HeadLayout, Moment};
use std::fmt;
use std::ops::Range;

/// Elements that every parameter's offset is a multiple of. Blocks of moments that share a scale then begin where parameters do.
const ALIGNMENT: usize = Moment::BLOCK;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Block {
    Embedding,
    Layer(usize),
    Head,
}

impl fmt::Display for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Block::Embedding => f.write_str("embedding"),
            Block::Layer(index) => write!(f, "layers.{index}"),
            Block::Head => f.write_str("head"),
        }
    }
}

/// What a parameter does within its block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// [V, D] token embedding; of a tied model, also the head.
    Embedding,
    /// [D] norm before attention.
    AttentionNorm,
    /// [(Q + 2K)·H, D] query, key and value rows.
    QkvWeight,
    /// [(Q + 2K)·H]
    QkvBias,
    /// [D, Q·H]
    OutputWeight,
    /// [D] norm before the feed-forward block.
    MlpNorm,
    /// [2F, D] gate rows, then up rows.
    GateUpWeight,
    /// [D, F]
    DownWeight,
    /// [D]
    FinalNorm,
    /// [V, D] of an untied model.
    HeadWeight,
}

/// A tensor of a checkpoint: `rows` rows of a parameter from row `begin` on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// Its name in a Hugging Face checkpoint.
    pub name: String,
    pub begin: usize,
    pub rows: usize,
}

#[derive(Debug, Clone)]
pub struct Parameter {
    pub role: Role,
    pub shape: Vec<usize>,
    /// Elements from the start of the block.
    pub offset: usize,
    pub parts: Vec<Part>,
}

impl Parameter {
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }
    /// Weight decay applies to tensors of at least two dimensions: not to biases and norms.
    pub fn decays(&self) -> bool {
        self.shape.len() >= 2
    }
    /// The shape of one of its parts, as a checkpoint stores it.
    pub fn part_shape(&self, part: &Part) -> Vec<usize> {
        let mut shape = self.shape.clone();
        shape[0] = part.rows;
        shape
    }
    /// Elements of the block that a part covers.
    pub fn part_range(&self, part: &Part) -> Range<usize> {
        let row: usize = self.shape[1..].iter().product();
        let begin = self.offset + part.begin * row;
        begin..begin + part.rows * row
    }
}

#[derive(Debug, Clone)]
pub struct BlockLayout {
    pub block: Block,
    pub parameters: Vec<Parameter>,
    /// Length of the flat buffer, alignment gaps included.
    pub elements: usize,
}

impl BlockLayout {
    /// # Panics
    /// If the block has no such parameter.
    pub fn parameter(&self, role: Role) -> &Parameter {
        let found = self.parameters.iter().find(|p| p.role == role);
        found.unwrap_or_else(|| panic!("{} has no {role:?}", self.block))
    }

    fn add(&mut self, role: Role, shape: &[usize], parts: &[(&str, usize)]) {
        let mut begin = 0;
        let parts = parts
            .iter()
            .map(|&(name, rows)| {
                let part = Part { name: name.to_string(), begin, rows };
                begin += rows;
                part
            })
            .collect();
        assert_eq!(begin, shape[0], "the parts of {role:?} do not add up");
        let parameter = Parameter { role, shape: shape.to_vec(), offset: self.elements, parts };
        self.elements += parameter.elements().next_multiple_of(ALIGNMENT);
        self.parameters.push(parameter);
    }
}

/// All blocks of a model, in the order of a forward pass.
#[derive(Debug, Clone)]
pub struct Layout {
    pub blocks: Vec<BlockLayout>,
    pub tied: bool,
}

impl Layout {
    pub fn new(config: &ModelConfig) -> Self {
        let ModelConfig { hidden_size: d, intermediate_size: f, vocab_size: v, .. } = *config;
        let HeadLayout { query, kv, dim } = heads(config);
        let (q_rows, kv_rows) = (query * dim, kv * dim);
        let block = |block| BlockLayout { block, parameters: Vec::new(), elements: 0 };

        let mut embedding = block(Block::Embedding);
        embedding.add(Role::Embedding, &[v, d], &[("model.embed_tokens.weight", v)]);
        let mut blocks = vec![embedding];
        for index in 0..config.num_hidden_layers {
            let mut layer = block(Block::Layer(index));
            let name = |suffix: &str| format!("model.layers.{index}.{suffix}");
            layer.add(Role::AttentionNorm, &[d], &[(&name("input_layernorm.weight"), d)]);
            layer.add(
                Role::QkvWeight,
                &[q_rows + 2 * kv_rows, d],
                &[
                    (&name("self_attn.q_proj.weight"), q_rows),
                    (&name("self_attn.k_proj.weight"), kv_rows),
                    (&name("self_attn.v_proj.weight"), kv_rows),
                ],
            );
            layer.add(
                Role::QkvBias,
                &[q_rows + 2 * kv_rows],
                &[
                    (&name("self_attn.q_proj.bias"), q_rows),
                    (&name("self_attn.k_proj.bias"), kv_rows),
                    (&name("self_attn.v_proj.bias"), kv_rows),
                ],
            );
            layer.add(Role::OutputWeight, &[d, q_rows], &[(&name("self_attn.o_proj.weight"), d)]);
            layer.add(Role::MlpNorm, &[d], &[(&name("post_attention_layernorm.weight"), d)]);
            layer.add(Role::GateUpWeight, &[2 * f, d], &[(&name("mlp.gate_proj.weight"), f), (&name("mlp.up_proj.weight"), f)]);
            layer.add(Role::DownWeight, &[d, f], &[(&name("mlp.down_proj.weight"), d)]);
            blocks.push(layer);
        }
        let mut head = block(Block::Head);
        head.add(Role::FinalNorm, &[d], &[("model.norm.weight", d)]);
        if !config.tie_word_embeddings {
            head.add(Role::HeadWeight, &[v, d], &[("lm_head.weight", v)]);
        }
        blocks.push(head);
        Layout { blocks, tied: config.tie_word_embeddings }
    }

    /// Position of a block in `blocks`.
    pub fn index(&self, block: Block) -> usize {
        match block {
            Block::Embedding => 0,
            Block::Layer(index) => index + 1,
            Block::Head => self.blocks.len() - 1,
        }
    }
    pub fn block(&self, block: Block) -> &BlockLayout {
        &self.blocks[self.index(block)]
    }
    /// Where the matrix of the classifier lies.
    pub fn classifier(&self) -> (Block, Role) {
        if self.tied { (Block::Embedding, Role::Embedding) } else { (Block::Head, Role::HeadWeight) }
    }
    /// Trained numbers, without alignment gaps.
    pub fn parameter_count(&self) -> usize {
        self.blocks.iter().flat_map(|b| &b.parameters).map(Parameter::elements).sum()
    }
    /// The block of rows `rows` of a tensor of the checkpoint, as its position in `blocks`, and their elements in it.
    pub fn place(&self, name: &str, rows: Range<usize>) -> Result<(usize, Range<usize>)> {
        for (index, layout) in self.blocks.iter().enumerate() {
            for parameter in &layout.parameters {
                if let Some(part) = parameter.parts.iter().find(|part| part.name == name) {
                    let part = Part { rows: rows.len(), begin: part.begin + rows.start, ..part.clone() };
                    return Ok((index, parameter.part_range(&part)));
                }
            }
        }
        Err(Error::internal(format!("the model has no tensor {name}")))
    }
    /// Every tensor that a checkpoint of this model holds: name and shape.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, Vec<usize>)> {
        let parameters = self.blocks.iter().flat_map(|b| &b.parameters);
        parameters.flat_map(|p| p.parts.iter().map(move |part| (part.name.as_str(), p.part_shape(part))))
    }
}

pub fn heads(config: &ModelConfig) -> HeadLayout {
    HeadLayout { query: config.num_attention_heads, kv: config.num_key_value_heads, dim: config.head_dim }
}
