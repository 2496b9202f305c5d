//! The gradient of a bias: launches of `kernels/bias/`.

use super::ladder::{Version, WARP, expect_bf16, extent, launch};
use super::params::{BIAS_PARTIALS, BiasBackwardParams, BiasTotalParams, Ptr};
use crate::device::{Launch, Launcher};
use crate::error::Result;
use crate::ops::BiasBackward;

const _: () = assert!(BIAS_PARTIALS as usize == BiasBackward::PARTIALS);

/// Columns and threads of a block of every version.
const TILE: u32 = 256;

pub const BACKWARD: [Version; 3] = [
    Version {
        name: "backward 1",
        idea: "naive: a thread a column of a partial sum, scalar accesses",
        kernel: "bias_backward_1",
        any: "bias_backward_1",
        widest: u32::MAX,
        geometry: |_, width| grid(width, 0),
    },
    Version {
        name: "backward 2",
        idea: "16-byte accesses; the warps of a block share its rows",
        kernel: "bias_backward_2",
        any: "bias_backward_2_any",
        widest: u32::MAX,
        geometry: |_, width| grid(width, 8 * TILE * 4),
    },
    Version {
        name: "backward 3",
        idea: "eight rows loaded before the first is added",
        kernel: "bias_backward_3",
        any: "bias_backward_3_any",
        widest: u32::MAX,
        geometry: |_, width| grid(width, 8 * TILE * 4),
    },
];

/// A block for each tile of columns and each partial sum.
fn grid(width: u32, shared_bytes: u32) -> Launch {
    Launch { grid: [width.div_ceil(TILE), BIAS_PARTIALS, 1], block: [TILE, 1, 1], shared_bytes }
}

/// Runs `version` of the ladder, then adds its partial sums to dbias.
pub fn bias_backward(launcher: &dyn Launcher, version: &Version, op: BiasBackward) -> Result<()> {
    op.check()?;
    expect_bf16("bias_backward", op.dy.dtype())?;
    let [rows, width] = extent("bias_backward", op.dy.shape()[0], op.dy.shape().row_elements())?;
    let (dy, partials) = (op.dy.address(), op.partials.address());
    let params = BiasBackwardParams { dy: Ptr::new(dy), partials: Ptr::new(partials), rows, width };
    let total = BiasTotalParams { partials: Ptr::new(partials), dbias: Ptr::new(op.dbias.address()), width: width.into() };
    let (kernel, blocks) = version.select(&BACKWARD, rows, width, &[dy]);
    let columns = launch(width.div_ceil(WARP), 256, BIAS_PARTIALS * WARP * 4);
    // SAFETY: the kernels' own parameter blocks, over views that `check` found to have the shapes they walk.
    unsafe {
        launcher.launch(kernel, blocks, bytemuck::bytes_of(&params))?;
        launcher.launch("bias_total", columns, bytemuck::bytes_of(&total))
    }
}
