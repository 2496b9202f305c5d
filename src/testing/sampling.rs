//! The case tables of drawing and feeding tokens. The oracle draws in f64, by sorting, and says which tokens are right: more than one where a word falls so close to a border
//! that the roundings of two programs may choose either side.

use super::buffer::{Behind, Buffer};
use super::compare::exactly;
use super::random::Random;
use super::{Check, Outputs};
use crate::device::Launcher;
use crate::error::{Error, Result};
use crate::ops::cuda::sampling as kernels;
use crate::ops::philox::philox4x32;
use crate::ops::{DrawTokens, FeedTokens, Narrowing};
use crate::tensor::DType;

/// How close, as a share of the total, a running sum may be to what a word asks for where either side counts as right.
const CLOSE: f64 = 1e-5;

/// What the logits of a case look like.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Logits {
    /// Normal, of this deviation.
    Normal(f32),
    /// The same in whole numbers: many ties.
    Whole(f32),
    /// Normal, but for every third, which is minus infinity.
    Masked(f32),
    /// Normal about this mean.
    About(f32),
    /// As a trained model has them: a few hundred likely tokens, and a tail.
    Peaked,
    Equal,
    /// One token of all.
    One,
    /// Nothing can be drawn: one is this, the others normal.
    Planted(f32),
    /// All minus infinity.
    Nothing,
}

#[derive(Debug, Clone, Copy)]
pub struct Case {
    pub name: &'static str,
    pub rows: usize,
    /// V
    pub width: usize,
    pub vocabulary: usize,
    pub logits: Logits,
    pub narrowing: Narrowing,
    pub log_probabilities: bool,
}

const NONE: Narrowing = Narrowing::NONE;
const GREEDY: Narrowing = Narrowing { temperature: 0.0, ..NONE };
const ALL: Narrowing = Narrowing { temperature: 0.8, top_k: 40, top_p: 0.9, min_p: 0.02, repetition_penalty: 1.3 };
const PLAIN: Case = Case {
    name: "",
    rows: 12,
    width: 1000,
    vocabulary: 990,
    logits: Logits::Normal(2.0),
    narrowing: NONE,
    log_probabilities: true,
};
/// The vocabulary of Qwen2.5 7B.
const LARGE: Case = Case { rows: 1, width: 152_064, vocabulary: 151_665, ..PLAIN };

/// "draw plain": what is run, which is also how benchmarks name it.
pub const GREEDY_CASES: [Case; 11] = [
    Case { name: "normal", narrowing: GREEDY, ..PLAIN },
    Case { name: "one token", width: 1, vocabulary: 1, narrowing: GREEDY, ..PLAIN },
    Case { name: "the first of equals", logits: Logits::Equal, narrowing: GREEDY, ..PLAIN },
    Case { name: "ties", logits: Logits::Whole(2.0), narrowing: GREEDY, ..PLAIN },
    Case { name: "odd", width: 4099, vocabulary: 4099, narrowing: GREEDY, log_probabilities: false, ..PLAIN },
    Case { name: "a penalty", narrowing: Narrowing { repetition_penalty: 2.0, ..GREEDY }, ..PLAIN },
    Case { name: "minus infinity", logits: Logits::Masked(1.0), narrowing: GREEDY, ..PLAIN },
    Case { name: "NaN", logits: Logits::Planted(f32::NAN), narrowing: GREEDY, ..PLAIN },
    Case { name: "infinity", logits: Logits::Planted(f32::INFINITY), narrowing: GREEDY, ..PLAIN },
    Case { name: "nothing", logits: Logits::Nothing, narrowing: GREEDY, ..PLAIN },
    Case { name: "Qwen2.5", narrowing: GREEDY, ..LARGE },
];

