//! RoPE into a paged cache, and attention over it. Every product has the same inner extents whatever the batch, and as many rows as
//! [`steady_rows`] asks for, so that a row does not depend on those beside it.

use super::gemm::{Matrix, MatrixMut, product, steady_rows};
use super::math::{Shared, exp, larger, max_of, sum_of, vectorised};
use super::rope::rotate;
use super::rounded::{updated, widened};
use crate::error::Result;
use crate::ops::{HeadLayout, PAGE, PagedAttention, PagedQueries, PagedRope};
use crate::tensor::{DType, View, ViewMut};
use gemm::Parallelism;
use half::bf16;
use rayon::prelude::*;
use std::borrow::Cow;
use std::ops::Range;

/// Elements from a page to the next, and of a layer before its keys: [N, L, 2, K · PAGE · H].
fn strides(shape: &[usize], layer: usize) -> (usize, usize) {
    (shape[1] * 2 * shape[3], layer * 2 * shape[3])
}

/// The cache in either storage.
enum Elements<'a> {
    F32(&'a [f32]),
    Bf16(&'a [bf16]),
}

impl<'a> Elements<'a> {
    fn new(view: View<'a>) -> Self {
        if view.dtype() == DType::F32 { Elements::F32(view.f32()) } else { Elements::Bf16(view.bf16()) }
    }
    fn read(&self, range: Range<usize>) -> Cow<'a, [f32]> {
        match self {
            Elements::F32(values) => Cow::Borrowed(&values[range]),
            Elements::Bf16(values) => values[range].iter().map(|value| value.to_f32()).collect(),
        }
    }
}

fn write(cache: &mut ViewMut, at: usize, values: &[f32]) {
    let mut cache = cache.reborrow();
    if cache.dtype() == DType::F32 {
        cache.reborrow().f32()[at..at + values.len()].copy_from_slice(values);
    } else {
        cache.bf16()[at..at + values.len()].iter_mut().zip(values).for_each(|(out, &v)| *out = bf16::from_f32(v));
    }
}

/// Both storages: what is stored is rounded once.
pub fn rope(op: PagedRope) -> Result<()> {
    op.check()?;
    let HeadLayout { query, kv, dim } = op.heads;
    let half = dim / 2;
    let (cos, sin) = (op.cos.f32(), op.sin.f32());
    let (page, first) = strides(op.cache.shape(), op.layer);
    let mut cache = op.cache;
    updated(op.qkv, |qkv| {
        let rows = qkv.f32().chunks_exact_mut(op.heads.fused() * dim);
        let mut turned = vec![0.0f32; dim];
        for ((row, &position), &at) in rows.zip(op.positions.i32()).zip(op.rows.i32()) {
            let table = position as usize * half..(position as usize + 1) * half;
            let (cos, sin) = (&cos[table.clone()], &sin[table]);
            vectorised(|| row[..query * dim].chunks_exact_mut(dim).for_each(|head| rotate(head, cos, sin, 1.0)));
            let Ok(at) = usize::try_from(at) else { continue };
            let keys = at / PAGE * page + first;
            for head in 0..kv {
                let to = keys + (head * PAGE + at % PAGE) * dim;
                turned.copy_from_slice(&row[(query + head) * dim..][..dim]);
                vectorised(|| rotate(&mut turned, cos, sin, 1.0));
                write(&mut cache, to, &turned);
                write(&mut cache, to + kv * PAGE * dim, &row[(query + kv + head) * dim..][..dim]);
            }
        }
        Ok(())
    })
}

/// Rows of queries that a task takes at a time.
const ROWS: usize = 128;

/// The query rows of one task: they share a sequence and a key/value head.
struct Task {
    sequence: usize,
    head: usize,
    /// Of the T.
    tokens: Range<usize>,
    /// Cached tokens that the first of them sees; each next one sees one more.
    visible: usize,
}

fn tasks(op: &PagedAttention) -> Vec<Task> {
    let HeadLayout { kv, .. } = op.heads;
    let lengths = op.lengths.i32();
    let mut tasks = Vec::new();
    for (sequence, &length) in lengths.iter().enumerate() {
        let (tokens, length) = match op.queries {
            PagedQueries::Last => (sequence..sequence + 1, length as usize),
            PagedQueries::Chunks { cu_seqlens_host: cu, .. } => {
                (cu[sequence] as usize..cu[sequence + 1] as usize, length as usize)
            }
        };
        let step = (ROWS / op.heads.group()).max(1);
        for begin in tokens.clone().step_by(step) {
            let part = begin..tokens.end.min(begin + step);
            let visible = (length + part.start + 1).saturating_sub(tokens.end);
            tasks.extend((0..kv).map(|head| Task { sequence, head, tokens: part.clone(), visible }));
        }
    }
    tasks
}

