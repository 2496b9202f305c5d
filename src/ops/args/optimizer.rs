//! Gradient norm and AdamW.

use super::{Cost, expect, expect_dtype, expect_shape};
use crate::error::Result;
use crate::tensor::{DType, View, ViewMut};
use half::bf16;

/// Elements per partial sum of [`SquareSums`].
pub const SQUARE_SUMS_CHUNK: usize = 4096;

/// sums[i] = Σ x² over elements 4096·i .. 4096·(i + 1). The host adds the partial sums in order in f64, so the gradient norm
/// depends on nothing but the gradient. NaN and infinity stay visible in it.
pub struct SquareSums<'a> {
    /// [N] f32
    pub x: View<'a>,
    /// [⌈N/4096⌉] f32, overwritten.
    pub sums: ViewMut<'a>,
}

impl SquareSums<'_> {
    pub fn check(&self) -> Result<()> {
        let chunks = self.x.elements().div_ceil(SQUARE_SUMS_CHUNK);
        expect_shape("square_sums", "sums", self.sums.shape(), &[chunks])?;
        expect_dtype("square_sums", "x", self.x.dtype(), DType::F32)?;
        expect_dtype("square_sums", "sums", self.sums.dtype(), DType::F32)
    }

    pub fn cost(&self) -> Cost {
        Cost { flops: 2.0 * self.x.elements() as f64, bytes: (self.x.bytes() + self.sums.bytes()) as f64 }
    }
}

/// out += x: the contribution of one micro-batch joins the gradient.
///
/// A bf16 `out` takes `x` rounded to bf16, to nearest even, as it would arrive from another rank. Their sum in f32 is rounded stochastically: up in magnitude where
/// the lowest 16 of the element's random bits (`ops::philox`, a function of (seed, draw, first + i)) carry into the upper half.
pub struct Accumulate<'a> {
    /// [N] f32; or bf16 where `out` is.
    pub x: View<'a>,
    /// [N] f32 or bf16, added to.
    pub out: ViewMut<'a>,
    pub seed: u64,
    /// Which of the sums under this seed it is.
    pub draw: u64,
    /// The place of element 0 among all parameters of the model: even, because neighbours share a draw.
    pub first: u64,
}

impl Accumulate<'_> {
    pub fn check(&self) -> Result<()> {
        const OP: &str = "accumulate";
        expect_shape(OP, "x", self.x.shape(), self.out.shape())?;
        let known =
            matches!((self.x.dtype(), self.out.dtype()), (DType::F32, DType::F32 | DType::Bf16) | (DType::Bf16, DType::Bf16));
        expect(OP, known, || format!("{} is added to {}", self.x.dtype(), self.out.dtype()))?;
        expect(OP, self.first.is_multiple_of(2), || format!("element 0 is number {}, which is odd", self.first))
    }

    pub fn cost(&self) -> Cost {
        Cost { flops: self.x.elements() as f64, bytes: (self.x.bytes() + 2 * self.out.bytes()) as f64 }
    }
}

/// One AdamW update (Loshchilov & Hutter 2017, arXiv 1711.05101), in the order of operations of torch.optim.AdamW, on one tensor:
/// g = grad · grad_scale; p ·= 1 − lr·wd; m ← β₁m + (1−β₁)g; v ← β₂v + (1−β₂)g²;
/// p −= lr/(1−β₁ᵏ) · m / (√(v/(1−β₂ᵏ)) + eps).
///
/// All of it in f32; what is stored in fewer bits is rounded once, at the end. The new m and v are used before they are rounded. A parameter
/// that becomes NaN is stored as 0x7fc00000, so that no half of it looks like a number.
///
/// Stochastic rounding draws from Philox (`ops::philox`): element i has 64 bits that depend on (seed, step, first + i) only, the lowest 16 for the
/// parameter, the next for m, the next for v.
pub struct AdamW<'a> {
    /// [N] f32 or bf16, updated.
    pub param: ViewMut<'a>,
    pub master: Master<'a>,
    /// [N] f32 or bf16
    pub grad: View<'a>,
    pub m: Moment<'a>,
    pub v: Moment<'a>,
    /// k, counted from 1.
    pub step: u64,
    pub lr: f64,
    pub beta1: f64,
    pub beta2: f64,
    pub eps: f64,
    pub weight_decay: f64,
    /// The clip factor.
    pub grad_scale: f32,
    /// Of the random numbers that round stochastically: a function of (seed, step, first + i) alone.
    pub seed: u64,
    /// The place of element 0 among all parameters of the model: even, because neighbours share a draw.
    pub first: u64,
}

/// The factors of an update, computed in f64 and rounded once: every backend multiplies with the same bits.
#[derive(Debug, Clone, Copy)]
pub struct AdamWFactors {
    /// 1 − lr·wd
    pub decay: f32,
    /// lr/(1 − β₁ᵏ)
    pub step_size: f32,
    /// √(1 − β₂ᵏ)
    pub v_root: f32,
    pub beta2: f32,
    /// 1 − β₁
    pub rest1: f32,
    /// 1 − β₂
    pub rest2: f32,
    pub eps: f32,
}

