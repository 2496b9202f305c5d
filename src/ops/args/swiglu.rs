//! The gated activation of the feed-forward block (Shazeer 2020, arXiv 2002.05202).

use super::{Cost, expect_dtype, expect_shape};
use crate::error::Result;
use crate::tensor::{View, ViewMut};

/// out = silu(gate) · up, with gate = gate_up[:, ..F] and up = gate_up[:, F..].
pub struct SwiGlu<'a> {
    /// [T, 2F]
    pub gate_up: View<'a>,
    /// [T, F] overwritten.
    pub out: ViewMut<'a>,
}

impl SwiGlu<'_> {
    pub fn check(&self) -> Result<()> {
        let [t, f] = [self.out.shape()[0], self.out.shape().row_elements()];
        expect_shape("swiglu", "out", self.out.shape(), &[t, f])?;
        expect_shape("swiglu", "gate_up", self.gate_up.shape(), &[t, 2 * f])?;
        expect_dtype("swiglu", "out", self.out.dtype(), self.gate_up.dtype())
    }

    pub fn cost(&self) -> Cost {
        Cost { flops: 5.0 * self.out.elements() as f64, bytes: (self.gate_up.bytes() + self.out.bytes()) as f64 }
    }
}

/// The gradient of [`SwiGlu`].
pub struct SwiGluBackward<'a> {
    /// [T, 2F]
    pub gate_up: View<'a>,
    /// [T, F]
    pub dout: View<'a>,
    /// [T, 2F] overwritten.
    pub dgate_up: ViewMut<'a>,
}

impl SwiGluBackward<'_> {
    pub fn check(&self) -> Result<()> {
        const OP: &str = "swiglu_backward";
        let [t, f] = [self.dout.shape()[0], self.dout.shape().row_elements()];
        expect_shape(OP, "dout", self.dout.shape(), &[t, f])?;
        expect_shape(OP, "gate_up", self.gate_up.shape(), &[t, 2 * f])?;
        expect_shape(OP, "dgate_up", self.dgate_up.shape(), &[t, 2 * f])?;
        expect_dtype(OP, "dout", self.dout.dtype(), self.gate_up.dtype())?;
        expect_dtype(OP, "dgate_up", self.dgate_up.dtype(), self.gate_up.dtype())
    }

    pub fn cost(&self) -> Cost {
        Cost { flops: 10.0 * self.dout.elements() as f64, bytes: (2 * self.gate_up.bytes() + self.dout.bytes()) as f64 }
    }
}
