//! Fused residual addition and RMSNorm: launches of `kernels/rms_norm/`.

use super::ladder::{Version, WARP, expect_bf16, extent, launch};
use super::params::{
    Ptr, RMS_NORM_BACKWARD_WARP_WIDTH, RMS_NORM_FORWARD_WARP_WIDTH, RMS_NORM_PARTIALS, RmsNormBackwardParams,
    RmsNormForwardParams, RmsNormWeightGradientParams,
};
use crate::device::Launcher;
use crate::error::Result;
use crate::ops::{RmsNorm, RmsNormBackward};

const _: () = assert!(RMS_NORM_PARTIALS as usize == RmsNormBackward::PARTIALS);

/// Warps of a block that keeps rows in registers: what its `__launch_bounds__` allows.
const MOST_WARPS: u32 = 16;

pub const FORWARD: [Version; 5] = [
    Version {
        name: "forward 1",
        idea: "naive: a block a row, scalar accesses, a tree of sums in shared memory",
        kernel: "rms_norm_forward_1",
        any: "rms_norm_forward_1",
        widest: u32::MAX,
        geometry: |rows, _| launch(rows, 256, 256 * 4),
    },
    Version {
        name: "forward 2",
        idea: "warps sum in registers by shuffles: one barrier a row instead of nine",
        kernel: "rms_norm_forward_2",
        any: "rms_norm_forward_2",
        widest: u32::MAX,
        geometry: |rows, _| launch(rows, 256, slots(256)),
    },
    Version {
        name: "forward 3",
        idea: "16-byte accesses: eight elements a load",
        kernel: "rms_norm_forward_3",
        any: "rms_norm_forward_3_any",
        widest: u32::MAX,
        geometry: |rows, _| launch(rows, 256, slots(256)),
    },
    Version {
        name: "forward 4",
        idea: "the row stays in registers: read once, every load in flight before the first use",
        kernel: "rms_norm_forward_4",
        any: "rms_norm_forward_4_any",
        widest: MOST_WARPS * RMS_NORM_FORWARD_WARP_WIDTH,
        geometry: |rows, width| {
            let threads = WARP * width.div_ceil(RMS_NORM_FORWARD_WARP_WIDTH);
            launch(rows, threads, slots(threads))
        },
    },
    Version {
        name: "forward 5",
        idea: "several narrow rows a block, each with its own barrier",
        kernel: "rms_norm_forward_5",
        any: "rms_norm_forward_5_any",
        widest: MOST_WARPS * RMS_NORM_FORWARD_WARP_WIDTH,
        geometry: |rows, width| {
            let groups = Groups::new(width, RMS_NORM_FORWARD_WARP_WIDTH, 8);
            launch(rows.div_ceil(groups.count), groups.threads(), slots(groups.threads()))
        },
    },
];

pub const BACKWARD: [Version; 5] = [
    Version {
        name: "backward 1",
        idea: "naive: a block a partial sum, scalar accesses, dweight added up in global memory",
        kernel: "rms_norm_backward_1",
        any: "rms_norm_backward_1",
        widest: u32::MAX,
        geometry: |_, _| launch(RMS_NORM_PARTIALS, 256, 256 * 4),
    },
    Version {
        name: "backward 2",
        idea: "warps sum in registers by shuffles: one barrier a row instead of ten",
        kernel: "rms_norm_backward_2",
        any: "rms_norm_backward_2",
        widest: u32::MAX,
        geometry: |_, _| launch(RMS_NORM_PARTIALS, 256, slots(2 * 256)),
    },
    Version {
        name: "backward 3",
        idea: "16-byte accesses: eight elements a load",
        kernel: "rms_norm_backward_3",
        any: "rms_norm_backward_3_any",
        widest: u32::MAX,
        geometry: |_, _| launch(RMS_NORM_PARTIALS, 256, slots(2 * 256)),
    },
    Version {
        name: "backward 4",
        idea: "the row and its part of dweight stay in registers: each byte crosses memory once",
        kernel: "rms_norm_backward_4",
        any: "rms_norm_backward_4_any",
        widest: MOST_WARPS * RMS_NORM_BACKWARD_WARP_WIDTH,
        geometry: |_, width| {
            let threads = WARP * width.div_ceil(RMS_NORM_BACKWARD_WARP_WIDTH);
            launch(RMS_NORM_PARTIALS, threads, slots(2 * threads))
        },
    },
    Version {
        name: "backward 5",
        idea: "several rows at once in a block, each with its own barrier: loads of one hide the sums of another",
        kernel: "rms_norm_backward_5",
        any: "rms_norm_backward_5_any",
        widest: MOST_WARPS * RMS_NORM_BACKWARD_WARP_WIDTH,
        geometry: |_, width| {
            let groups = Groups::new(width, RMS_NORM_BACKWARD_WARP_WIDTH, MOST_WARPS);
            let total = if groups.count > 1 { 4 * width } else { 0 };
            launch(RMS_NORM_PARTIALS, groups.threads(), slots(2 * groups.threads()) + total)
        },
    },
];

/// Threads and columns of a block of `rms_norm_weight_gradient`.
const GRADIENT_THREADS: u32 = 256;
const GRADIENT_COLUMNS: u32 = 32;