/// Where the bits of the weights are that `param` does not show.
pub enum Master<'a> {
    /// Nowhere: f32 `param` is the master, and bf16 `param` is rounded stochastically.
    None,
    /// [N] u16: the lower half of the f32 master. bf16 `param` is the upper half, one more where the remainder is 0x8000 or above: the master
    /// rounded to nearest, ties away from zero. So both together are the master exactly.
    Remainder(ViewMut<'a>),
}

impl<'a> Master<'a> {
    /// Of a run of elements.
    pub fn into_rows(self, range: std::ops::Range<usize>) -> Master<'a> {
        match self {
            Master::None => Master::None,
            Master::Remainder(remainder) => Master::Remainder(remainder.into_rows(range)),
        }
    }

    /// The bf16 parameter and the remainder of an f32 master; NaN becomes 0x7fc00000.
    pub fn split(master: f32) -> (bf16, u16) {
        let bits = if master.is_nan() { 0x7fc0_0000 } else { master.to_bits() };
        let remainder = bits as u16;
        (bf16::from_bits((bits >> 16) as u16 + (remainder >> 15)), remainder)
    }

    /// The master that [`Master::split`] took apart.
    pub fn join(param: bf16, remainder: u16) -> f32 {
        let upper = param.to_bits().wrapping_sub(remainder >> 15);
        f32::from_bits(u32::from(upper) << 16 | u32::from(remainder))
    }
}

/// A running mean: in f32; in bf16, rounded stochastically; or in 8 bits, rounded stochastically, with a scale a block.
///
/// 8 bits are a small float times the scale, a power of two: the exponent of the block's largest magnitude rounded up to 3 mantissa bits, at
/// least 2⁻¹²⁶; NaN where that magnitude is not below 2¹²⁷. m has a sign, 4 bits of exponent and 3 of mantissa, v 5 and 3, the smallest exponent
/// without the implicit one, as IEEE floats have it. The largest code is 1.875 times the scale. A v above zero never becomes zero. kernels/adamw/README.md
/// says why.
pub struct Moment<'a> {
    /// [N] f32, bf16 or u8, updated.
    pub values: ViewMut<'a>,
    /// [⌈N/256⌉] f32 with u8 values, updated.
    pub scales: Option<ViewMut<'a>>,
}

impl<'a> Moment<'a> {
    /// Elements that share a scale.
    pub const BLOCK: usize = 256;

    pub fn plain(values: ViewMut<'a>) -> Self {
        Moment { values, scales: None }
    }

    fn check(&self, name: &str, n: usize) -> Result<()> {
        const OP: &str = "adamw";
        expect_shape(OP, name, self.values.shape(), &[n])?;
        match (&self.scales, self.values.dtype()) {
            (None, DType::F32 | DType::Bf16) => Ok(()),
            (Some(scales), DType::U8) => {
                expect_shape(OP, "scales", scales.shape(), &[n.div_ceil(Self::BLOCK)])?;
                expect_dtype(OP, "scales", scales.dtype(), DType::F32)
            }
            (_, dtype) => expect(OP, false, || format!("{name} holds {dtype}: f32, bf16, or u8 with scales are known")),
        }
    }

    fn bytes(&self) -> usize {
        self.values.bytes() + self.scales.as_ref().map_or(0, |scales| scales.bytes())
    }
}

impl AdamW<'_> {
    pub fn check(&self) -> Result<()> {
        const OP: &str = "adamw";
        let n = self.param.elements();
        expect_shape(OP, "param", self.param.shape(), &[n])?;
        expect_shape(OP, "grad", self.grad.shape(), &[n])?;
        for (name, dtype) in [("param", self.param.dtype()), ("grad", self.grad.dtype())] {
            expect(OP, matches!(dtype, DType::F32 | DType::Bf16), || format!("{name} holds {dtype}, expected f32 or bf16"))?;
        }
        expect(OP, self.step > 0, || "steps are counted from 1".into())?;
        expect(OP, self.first.is_multiple_of(2), || format!("element 0 is number {}, which is odd", self.first))?;
        if let Master::Remainder(remainder) = &self.master {
            expect_shape(OP, "remainder", remainder.shape(), &[n])?;
            expect_dtype(OP, "remainder", remainder.dtype(), DType::U16)?;
            expect_dtype(OP, "param with a remainder", self.param.dtype(), DType::Bf16)?;
        }
        self.m.check("m", n)?;
        self.v.check("v", n)
    }

    pub fn factors(&self) -> AdamWFactors {
        let step = i32::try_from(self.step).unwrap_or(i32::MAX);
        AdamWFactors {
            decay: (1.0 - self.lr * self.weight_decay) as f32,
            step_size: (self.lr / (1.0 - self.beta1.powi(step))) as f32,
            v_root: (1.0 - self.beta2.powi(step)).sqrt() as f32,
            beta2: self.beta2 as f32,
            rest1: (1.0 - self.beta1) as f32,
            rest2: (1.0 - self.beta2) as f32,
            eps: self.eps as f32,
        }
    }

    pub fn cost(&self) -> Cost {
        let remainder = match &self.master {
            Master::None => 0,
            Master::Remainder(remainder) => remainder.bytes(),
        };
        let bytes = 2 * (self.param.bytes() + remainder + self.m.bytes() + self.v.bytes()) + self.grad.bytes();
        Cost { flops: 14.0 * self.param.elements() as f64, bytes: bytes as f64 }
    }
}
