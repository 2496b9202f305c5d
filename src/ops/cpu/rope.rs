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
            row.chunks_exact_mut(heads.dim).take(heads.query + heads.kv).for_each(|head| rotate(head, cos, sin, sign));
        });
    });
    Ok(())
}

/// Turns one head, [H], by the angles of its position, [H/2] each; `sign` −1 turns back.
#[inline(always)]
pub fn rotate(head: &mut [f32], cos: &[f32], sin: &[f32], sign: f32) {
    let half = head.len() / 2;
    let (low, high) = head.split_at_mut(half);
    let (cos, sin) = (&cos[..half], &sin[..half]);
    for i in 0..half {
        let (x, y, c, s) = (low[i], high[i], cos[i], sign * sin[i]);
        low[i] = x * c - y * s;
        high[i] = y * c + x * s;
    }
}