pub const PLAIN_CASES: [Case; 19] = [
    Case { name: "normal", rows: 40, ..PLAIN },
    Case { name: "one token", width: 1, vocabulary: 1, ..PLAIN },
    Case { name: "one quad", width: 4, vocabulary: 3, ..PLAIN },
    Case { name: "two quads a strand", width: 4096, vocabulary: 4095, ..PLAIN },
    Case { name: "odd", rows: 5, width: 4099, vocabulary: 4090, ..PLAIN },
    Case { name: "cold", narrowing: Narrowing { temperature: 0.3, ..NONE }, ..PLAIN },
    Case { name: "hot", narrowing: Narrowing { temperature: 1.7, ..NONE }, ..PLAIN },
    Case { name: "next to greedy", narrowing: Narrowing { temperature: 1e-40, ..NONE }, ..PLAIN },
    Case { name: "no log-probabilities", log_probabilities: false, ..PLAIN },
    Case { name: "a penalty", narrowing: Narrowing { repetition_penalty: 1.5, ..NONE }, ..PLAIN },
    Case { name: "a reward", narrowing: Narrowing { repetition_penalty: 0.7, temperature: 0.9, ..NONE }, ..PLAIN },
    Case { name: "equal", logits: Logits::Equal, ..PLAIN },
    Case { name: "one of all", logits: Logits::One, ..PLAIN },
    Case { name: "huge", logits: Logits::Normal(1e4), ..PLAIN },
    Case { name: "about 10000", logits: Logits::About(1e4), ..PLAIN },
    Case { name: "minus infinity", logits: Logits::Masked(1.0), ..PLAIN },
    Case { name: "NaN", logits: Logits::Planted(f32::NAN), ..PLAIN },
    Case { name: "nothing", logits: Logits::Nothing, ..PLAIN },
    Case { name: "Qwen2.5", rows: 2, logits: Logits::Peaked, narrowing: Narrowing { temperature: 0.9, ..NONE }, ..LARGE },
];

pub const NARROWED_CASES: [Case; 26] = [
    Case { name: "top-k 1", narrowing: Narrowing { top_k: 1, ..NONE }, ..PLAIN },
    Case { name: "top-k 5", narrowing: Narrowing { top_k: 5, ..NONE }, ..PLAIN },
    Case { name: "top-k 5 of ties", logits: Logits::Whole(2.0), narrowing: Narrowing { top_k: 5, ..NONE }, ..PLAIN },
    Case {
        name: "top-k beyond the strands",
        width: 1500,
        vocabulary: 1500,
        narrowing: Narrowing { top_k: 600, ..NONE },
        ..PLAIN
    },
    Case { name: "top-k of nearly all", width: 64, vocabulary: 50, narrowing: Narrowing { top_k: 49, ..NONE }, ..PLAIN },
    Case {
        name: "top-k of more than there are",
        logits: Logits::Masked(1.0),
        narrowing: Narrowing { top_k: 2000, min_p: 1e-9, ..NONE },
        ..PLAIN
    },
    Case { name: "top-k of minus infinity", logits: Logits::One, narrowing: Narrowing { top_k: 7, ..NONE }, ..PLAIN },
    Case { name: "top-p 0.1", narrowing: Narrowing { top_p: 0.1, ..NONE }, ..PLAIN },
    Case { name: "top-p 0.95", narrowing: Narrowing { top_p: 0.95, ..NONE }, ..PLAIN },
    Case { name: "top-p of ties", logits: Logits::Whole(1.0), narrowing: Narrowing { top_p: 0.63, ..NONE }, ..PLAIN },
    Case { name: "top-p of equals", logits: Logits::Equal, narrowing: Narrowing { top_p: 0.5, ..NONE }, ..PLAIN },
    Case { name: "top-p next to 0", narrowing: Narrowing { top_p: 1e-30, ..NONE }, ..PLAIN },
    Case { name: "top-p next to 1", narrowing: Narrowing { top_p: 1.0 - 1e-7, ..NONE }, ..PLAIN },
    Case { name: "min-p", narrowing: Narrowing { min_p: 0.05, ..NONE }, ..PLAIN },
    Case { name: "min-p 1", logits: Logits::Whole(2.0), narrowing: Narrowing { min_p: 1.0, ..NONE }, ..PLAIN },
    Case { name: "min-p, hot", narrowing: Narrowing { min_p: 0.2, temperature: 1.7, ..NONE }, ..PLAIN },
    Case { name: "min-p beyond top-p", narrowing: Narrowing { top_p: 0.99, min_p: 0.2, temperature: 0.8, ..NONE }, ..PLAIN },
    Case { name: "all", narrowing: ALL, ..PLAIN },
    Case { name: "all, odd", rows: 5, width: 4099, vocabulary: 4097, narrowing: ALL, ..PLAIN },
    Case { name: "all, huge", logits: Logits::Normal(1e4), narrowing: ALL, ..PLAIN },
    Case { name: "all, about 10000", logits: Logits::About(1e4), narrowing: ALL, ..PLAIN },
    Case { name: "all, minus infinity", logits: Logits::Masked(1.0), narrowing: ALL, log_probabilities: false, ..PLAIN },
    Case { name: "all, infinity", logits: Logits::Planted(f32::INFINITY), narrowing: ALL, ..PLAIN },
    Case { name: "Qwen2.5, all", logits: Logits::Peaked, narrowing: ALL, ..LARGE },
    Case { name: "Qwen2.5, top-p", logits: Logits::Peaked, narrowing: Narrowing { top_p: 0.95, ..NONE }, ..LARGE },
    Case {
        name: "Qwen2.5, more candidates than lists hold",
        logits: Logits::Normal(1.0),
        narrowing: Narrowing { top_p: 0.95, ..NONE },
        ..LARGE
    },
];

