//! Partial sums of squares: launches of `kernels/square_sums/`.

use super::ladder::{Version, expect_aligned, extent, launch};
use super::params::{Ptr, SQUARE_SUMS_ELEMENTS, SquareSumsParams};
use crate::device::Launcher;
use crate::error::Result;
use crate::ops::{SQUARE_SUMS_CHUNK, SquareSums};

const _: () = assert!(SQUARE_SUMS_ELEMENTS as usize == SQUARE_SUMS_CHUNK);

const THREADS: u32 = 256;
const WARPS: u32 = THREADS / super::ladder::WARP;

/// Rows are partial sums here.
pub const SQUARE_SUMS: [Version; 2] = [
    Version {
        name: "1",
        idea: "naive: a block a partial sum, scalar accesses, a tree of sums in shared memory",
        kernel: "square_sums_1",
        any: "square_sums_1",
        widest: u32::MAX,
        geometry: |partials, _| launch(partials, THREADS, THREADS * 4),
    },
    Version {
        name: "2",
        idea: "a warp a partial sum: 16-byte loads, eight in flight, no barrier",
        kernel: "square_sums_2",
        any: "square_sums_2",
        widest: u32::MAX,
        geometry: |partials, _| launch(partials.div_ceil(WARPS), THREADS, 0),
    },
];

/// Runs `version` of the ladder. `x` starts at a multiple of 16 bytes.
pub fn square_sums(launcher: &dyn Launcher, version: &Version, op: SquareSums) -> Result<()> {
    const OP: &str = "square_sums";
    op.check()?;
    expect_aligned(OP, &[op.x.address()])?;
    let [partials, width] = extent(OP, op.sums.elements(), SQUARE_SUMS_CHUNK)?;
    if partials == 0 {
        return Ok(());
    }
    let (x, sums) = (Ptr::new(op.x.address()), Ptr::new(op.sums.address()));
    let params = SquareSumsParams { x, sums, count: op.x.elements() as u64 };
    let (kernel, launch) = version.select(&SQUARE_SUMS, partials, width, &[]);
    // SAFETY: the kernel's own parameter block, over views that `check` found to have the shapes it walks.
    unsafe { launcher.launch(kernel, launch, bytemuck::bytes_of(&params)) }
}
