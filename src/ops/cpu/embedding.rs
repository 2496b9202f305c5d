//! Token embedding.

use crate::error::{Error, Result};
use crate::ops::{Embedding, EmbeddingBackward};

fn row(id: i32, rows: usize) -> Result<usize> {
    usize::try_from(id)
        .ok()
        .filter(|&id| id < rows)
        .ok_or_else(|| Error::internal(format!("embedding: token id {id} is outside the table of {rows} rows")))
}

/// Of any element type: rows are copied.
pub fn forward(op: Embedding) -> Result<()> {
    op.check()?;
    let (rows, row_bytes) = (op.table.shape()[0], op.table.shape().row_elements() * op.table.dtype().size());
    let table = op.table.raw_bytes();
    for (&id, out) in op.ids.i32().iter().zip(op.out.raw_bytes().chunks_exact_mut(row_bytes)) {
        out.copy_from_slice(&table[row(id, rows)? * row_bytes..][..row_bytes]);
    }
    Ok(())
}

pub fn backward(op: EmbeddingBackward) -> Result<()> {
    op.check()?;
    let (rows, d) = (op.dtable.shape()[0], op.dtable.shape().row_elements());
    let dtable = op.dtable.f32();
    for (&id, dout) in op.ids.i32().iter().zip(op.dout.f32().chunks_exact(d)) {
        let dtable = &mut dtable[row(id, rows)? * d..][..d];
        dtable.iter_mut().zip(dout).for_each(|(out, g)| *out += g);
    }
    Ok(())
}
