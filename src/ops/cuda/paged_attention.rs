//! RoPE into a paged cache and attention over it: launches of `kernels/paged_attention/`. Extents of launches depend on shapes alone.

use super::attention::{HEAD_DIMS, MOST_HEADS, head_dim};
use super::ladder::{WARP, expect_aligned, expect_bf16, extent, launch};
use super::params::{PAGED_PAGE, PAGED_SPLIT, PagedAttentionParams, PagedRopeParams, Ptr};
use crate::device::{Launch, Launcher};
use crate::error::{Error, Result};
use crate::ops::{HeadLayout, PAGE, PagedAttention, PagedQueries, PagedRope};
use crate::tensor::View;

const _: () = assert!(PAGED_PAGE as usize == PAGE && PAGED_SPLIT as usize == PagedAttention::SPLIT);

/// One rung of the ladder of [`PagedQueries::Last`]. Every version computes the same function; the last one ships.
#[derive(Debug, Clone, Copy)]
pub struct DecodeVersion {
    /// "decode 2"
    pub name: &'static str,
    /// The one idea it adds to the version before.
    pub idea: &'static str,
    /// For each of [`HEAD_DIMS`].
    pub kernels: [&'static str; 2],
    pub grid: Grid,
}

/// How blocks share the work of last tokens.
#[derive(Debug, Clone, Copy)]
pub enum Grid {
    /// A warp a query head, eight a block.
    Heads,
    /// A block a split and run of query heads.
    Splits,
    /// At most this many blocks, for each of [`HEAD_DIMS`], share the splits that hold tokens. Their number changes no result.
    Live([u32; 2]),
}

/// As many blocks as an H200 runs at once (132 multiprocessors with three blocks of 64, or two of 128) and one: where every sequence has twelve entries in
/// the list of work and the last four are short, a stride that shares a factor with twelve would give some blocks nothing but short ones. Both are primes.
const BLOCKS: [u32; 2] = [397, 263];

pub const DECODE: [DecodeVersion; 3] = [
    DecodeVersion {
        name: "decode 1",
        idea: "naive: a warp a query head walks its sequence alone",
        kernels: ["paged_decode_1_64", "paged_decode_1_128"],
        grid: Grid::Heads,
    },
    DecodeVersion {
        name: "decode 2",
        idea: "the heads of a group are rows of a tensor-core tile, 512 tokens a block, copies under way in a ring",
        kernels: ["paged_decode_2_64", "paged_decode_2_128"],
        grid: Grid::Splits,
    },
    DecodeVersion {
        name: "decode 3",
        idea: "as many blocks as run at once share the splits that hold tokens",
        kernels: ["paged_decode_3_64", "paged_decode_3_128"],
        grid: Grid::Live(BLOCKS),
    },
];

/// Of a block of versions 2 and 3: a ring of keys and values for each of [`HEAD_DIMS`], and the highest scores and sums of four warps over 16 heads.
const RING_BYTES: [u32; 2] = [4 * 64 * 64 * 4 + 512, 3 * 64 * 128 * 4 + 512];
const DECODE_THREADS: u32 = 128;
/// Query heads of a tensor-core tile.
const HEADS: u32 = 16;

impl DecodeVersion {
    /// `splits` of each of `sequences`.
    fn launch(&self, sequences: u32, heads: HeadLayout, dim: usize, splits: u32) -> Launch {
        let runs = heads.kv as u32 * (heads.group() as u32).div_ceil(HEADS);
        let blocks = |grid| Launch { grid, block: [DECODE_THREADS, 1, 1], shared_bytes: RING_BYTES[dim] };
        let entries = u64::from(sequences) * u64::from(runs) * u64::from(splits);
        match self.grid {
            Grid::Heads => launch((sequences * heads.query as u32).div_ceil(8), 8 * WARP, 0),
            Grid::Splits => blocks([splits, runs, sequences]),
            Grid::Live(most) => blocks([u64::from(most[dim]).min(entries) as u32, 1, 1]),
        }
    }
}

/// The layer's part of page 0, and the elements from a page to the next.
fn place(cache: &View, layer: usize) -> (u64, u64) {
    let (layers, row) = (cache.shape()[1], 2 * cache.shape()[3]);
    (cache.address() + (layer * row * cache.dtype().size()) as u64, (layers * row) as u64)
}

/// Turns queries in place, and writes keys and values to their pages.
pub fn rope(launcher: &dyn Launcher, op: PagedRope) -> Result<()> {
    const OP: &str = "paged_rope";
    op.check()?;
    expect_bf16(OP, op.qkv.dtype())?;
    let kernel = ["paged_rope_64", "paged_rope_128"][head_dim(OP, op.heads)?];
    let [tokens, _] = extent(OP, op.qkv.shape()[0], 1)?;
    let [query_heads, kv_heads] = extent(OP, op.heads.query, op.heads.kv)?;
    let (cache, page_stride) = place(&op.cache.as_view(), op.layer);
    expect_aligned(OP, &[op.qkv.address(), op.cos.address(), op.sin.address(), cache])?;
    if tokens == 0 {
        return Ok(());
    }
    let params = PagedRopeParams {
        qkv: Ptr::new(op.qkv.address()),
        positions: Ptr::new(op.positions.address()),
        rows: Ptr::new(op.rows.address()),
        cos: Ptr::new(op.cos.address()),
        sin: Ptr::new(op.sin.address()),
        cache: Ptr::new(cache),
        page_stride,
        tokens,
        query_heads,
        kv_heads,
        padding: 0,
    };
    // SAFETY: the kernel's own parameter block, over views that `check` found to have the shapes it walks; positions are rows of the tables and `rows` rows of
    // the cache by contract.
    unsafe { launcher.launch(kernel, launch(tokens.div_ceil(8), 8 * WARP, 0), bytemuck::bytes_of(&params)) }
}

/// What both kinds of queries have in common, without `cu_seqlens` and scratch, and the index into [`HEAD_DIMS`].
fn params(op: &PagedAttention) -> Result<(PagedAttentionParams, usize)> {
    const OP: &str = "paged_attention";
    op.check()?;
    expect_bf16(OP, op.qkv.dtype())?;
    let dim = head_dim(OP, op.heads)?;
    let [sequences, width] = [op.pages.shape()[0], op.pages.shape().row_elements()];
    let [query_heads, kv_heads] = extent(OP, op.heads.query, op.heads.kv)?;
    let most = |what: &str, count: usize| match count {
        0..=MOST_HEADS => Ok(count as u32),
        _ => Err(Error::internal(format!("{OP}: {count} {what} are beyond one launch, which counts {MOST_HEADS}"))),
    };
    let (cache, page_stride) = place(&op.cache, op.layer);
    expect_aligned(OP, &[op.qkv.address(), op.out.address(), cache])?;
    most("query heads", op.heads.query)?;
    let params = PagedAttentionParams {
        qkv: Ptr::new(op.qkv.address()),
        cache: Ptr::new(cache),
        pages: Ptr::new(op.pages.address()),
        lengths: Ptr::new(op.lengths.address()),
        cu_seqlens: Ptr::NULL,
        out: Ptr::new(op.out.address()),
        partial: Ptr::NULL,
        sums: Ptr::NULL,
        page_stride,
        sequences: most("sequences", sequences)?,
        query_heads,
        kv_heads,
        width: most("pages of a sequence", width)?,
        splits: 1,
        scale: op.heads.scale() * std::f32::consts::LOG2_E,
    };
    Ok((params, dim))
}

/// [`PagedQueries::Last`] through a version of the ladder: the splits of each sequence, and where the table has room for more than one, what puts them together.
pub fn decode(launcher: &dyn Launcher, version: &DecodeVersion, op: PagedAttention) -> Result<()> {
    let (mut params, dim) = params(&op)?;
    if params.sequences == 0 {
        return Ok(());
    }
    params.splits = (params.width * PAGED_PAGE).div_ceil(PAGED_SPLIT).max(1);
    let rows = u64::from(params.sequences) * op.heads.query as u64;
    if params.splits > 1 {
        expect_aligned("paged_attention", &[op.scratch.address()])?;
        params.partial = Ptr::new(op.scratch.address());
        params.sums = Ptr::new(op.scratch.address() + rows * u64::from(params.splits) * (op.heads.dim * 4) as u64);
    }
    let extent = version.launch(params.sequences, op.heads, dim, params.splits);
    // SAFETY: the kernels' own parameter block, over views that `check` found to have the shapes they walk, scratch among them; pages and lengths are within the
    // cache by contract.
    unsafe { launcher.launch(version.kernels[dim], extent, bytemuck::bytes_of(&params))? };
    if params.splits == 1 || matches!(version.grid, Grid::Heads) {
        return Ok(());
    }
    const THREADS: u32 = 256;
    let blocks = (rows * (HEAD_DIMS[dim] / 8) as u64).div_ceil(THREADS.into()) as u32;
    let kernel = ["paged_combine_64", "paged_combine_128"][dim];
    // SAFETY: the same parameter block, after the kernel that filled scratch.
    unsafe { launcher.launch(kernel, launch(blocks, THREADS, 0), bytemuck::bytes_of(&params)) }
}

/// Queries of a tile of [`prefill`].
const PREFILL_ROWS: u32 = 128;

/// [`PagedQueries::Chunks`].
pub fn prefill(launcher: &dyn Launcher, op: PagedAttention) -> Result<()> {
    let (mut params, dim) = params(&op)?;
    let PagedQueries::Chunks { cu_seqlens, .. } = op.queries else {
        return Err(Error::internal("paged_attention: last tokens are no chunks"));
    };
    params.cu_seqlens = Ptr::new(cu_seqlens.address());
    let [tokens, _] = extent("paged_attention", op.qkv.shape()[0], 1)?;
    if tokens == 0 {
        return Ok(());
    }
    // As in attention: sequence s owns the slots from ⌊cu_seqlens[s] / rows⌋ + s on (`find_tile` of tile.cuh).
    let slots = tokens / PREFILL_ROWS + params.sequences;
    let shared_bytes = (PREFILL_ROWS + 2 * PAGED_PAGE) * op.heads.dim as u32 * 2;
    let extent = Launch { grid: [slots, params.query_heads, 1], block: [128, 1, 1], shared_bytes };
    // SAFETY: as for `decode`.
    unsafe { launcher.launch(["paged_prefill_64", "paged_prefill_128"][dim], extent, bytemuck::bytes_of(&params)) }
}

#[cfg(test)]
mod tests {
    use super::RING_BYTES;

    #[test]
    fn every_version_fits_every_gpu_since_sm_80() {
        // sm_86 and sm_89 have the least shared memory of them all.
        assert!(RING_BYTES.iter().all(|&bytes| bytes <= 99 << 10));
    }
}
