//! Gradient norm and AdamW.

use super::{Cost, expect_dtype, expect_shape};
use crate::error::Result;
use crate::tensor::{DType, View, ViewMut};

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

/// One AdamW update (Loshchilov & Hutter 2017, arXiv 1711.05101), in the order of operations of torch.optim.AdamW, on one tensor:
/// g = grad · grad_scale; p ·= 1 − lr·wd; m ← β₁m + (1−β₁)g; v ← β₂v + (1−β₂)g²;
/// p −= lr/(1−β₁ᵏ) · m / (√(v/(1−β₂ᵏ)) + eps).
pub struct AdamW<'a> {
    /// [N] f32, updated.
    pub param: ViewMut<'a>,
    /// [N] f32
    pub grad: View<'a>,
    /// [N] f32, updated.
    pub m: ViewMut<'a>,
    /// [N] f32, updated.
    pub v: ViewMut<'a>,
    /// k, counted from 1.
    pub step: u64,
    pub lr: f64,
    pub beta1: f64,
    pub beta2: f64,
    pub eps: f64,
    pub weight_decay: f64,
    /// The clip factor.
    pub grad_scale: f32,
}

impl AdamW<'_> {
    pub fn check(&self) -> Result<()> {
        const OP: &str = "adamw";
        let n = self.param.elements();
        expect_shape(OP, "param", self.param.shape(), &[n])?;
        expect_shape(OP, "grad", self.grad.shape(), &[n])?;
        expect_shape(OP, "m", self.m.shape(), &[n])?;
        expect_shape(OP, "v", self.v.shape(), &[n])?;
        expect_dtype(OP, "grad", self.grad.dtype(), DType::F32)
    }

    pub fn cost(&self) -> Cost {
        let bytes = 2 * (self.param.bytes() + self.m.bytes() + self.v.bytes()) + self.grad.bytes();
        Cost { flops: 14.0 * self.param.elements() as f64, bytes: bytes as f64 }
    }
}
