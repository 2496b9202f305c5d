//! What the wrappers of kernels that walk rows share: ladders of versions, and the arithmetic of their launches.

use crate::device::Launch;
use crate::error::{Error, Result};
use crate::tensor::DType;

pub const WARP: u32 = 32;
/// bf16 elements of a 16-byte access.
pub const VECTOR: u32 = 8;

/// One rung of a ladder. Every version computes the same function; the last of a table is the one that ships.
#[derive(Debug)]
pub struct Version {
    /// "forward 3": direction and place in the ladder.
    pub name: &'static str,
    /// The one idea it adds to the version before.
    pub idea: &'static str,
    /// The kernel for rows of whole 16-byte vectors at aligned addresses.
    pub kernel: &'static str,
    /// The kernel for any other row.
    pub(super) any: &'static str,
    /// Rows wider than this do not fit its registers; the last version without a limit runs instead.
    pub(super) widest: u32,
    /// How it spreads rows of a width over the device.
    pub(super) geometry: fn(rows: u32, width: u32) -> Launch,
}

impl Version {
    /// The kernel and launch for rows of `width` at `addresses`; `ladder` is the table this version is of.
    pub(super) fn select(
        &self,
        ladder: &'static [Version],
        rows: u32,
        width: u32,
        addresses: &[u64],
    ) -> (&'static str, Launch) {
        let fits = |version: &&Version| width <= version.widest;
        let last_that_fits = || ladder.iter().rev().find(fits).expect("the first version takes any width");
        let version = Some(self).filter(fits).unwrap_or_else(last_that_fits);
        let kernel = if whole_vectors(width, addresses) { version.kernel } else { version.any };
        (kernel, (version.geometry)(rows, width))
    }
}

/// Whether rows of `width` elements at these addresses are whole 16-byte vectors.
pub fn whole_vectors(width: u32, addresses: &[u64]) -> bool {
    width.is_multiple_of(VECTOR) && addresses.iter().all(|address| address.is_multiple_of(16))
}

/// A launch along one dimension.
pub fn launch(blocks: u32, threads: u32, shared_bytes: u32) -> Launch {
    Launch { grid: [blocks, 1, 1], block: [threads, 1, 1], shared_bytes }
}

/// A warp for each tile of `tile` columns of each row (`kernels/common/warp_tile.cuh`).
pub fn tiles(rows: u32, width: u32, tile: u32, threads: u32) -> Launch {
    // Rows of more tiles than 2³² count would fill terabytes.
    let warps = u64::from(rows) * u64::from(width.div_ceil(tile));
    launch(warps.div_ceil(u64::from(threads / WARP)) as u32, threads, 0)
}

/// Refuses storage that no kernel is written for.
pub fn expect_bf16(op: &str, dtype: DType) -> Result<()> {
    if dtype == DType::Bf16 {
        return Ok(());
    }
    Err(Error::internal(format!("{op}: the CUDA kernels store bf16, not {dtype}")))
}

/// Refuses operands that 16-byte accesses would fault at.
pub fn expect_aligned(op: &str, addresses: &[u64]) -> Result<()> {
    if addresses.iter().all(|address| address.is_multiple_of(16)) {
        return Ok(());
    }
    Err(Error::internal(format!("{op}: an operand does not start at a multiple of 16 bytes")))
}

/// Rows and width as kernels count them.
pub fn extent(op: &str, rows: usize, width: usize) -> Result<[u32; 2]> {
    match (u32::try_from(rows), u32::try_from(width)) {
        (Ok(rows), Ok(width)) if rows <= i32::MAX as u32 && width > 0 => Ok([rows, width]),
        _ => Err(Error::internal(format!("{op}: {rows} rows of {width} elements are beyond one launch"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_tile_of_every_row_has_a_warp() {
        assert_eq!(tiles(1, 1, 512, 256), launch(1, 256, 0));
        assert_eq!(tiles(8, 512, 512, 256), launch(1, 256, 0));
        assert_eq!(tiles(8, 513, 512, 256), launch(2, 256, 0));
        // 2³⁰ rows of 16 tiles: the product does not fit 32 bits, the blocks do.
        assert_eq!(tiles(1 << 30, 16 * 512, 512, 256), launch(1 << 31, 256, 0));
    }

    #[test]
    fn vectors_need_whole_widths_and_aligned_addresses() {
        assert!(whole_vectors(64, &[0, 32, 48]));
        assert!(!whole_vectors(65, &[0]) && !whole_vectors(64, &[0, 8]));
    }

    #[test]
    fn what_no_kernel_takes_is_refused() {
        assert!(expect_bf16("x", DType::F32).is_err() && expect_bf16("x", DType::Bf16).is_ok());
        assert!(extent("x", 1 << 31, 1).is_err() && extent("x", 1, 0).is_err() && extent("x", 0, 1).is_ok());
    }
}
