//! Drawn tokens against the exact distribution, which is computed here in f64 by sorting.

use limo_engine::ops::cpu::Cpu;
use limo_engine::ops::{DrawTokens, FeedTokens, Narrowing, Ops};
use limo_engine::tensor::{DType, Tensor};
use limo_engine::testing::random::Random;
use std::ops::Range;

const NONE: Narrowing = Narrowing::NONE;

/// One distribution: a row of logits, what narrows it, the tokens that its sequence holds, and how many ids are tokens.
#[derive(Clone)]
struct Distribution {
    logits: Vec<f32>,
    vocabulary: usize,
    narrowing: Narrowing,
    seen: Vec<usize>,
}

impl Distribution {
    fn new(logits: Vec<f32>, narrowing: Narrowing) -> Self {
        Distribution { vocabulary: logits.len(), logits, narrowing, seen: Vec::new() }
    }

    /// The probability of every id.
    fn exact(&self) -> Vec<f64> {
        let Narrowing { temperature, top_k, top_p, min_p, repetition_penalty } = self.narrowing;
        let penalised = |i: usize| match f64::from(self.logits[i]) {
            x if !self.seen.contains(&i) => x,
            x if x > 0.0 => x / f64::from(repetition_penalty),
            x => x * f64::from(repetition_penalty),
        };
        let scores: Vec<f64> = (0..self.vocabulary).map(|i| penalised(i) / f64::from(temperature)).collect();
        let mut order: Vec<usize> = (0..scores.len()).collect();
        order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
        let max = scores[order[0]];
        let weight = |i: usize| (scores[i] - max).exp();
        // How far down the order the tokens reach that tie with the last of the first `count`.
        let with_ties =
            |count: usize| count + order[count..].iter().take_while(|&&i| scores[i] == scores[order[count - 1]]).count();
        let mut count = order.len();
        if top_k > 0 && (top_k as usize) < count {
            count = with_ties(top_k as usize);
        }
        if top_p < 1.0 {
            let total: f64 = order[..count].iter().map(|&i| weight(i)).sum();
            let mut mass = 0.0;
            let reaching = order[..count].iter().position(|&i| {
                mass += weight(i);
                mass >= f64::from(top_p) * total
            });
            count = with_ties(reaching.unwrap() + 1);
        }
        let mut probabilities = vec![0.0; self.logits.len()];
        for &i in order[..count].iter().filter(|&&i| weight(i) >= f64::from(min_p)) {
            probabilities[i] = weight(i);
        }
        let total: f64 = probabilities.iter().sum();
        probabilities.iter_mut().for_each(|p| *p /= total);
        probabilities
    }

    /// How often each id is drawn by the counters in a range.
    fn counts(&self, key: u64, counters: Range<usize>) -> Vec<u64> {
        const BATCH: usize = 1000;
        let width = self.logits.len();
        let logits = Tensor::from_f32(&self.logits.repeat(BATCH), &[BATCH, width]);
        let mut tokens = Tensor::host(DType::I32, &[BATCH]);
        let words = width.div_ceil(32);
        let mut bits = vec![0; words];
        self.seen.iter().for_each(|&token| bits[token / 32] |= 1 << (token % 32));
        let mut seen = Tensor::host(DType::I32, &[BATCH, words]);
        let mut counts = vec![0; width];
        for first in counters.clone().step_by(BATCH) {
            let rows: Vec<i32> = (0..BATCH).flat_map(|i| row(key, (first + i) as u32, i as i32)).collect();
            if self.narrowing.repetition_penalty != 1.0 {
                seen.view_mut().i32().copy_from_slice(&bits.repeat(BATCH));
            }
            draw(&logits, self, &Tensor::from_i32(&rows, &[BATCH, 4]), Some(&mut seen), &mut tokens, None);
            let drawn = &tokens.view().i32()[..BATCH.min(counters.end - first)];
            drawn.iter().for_each(|&token| counts[token as usize] += 1);
        }
        counts
    }
}

fn row(key: u64, counter: u32, seen: i32) -> [i32; 4] {
    [key as i32, (key >> 32) as i32, counter as i32, seen]
}

fn draw(
    logits: &Tensor,
    of: &Distribution,
    rows: &Tensor,
    seen: Option<&mut Tensor>,
    tokens: &mut Tensor,
    log_probabilities: Option<&mut Tensor>,
) {
    let op = DrawTokens {
        logits: logits.view(),
        vocabulary: of.vocabulary,
        narrowing: of.narrowing,
        rows: rows.view(),
        seen: seen.map(Tensor::view_mut),
        tokens: tokens.view_mut(),
        log_probabilities: log_probabilities.map(Tensor::view_mut),
    };
    Cpu.draw_tokens(op).unwrap();
}

/// How many deviations a χ² statistic of counts lies above its mean (Wilson & Hilferty 1931). Ids of fewer than ten expected draws are counted together.
fn deviations(counts: &[u64], probabilities: &[f64]) -> f64 {
    let draws = counts.iter().sum::<u64>() as f64;
    let (mut rest, mut statistic, mut cells) = ([0.0; 2], 0.0, 0);
    let mut add = |found: f64, expected: f64| {
        statistic += (found - expected).powi(2) / expected;
        cells += 1;
    };
    for (&count, &p) in counts.iter().zip(probabilities) {
        if p * draws < 10.0 {
            rest[0] += count as f64;
            rest[1] += p * draws;
        } else {
            add(count as f64, p * draws);
        }
    }
    if rest[1] > 0.0 {
        add(rest[0], rest[1]);
    }
    if cells < 2 {
        return 0.0;
    }
    let ninth = 2.0 / (9.0 * f64::from(cells - 1));
    ((statistic / f64::from(cells - 1)).cbrt() - (1.0 - ninth)) / ninth.sqrt()
}

/// A probability of 10⁻⁶.
const BOUND: f64 = 4.753;
const DRAWS: usize = 1_000_000;
