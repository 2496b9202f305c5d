//! Causal attention in tiles with a running softmax: memory stays linear in the sequence length.

use super::gemm::{Matrix, MatrixMut, product};
use super::math::{Shared, exp, larger, max_of, sum_of, vectorised};
use crate::error::Result;
use crate::ops::{Attention, AttentionBackward, HeadLayout};
use gemm::Parallelism;
use rayon::prelude::*;
use std::ops::Range;

/// Rows of a query tile and columns of a key tile.
const TILE: usize = 128;

/// A run of tokens of one head within rows of `stride` elements.
#[derive(Clone, Copy)]
struct Head {
    pointer: *const f32,
    stride: usize,
}

// SAFETY: reads only, of slices that outlive the parallel region.
unsafe impl Send for Head {}
unsafe impl Sync for Head {}

impl Head {
    /// Head `head` of rows with `heads` heads, from row `begin` on.
    fn new(data: &[f32], begin: usize, heads: usize, head: usize, dim: usize) -> Self {
        let stride = heads * dim;
        Head { pointer: data[begin * stride + head * dim..].as_ptr(), stride }
    }
    fn from(self, token: usize) -> Matrix {
        Matrix { pointer: self.pointer.wrapping_add(token * self.stride), strides: (self.stride, 1) }
    }
}

/// Scores of `rows` queries against `columns` keys, into tile[rows, columns].
///
/// # Safety
/// The matrices must hold that many rows of `dim` elements.
unsafe fn scores(tile: &mut [f32], q: Matrix, k: Matrix, rows: usize, columns: usize, dim: usize, scale: f32) {
    let c = MatrixMut { pointer: tile.as_mut_ptr(), strides: (columns, 1) };
    // SAFETY: the caller's promise; the tile is rows × columns.
    unsafe { product((rows, columns, dim), q, k.transposed(), scale, c, 0.0, Parallelism::None) }
}

/// One head's forward pass for `rows` queries whose first may see `visible` keys and each next one more.
/// Writes the output rows through `out` and returns log-sum-exps through `lse`.
///
/// # Safety
/// q must hold `rows` rows, k and v `visible + rows − 1`; `out` must be this call's alone.
unsafe fn attend(
    (q, k, v): (Matrix, Head, Head),
    (rows, visible, dim): (usize, usize, usize),
    scale: f32,
    out: MatrixMut,
    mut lse: impl FnMut(usize, f32),
) {
    let mut tile = vec![0.0f32; rows * TILE];
    let mut max = vec![f32::NEG_INFINITY; rows];
    let mut sum = vec![0.0f32; rows];
    let mut acc = vec![0.0f32; rows * dim];
    let keys = visible + rows - 1;
    for begin in (0..keys).step_by(TILE) {
        let columns = TILE.min(keys - begin);
        let tile = &mut tile[..rows * columns];
        // SAFETY: keys begin..begin + columns exist.
        unsafe { scores(tile, q, k.from(begin), rows, columns, dim, scale) };
        for (row, scores) in tile.chunks_exact_mut(columns).enumerate() {
            let seen = (visible + row).saturating_sub(begin).min(columns);
            let (seen, hidden) = scores.split_at_mut(seen);
            hidden.fill(0.0);
            if seen.is_empty() {
                continue;
            }
            vectorised(|| {
                let new_max = larger(max[row], max_of(seen));
                let rescale = exp(max[row] - new_max);
                seen.iter_mut().for_each(|s| *s = exp(*s - new_max));
                sum[row] = sum[row] * rescale + sum_of(seen.len(), |i| seen[i]);
                max[row] = new_max;
                acc[row * dim..][..dim].iter_mut().for_each(|a| *a *= rescale);
            });
        }
        let p = Matrix::new(tile, (columns, 1));
        let c = MatrixMut { pointer: acc.as_mut_ptr(), strides: (dim, 1) };
        // SAFETY: values begin..begin + columns exist; acc is rows × dim.
        unsafe { product((rows, dim, columns), p, v.from(begin), 1.0, c, 1.0, Parallelism::None) };
    }
    for row in 0..rows {
        // SAFETY: row of this call's own output.
        let out = unsafe { std::slice::from_raw_parts_mut(out.pointer.add(row * out.strides.0), dim) };
        out.iter_mut().zip(&acc[row * dim..]).for_each(|(out, a)| *out = a / sum[row]);
        lse(row, max[row] + sum[row].ln());
    }
}

/// Tiles of all sequences: (first token of the sequence, tokens of the tile within it).
fn tiles(cu_seqlens: &[i32]) -> Vec<(usize, Range<usize>)> {
    let mut tiles = Vec::new();
    for w in cu_seqlens.windows(2) {
        let (begin, length) = (w[0] as usize, (w[1] - w[0]) as usize);
        tiles.extend((0..length).step_by(TILE).map(|at| (begin, at..length.min(at + TILE))));
    }
    tiles
}

