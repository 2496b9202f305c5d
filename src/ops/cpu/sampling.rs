//! Drawing tokens, and feeding them back.

use super::math::{exp, larger, max_of, sum_of, vectorised};
use crate::error::{Error, Result};
use crate::ops::philox::philox4x32;
use crate::ops::{DrawTokens, FeedTokens, Narrowing};
use rayon::prelude::*;
use std::borrow::Cow;

/// A stripe is a quad of each strand. Lane l of it holds tokens l, l + LANES, …, so strand s has lanes 4s to 4s + 3.
const LANES: usize = DrawTokens::STRANDS * DrawTokens::QUAD;
/// Lanes that a task folds.
const PART: usize = 512;
/// Weights are whole numbers of 2⁻⁴⁰.
const ONE: f32 = (1u64 << 40) as f32;

pub fn draw(op: DrawTokens) -> Result<()> {
    op.check()?;
    let width = op.logits.shape().row_elements();
    let (words, penalised) = (width.div_ceil(32), op.narrowing.repetition_penalty != 1.0);
    let mut seen = op.seen.filter(|_| penalised).map(|seen| seen.i32());
    let rows = op.rows.i32();
    if let Some(seen) = &seen {
        let beyond = |row: &&[i32]| row[3] >= 0 && row[3] as usize * words >= seen.len();
        if let Some(row) = rows.chunks_exact(4).find(beyond) {
            return Err(Error::internal(format!("draw_tokens: row {} of seen is beyond its {}", row[3], seen.len() / words)));
        }
    }
    let (vocabulary, narrowing, told) = (op.vocabulary, op.narrowing, op.log_probabilities.is_some());
    let draw = |(logits, row): (&[f32], &[i32])| {
        let Ok(at) = usize::try_from(row[3]) else { return (0, 0.0) };
        let seen = seen.as_ref().map(|seen| &seen[at * words..][..words]);
        let [a, b, c, d] = philox4x32([row[2] as u32, 0, 0, 0], [row[0] as u32, row[1] as u32]);
        let random = [[a, b], [c, d]].map(|[low, high]| u64::from(high) << 32 | u64::from(low));
        draw_row(&logits[..vocabulary], &narrowing, random, seen, told)
    };
    let drawn: Vec<(i32, f32)> = op.logits.f32().par_chunks_exact(width).zip(rows.par_chunks_exact(4)).map(draw).collect();

    if let Some(seen) = &mut seen {
        for (&(token, _), row) in drawn.iter().zip(rows.chunks_exact(4)) {
            if let (Ok(token), Ok(row)) = (usize::try_from(token), usize::try_from(row[3])) {
                seen[row * words + token / 32] |= 1 << (token % 32);
            }
        }
    }
    op.tokens.i32().iter_mut().zip(&drawn).for_each(|(out, (token, _))| *out = *token);
    if let Some(out) = op.log_probabilities {
        out.f32().iter_mut().zip(&drawn).for_each(|(out, (_, value))| *out = *value);
    }
    Ok(())
}

/// The token and, where it is to be told, its log-probability.
fn draw_row(x: &[f32], narrowing: &Narrowing, random: [u64; 2], seen: Option<&[i32]>, told: bool) -> (i32, f32) {
    let y = match seen {
        Some(seen) => Cow::Owned(penalised(x, seen, narrowing.repetition_penalty)),
        None => Cow::Borrowed(x),
    };
    let largest = fold(&y, f32::NEG_INFINITY, larger);
    let max = vectorised(|| max_of(&largest));
    if !max.is_finite() {
        return (-1, f32::NAN);
    }
    // Of a tiny temperature the inverse would be infinite, and no number times 0.
    let inverse = (1.0 / narrowing.temperature).min(f32::MAX);
    let weight = move |y: f32| exp((y - max) * inverse);
    let mut sums = Vec::new();
    let token = if narrowing.temperature == 0.0 {
        y.iter().position(|&y| y == max).expect("the largest is one of them")
    } else {
        sums = fold(&y, 0.0, move |sum, y| sum + weight(y));
        let kept = kept(&y, max, &largest, total(&sums), narrowing, weight);
        draw_token(&y, kept.as_ref(), &sums, inverse, random)
    };
    if !told {
        return (token as i32, 0.0);
    }
    if seen.is_none() && narrowing.temperature == 1.0 {
        return (token as i32, x[token] - max - total(&sums).ln());
    }
    let max = if seen.is_some() { vectorised(|| max_of(&fold(x, f32::NEG_INFINITY, larger))) } else { max };
    let sums = fold(x, 0.0, move |sum, x| sum + exp(x - max));
    (token as i32, x[token] - max - total(&sums).ln())
}

