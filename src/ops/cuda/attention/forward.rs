//! The ladder of the forward pass.

use super::{Extent, Kernel, Version};
use crate::device::Launcher;
use crate::error::Result;
use crate::ops::Attention;
use crate::ops::cuda::params::{AttentionForwardParams, Ptr};

pub const FORWARD: [Version; 7] = [
    Version {
        name: "forward 1",
        idea: "naive: a warp a query, a key a lane, a running softmax",
        kernels: [
            Kernel { name: "attention_forward_1_64", rows: 1, tiles: 8, threads: 256, shared_bytes: 8 * 64 * 4 },
            Kernel { name: "attention_forward_1_128", rows: 1, tiles: 8, threads: 256, shared_bytes: 8 * 128 * 4 },
        ],
    },
    Version {
        name: "forward 2",
        idea: "tiles of 64 queries and 64 keys in shared memory, 4 x 4 scores a thread",
        kernels: [
            tiled("attention_forward_2_64", 64, 256, tiles(64, [64, 64, 64]) + 64 * 65 * 4),
            tiled("attention_forward_2_128", 64, 256, tiles(128, [64, 64, 64]) + 64 * 65 * 4),
        ],
    },
    Version {
        name: "forward 3",
        idea: "tensor cores: 16 queries a warp, scores and weights stay in registers",
        kernels: [
            tiled("attention_forward_3_64", 64, 128, tiles(64, [64, 64, 64])),
            tiled("attention_forward_3_128", 64, 128, tiles(128, [64, 64, 64])),
        ],
    },
    Version {
        name: "forward 4",
        idea: "swizzled tiles without bank conflicts, 16-byte asynchronous copies",
        kernels: [
            tiled("attention_forward_4_64", 64, 128, tiles(64, [64, 64, 64])),
            tiled("attention_forward_4_128", 64, 128, tiles(128, [64, 64, 64])),
        ],
    },
    Version {
        name: "forward 5",
        idea: "values are copied while scores are computed, the next keys while values are added up",
        kernels: [
            tiled("attention_forward_5_64", 64, 128, tiles(64, [64, 64, 64])),
            tiled("attention_forward_5_128", 64, 128, tiles(128, [64, 64, 64])),
        ],
    },
    Version {
        name: "forward 6",
        idea: "two instructions a score beside the products: folded scale, masks on the diagonal only",
        kernels: [
            tiled("attention_forward_6_64", 64, 128, tiles(64, [64, 64, 64])),
            tiled("attention_forward_6_128", 64, 128, tiles(128, [64, 64, 64])),
        ],
    },
    Version {
        name: "forward 7",
        idea: "32 queries a warp: what is loaded from shared memory is multiplied twice",
        kernels: [
            tiled("attention_forward_7_64", 128, 128, tiles(64, [128, 128, 128])),
            tiled("attention_forward_7_128", 128, 128, tiles(128, [128, 64, 64])),
        ],
    },
];

/// A kernel whose blocks take one tile of `rows` queries each.
const fn tiled(name: &'static str, rows: u32, threads: u32, shared_bytes: u32) -> Kernel {
    Kernel { name, rows, tiles: 1, threads, shared_bytes }
}

/// Shared bytes of tiles with these numbers of rows: queries, keys, values.
const fn tiles(dim: u32, rows: [u32; 3]) -> u32 {
    2 * dim * (rows[0] + rows[1] + rows[2])
}

/// Runs `version` of the forward ladder. Storage is bf16, heads are 64 or 128 wide, `qkv` and `out` lie at multiples of 16.
pub fn attention(launcher: &dyn Launcher, version: &Version, op: Attention) -> Result<()> {
    op.check()?;
    let (qkv, out) = (op.qkv.address(), op.out.address());
    let extent = Extent::new("attention", op.qkv.dtype(), op.heads, op.cu_seqlens_host, &[qkv, out])?;
    if extent.tokens == 0 {
        return Ok(());
    }
    let params = AttentionForwardParams {
        qkv: Ptr::new(qkv),
        cu_seqlens: Ptr::new(op.cu_seqlens.address()),
        out: Ptr::new(out),
        lse: Ptr::new(op.lse.address()),
        tokens: extent.tokens.into(),
        sequences: extent.sequences,
        query_heads: extent.query_heads,
        kv_heads: extent.kv_heads,
        scale: op.heads.scale(),
    };
    let kernel = &version.kernels[extent.dim];
    let launch = kernel.launch(&extent, extent.query_heads);
    // SAFETY: the kernel's own parameter block, over views that `check` found to have the shapes it walks.
    unsafe { launcher.launch(kernel.name, launch, bytemuck::bytes_of(&params)) }
}