/// Numbers of tokens that are fed.
const FED: [usize; 3] = [1, 256, 1000];

/// Every case.
pub fn checks() -> Vec<Check> {
    let tables: [(&str, &'static [Case]); 3] =
        [("greedy", &GREEDY_CASES), ("plain", &PLAIN_CASES), ("narrowed", &NARROWED_CASES)];
    let check = |mode: &str, case: &'static Case| {
        let described = format!("{} ({} x {} of {})", case.name, case.rows, case.vocabulary, case.width);
        let run = move |launcher: &dyn Launcher, behind| run(launcher, case, behind);
        Check { heavy: case.width == LARGE.width, ..Check::new(format!("sampling draw {mode}"), described, run) }
    };
    let drawn = tables.into_iter().flat_map(|(mode, cases)| cases.iter().map(move |case| check(mode, case)));
    let feed = |&count: &'static usize| {
        Check::new("sampling feed".into(), format!("{count} tokens"), move |launcher, behind| run_feed(launcher, count, behind))
    };
    drawn.chain(FED.iter().map(feed)).collect()
}

impl Case {
    /// Rows of logits, keys and counters, and the tokens seen.
    pub fn inputs(&self) -> (Vec<f32>, Vec<i32>, Vec<i32>) {
        let Case { rows, width, vocabulary, .. } = *self;
        let mut random = Random::new((rows * 31 + width) as u64);
        let mut logits = Vec::with_capacity(rows * width);
        for i in 0..rows * width {
            let (normal, token) = (random.normal() as f32, i % width);
            logits.push(match self.logits {
                _ if token >= vocabulary => f32::NAN, // nobody looks
                Logits::Normal(scale) => scale * normal,
                Logits::Whole(scale) => (scale * normal).round(),
                Logits::Masked(_) if token.is_multiple_of(3) => f32::NEG_INFINITY,
                Logits::Masked(scale) => scale * normal,
                Logits::About(mean) => mean + normal,
                Logits::Peaked if token % 311 == 5 => 14.0 + 4.0 * normal,
                Logits::Peaked => 2.5 * normal,
                Logits::Equal => -1.5,
                Logits::One if token == vocabulary / 2 => -3.0,
                Logits::Planted(value) if token == vocabulary - 1 => value,
                Logits::Planted(_) => normal,
                Logits::One | Logits::Nothing => f32::NEG_INFINITY,
            });
        }
        // Every fifth row pads.
        let state = |row: usize| if row % 5 == 4 { -1 } else { (rows - 1 - row) as i32 };
        let rows_of = |row| [random.bits() as i32, random.bits() as i32, random.below(1 << 20) as i32, state(row)];
        let states: Vec<i32> = (0..rows).flat_map(rows_of).collect();
        let seen = (0..rows * width.div_ceil(32)).map(|_| (random.bits() & random.bits()) as i32).collect();
        (logits, states, seen)
    }

    /// Holds tokens, log-probabilities and the tokens seen afterwards against the rule. Returns how many tokens were drawn, and for how many of them there was one answer only.
    pub fn judge(&self, tokens: &[i32], log_probabilities: Option<&[f32]>, seen_after: &[i32]) -> Result<[usize; 2]> {
        let (logits, states, mut seen) = self.inputs();
        let words = self.width.div_ceil(32);
        let (mut drawn, mut certain) = (0, 0);
        for (row, (x, state)) in logits.chunks(self.width).zip(states.chunks(4)).enumerate() {
            let (x, token) = (&x[..self.vocabulary], tokens[row]);
            let told = log_probabilities.map(|values| values[row]);
            let wrong = |what: String| Err(Error::internal(format!("row {row}: {what}")));
            if state[3] < 0 {
                if token != 0 || told.is_some_and(|value| value != 0.0) {
                    return wrong(format!("token {token} of log-probability {told:?} in a row that pads"));
                }
                continue;
            }
            let seen = &mut seen[state[3] as usize * words..][..words];
            let right = self.right_tokens(x, seen, state);
            if right.is_empty() {
                if token != -1 || told.is_some_and(|value| !value.is_nan()) {
                    return wrong(format!("token {token} of log-probability {told:?} where nothing can be drawn"));
                }
                continue;
            }
            if !right.iter().any(|&right| right as i32 == token) {
                return wrong(format!("token {token}, expected one of {right:?}"));
            }
            let token = token as usize;
            if self.narrowing.repetition_penalty != 1.0 {
                seen[token / 32] |= 1 << (token % 32);
            }
            let max = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let above = |x: f32| f64::from(x) - f64::from(max);
            let exact = above(x[token]) - x.iter().map(|&x| above(x).exp()).sum::<f64>().ln();
            let close = |value: f32| (f64::from(value) - exact).abs() <= 1e-5 + 1e-7 * exact.abs();
            if let Some(value) = told.filter(|&value| !close(value)) {
                return wrong(format!("log-probability {value} of token {token}, expected {exact}"));
            }
            drawn += 1;
            certain += usize::from(right.len() == 1);
        }
        if seen != seen_after {
            return Err(Error::internal("tokens seen are not those before and the drawn ones"));
        }
        Ok([drawn, certain])
    }

