//! Token embedding: launches of `kernels/embedding/`.

use super::ladder::{Version, WARP, expect_bf16, extent, launch, tiles};
use super::params::{EMBEDDING_BACKWARD_TILE, EMBEDDING_FORWARD_TILE, EmbeddingBackwardParams, EmbeddingForwardParams, Ptr};
use crate::device::Launcher;
use crate::error::Result;
use crate::ops::{Embedding, EmbeddingBackward};

pub const FORWARD: [Version; 2] = [
    Version {
        name: "forward 1",
        idea: "naive: a block a token, scalar accesses",
        kernel: "embedding_forward_1",
        any: "embedding_forward_1",
        widest: u32::MAX,
        geometry: |rows, _| launch(rows, 256, 0),
    },
    Version {
        name: "forward 2",
        idea: "16-byte accesses, four a lane before the first is stored",
        kernel: "embedding_forward_2",
        any: "embedding_forward_2_any",
        widest: u32::MAX,
        geometry: |rows, width| tiles(rows, width, EMBEDDING_FORWARD_TILE, 256),
    },
];

pub const BACKWARD: [Version; 3] = [
    Version {
        name: "backward 1",
        idea: "naive: a block a sorted position; where a run of equal ids starts, it adds the run's rows",
        kernel: "embedding_backward_1",
        any: "embedding_backward_1",
        widest: u32::MAX,
        geometry: |rows, _| launch(rows, 256, 0),
    },
    Version {
        name: "backward 2",
        idea: "16-byte accesses; sums in registers, so the table's row is read and written once a run",
        kernel: "embedding_backward_2",
        any: "embedding_backward_2_any",
        widest: u32::MAX,
        geometry: |rows, width| tiles(rows, width, EMBEDDING_BACKWARD_TILE, 256),
    },
    Version {
        name: "backward 3",
        idea: "a warp the runs that start in a window of 32 positions, eight rows loaded before the first is added",
        kernel: "embedding_backward_3",
        any: "embedding_backward_3_any",
        widest: u32::MAX,
        geometry: |rows, width| tiles(rows.div_ceil(WARP), width, EMBEDDING_BACKWARD_TILE, 128),
    },
];

/// Runs `version` of the forward ladder.
pub fn embedding(launcher: &dyn Launcher, version: &Version, op: Embedding) -> Result<()> {
    op.check()?;
    expect_bf16("embedding", op.table.dtype())?;
    let [rows, width] = extent("embedding", op.ids.elements(), op.table.shape().row_elements())?;
    let [vocabulary, _] = extent("embedding", op.table.shape()[0], 1)?;
    if rows == 0 {
        return Ok(());
    }
    let (table, out) = (op.table.address(), op.out.address());
    let params = EmbeddingForwardParams {
        table: Ptr::new(table),
        ids: Ptr::new(op.ids.address()),
        out: Ptr::new(out),
        rows: rows.into(),
        width,
        vocabulary,
    };
    let (kernel, launch) = version.select(&FORWARD, rows, width, &[table, out]);
    // SAFETY: the kernel's own parameter block, over views that `check` found to have the shapes it walks; it follows ids within the table only.
    unsafe { launcher.launch(kernel, launch, bytemuck::bytes_of(&params)) }
}

/// Runs `version` of the backward ladder.
pub fn embedding_backward(launcher: &dyn Launcher, version: &Version, op: EmbeddingBackward) -> Result<()> {
    op.check()?;
    expect_bf16("embedding_backward", op.dout.dtype())?;
    let [rows, width] = extent("embedding_backward", op.ids.elements(), op.dtable.shape().row_elements())?;
    let [vocabulary, _] = extent("embedding_backward", op.dtable.shape()[0], 1)?;
    if rows == 0 {
        return Ok(());
    }
    let (dout, dtable) = (op.dout.address(), op.dtable.address());
    let params = EmbeddingBackwardParams {
        dout: Ptr::new(dout),
        ids: Ptr::new(op.ids.address()),
        order: Ptr::new(op.order.address()),
        dtable: Ptr::new(dtable),
        rows,
        width,
        vocabulary: vocabulary.into(),
    };
    let (kernel, launch) = version.select(&BACKWARD, rows, width, &[dout, dtable]);
    // SAFETY: as above; `order` is a permutation of the rows by contract.
    unsafe { launcher.launch(kernel, launch, bytemuck::bytes_of(&params)) }
}