/// Several groups of warps in a block; each group holds one row.
struct Groups {
    count: u32,
    /// Warps of a group.
    warps: u32,
}

impl Groups {
    /// As many groups as `most_warps` hold, at least one.
    fn new(width: u32, warp_width: u32, most_warps: u32) -> Self {
        let warps = width.div_ceil(warp_width);
        Groups { count: (most_warps / warps).max(1), warps }
    }
    fn threads(&self) -> u32 {
        WARP * self.warps * self.count
    }
}

/// Shared bytes for one f32 a warp, in whole 16-byte units.
const fn slots(threads: u32) -> u32 {
    (threads / WARP * 4).next_multiple_of(16)
}

/// Runs `version` of the forward ladder.
pub fn rms_norm(launcher: &dyn Launcher, version: &Version, op: RmsNorm) -> Result<()> {
    op.check()?;
    expect_bf16("rms_norm", op.x.dtype())?;
    let [rows, width] = extent("rms_norm", op.x.shape()[0], op.x.shape().row_elements())?;
    if rows == 0 {
        return Ok(());
    }
    let residual = op.residual.as_ref().map(|r| [r.delta.address(), r.sum.address()]);
    let [delta, sum] = residual.unwrap_or_default();
    let (x, weight, y) = (op.x.address(), op.weight.address(), op.y.address());
    let params = RmsNormForwardParams {
        x: Ptr::new(x),
        delta: Ptr::new(delta),
        weight: Ptr::new(weight),
        sum: Ptr::new(sum),
        y: Ptr::new(y),
        rstd: Ptr::new(op.rstd.address()),
        rows: rows.into(),
        width,
        eps: op.eps,
    };
    let (kernel, launch) = version.select(&FORWARD, rows, width, &[x, delta, weight, sum, y]);
    // SAFETY: the kernel's own parameter block, over views that `check` found to have the shapes it walks.
    unsafe { launcher.launch(kernel, launch, bytemuck::bytes_of(&params)) }
}

/// Runs `version` of the backward ladder, then adds its partial sums to dweight.
pub fn rms_norm_backward(launcher: &dyn Launcher, version: &Version, op: RmsNormBackward) -> Result<()> {
    op.check()?;
    expect_bf16("rms_norm_backward", op.dy.dtype())?;
    let [rows, width] = extent("rms_norm_backward", op.dy.shape()[0], op.dy.shape().row_elements())?;
    let (dy, sum, weight, dsum) = (op.dy.address(), op.sum.address(), op.weight.address(), op.dsum.address());
    let params = RmsNormBackwardParams {
        dy: Ptr::new(dy),
        sum: Ptr::new(sum),
        weight: Ptr::new(weight),
        rstd: Ptr::new(op.rstd.address()),
        dsum: Ptr::new(dsum),
        partials: Ptr::new(op.partials.address()),
        rows: rows.into(),
        width,
        accumulate: op.accumulate.into(),
    };
    let gradient = RmsNormWeightGradientParams {
        partials: Ptr::new(op.partials.address()),
        dweight: Ptr::new(op.dweight.address()),
        width: width.into(),
    };
    let (kernel, blocks) = version.select(&BACKWARD, rows, width, &[dy, sum, weight, dsum, op.partials.address()]);
    let tiles = launch(width.div_ceil(GRADIENT_COLUMNS), GRADIENT_THREADS, RMS_NORM_PARTIALS * GRADIENT_COLUMNS * 4);
    // SAFETY: the kernels' own parameter blocks, over views that `check` found to have the shapes they walk.
    unsafe {
        launcher.launch(kernel, blocks, bytemuck::bytes_of(&params))?;
        launcher.launch("rms_norm_weight_gradient", tiles, bytemuck::bytes_of(&gradient))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_width_gets_a_launch_within_the_bounds_of_its_kernel() {
        for (ladder, version) in FORWARD.iter().map(|v| (&FORWARD, v)).chain(BACKWARD.iter().map(|v| (&BACKWARD, v))) {
            for width in (1..10_000).step_by(37).chain([8192, 8193, 16384, 16385, 1 << 20]) {
                let (kernel, launch) = version.select(ladder, 3, width, &[0]);
                let [threads, ..] = launch.block;
                let most = if kernel.contains(['4', '5']) { 512 } else { 256 };
                assert!(threads.is_multiple_of(WARP) && (WARP..=most).contains(&threads), "{kernel}, width {width}");
                assert!(launch.shared_bytes <= 48 << 10, "{kernel}, width {width}: more needs an opt-in");
            }
        }
    }

    #[test]
    fn odd_widths_and_addresses_take_the_scalar_kernel() {
        let kernel = |width, address| FORWARD[4].select(&FORWARD, 1, width, &[0, address]).0;
        assert_eq!(kernel(896, 64), "rms_norm_forward_5");
        assert_eq!(kernel(897, 64), "rms_norm_forward_5_any");
        assert_eq!(kernel(896, 8), "rms_norm_forward_5_any");
        assert_eq!(kernel(1 << 20, 0), "rms_norm_forward_3");
    }
}
