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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::HeadLayout;
    use crate::tensor::DType;

    const HEADS: HeadLayout = HeadLayout { query: 14, kv: 2, dim: 64 };

    #[test]
    fn every_version_fits_every_gpu_since_sm_80() {
        for kernel in FORWARD.iter().flat_map(|version| &version.kernels) {
            // sm_86 and sm_89 have the least shared memory of them all.
            assert!(kernel.shared_bytes <= 99 << 10, "{kernel:?}");
            assert!(kernel.threads.is_multiple_of(32) && kernel.threads <= 1024, "{kernel:?}");
        }
    }

    #[test]
    fn every_sequence_has_a_slot_a_tile() {
        const MILLION: i32 = 1 << 20;
        let lengths: [&[i32]; 6] = [&[1; 5000], &[MILLION], &[63, 1, 64, 65, 1, 1], &[127, 129, 128], &[1], &[1, MILLION, 1]];
        let kernels = || FORWARD.iter().flat_map(|version| &version.kernels);
        for (lengths, kernel) in lengths.iter().flat_map(|lengths| kernels().map(move |kernel| (lengths, kernel))) {
            let mut cu_seqlens = vec![0];
            lengths.iter().for_each(|length| cu_seqlens.push(cu_seqlens[cu_seqlens.len() - 1] + length));
            let rows = kernel.rows as i32;
            // The slots of sequence s begin where the kernels' bisection looks for them; those behind the last one end the grid.
            let begin = |s: usize| cu_seqlens[s] / rows + s as i32;
            for (s, length) in lengths.iter().enumerate() {
                let tiles = (length + rows - 1) / rows;
                assert!((tiles..=tiles + 1).contains(&(begin(s + 1) - begin(s))), "{kernel:?}: sequence {s} of {length}");
            }
            let extent = Extent::new("attention", DType::Bf16, HEADS, &cu_seqlens, &[]).unwrap();
            let [slots, heads, _] = kernel.launch(&extent, extent.query_heads).grid;
            assert_eq!((slots, heads), ((begin(lengths.len()) as u32).div_ceil(kernel.tiles), 14), "{kernel:?}");
        }
    }

    #[test]
    fn what_no_kernel_serves_is_refused_by_name() {
        let refusal =
            |dtype, heads, address| Extent::new("attention", dtype, heads, &[0, 5], &[4096, address]).unwrap_err().message;
        assert!(refusal(DType::Bf16, HeadLayout { dim: 96, ..HEADS }, 0).contains("heads of 96"));
        assert!(refusal(DType::Bf16, HeadLayout { query: 70_000, ..HEADS }, 0).contains("70000 query heads"));
        assert!(refusal(DType::F32, HEADS, 0).contains("bf16"));
        assert!(refusal(DType::Bf16, HEADS, 4104).contains("0x1008"));
    }
}
