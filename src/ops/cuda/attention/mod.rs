//! Causal attention over packed sequences: launches of `kernels/attention/`.

mod backward;
mod forward;

pub use backward::{BACKWARD, BackwardVersion, attention_backward};
pub use forward::{FORWARD, attention};

use crate::device::Launch;
use crate::error::{Error, Result};
use crate::ops::HeadLayout;
use crate::ops::cuda::ladder::expect_bf16;
use crate::tensor::DType;

/// Head dimensions that kernels are built for; [`Version::kernels`] has one each.
pub const HEAD_DIMS: [usize; 2] = [64, 128];

/// Heads that a grid can count in its second dimension.
pub(super) const MOST_HEADS: usize = 65_535;

/// One rung of a ladder. Every version computes the same function; the last of a table is the one that ships.
#[derive(Debug)]
pub struct Version {
    /// "forward 3": direction and place in the ladder.
    pub name: &'static str,
    /// The one idea it adds to the version before.
    pub idea: &'static str,
    /// For each of [`HEAD_DIMS`].
    kernels: [Kernel; 2],
}

/// A kernel and how it is launched: every sequence is cut into tiles of tokens, and a block takes some of them, for one head.
#[derive(Debug, Clone, Copy)]
struct Kernel {
    name: &'static str,
    /// Tokens of a tile.
    rows: u32,
    /// Tiles of a block.
    tiles: u32,
    threads: u32,
    shared_bytes: u32,
}

impl Kernel {
    /// A slot a tile. Sequence s owns the slots from ⌊cu_seqlens[s] / rows⌋ + s on, which a block inverts by bisection: at most a slot a
    /// sequence stays empty, and neither a table nor the sequences' lengths are needed (`find_tile` of tile.cuh).
    fn launch(&self, extent: &Extent, heads: u32) -> Launch {
        let slots = extent.tokens / self.rows + extent.sequences;
        Launch { grid: [slots.div_ceil(self.tiles), heads, 1], block: [self.threads, 1, 1], shared_bytes: self.shared_bytes }
    }
}

/// Where [`HEAD_DIMS`] has the heads' dimension.
pub(super) fn head_dim(op: &str, heads: HeadLayout) -> Result<usize> {
    HEAD_DIMS.iter().position(|&dim| dim == heads.dim).ok_or_else(|| {
        let message = format!("{op}: heads of {} have no CUDA kernel, only heads of 64 and of 128", heads.dim);
        Error::usage(message).help("pass --device cpu")
    })
}

/// What both directions check before they launch, as kernels count it.
#[derive(Debug, Clone, Copy)]
struct Extent {
    /// T and S; each is at most i32::MAX, as entries of cu_seqlens are.
    tokens: u32,
    sequences: u32,
    query_heads: u32,
    kv_heads: u32,
    /// Index into [`HEAD_DIMS`].
    dim: usize,
}

impl Extent {
    /// `addresses` are those of the operands that kernels read and write 16 bytes at a time.
    fn new(op: &str, dtype: DType, heads: HeadLayout, cu_seqlens: &[i32], addresses: &[u64]) -> Result<Self> {
        let refuse = |what: String| Err(Error::internal(format!("{op}: {what}")));
        expect_bf16(op, dtype)?;
        let dim = head_dim(op, heads)?;
        if heads.query > MOST_HEADS {
            return refuse(format!("{} query heads are beyond one launch", heads.query));
        }
        if let Some(address) = addresses.iter().find(|address| !address.is_multiple_of(16)) {
            return refuse(format!("an operand at {address:#x}, which is no multiple of 16"));
        }
        Ok(Extent {
            tokens: cu_seqlens[cu_seqlens.len() - 1] as u32,
            sequences: (cu_seqlens.len() - 1) as u32,
            query_heads: heads.query as u32,
            kv_heads: heads.kv as u32,
            dim,
        })
    }
}
