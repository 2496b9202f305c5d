//! The gated activation: launches of `kernels/swiglu/`.

use super::ladder::{Version, expect_bf16, extent, launch, tiles};
use super::params::{Ptr, SWIGLU_BACKWARD_TILE, SWIGLU_FORWARD_TILE, SwiGluBackwardParams, SwiGluForwardParams};
use crate::device::Launcher;
use crate::error::Result;
use crate::ops::{SwiGlu, SwiGluBackward};

pub const FORWARD: [Version; 3] = [
    Version {
        name: "forward 1",
        idea: "naive: a block a token, scalar accesses",
        kernel: "swiglu_forward_1",
        any: "swiglu_forward_1",
        widest: u32::MAX,
        geometry: |rows, _| launch(rows, 256, 0),
    },
    Version {
        name: "forward 2",
        idea: "16-byte accesses: a warp a tile of a row",
        kernel: "swiglu_forward_2",
        any: "swiglu_forward_2_any",
        widest: u32::MAX,
        geometry: |rows, width| tiles(rows, width, 256, 256),
    },
    Version {
        name: "forward 3",
        idea: "two vectors a lane of each input, all loads issued before the first use",
        kernel: "swiglu_forward_3",
        any: "swiglu_forward_3_any",
        widest: u32::MAX,
        geometry: |rows, width| tiles(rows, width, SWIGLU_FORWARD_TILE, 256),
    },
];

pub const BACKWARD: [Version; 3] = [
    Version {
        name: "backward 1",
        idea: "naive: a block a token, scalar accesses",
        kernel: "swiglu_backward_1",
        any: "swiglu_backward_1",
        widest: u32::MAX,
        geometry: |rows, _| launch(rows, 256, 0),
    },
    Version {
        name: "backward 2",
        idea: "16-byte accesses: a warp a tile of a row",
        kernel: "swiglu_backward_2",
        any: "swiglu_backward_2_any",
        widest: u32::MAX,
        geometry: |rows, width| tiles(rows, width, 256, 256),
    },
    Version {
        name: "backward 3",
        idea: "two vectors a lane of each input, loads issued before the first use",
        kernel: "swiglu_backward_3",
        any: "swiglu_backward_3_any",
        widest: u32::MAX,
        geometry: |rows, width| tiles(rows, width, SWIGLU_BACKWARD_TILE, 256),
    },
];

/// Runs `version` of the forward ladder.
pub fn swiglu(launcher: &dyn Launcher, version: &Version, op: SwiGlu) -> Result<()> {
    op.check()?;
    expect_bf16("swiglu", op.out.dtype())?;
    let [rows, width] = extent("swiglu", op.out.shape()[0], op.out.shape().row_elements())?;
    if rows == 0 {
        return Ok(());
    }
    let (gate_up, out) = (op.gate_up.address(), op.out.address());
    let params = SwiGluForwardParams { gate_up: Ptr::new(gate_up), out: Ptr::new(out), rows, width };
    let (kernel, launch) = version.select(&FORWARD, rows, width, &[gate_up, out]);
    // SAFETY: the kernel's own parameter block, over views that `check` found to have the shapes it walks.
    unsafe { launcher.launch(kernel, launch, bytemuck::bytes_of(&params)) }
}

/// Runs `version` of the backward ladder.
pub fn swiglu_backward(launcher: &dyn Launcher, version: &Version, op: SwiGluBackward) -> Result<()> {
    op.check()?;
    expect_bf16("swiglu_backward", op.dout.dtype())?;
    let [rows, width] = extent("swiglu_backward", op.dout.shape()[0], op.dout.shape().row_elements())?;
    if rows == 0 {
        return Ok(());
    }
    let (gate_up, dout, dgate_up) = (op.gate_up.address(), op.dout.address(), op.dgate_up.address());
    let params =
        SwiGluBackwardParams { gate_up: Ptr::new(gate_up), dout: Ptr::new(dout), dgate_up: Ptr::new(dgate_up), rows, width };
    let (kernel, launch) = version.select(&BACKWARD, rows, width, &[gate_up, dout, dgate_up]);
    // SAFETY: the kernel's own parameter block, over views that `check` found to have the shapes it walks.
    unsafe { launcher.launch(kernel, launch, bytemuck::bytes_of(&params)) }
}
