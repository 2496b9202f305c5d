//! The ladder of the backward pass.

use super::{Extent, Kernel};
use crate::device::{Launch, Launcher};
use crate::error::Result;
use crate::ops::AttentionBackward;
use crate::ops::cuda::ladder::{VECTOR, launch};
use crate::ops::cuda::params::{ATTENTION_BACKWARD_TURNS, AttentionBackwardParams, Ptr};

const _: () = assert!(ATTENTION_BACKWARD_TURNS as usize == AttentionBackward::TURNS);

/// One rung of the ladder. Every version computes the same function; the last one ships.
#[derive(Debug)]
pub struct BackwardVersion {
    /// "backward 3": direction and place in the ladder.
    pub name: &'static str,
    /// The one idea it adds to the version before.
    pub idea: &'static str,
    /// For each of [`super::HEAD_DIMS`].
    passes: [Passes; 2],
}

#[derive(Debug, Clone, Copy)]
enum Passes {
    /// One kernel a tile of queries and query head for dQ, one a tile of keys and key/value head for dK and dV.
    Separate { queries: Kernel, keys: Kernel },
    /// One kernel a tile of keys and key/value head for all three; dQ is added up in f32 and rounded at the end.
    Fused(Kernel),
}

pub const BACKWARD: [BackwardVersion; 6] = [
    BackwardVersion {
        name: "backward 1",
        idea: "naive: a block a query for dQ, a block a key for dK and dV, a score a thread",
        passes: [
            separate(["attention_backward_1_queries_64", "attention_backward_1_keys_64"], 1, 128, naive(64)),
            separate(["attention_backward_1_queries_128", "attention_backward_1_keys_128"], 1, 128, naive(128)),
        ],
    },
    BackwardVersion {
        name: "backward 2",
        idea: "tiles of 64 queries and 64 keys in shared memory, 4 x 4 scores a thread",
        passes: [
            separate(["attention_backward_2_queries_64", "attention_backward_2_keys_64"], 64, 256, padded(64)),
            separate(["attention_backward_2_queries_128", "attention_backward_2_keys_128"], 64, 256, padded(128)),
        ],
    },
    BackwardVersion {
        name: "backward 3",
        idea: "tensor cores; transposed scores stay in registers as factors of dK and dV",
        passes: [
            separate(["attention_backward_3_queries_64", "attention_backward_3_keys_64"], 64, 128, tiles(64, 4, 1)),
            separate(["attention_backward_3_queries_128", "attention_backward_3_keys_128"], 64, 128, tiles(128, 4, 1)),
        ],
    },
    BackwardVersion {
        name: "backward 4",
        idea: "the next tile is copied while the tensor cores work on this one; swizzled tiles",
        passes: [
            separate(["attention_backward_4_queries_64", "attention_backward_4_keys_64"], 64, 128, tiles(64, 6, 2)),
            separate(["attention_backward_4_queries_128", "attention_backward_4_keys_128"], 64, 128, tiles(128, 6, 2)),
        ],
    },
    BackwardVersion {
        name: "backward 5",
        idea: "one pass, five products instead of seven: key tiles add to dQ in turn",
        passes: [
            fused("attention_backward_5_64", 64, 128, 16 + tiles(64, 5, 2) + 2 * 64 * 64),
            fused("attention_backward_5_128", 64, 128, 16 + tiles(128, 5, 2) + 2 * 64 * 64),
        ],
    },
    BackwardVersion {
        name: "backward 6",
        idea: "a warp waits only for its own part of dQ, as late as it can; 128 keys a tile; masks on the diagonal only",
        passes: [
            fused("attention_backward_6_64", 128, 256, 16 + tiles(64, 8, 2) + 2 * 128 * 64),
            fused("attention_backward_6_128", 128, 256, 16 + tiles(128, 8, 2) + 2 * 128 * 64),
        ],
    },
];

impl BackwardVersion {
    /// How to launch it for head dimension `dim` of [`super::HEAD_DIMS`]; the last version that fits runs where a block may not have the shared
    /// memory that this one wants.
    fn passes(&self, dim: usize, shared_limit: u32) -> &Passes {
        let fits = |version: &&BackwardVersion| version.passes[dim].shared_bytes() <= shared_limit;
        let version = Some(self).filter(fits).or_else(|| BACKWARD.iter().rev().find(fits));
        &version.unwrap_or(&BACKWARD[0]).passes[dim]
    }
}

impl Passes {
    fn shared_bytes(&self) -> u32 {
        match self {
            Passes::Separate { queries, keys } => queries.shared_bytes.max(keys.shared_bytes),
            Passes::Fused(kernel) => kernel.shared_bytes,
        }
    }
}

