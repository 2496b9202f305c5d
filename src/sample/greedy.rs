//! Batched greedy decoding: each sequence has a slot of a key/value cache from its prompt to its last token, and a waiting prompt
//! takes the slot that a finished one leaves.

use crate::config::ModelConfig;
use crate::error::{Error, Result};
use crate::model::{Activations, AttentionMode, Extent, Keep, KvCache, Packed, Qwen2, WeightSource};
use crate::ops::Ops;
use crate::tensor::{Arenas, DType, Ledger};
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
    /// Reserves cache and activations for `slots` sequences of at most `capacity` tokens, prompt included.
    pub fn new(ops: &dyn Ops, config: &ModelConfig, slots: usize, capacity: usize) -> Result<Self> {
        let cut = |arenas: &mut Arenas| Self::cut(arenas, ops.dtype(), config, slots, capacity);
        let (greedy, _) = Arenas::build(ops.allocator(), ops.host_allocator(), cut)?;
        Ok(greedy)
    }

    /// The ledger that [`Greedy::new`] would reserve.
    pub fn plan(storage: DType, config: &ModelConfig, slots: usize, capacity: usize) -> Result<Ledger> {
        let mut arenas = Arenas::dry();
        Self::cut(&mut arenas, storage, config, slots, capacity)?;
        Ok(arenas.ledgers().device)
    }

    fn cut(arenas: &mut Arenas, storage: DType, config: &ModelConfig, slots: usize, capacity: usize) -> Result<Self> {
        let activations = Activations::new(arenas, config, storage, Extent::new(slots.max(capacity), Keep::Nothing))?;
        Ok(Greedy { activations, cache: KvCache::new(&mut arenas.device, config, storage, slots, capacity)?, slots, capacity })
    }

    /// Answers every prompt with the likeliest token at each step.
    ///
    /// Errors: data, if a prompt is empty or leaves no room for an answer; those of `stop`, which is asked before each token.
    pub fn generate(
        &mut self,
        ops: &dyn Ops,
        model: &Qwen2,
        weights: &dyn WeightSource,
        prompts: &[Vec<i32>],
        limits: Limits,
        stop: &dyn Fn() -> Result<()>,
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
            stop()?;
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
        let slots: Vec<i32> = running.iter().map(|s| s.slot as i32).collect();
        let cached: Vec<i32> = running.iter().map(|s| s.cached as i32).collect();
        let batch = Packed { tokens: &tokens, positions: &positions, cu_seqlens: &cu_seqlens };
        let mode = AttentionMode::Cached { cache: &mut self.cache, slots: &slots, cached: &cached };
        model.forward(ops, weights, &mut self.activations, batch, mode)?;
        running.iter_mut().for_each(|s| s.cached = s.tokens.len());
        let last: Vec<i32> = cu_seqlens[1..].iter().map(|&end| end - 1).collect();
        let mut next = vec![None; running.len()];
        model.logits(ops, weights, &mut self.activations, &last, |row, logits| next[row] = argmax(&logits[..vocabulary]))?;
        let finite = |(sequence, token): (&Running, Option<i32>)| {
            token.ok_or_else(|| Error::non_finite(format!("the logits after prompt {} are not finite", sequence.prompt)))
        };
        running.iter().zip(next).map(finite).collect()
    }
}

/// The index of the largest value, the first of equals. None if any value is NaN, or all are −∞.
fn argmax(values: &[f32]) -> Option<i32> {
    let mut best = None;
    let mut largest = f32::NEG_INFINITY;
    for (index, &value) in values.iter().enumerate() {
        if value > largest {
            (best, largest) = (Some(index as i32), value);
        } else if value.is_nan() {
            return None;
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::argmax;

    #[test]
    fn the_largest_logit_or_none() {
        assert_eq!(argmax(&[1.0, 3.0, 3.0, -1.0]), Some(1));
        assert_eq!(argmax(&[f32::NEG_INFINITY, -5.0]), Some(1));
        assert_eq!(argmax(&[1.0, f32::NAN, 2.0]), None);
        assert_eq!(argmax(&[f32::NEG_INFINITY; 2]), None);
    }
}