/// Logits of tokens that were seen are made less likely.
fn penalised(x: &[f32], seen: &[i32], penalty: f32) -> Vec<f32> {
    let mut y = x.to_vec();
    for (tokens, &seen) in y.chunks_mut(32).zip(seen) {
        let seen_of = |i: usize| seen >> i & 1 == 1;
        let seen_tokens = tokens.iter_mut().enumerate().filter(|(i, _)| seen != 0 && seen_of(*i));
        seen_tokens.for_each(|(_, y)| *y = if *y > 0.0 { *y / penalty } else { *y * penalty });
    }
    y
}

fn total(sums: &[f32]) -> f32 {
    vectorised(|| sum_of(sums.len(), |i| sums[i]))
}

/// Folds the tokens of each lane in increasing order. Tasks are of fixed lanes, so no result depends on threads. `step` holds what it needs by value: behind a
/// reference it could be one of the lanes, and nothing would be vectorised.
fn fold(y: &[f32], start: f32, step: impl Fn(f32, f32) -> f32 + Copy + Sync) -> Vec<f32> {
    let mut lanes = vec![start; LANES.min(y.len())];
    lanes.par_chunks_mut(PART).enumerate().for_each(|(part, lanes)| {
        vectorised(move || {
            for stripe in y.chunks(LANES) {
                let tokens = stripe.get(part * PART..).unwrap_or_default();
                for (lane, &y) in lanes.iter_mut().zip(tokens) {
                    *lane = step(*lane, y);
                }
            }
        });
    });
    lanes
}

/// Tokens that may be drawn, in increasing order, with their logits and weights.
struct Candidates {
    tokens: Vec<usize>,
    logits: Vec<f32>,
    weights: Vec<f32>,
}

impl Candidates {
    /// Those whose logits reach `least`.
    fn new(y: &[f32], least: f32, weight: impl Fn(f32) -> f32) -> Self {
        let mut tokens = Vec::new();
        for (at, part) in y.chunks(64).enumerate() {
            if vectorised(|| part.iter().fold(false, |any, &y| any | (y >= least))) {
                tokens.extend((64 * at..).zip(part).filter(|&(_, &y)| y >= least).map(|(i, _)| i));
            }
        }
        let logits: Vec<f32> = tokens.iter().map(|&i| y[i]).collect();
        let mut weights = logits.clone();
        let values = &mut weights[..];
        vectorised(move || {
            for value in values {
                *value = weight(*value);
            }
        });
        Candidates { tokens, logits, weights }
    }

    fn total(&self, least: f32) -> f32 {
        self.logits.iter().zip(&self.weights).filter(|&(&y, _)| y >= least).map(|(_, weight)| weight).sum()
    }

    /// The largest logit at which `measure` of the weights of all candidates from it on up reaches `target`; `least` where those from there on never do.
    /// Digit by digit of the logits' ranks: a histogram finds the first digit, one of what begins with it the next.
    fn reach(&self, least: f32, measure: impl Fn(f32) -> u64, target: u64) -> f32 {
        const DIGIT: u32 = 8;
        let top = self.logits.iter().map(|&y| order(y)).max().unwrap_or_default();
        let last = top - order(least).min(top);
        let (mut shift, mut found, mut target) = ((u32::BITS - last.leading_zeros()).next_multiple_of(DIGIT), 0, target.max(1));
        while shift > 0 {
            let mut sums = [0u64; 1 << DIGIT];
            for (&y, &weight) in self.logits.iter().zip(&self.weights) {
                let rank = top - order(y);
                if rank <= last && u64::from(rank) >> shift == found {
                    sums[rank as usize >> (shift - DIGIT) & ((1 << DIGIT) - 1)] += measure(weight);
                }
            }
            let Some(digit) = running(&sums, &mut target) else { return least };
            found = found << DIGIT | digit as u64;
            shift -= DIGIT;
        }
        value_of(top - found as u32)
    }

    fn retain(&mut self, least: f32) {
        let keep = |i: &usize| self.logits[*i] >= least;
        let kept: Vec<usize> = (0..self.tokens.len()).filter(keep).collect();
        *self = Candidates {
            tokens: kept.iter().map(|&i| self.tokens[i]).collect(),
            logits: kept.iter().map(|&i| self.logits[i]).collect(),
            weights: kept.iter().map(|&i| self.weights[i]).collect(),
        };
    }
}

