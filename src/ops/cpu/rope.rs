//! Rotary position embedding.

use super::math::vectorised;
use crate::error::Result;
use crate::ops::Rope;
use rayon::prelude::*;

pub fn rope(op: Rope) -> Result<()> {
    op.check()?;
    let heads = op.heads;
    let half = heads.dim / 2;
    let (cos, sin) = (op.cos.f32(), op.sin.f32());
    let sign = if op.inverse { -1.0 } else { 1.0 };
    let rows = op.qkv.f32().par_chunks_exact_mut(heads.fused() * heads.dim);
    rows.zip(op.positions.i32()).with_min_len(64).for_each(|(row, &position)| {
        let at = position as usize * half;
        let (cos, sin) = (&cos[at..at + half], &sin[at..at + half]);
        vectorised(|| {
            for head in row.chunks_exact_mut(heads.dim).take(heads.query + heads.kv) {
                let (low, high) = head.split_at_mut(half);
                for i in 0..half {
                    let (x, y, c, s) = (low[i], high[i], cos[i], sign * sin[i]);
                    low[i] = x * c - y * s;
                    high[i] = y * c + x * s;
                }
            }
        });
    });
    Ok(())
}
