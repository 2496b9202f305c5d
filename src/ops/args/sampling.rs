//! Drawing the next token of sequences that are sampled, and feeding it back.

use super::{Cost, expect, expect_dtype, expect_shape};
use crate::error::Result;
use crate::tensor::{DType, View, ViewMut};

/// How a distribution over the vocabulary is narrowed before a token is drawn from it. In this order, as transformers does: penalty, temperature, top-k, top-p, min-p.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Narrowing {
    /// Divides the logits. 0: the likeliest token, the first of equals.
    pub temperature: f32,
    /// Only the k likeliest tokens; 0 for all.
    pub top_k: u32,
    /// Only the likeliest tokens that together have at least this probability after top-k; 1 for all.
    pub top_p: f32,
    /// Only tokens that are at least this share as likely as the likeliest; 0 for all.
    pub min_p: f32,
    /// Logits of tokens that the sequence holds already are divided by it where positive and multiplied where negative (Keskar et al. 2019, arXiv 1909.05858).
    pub repetition_penalty: f32,
}

impl Narrowing {
    /// The model's own distribution.
    pub const NONE: Narrowing = Narrowing { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0, repetition_penalty: 1.0 };

    /// What min-p adds to the largest logit.
    pub(in crate::ops) fn min_p_limit(&self) -> f32 {
        (f64::from(self.temperature) * f64::from(self.min_p).ln()) as f32
    }

    /// The share of the weight of n tokens below which no token is within top-p: n of them are together below half of what top-p leaves, so that no rounding matters.
    pub(in crate::ops) fn rest_share(&self, n: usize) -> f32 {
        ((1.0 - f64::from(self.top_p)) / (2 * n) as f64) as f32
    }
}

/// Draws a token for each row of logits x. With y the logits after the penalty, m the largest of them and T the temperature, a token weighs exp((y − m)/T); only
/// tokens with y ≥ θ are drawn, θ being the largest of three thresholds:
/// - top-k: the k-th largest y;
/// - top-p: the largest y at which the tokens from it on up have at least the share `top_p` of the weight of what top-k kept;
/// - min-p: m + T · ln `min_p`.
///
/// Of equally likely tokens at a threshold all stay, and the likeliest always stays; −∞ is never drawn.
///
/// Tokens are dealt to [`DrawTokens::STRANDS`] strands, [`DrawTokens::QUAD`] neighbours at a time: token i is of strand ⌊i/4⌋ mod 512. The draw takes two 64-bit words
/// of Philox (`philox4x32` of counter [counter, 0, 0, 0] and the key; the first word is the first two of its outputs, the lower one first). The first chooses a strand by the
/// sums of its tokens' weights, the second one of the strand's tokens, in increasing order, by weights relative to the strand's largest. A word r chooses among whole
/// numbers, ⌊weight · 2⁴⁰⌋: the first at which their running sum exceeds ⌊r · total / 2⁶⁴⌋. So a row is read once to choose a strand, then one strand of it
/// again, and the token is a function of the row's logits, its key and its counter: not of the rows beside it, nor of the number of threads.
///
/// Every backend has exponentials of its own: where a word falls closer to a border than their rounding, backends may draw differently.
pub struct DrawTokens<'a> {
    /// [R, V] f32
    pub logits: View<'a>,
    /// Ids from here on, the padding rows of the vocabulary, are never drawn.
    pub vocabulary: usize,
    pub narrowing: Narrowing,
    /// [R, 4] i32: low and high word of the key, the counter, and the row of `seen`; negative for a row that pads the batch, whose token is 0.
    pub rows: View<'a>,
    /// [X, ⌈V/32⌉] i32: a bit for each token that a sequence holds; no two rows share one. Drawn tokens are added. Needed where there is a penalty, else ignored.
    pub seen: Option<ViewMut<'a>>,
    /// [R] i32 overwritten; −1 where a logit below `vocabulary` is NaN or +∞, or all are −∞.
    pub tokens: ViewMut<'a>,
    /// [R] f32 overwritten: the natural logarithm of the drawn token's probability, as the model has it: before any narrowing. NaN for token −1, 0 for a row that pads.
    pub log_probabilities: Option<ViewMut<'a>>,
}

impl DrawTokens<'_> {
    pub const STRANDS: usize = 512;
    /// Neighbours that are dealt together: 16 bytes of logits.
    pub const QUAD: usize = 4;

    pub fn check(&self) -> Result<()> {
        const OP: &str = "draw_tokens";
        let [r, v] = [self.logits.shape()[0], self.logits.shape().row_elements()];
        expect_shape(OP, "logits", self.logits.shape(), &[r, v])?;
        expect_shape(OP, "rows", self.rows.shape(), &[r, 4])?;
        expect_shape(OP, "tokens", self.tokens.shape(), &[r])?;
        for (operand, dtype, expected) in [
            ("logits", self.logits.dtype(), DType::F32),
            ("rows", self.rows.dtype(), DType::I32),
            ("tokens", self.tokens.dtype(), DType::I32),
        ] {
            expect_dtype(OP, operand, dtype, expected)?;
        }
        expect(OP, (1..=v).contains(&self.vocabulary), || format!("{} of {v} tokens", self.vocabulary))?;
        let Narrowing { temperature, top_p, min_p, repetition_penalty, .. } = self.narrowing;
        let sound =
            temperature >= 0.0 && top_p > 0.0 && top_p <= 1.0 && (0.0..=1.0).contains(&min_p) && repetition_penalty > 0.0;
        expect(OP, sound && temperature.is_finite() && repetition_penalty.is_finite(), || format!("{:?}", self.narrowing))?;
        if let Some(values) = &self.log_probabilities {
            expect_shape(OP, "log_probabilities", values.shape(), &[r])?;
            expect_dtype(OP, "log_probabilities", values.dtype(), DType::F32)?;
        }
        match &self.seen {
            Some(seen) => {
                expect_shape(OP, "seen", seen.shape(), &[seen.shape()[0], v.div_ceil(32)])?;
                expect_dtype(OP, "seen", seen.dtype(), DType::I32)
            }
            None => expect(OP, repetition_penalty == 1.0, || "a repetition penalty needs the tokens seen".into()),
        }
    }

    /// One reading of the logits.
    pub fn cost(&self) -> Cost {
        Cost { flops: 0.0, bytes: self.logits.bytes() as f64 }
    }
}

/// out[t] = drawn[source[t]] where source[t] ≥ 0, else tokens[t]: the inputs of a step, of which some were drawn by the step before and never left the device.
pub struct FeedTokens<'a> {
    /// [T] i32
    pub tokens: View<'a>,
    /// [T] i32, each below X.
    pub source: View<'a>,
    /// [X] i32; a negative one is fed as 0.
    pub drawn: View<'a>,
    /// [T] i32 overwritten.
    pub out: ViewMut<'a>,
}

impl FeedTokens<'_> {
    pub fn check(&self) -> Result<()> {
        const OP: &str = "feed_tokens";
        let t = self.tokens.elements();
        for (operand, shape, dtype) in [
            ("tokens", self.tokens.shape(), self.tokens.dtype()),
            ("source", self.source.shape(), self.source.dtype()),
            ("out", self.out.shape(), self.out.dtype()),
        ] {
            expect_shape(OP, operand, shape, &[t])?;
            expect_dtype(OP, operand, dtype, DType::I32)?;
        }
        expect_dtype(OP, "drawn", self.drawn.dtype(), DType::I32)
    }
}
