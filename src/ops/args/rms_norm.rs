//! Fused residual addition and RMSNorm (Zhang & Sennrich 2019, arXiv 1910.07467; Qwen2's pre-norm).

use super::{Cost, expect_dtype, expect_shape};
use crate::error::Result;
use crate::tensor::{DType, View, ViewMut};

/// sum = x + delta; rstd = 1/√(mean(sum²) + eps) in f32; y = round(sum · rstd) · weight.
///
/// `sum` is rounded to its storage type first and the statistics are taken of the rounded values, so that the backward
/// pass, which only sees the stored sum, differentiates what was computed. The normalised value is rounded to the
/// storage type *before* it meets the weight, as transformers does.
pub struct RmsNorm<'a> {
    /// [T, D] the residual stream.
    pub x: View<'a>,
    /// [T, D] what the last sublayer adds to it; without it, no sum is formed.
    pub residual: Option<Residual<'a>>,
    /// [D]
    pub weight: View<'a>,
    pub eps: f32,
    /// [T, D] overwritten.
    pub y: ViewMut<'a>,
    /// [T] f32, overwritten.
    pub rstd: ViewMut<'a>,
}

/// The addition fused into [`RmsNorm`].
pub struct Residual<'a> {
    /// [T, D]
    pub delta: View<'a>,
    /// [T, D] x + delta, overwritten.
    pub sum: ViewMut<'a>,
}

impl RmsNorm<'_> {
    pub fn check(&self) -> Result<()> {
        const OP: &str = "rms_norm";
        let [t, d] = [self.x.shape()[0], self.x.shape().row_elements()];
        expect_shape(OP, "x", self.x.shape(), &[t, d])?;
        expect_shape(OP, "weight", self.weight.shape(), &[d])?;
        expect_shape(OP, "y", self.y.shape(), &[t, d])?;
        expect_shape(OP, "rstd", self.rstd.shape(), &[t])?;
        expect_dtype(OP, "weight", self.weight.dtype(), self.x.dtype())?;
        expect_dtype(OP, "y", self.y.dtype(), self.x.dtype())?;
        expect_dtype(OP, "rstd", self.rstd.dtype(), DType::F32)?;
        if let Some(residual) = &self.residual {
            expect_shape(OP, "delta", residual.delta.shape(), &[t, d])?;
            expect_shape(OP, "sum", residual.sum.shape(), &[t, d])?;
            expect_dtype(OP, "delta", residual.delta.dtype(), self.x.dtype())?;
            expect_dtype(OP, "sum", residual.sum.dtype(), self.x.dtype())?;
        }
        Ok(())
    }

    pub fn cost(&self) -> Cost {
        let elements = self.x.elements() as f64;
        let streams = if self.residual.is_some() { 4.0 } else { 2.0 };
        let bytes = streams * self.x.bytes() as f64 + self.weight.bytes() as f64 + self.rstd.bytes() as f64;
        Cost { flops: elements * if self.residual.is_some() { 5.0 } else { 4.0 }, bytes }
    }
}

/// The gradient of [`RmsNorm`] at its stored sum:
/// dx̂ = dy · weight; dsum (+)= rstd · (dx̂ − x̂ · mean(dx̂ · x̂)) with x̂ = sum · rstd; dweight += Σ_T dy · round(x̂).
/// `dsum` is the gradient of both x and delta.
///
/// Deterministic: rows are dealt to [`RmsNormBackward::PARTIALS`] partial sums of dweight, whatever the device, which are added in order.
pub struct RmsNormBackward<'a> {
    /// [T, D]
    pub dy: View<'a>,
    /// [T, D] the sum that the forward pass stored (its x, where nothing was added).
    pub sum: View<'a>,
    /// [D]
    pub weight: View<'a>,
    /// [T] f32
    pub rstd: View<'a>,
    /// [T, D] in and out where `accumulate`: the gradient that reached the residual stream from above; else overwritten.
    pub dsum: ViewMut<'a>,
    pub accumulate: bool,
    /// [D] f32, added to.
    pub dweight: ViewMut<'a>,
    /// [PARTIALS, D] f32 scratch, overwritten.
    pub partials: ViewMut<'a>,
}

impl RmsNormBackward<'_> {
    /// The number of partial sums of dweight: a constant, so that no result depends on the number of processors.
    pub const PARTIALS: usize = 256;

    pub fn check(&self) -> Result<()> {
        const OP: &str = "rms_norm_backward";
        let [t, d] = [self.dy.shape()[0], self.dy.shape().row_elements()];
        expect_shape(OP, "dy", self.dy.shape(), &[t, d])?;
        expect_shape(OP, "sum", self.sum.shape(), &[t, d])?;
        expect_shape(OP, "weight", self.weight.shape(), &[d])?;
        expect_shape(OP, "rstd", self.rstd.shape(), &[t])?;
        expect_shape(OP, "dsum", self.dsum.shape(), &[t, d])?;
        expect_shape(OP, "dweight", self.dweight.shape(), &[d])?;
        expect_shape(OP, "partials", self.partials.shape(), &[Self::PARTIALS, d])?;
        let storage = self.dy.dtype();
        expect_dtype(OP, "sum", self.sum.dtype(), storage)?;
        expect_dtype(OP, "weight", self.weight.dtype(), storage)?;
        expect_dtype(OP, "dsum", self.dsum.dtype(), storage)?;
        expect_dtype(OP, "rstd", self.rstd.dtype(), DType::F32)?;
        expect_dtype(OP, "dweight", self.dweight.dtype(), DType::F32)?;
        expect_dtype(OP, "partials", self.partials.dtype(), DType::F32)
    }

    pub fn cost(&self) -> Cost {
        let streams = if self.accumulate { 4.0 } else { 3.0 };
        let vectors = self.weight.bytes() + self.rstd.bytes() + 2 * self.dweight.bytes();
        Cost { flops: 11.0 * self.dy.elements() as f64, bytes: streams * self.dy.bytes() as f64 + vectors as f64 }
    }
}