const fn separate([queries, keys]: [&'static str; 2], rows: u32, threads: u32, shared_bytes: u32) -> Passes {
    let [queries, keys] = [kernel(queries, rows, threads, shared_bytes), kernel(keys, rows, threads, shared_bytes)];
    Passes::Separate { queries, keys }
}

const fn fused(name: &'static str, rows: u32, threads: u32, shared_bytes: u32) -> Passes {
    Passes::Fused(kernel(name, rows, threads, shared_bytes))
}

const fn kernel(name: &'static str, rows: u32, threads: u32, shared_bytes: u32) -> Kernel {
    Kernel { name, rows, tiles: 1, threads, shared_bytes }
}

/// Two rows of the own side, p and ds of a chunk of 128 rows of the other side.
const fn naive(dim: u32) -> u32 {
    4 * (2 * dim + 2 * 128)
}

/// Four tiles of 64 rows and two of 64 x 64 scores, padded, and statistics of 64 queries.
const fn padded(dim: u32) -> u32 {
    4 * (4 * 64 * (dim / 2 + 1) + 2 * 64 * 65 + 2 * 64)
}

/// `count` tiles of 64 rows, and statistics of 64 queries for each of `stages`.
const fn tiles(dim: u32, count: u32, stages: u32) -> u32 {
    2 * count * 64 * dim + 4 * stages * 2 * 64
}

/// Threads of a block of the kernels that run before and after, [`VECTOR`] columns each.
const ROW_THREADS: u32 = 256;
const ROW_KERNELS: [[&str; 2]; 2] = [
    ["attention_backward_deltas_64", "attention_backward_finish_64"],
    ["attention_backward_deltas_128", "attention_backward_finish_128"],
];

/// Runs `version` of the backward ladder. Storage is bf16, heads are 64 or 128 wide, `qkv`, `out`, `dout`, `dqkv` and `scratch` lie at
/// multiples of 16.
pub fn attention_backward(launcher: &dyn Launcher, version: &BackwardVersion, op: AttentionBackward) -> Result<()> {
    op.check()?;
    let (qkv, out, dout) = (op.qkv.address(), op.out.address(), op.dout.address());
    let (dqkv, scratch) = (op.dqkv.address(), op.scratch.address());
    let addresses = [qkv, out, dout, dqkv, scratch];
    let extent = Extent::new("attention_backward", op.qkv.dtype(), op.heads, op.cu_seqlens_host, &addresses)?;
    if extent.tokens == 0 {
        return Ok(());
    }
    let rows = u64::from(extent.tokens) * u64::from(extent.query_heads);
    let turns = scratch + rows * op.heads.dim as u64 * 4;
    let params = AttentionBackwardParams {
        qkv: Ptr::new(qkv),
        out: Ptr::new(out),
        dout: Ptr::new(dout),
        lse: Ptr::new(op.lse.address()),
        delta: Ptr::new(op.delta.address()),
        dqkv: Ptr::new(dqkv),
        dq: Ptr::new(scratch),
        turns: Ptr::new(turns),
        ticket: Ptr::new(turns + rows * u64::from(ATTENTION_BACKWARD_TURNS) * 4),
        cu_seqlens: Ptr::new(op.cu_seqlens.address()),
        tokens: extent.tokens.into(),
        query_heads: extent.query_heads,
        kv_heads: extent.kv_heads,
        sequences: extent.sequences,
        scale: op.heads.scale(),
    };
    let run = |kernel: &str, launch: Launch| {
        // SAFETY: the kernels' own parameter block, over views that `check` found to have the shapes they walk.
        unsafe { launcher.launch(kernel, launch, bytemuck::bytes_of(&params)) }
    };
    let [deltas, finish] = ROW_KERNELS[extent.dim];
    let threads = rows * op.heads.dim as u64 / u64::from(VECTOR);
    let all_rows = launch(threads.div_ceil(ROW_THREADS.into()) as u32, ROW_THREADS, 0);
    run(deltas, all_rows)?;
    match version.passes(extent.dim, launcher.shared_limit()) {
        Passes::Separate { queries, keys } => {
            run(queries.name, queries.launch(&extent, extent.query_heads))?;
            run(keys.name, keys.launch(&extent, extent.kv_heads))
        }
        Passes::Fused(kernel) => {
            run(kernel.name, kernel.launch(&extent, extent.kv_heads))?;
            run(finish, all_rows)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes that a block may have on sm_80, sm_86 and sm_89, sm_90.
    const LIMITS: [u32; 3] = [163 << 10, 99 << 10, 227 << 10];

    #[test]
    fn every_version_fits_every_gpu() {
        for (version, limit, dim) in
            BACKWARD.iter().flat_map(|v| LIMITS.map(|l| (v, l))).flat_map(|(v, l)| [(v, l, 0), (v, l, 1)])
        {
            let passes = version.passes(dim, limit);
            assert!(passes.shared_bytes() <= limit, "{}", version.name);
            let own = version.passes[dim].shared_bytes();
            assert_eq!(passes.shared_bytes() == own, own <= limit, "{} runs another version for no reason", version.name);
        }
    }

    #[test]
    fn the_last_version_falls_back_to_the_one_before_where_memory_is_small() {
        let name = |limit| match BACKWARD[5].passes(1, limit) {
            Passes::Fused(kernel) => kernel.name,
            Passes::Separate { queries, .. } => queries.name,
        };
        assert_eq!(LIMITS.map(name), ["attention_backward_6_128", "attention_backward_5_128", "attention_backward_6_128"]);
    }
}
