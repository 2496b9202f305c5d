//! Drawing a token for each sequence of a step, and feeding them back.

use super::models::Model;
use super::problem::{Device, Problem, Sets, integers, scaled, tensors, zeros};
use super::{Ceiling, Ladder};
use crate::error::Result;
use crate::ops::cuda::sampling::{draw_tokens, feed_tokens};
use crate::ops::{Cost, DrawTokens, FeedTokens, Narrowing};
use crate::tensor::DType::{F32, I32};
use crate::tensor::Tensor;

/// Sequences of a step.
const SEQUENCES: usize = 256;

pub fn ladders() -> Vec<Ladder> {
    const NONE: Narrowing = Narrowing::NONE;
    let modes = [
        ("draw greedy", "one reading", Narrowing { temperature: 0.0, ..NONE }),
        ("draw plain", "one reading: sums of strands choose one, which is read again", NONE),
        ("draw narrowed", "two readings: a bound, candidates in shared memory", Narrowing { top_p: 0.95, ..NONE }),
    ];
    let ladder = |(name, idea, narrowing)| {
        Ladder::new("sampling", Ceiling::Copy, [(name, idea)], move |device, model| draw(device, model, narrowing))
    };
    let feed = Ladder::new("sampling", Ceiling::Copy, [("feed", "a thread a token")], feed);
    modes.into_iter().map(ladder).chain([feed]).collect()
}

fn draw<'a>(device: Device<'a>, model: &Model, narrowing: Narrowing) -> Result<Problem<'a>> {
    fn op<'a>(narrowing: Narrowing, rows: &'a Tensor, [logits, tokens, values]: &'a mut [Tensor; 3]) -> DrawTokens<'a> {
        DrawTokens {
            vocabulary: logits.shape().row_elements(),
            logits: logits.view(),
            narrowing,
            rows: rows.view().reshape(&[SEQUENCES, 4]),
            seen: None,
            tokens: tokens.view_mut(),
            log_probabilities: Some(values.view_mut()),
        }
    }
    let numbers = (0..SEQUENCES as i32).flat_map(|row| [row, 1, 100, row]).collect();
    let [rows] = tensors(device.launcher, &[integers(numbers)])?;
    // Of this deviation a thousand tokens or so have most of the probability.
    let logits = scaled(F32, &[SEQUENCES, model.vocabulary], 4.0);
    let mut sets = Sets::new(device.launcher, [logits, zeros(I32, &[SEQUENCES]), zeros(F32, &[SEQUENCES])])?;
    let cost = op(narrowing, &rows, sets.at(0)).cost();
    let issue = move |_, i| draw_tokens(device.launcher, op(narrowing, &rows, sets.at(i)));
    Ok(Problem::new(format!("logits [{SEQUENCES}, {}]", model.vocabulary), cost, issue))
}

fn feed<'a>(device: Device<'a>, _model: &Model) -> Result<Problem<'a>> {
    let source = (0..SEQUENCES as i32).map(|i| i - 1).collect();
    let tokens = || integers((0..SEQUENCES as i32).collect());
    // A step finds them in the cache, where the one before left them.
    let operands = [tokens(), integers(source), tokens(), zeros(I32, &[SEQUENCES])];
    let [tokens, source, drawn, mut out] = tensors(device.launcher, &operands)?;
    let bytes = 4 * out.bytes();
    let issue = move |_, _| {
        let op = FeedTokens { tokens: tokens.view(), source: source.view(), drawn: drawn.view(), out: out.view_mut() };
        feed_tokens(device.launcher, op)
    };
    Ok(Problem::new(format!("T {SEQUENCES}"), Cost { flops: 0.0, bytes: bytes as f64 }, issue))
}