    /// The tokens that a row may draw; none where it must draw −1.
    fn right_tokens(&self, x: &[f32], seen: &[i32], state: &[i32]) -> Vec<usize> {
        let Narrowing { temperature, top_k, top_p, min_p, repetition_penalty: penalty } = self.narrowing;
        let penalised = |(i, &x): (usize, &f32)| match seen[i / 32] >> (i % 32) & 1 {
            1 if x > 0.0 => x / penalty,
            1 => x * penalty,
            _ => x,
        };
        let y: Vec<f32> = x.iter().enumerate().map(penalised).collect();
        let max = y.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        if y.iter().any(|y| y.is_nan()) || !max.is_finite() {
            return Vec::new();
        }
        if temperature == 0.0 {
            return y.iter().position(|&y| y == max).into_iter().collect();
        }
        let weight = |y: f32| ((f64::from(y) - f64::from(max)) / f64::from(temperature)).exp();
        let mut sorted = y.clone();
        sorted.sort_by(|a, b| b.total_cmp(a));
        let mut least = if top_k > 0 && (top_k as usize) < y.len() { sorted[top_k as usize - 1] } else { f32::NEG_INFINITY };
        sorted.retain(|&y| y >= least);
        // With a little less and a little more than the probability that is asked for.
        let total: f64 = sorted.iter().map(|&y| weight(y)).sum();
        let reaching = |share: f64| {
            let mut mass = 0.0;
            let reached = sorted.iter().find(|&&y| {
                mass += weight(y);
                mass >= share * total
            });
            *reached.unwrap_or(&sorted[sorted.len() - 1])
        };
        let mut sure = least;
        if top_p < 1.0 {
            (least, sure) = (reaching(f64::from(top_p) + CLOSE), reaching(f64::from(top_p) - CLOSE));
        }
        let weights = |least: f32, close: f64| -> Vec<f64> {
            let kept = |y: f32| y >= least && weight(y) >= f64::from(min_p) * (1.0 + close) - f64::MIN_POSITIVE;
            y.iter().map(|&y| if kept(y) || y == max { weight(y) } else { 0.0 }).collect()
        };
        let (most, weights) = (weights(least, -CLOSE), weights(sure, CLOSE));

        let [a, b, c, d] = philox4x32([state[2] as u32, 0, 0, 0], [state[0] as u32, state[1] as u32]);
        let [first, second] =
            [[a, b], [c, d]].map(|[low, high]| (f64::from(high) + f64::from(low) / 2f64.powi(32)) / 2f64.powi(32));
        let of_strand = |strand: usize| {
            let quads = (strand * DrawTokens::QUAD..y.len()).step_by(DrawTokens::STRANDS * DrawTokens::QUAD);
            quads.flat_map(|at| at..y.len().min(at + DrawTokens::QUAD)).collect::<Vec<usize>>()
        };
        let strands: Vec<Vec<usize>> = (0..DrawTokens::STRANDS).map(of_strand).collect();
        let sums = |weights: &[f64]| -> Vec<f64> { strands.iter().map(|s| s.iter().map(|&i| weights[i]).sum()).collect() };
        let chosen = near(&sums(&weights), &sums(&most), first);
        let tokens = |strand: usize| {
            let tokens = &strands[strand];
            let of = |weights: &[f64]| -> Vec<f64> { tokens.iter().map(|&i| weights[i]).collect() };
            near(&of(&weights), &of(&most), second).into_iter().map(|at| tokens[at])
        };
        chosen.into_iter().flat_map(tokens).collect()
    }
}