pub fn forward(op: Attention) -> Result<()> {
    op.check()?;
    let HeadLayout { query, kv, dim } = op.heads;
    let (fused, group, scale) = (op.heads.fused(), op.heads.group(), op.heads.scale());
    let tokens = op.qkv.shape()[0];
    let qkv = op.qkv.f32();
    let out = Shared::new(op.out.f32());
    let lse = Shared::new(op.lse.f32());

    let tasks: Vec<_> = tiles(op.cu_seqlens_host).into_iter().flat_map(|t| (0..query).map(move |q| (t.clone(), q))).collect();
    tasks.into_par_iter().for_each(|((begin, tile), q)| {
        let head = |h| Head::new(qkv, begin, fused, h, dim);
        let (keys, values) = (head(query + q / group), head(query + kv + q / group));
        let rows = (begin + tile.start, tile.len());
        let output = MatrixMut { pointer: out.pointer((rows.0 * query + q) * dim), strides: (query * dim, 1) };
        // SAFETY: `check` established the extents; each task owns its tile of one head of `out` and `lse`.
        unsafe {
            let lse = lse.slice(q * tokens + rows.0, rows.1);
            let operands = (head(q).from(tile.start), keys, values);
            attend(operands, (rows.1, tile.start + 1, dim), scale, output, |row, value| lse[row] = value);
        }
    });
    Ok(())
}

/// One task a (sequence, key/value head): it owns that head's dK and dV and the dQ of the group's query heads. Sums run over
/// query heads, then query tiles, in order, so results do not depend on the number of threads.
pub fn backward(op: AttentionBackward) -> Result<()> {
    op.check()?;
    let HeadLayout { query, kv, dim } = op.heads;
    let (fused, group, scale) = (op.heads.fused(), op.heads.group(), op.heads.scale());
    let tokens = op.qkv.shape()[0];
    let (qkv, out, lse, dout) = (op.qkv.f32(), op.out.f32(), op.lse.f32(), op.dout.f32());

    let delta = op.delta.f32();
    delta.par_chunks_exact_mut(tokens).enumerate().for_each(|(q, delta)| {
        for (t, delta) in delta.iter_mut().enumerate() {
            let at = (t * query + q) * dim;
            let (out, dout) = (&out[at..at + dim], &dout[at..at + dim]);
            *delta = vectorised(|| sum_of(dim, |i| out[i] * dout[i]));
        }
    });
    let delta = &*delta;

    let dqkv = op.dqkv.f32();
    dqkv.fill(0.0);
    let dqkv = Shared::new(dqkv);
    let mut tasks: Vec<(usize, usize, usize)> = op
        .cu_seqlens_host
        .windows(2)
        .flat_map(|w| (0..kv).map(move |kv| (w[0] as usize, (w[1] - w[0]) as usize, kv)))
        .collect();
    // Long sequences first: they take longest.
    tasks.sort_by_key(|&(begin, length, kv)| (std::cmp::Reverse(length), begin, kv));
    tasks.into_par_iter().for_each(|(begin, length, kv_head)| {
        let head = |h| Head::new(qkv, begin, fused, h, dim);
        let gradient = |h: usize, token: usize| MatrixMut {
            pointer: dqkv.pointer(((begin + token) * fused + h) * dim),
            strides: (fused * dim, 1),
        };
        let (k_index, v_index) = (query + kv_head, query + kv + kv_head);
        let (keys, values) = (head(k_index), head(v_index));
        let mut p = vec![0.0f32; TILE * TILE];
        let mut ds = vec![0.0f32; TILE * TILE];
        for k_begin in (0..length).step_by(TILE) {
            let columns = TILE.min(length - k_begin);
            let (k, v) = (keys.from(k_begin), values.from(k_begin));
            for q_head in kv_head * group..(kv_head + 1) * group {
                let queries = head(q_head);
                let douts = Head::new(dout, begin, query, q_head, dim);
                for q_begin in (k_begin..length).step_by(TILE) {
                    let rows = TILE.min(length - q_begin);
                    let (p, ds) = (&mut p[..rows * columns], &mut ds[..rows * columns]);
                    let (q, d) = (queries.from(q_begin), douts.from(q_begin));
                    let extent = (rows, columns, dim);
                    // SAFETY: all tiles lie within the sequence; this task alone writes its heads of dqkv.
                    unsafe {
                        scores(p, q, k, rows, columns, dim, scale);
                        let c = MatrixMut { pointer: ds.as_mut_ptr(), strides: (columns, 1) };
                        product(extent, d, v.transposed(), 1.0, c, 0.0, Parallelism::None);
                    }
                    let statistics = q_head * tokens + begin + q_begin;
                    for (row, (p, ds)) in p.chunks_exact_mut(columns).zip(ds.chunks_exact_mut(columns)).enumerate() {
                        let (lse, delta) = (lse[statistics + row], delta[statistics + row]);
                        let seen = (q_begin + row + 1).saturating_sub(k_begin).min(columns);
                        vectorised(|| {
                            for (p, ds) in p[..seen].iter_mut().zip(&mut ds[..seen]) {
                                *p = exp(*p - lse);
                                *ds = *p * (*ds - delta);
                            }
                        });
                        p[seen..].fill(0.0);
                        ds[seen..].fill(0.0);
                    }
                    let (p, ds) = (Matrix::new(p, (columns, 1)), Matrix::new(ds, (columns, 1)));
                    // SAFETY: as above.
                    unsafe {
                        let (kd, vd) = (gradient(k_index, k_begin), gradient(v_index, k_begin));
                        product((columns, dim, rows), p.transposed(), d, 1.0, vd, 1.0, Parallelism::None);
                        product((columns, dim, rows), ds.transposed(), q, scale, kd, 1.0, Parallelism::None);
                        product((rows, dim, columns), ds, k, scale, gradient(q_head, q_begin), 1.0, Parallelism::None);
                    }
                }
            }
        }
    });
    Ok(())
}
