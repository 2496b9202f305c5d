//! Rotary position embedding (Su et al. 2021, arXiv 2104.09864), half-split as in Qwen2.

use super::{Cost, HeadLayout, expect, expect_dtype, expect_shape};
use crate::error::Result;
use crate::tensor::{DType, View, ViewMut};

/// Rotates the query and key heads of a fused projection in place: for i < H/2,
/// (x[i], x[i + H/2]) → (x[i]·cos − x[i + H/2]·sin, x[i + H/2]·cos + x[i]·sin) at the token's position.
/// `inverse` rotates back, which is the gradient.
pub struct Rope<'a> {
    /// [T, Q + 2K, H] query, key and value heads; value heads stay as they are.
    pub qkv: ViewMut<'a>,
    pub heads: HeadLayout,
    /// [T] i32, each in 0..P.
    pub positions: View<'a>,
    /// [P, H/2] f32
    pub cos: View<'a>,
    /// [P, H/2] f32
    pub sin: View<'a>,
    pub inverse: bool,
}

impl Rope<'_> {
    pub fn check(&self) -> Result<()> {
        const OP: &str = "rope";
        let [t, p] = [self.qkv.shape()[0], self.cos.shape()[0]];
        let HeadLayout { dim, .. } = self.heads;
        expect(OP, dim > 0 && dim % 2 == 0, || format!("heads of {dim} elements have no two halves"))?;
        expect_shape(OP, "qkv", self.qkv.shape(), &[t, self.heads.fused(), self.heads.dim])?;
        expect_shape(OP, "positions", self.positions.shape(), &[t])?;
        expect_shape(OP, "cos", self.cos.shape(), &[p, self.heads.dim / 2])?;
        expect_shape(OP, "sin", self.sin.shape(), &[p, self.heads.dim / 2])?;
        expect_dtype(OP, "positions", self.positions.dtype(), DType::I32)?;
        expect_dtype(OP, "cos", self.cos.dtype(), DType::F32)?;
        expect_dtype(OP, "sin", self.sin.dtype(), DType::F32)
    }

    pub fn cost(&self) -> Cost {
        let rotated = self.qkv.elements() / self.heads.fused() * (self.heads.query + self.heads.kv);
        let tables = self.positions.elements() * self.heads.dim * 4;
        Cost { flops: 3.0 * rotated as f64, bytes: (2 * rotated * self.qkv.dtype().size() + tables) as f64 }
    }
}
