//! Token embedding.

use super::{Cost, expect_dtype, expect_shape};
use crate::error::Result;
use crate::tensor::{DType, View, ViewMut};

/// out[t] = table[ids[t]]: a copy, to the bit.
///
/// The CPU backend refuses an id outside the table. A kernel cannot, so callers check ids on the host; its row for such an id is zeros.
pub struct Embedding<'a> {
    /// [V, D]
    pub table: View<'a>,
    /// [T] i32, each in 0..V.
    pub ids: View<'a>,
    /// [T, D] overwritten.
    pub out: ViewMut<'a>,
}

impl Embedding<'_> {
    pub fn check(&self) -> Result<()> {
        const OP: &str = "embedding";
        let [t, d] = [self.ids.shape()[0], self.table.shape().row_elements()];
        expect_shape(OP, "ids", self.ids.shape(), &[t])?;
        expect_shape(OP, "out", self.out.shape(), &[t, d])?;
        expect_dtype(OP, "ids", self.ids.dtype(), DType::I32)?;
        expect_dtype(OP, "out", self.out.dtype(), self.table.dtype())
    }

    pub fn cost(&self) -> Cost {
        Cost { flops: 0.0, bytes: (2 * self.out.bytes() + self.ids.bytes()) as f64 }
    }
}

/// dtable[ids[t]] += dout[t] in f32, the occurrences of an id added one by one in order of t.
///
/// The CPU backend refuses an id outside the table; kernels leave its occurrences out.
pub struct EmbeddingBackward<'a> {
    /// [T, D]
    pub dout: View<'a>,
    /// [T] i32
    pub ids: View<'a>,
    /// [T] i32: 0..T sorted by id, equal ids in order of t.
    pub order: View<'a>,
    /// [V, D] f32, added to.
    pub dtable: ViewMut<'a>,
}

impl EmbeddingBackward<'_> {
    pub fn check(&self) -> Result<()> {
        const OP: &str = "embedding_backward";
        let [t, d] = [self.ids.shape()[0], self.dtable.shape().row_elements()];
        expect_shape(OP, "ids", self.ids.shape(), &[t])?;
        expect_shape(OP, "order", self.order.shape(), &[t])?;
        expect_shape(OP, "dout", self.dout.shape(), &[t, d])?;
        expect_dtype(OP, "ids", self.ids.dtype(), DType::I32)?;
        expect_dtype(OP, "order", self.order.dtype(), DType::I32)?;
        expect_dtype(OP, "dtable", self.dtable.dtype(), DType::F32)
    }

    pub fn cost(&self) -> Cost {
        let rows = 3 * self.dout.elements() * 4;
        Cost { flops: self.dout.elements() as f64, bytes: (rows + 2 * self.ids.bytes()) as f64 }
    }
}
