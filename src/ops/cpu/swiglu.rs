//! The gated activation.

use super::math::{sigmoid, vectorised};
use crate::error::Result;
use crate::ops::{SwiGlu, SwiGluBackward};
use rayon::prelude::*;

pub fn forward(op: SwiGlu) -> Result<()> {
    op.check()?;
    let f = op.out.shape().row_elements();
    let rows = op.out.f32().par_chunks_exact_mut(f).zip(op.gate_up.f32().par_chunks_exact(2 * f));
    rows.for_each(|(out, gate_up)| {
        let (gate, up) = gate_up.split_at(f);
        vectorised(|| {
            for ((out, &g), &u) in out.iter_mut().zip(gate).zip(up) {
                *out = g * sigmoid(g) * u;
            }
        })
    });
    Ok(())
}

pub fn backward(op: SwiGluBackward) -> Result<()> {
    op.check()?;
    let f = op.dout.shape().row_elements();
    let inputs = op.gate_up.f32().par_chunks_exact(2 * f).zip(op.dout.f32().par_chunks_exact(f));
    op.dgate_up.f32().par_chunks_exact_mut(2 * f).zip(inputs).for_each(|(dgate_up, (gate_up, dout))| {
        let (gate, up) = gate_up.split_at(f);
        let (dgate, dup) = dgate_up.split_at_mut(f);
        vectorised(|| {
            for i in 0..f {
                let s = sigmoid(gate[i]);
                let silu = gate[i] * s;
                dup[i] = dout[i] * silu;
                // silu' = s + gate · s · (1 − s)
                dgate[i] = dout[i] * up[i] * (s + silu * (1.0 - s));
            }
        })
    });
    Ok(())
}