/// What may be drawn; nothing where every token may be. `largest` of the lanes and the `total` weight of all tokens save most tokens a closer look.
fn kept(
    y: &[f32],
    max: f32,
    largest: &[f32],
    total: f32,
    narrowing: &Narrowing,
    weight: impl Fn(f32) -> f32,
) -> Option<Candidates> {
    let Narrowing { temperature, top_k, top_p, .. } = *narrowing;
    let k = if (top_k as usize) < y.len() { top_k as usize } else { 0 };
    let min_p = max + narrowing.min_p_limit();
    // No token below is kept: the k-th largest is at least the k-th largest of the lanes' largest, and tokens that are each below (1 − p)/n of the weight are
    // together below 1 − p.
    let bound = match k {
        0 if top_p < 1.0 => max + temperature * (narrowing.rest_share(y.len()) * total).ln(),
        0 if min_p == f32::NEG_INFINITY => return None,
        0 => min_p,
        k if k <= largest.len() => *largest.to_vec().select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a)).1,
        _ => f32::NEG_INFINITY,
    };
    let mut threshold = bound.max(f32::MIN);
    let mut candidates = Candidates::new(y, threshold, weight);
    let mut total = total;
    if k > 0 {
        threshold = candidates.reach(threshold, |_| 1, k as u64);
        total = candidates.total(threshold);
    }
    if top_p < 1.0 {
        threshold = candidates.reach(threshold, whole, whole(top_p * total));
    }
    candidates.retain(threshold.max(min_p));
    Some(candidates)
}

/// The first of `weights` at which their running sum reaches `target`, which is left reduced by what comes before.
fn running(weights: &[u64], target: &mut u64) -> Option<usize> {
    for (i, &weight) in weights.iter().enumerate() {
        if weight >= *target {
            return Some(i);
        }
        *target -= weight;
    }
    None
}

/// Larger for a larger value; zeros are one value.
fn order(value: f32) -> u32 {
    let bits = (value + 0.0).to_bits();
    if bits >> 31 == 0 { bits | 1 << 31 } else { !bits }
}

fn value_of(order: u32) -> f32 {
    f32::from_bits(if order >> 31 == 1 { order & !(1 << 31) } else { !order })
}

fn whole(weight: f32) -> u64 {
    (weight * ONE) as u64
}

/// Chooses a strand, then one of its tokens, of `kept` or of all: `sums` are the lanes' weights.
fn draw_token(y: &[f32], kept: Option<&Candidates>, sums: &[f32], inverse: f32, [first, second]: [u64; 2]) -> usize {
    let strand_of = |token: usize| token / DrawTokens::QUAD % DrawTokens::STRANDS;
    let mut strands = vec![0.0; y.len().div_ceil(DrawTokens::QUAD).min(DrawTokens::STRANDS)];
    match kept {
        None => strands.iter_mut().zip(sums.chunks(DrawTokens::QUAD)).for_each(|(strand, lanes)| *strand = lanes.iter().sum()),
        Some(Candidates { tokens, weights, .. }) => {
            tokens.iter().zip(weights).for_each(|(&i, weight)| strands[strand_of(i)] += weight)
        }
    }
    let strand = choose(strands.into_iter().map(whole), first);
    let tokens: Vec<usize> = match kept {
        None => {
            let quads = (strand * DrawTokens::QUAD..y.len()).step_by(LANES);
            quads.flat_map(|at| at..y.len().min(at + DrawTokens::QUAD)).collect()
        }
        Some(kept) => kept.tokens.iter().copied().filter(|&i| strand_of(i) == strand).collect(),
    };
    let largest = tokens.iter().map(|&i| y[i]).fold(f32::NEG_INFINITY, f32::max);
    tokens[choose(tokens.iter().map(|&i| whole(exp((y[i] - largest) * inverse))), second)]
}

/// Where the running sum of `weights`, of which one is not 0, exceeds the share `word` / 2⁶⁴ of their total.
fn choose(weights: impl Iterator<Item = u64>, word: u64) -> usize {
    let weights: Vec<u64> = weights.collect();
    let total: u64 = weights.iter().sum();
    let mut target = ((u128::from(word) * u128::from(total)) >> 64) as u64 + 1;
    running(&weights, &mut target).expect("the total is beyond any share of it")
}

pub fn feed(op: FeedTokens) -> Result<()> {
    op.check()?;
    let drawn = op.drawn.i32();
    if let Some(source) = op.source.i32().iter().find(|&&source| source >= 0 && source as usize >= drawn.len()) {
        return Err(Error::internal(format!("feed_tokens: source {source} is beyond the {} drawn tokens", drawn.len())));
    }
    for ((out, &token), &source) in op.out.i32().iter_mut().zip(op.tokens.i32()).zip(op.source.i32()) {
        *out = usize::try_from(source).map_or(token, |source| drawn[source].max(0));
    }
    Ok(())
}
