//! Rotary position embedding: launches of `kernels/rope/`.

use super::ladder::{VECTOR, Version, WARP, expect_bf16, extent, launch};
use super::params::{Ptr, RopeParams};
use crate::device::Launcher;
use crate::error::Result;
use crate::ops::Rope;

/// The width of a ladder's rows is half a head: what one angle each turns.
pub const ROPE: [Version; 3] = [
    Version {
        name: "turn 1",
        idea: "naive: a block a token, a pair a thread at a time",
        kernel: "rope_1",
        any: "rope_1",
        widest: u32::MAX,
        geometry: |rows, _| launch(rows, 256, 0),
    },
    Version {
        name: "turn 2",
        idea: "16-byte accesses: eight pairs a thread",
        kernel: "rope_2",
        any: "rope_2_any",
        widest: u32::MAX,
        geometry: |rows, _| launch(rows, 256, 0),
    },
    Version {
        name: "turn 3",
        idea: "a warp a token: sines and cosines stay in registers, four heads a lane on their way",
        kernel: "rope_3",
        any: "rope_3_any",
        widest: WARP * VECTOR,
        geometry: |rows, _| launch(rows.div_ceil(8), 256, 0),
    },
];

/// Runs `version` of the ladder.
pub fn rope(launcher: &dyn Launcher, version: &Version, op: Rope) -> Result<()> {
    op.check()?;
    expect_bf16("rope", op.qkv.dtype())?;
    let [rows, half] = extent("rope", op.qkv.shape()[0], op.heads.dim / 2)?;
    let [turned, fused] = extent("rope", op.heads.query + op.heads.kv, op.heads.fused())?;
    if rows == 0 {
        return Ok(());
    }
    let (qkv, cos, sin) = (op.qkv.address(), op.cos.address(), op.sin.address());
    let params = RopeParams {
        qkv: Ptr::new(qkv),
        positions: Ptr::new(op.positions.address()),
        cos: Ptr::new(cos),
        sin: Ptr::new(sin),
        rows,
        turned,
        fused,
        half,
        sign: if op.inverse { -1.0 } else { 1.0 },
        padding: 0,
    };
    let (kernel, launch) = version.select(&ROPE, rows, half, &[qkv, cos, sin]);
    // SAFETY: the kernel's own parameter block, over views that `check` found to have the shapes it walks; positions are rows of the tables by contract.
    unsafe { launcher.launch(kernel, launch, bytemuck::bytes_of(&params)) }
}