/// Both storages: what is stored is rounded once.
pub fn attention(op: PagedAttention) -> Result<()> {
    op.check()?;
    let tasks = tasks(&op);
    let PagedAttention { qkv, heads, cache, layer, pages, out, .. } = op;
    if qkv.dtype() == DType::F32 {
        attend(tasks, heads, qkv.f32(), (cache, layer), pages, out.f32());
        return Ok(());
    }
    let wide = widened(qkv);
    updated(out, |out| {
        attend(tasks, heads, wide.view().f32(), (cache, layer), pages, out.f32());
        Ok(())
    })
}

fn attend(tasks: Vec<Task>, heads: HeadLayout, qkv: &[f32], (cache, layer): (View, usize), pages: View, out: &mut [f32]) {
    let HeadLayout { query, kv, dim } = heads;
    let (fused, group, scale) = (heads.fused(), heads.group(), heads.scale());
    let width = pages.shape().row_elements();
    let (page, first) = strides(cache.shape(), layer);
    let (cache, pages) = (Elements::new(cache), pages.i32());
    let out = Shared::new(out);
    tasks.into_par_iter().for_each(|Task { sequence, head, tokens, visible }| {
        let rows = tokens.len() * group;
        // Row r is query head r % group of token r / group.
        let place = |row: usize, heads: usize| ((tokens.start + row / group) * heads + head * group + row % group) * dim;
        let padded = rows.max(steady_rows(PAGE.min(dim)));
        let mut queries = vec![0.0f32; padded * dim];
        for (row, to) in queries.chunks_exact_mut(dim).take(rows).enumerate() {
            to.copy_from_slice(&qkv[place(row, fused)..][..dim]);
        }
        let mut scores = vec![0.0f32; padded * PAGE];
        let (mut max, mut sum) = (vec![f32::NEG_INFINITY; rows], vec![0.0f32; rows]);
        let mut acc = vec![0.0f32; padded * dim];
        let keys_seen = if visible == 0 { 0 } else { visible + tokens.len() - 1 };
        for (tile, begin) in (0..keys_seen).step_by(PAGE).enumerate() {
            let keys = pages[sequence * width + tile] as usize * page + first + head * PAGE * dim;
            let values = keys + kv * PAGE * dim;
            let (keys, values) = (cache.read(keys..keys + PAGE * dim), cache.read(values..values + PAGE * dim));
            let c = MatrixMut { pointer: scores.as_mut_ptr(), strides: (PAGE, 1) };
            // SAFETY: padded × dim queries, PAGE × dim keys, padded × PAGE scores.
            unsafe {
                let (q, k) = (Matrix::new(&queries, (dim, 1)), Matrix::new(&keys, (dim, 1)).transposed());
                product((padded, PAGE, dim), q, k, scale, c, 0.0, Parallelism::None);
            }
            for (row, scores) in scores.chunks_exact_mut(PAGE).take(rows).enumerate() {
                let seen = (visible + row / group).saturating_sub(begin).min(PAGE);
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
            let c = MatrixMut { pointer: acc.as_mut_ptr(), strides: (dim, 1) };
            // SAFETY: padded × PAGE probabilities, PAGE × dim values, padded × dim sums. What a page does not hold yet is finite, and its probability is 0.
            unsafe {
                let (p, v) = (Matrix::new(&scores, (PAGE, 1)), Matrix::new(&values, (dim, 1)));
                product((padded, dim, PAGE), p, v, 1.0, c, 1.0, Parallelism::None);
            }
        }
        for row in 0..rows {
            // SAFETY: each task owns the rows of its tokens and query heads.
            let out = unsafe { out.slice(place(row, query), dim) };
            let scale = if visible == 0 { 0.0 } else { 1.0 / sum[row] };
            out.iter_mut().zip(&acc[row * dim..]).for_each(|(out, a)| *out = a * scale);
        }
    });
}