/// Where the running sum of `weights` may exceed the share `word` of their total, if each may be as large as in `most`.
fn near(weights: &[f64], most: &[f64], word: f64) -> Vec<usize> {
    let (total, largest_total): (f64, f64) = (weights.iter().sum(), most.iter().sum());
    if total == 0.0 {
        return (0..most.len()).filter(|&i| most[i] > 0.0).collect();
    }
    let close = CLOSE + (largest_total - total) / total;
    let mut before = 0.0;
    let mut found = Vec::new();
    for (i, (&weight, &most)) in weights.iter().zip(most).enumerate() {
        let after = before + weight / total;
        if most > 0.0 && before - close <= word && word <= after + close {
            found.push(i);
        }
        before = after;
    }
    found
}

fn run(launcher: &dyn Launcher, case: &Case, behind: Behind) -> Result<Outputs> {
    let Case { rows, width, .. } = *case;
    let (logits, states, seen) = case.inputs();
    let filled = |name, shape: &[usize], values: &[i32]| -> Result<Buffer> {
        let mut buffer = Buffer::poisoned(launcher, behind, name, DType::I32, shape)?;
        launcher.upload(bytemuck::cast_slice(values), buffer.view_mut())?;
        Ok(buffer)
    };
    let logits = Buffer::new(launcher, behind, "logits", DType::F32, &[rows, width], &logits)?;
    let states = filled("rows", &[rows, 4], &states)?;
    let mut seen_buffer = filled("seen", &[rows, width.div_ceil(32)], &seen)?;
    let mut tokens = Buffer::poisoned(launcher, behind, "tokens", DType::I32, &[rows])?;
    let mut values = Buffer::poisoned(launcher, behind, "log_probabilities", DType::F32, &[rows])?;
    kernels::draw_tokens(
        launcher,
        DrawTokens {
            logits: logits.view(),
            vocabulary: case.vocabulary,
            narrowing: case.narrowing,
            rows: states.view(),
            seen: Some(seen_buffer.view_mut()),
            tokens: tokens.view_mut(),
            log_probabilities: case.log_probabilities.then(|| values.view_mut()),
        },
    )?;
    launcher.synchronize()?;
    let tokens = tokens.read()?;
    let mut outputs = vec![("tokens", tokens.clone())];
    if case.log_probabilities {
        // NaN is no bits that two runs could share.
        let visible = values.read()?.into_iter().map(|value| if value.is_nan() { f32::INFINITY } else { value });
        outputs.push(("log_probabilities", visible.collect()));
    }
    let mut after = seen;
    launcher.download(seen_buffer.view(), bytemuck::cast_slice_mut(&mut after))?;
    seen_buffer.read()?;
    let told = if case.log_probabilities { Some(values.read()?) } else { None };
    case.judge(&tokens.iter().map(|&token| token as i32).collect::<Vec<_>>(), told.as_deref(), &after)?;
    Ok(outputs)
}

fn run_feed(launcher: &dyn Launcher, count: usize, behind: Behind) -> Result<Outputs> {
    let mut random = Random::new(count as u64);
    let tokens: Vec<f32> = (0..count).map(|_| random.below(150_000) as f32).collect();
    let drawn: Vec<f32> = (0..7).map(|i| if i == 3 { -1.0 } else { 1000.0 + i as f32 }).collect();
    let source: Vec<f32> = (0..count).map(|_| random.below(9) as f32 - 2.0).collect();
    let filled = |name, values: &[f32]| Buffer::new(launcher, behind, name, DType::I32, &[values.len()], values);
    let (tokens_buffer, source_buffer, drawn_buffer) =
        (filled("tokens", &tokens)?, filled("source", &source)?, filled("drawn", &drawn)?);
    let mut out = Buffer::poisoned(launcher, behind, "out", DType::I32, &[count])?;
    let op = FeedTokens {
        tokens: tokens_buffer.view(),
        source: source_buffer.view(),
        drawn: drawn_buffer.view(),
        out: out.view_mut(),
    };
    kernels::feed_tokens(launcher, op)?;
    launcher.synchronize()?;
    let expected = |i: usize| if source[i] < 0.0 { tokens[i] } else { drawn[source[i] as usize].max(0.0) };
    let out = out.read()?;
    exactly("out", &out, &(0..count).map(expected).collect::<Vec<_>>())?;
    Ok(vec![("out", out)])
}
