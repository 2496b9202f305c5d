//! Batched greedy decoding: each sequence has a slot of a key/value cache from its prompt to its last token, and a waiting prompt
//! takes the slot that a finished one leaves.

use crate::config::ModelConfig;
use crate::error::{Error, Result};
use crate::model::{Activations, AttentionMode, Keep, KvCache, Packed, Qwen2, WeightSource};
use crate::ops::Ops;
use crate::tensor::Arena;
use std::collections::{BTreeSet, VecDeque};

/// Cache and activations for a fixed number of sequences, each of a limited length.
pub struct Greedy {
    activations: Activations,
    cache: KvCache,
    slots: usize,
    /// Tokens of the longest sequence, prompt included.
    capacity: usize,
}

/// Where answers end, and what they may hold.
#[derive(Clone, Copy)]
pub struct Limits<'a> {
    /// The longest answer.
    pub max_tokens: usize,
    /// Tokens that end an answer.
    pub stop: &'a BTreeSet<i32>,
    /// Ids from here on, the padding rows of the model's vocabulary, are never generated.
    pub vocabulary: usize,
}

/// One answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Generated {
    /// The answer's tokens, the stop token included.
    pub tokens: Vec<i32>,
    /// Whether it ended with a stop token, not at its limit.
    pub stopped: bool,
}

/// A sequence that holds a slot.
struct Running {
    prompt: usize,
    slot: usize,
    /// Prompt and answer so far.
    tokens: Vec<i32>,
    /// Tokens whose keys and values are cached.
    cached: usize,
}

impl Greedy {
    pub fn new(ops: &dyn Ops, config: &ModelConfig, slots: usize, capacity: usize) -> Result<Self> {
        let most = slots.max(capacity);
        let ((activations, cache), _) = Arena::build(ops.allocator(), |arena| {
            let activations = Activations::new(arena, config, ops.dtype(), most, Keep::Nothing)?;
            Ok((activations, KvCache::new(arena, config, ops.dtype(), slots, capacity)?))
        })?;
        Ok(Greedy { activations, cache, slots, capacity })
    }

    /// Answers every prompt with the likeliest token at each step.
    ///
    /// Errors: data, if a prompt is empty or leaves no room for an answer.
    pub fn generate(
        &mut self,
        ops: &dyn Ops,
        model: &Qwen2,
        weights: &dyn WeightSource,
        prompts: &[Vec<i32>],
        limits: Limits,
    ) -> Result<Vec<Generated>> {
        for (index, prompt) in prompts.iter().enumerate() {
            if prompt.is_empty() || prompt.len() >= self.capacity {
                return Err(Error::data(format!(
                    "prompt {index} has {} tokens; an answer needs from 1 to {}",
                    prompt.len(),
                    self.capacity - 1
                )));
            }
        }
        let mut answers = vec![Generated { tokens: Vec::new(), stopped: false }; prompts.len()];
        let mut waiting: VecDeque<usize> = (0..prompts.len()).collect();
        let mut free: Vec<usize> = (0..self.slots).rev().collect();
        let mut running: Vec<Running> = Vec::new();
        loop {
            let mut budget = self.activations.capacity - running.len();
            while let (Some(&prompt), Some(&slot)) = (waiting.front(), free.last()) {
                let tokens = prompts[prompt].clone();
                if tokens.len() > budget {
                    break;
                }
                budget -= tokens.len();
                waiting.pop_front();
                free.pop();
                running.push(Running { prompt, slot, tokens, cached: 0 });
            }
            if running.is_empty() {
                return Ok(answers);
            }
            let next = self.step(ops, model, weights, &mut running, limits.vocabulary)?;
            let mut still = Vec::with_capacity(running.len());
            for (mut sequence, token) in running.into_iter().zip(next) {
                sequence.tokens.push(token);
                let answered = sequence.tokens.len() - prompts[sequence.prompt].len();
                let stopped = limits.stop.contains(&token);
                if stopped || answered >= limits.max_tokens || sequence.tokens.len() >= self.capacity {
                    let tokens = sequence.tokens.split_off(prompts[sequence.prompt].len());
                    answers[sequence.prompt] = Generated { tokens, stopped };
                    free.push(sequence.slot);
                } else {
                    still.push(sequence);
                }
            }
            running = still;
        }
    }

    /// Feeds every sequence the tokens that are not cached yet and returns the likeliest next token of each.
    fn step(
        &mut self,
        ops: &dyn Ops,
        model: &Qwen2,
        weights: &dyn WeightSource,
        running: &mut [Running],
        vocabulary: usize,
    ) -> Result<Vec<i32>> {
        let (mut tokens, mut positions, mut cu_seqlens) = (Vec::new(), Vec::new(), vec![0]);
        for sequence in running.iter() {
            tokens.extend(&sequence.tokens[sequence.cached..]);
            positions.extend(sequence.cached as i32..sequence.tokens.len() as i32);
            cu_seqlens.push(tokens.len() as i32);
        }
        let slots: Vec<usize> = running.iter().map(|s| s.slot).collect();
        let cached: Vec<usize> = running.iter().map(|s| s.cached).collect();
        let batch = Packed { tokens: &tokens, positions: &positions, cu_seqlens: &cu_seqlens };
        let mode = AttentionMode::Cached { cache: &mut self.cache, slots: &slots, cached: &cached };
        model.forward(ops, weights, &mut self.activations, batch, mode)?;
        running.iter_mut().for_each(|s| s.cached = s.tokens.len());
        let last: Vec<i32> = cu_seqlens[1..].iter().map(|&end| end - 1).collect();
        let mut next = vec![0; running.len()];
        model.logits(ops, weights, &mut self.activations, &last, |row, logits| next[row] = argmax(&logits[..vocabulary]))?;
        Ok(next)
    }
}

/// The index of the largest value, the first of equals.
fn argmax(values: &[f32]) -> i32 {
    let mut best = 0;
    for (index, &value) in values.iter().enumerate() {
        if value > values[best] {
            best = index;
        }
    }
    best as i32
}
