//! Attention over a key/value cache: launches of `kernels/cached_attention/`.

use super::ladder::{expect_bf16, extent, launch};
use super::params::{CACHED_ATTENTION_WIDEST, CachedAttentionParams, Ptr};
use crate::device::Launcher;
use crate::error::{Error, Result};
use crate::ops::CachedAttention;

/// Warps of a block that attends.
const WARPS: usize = 8;

/// Appends the new keys and values to their slots, then attends to everything in them.
pub fn cached_attention(launcher: &dyn Launcher, op: CachedAttention) -> Result<()> {
    const OP: &str = "cached_attention";
    op.check()?;
    expect_bf16(OP, op.qkv.dtype())?;
    let [rows, dim] = extent(OP, op.qkv.shape()[0], op.heads.dim)?;
    let [query, kv] = extent(OP, op.heads.query, op.heads.kv)?;
    if dim > CACHED_ATTENTION_WIDEST {
        return Err(Error::internal(format!("{OP}: heads of {dim} elements; kernels have {CACHED_ATTENTION_WIDEST} at most")));
    }
    if rows == 0 {
        return Ok(());
    }
    let params = CachedAttentionParams {
        qkv: Ptr::new(op.qkv.address()),
        keys: Ptr::new(op.keys.address()),
        values: Ptr::new(op.values.address()),
        out: Ptr::new(op.out.address()),
        cu_seqlens: Ptr::new(op.cu_seqlens.address()),
        slots: Ptr::new(op.slots.address()),
        cached: Ptr::new(op.cached.address()),
        capacity: op.keys.shape()[1] as u64,
        rows,
        query,
        kv,
        dim,
        scale: op.heads.scale() * std::f32::consts::LOG2_E,
        padding: 0,
    };
    let params = bytemuck::bytes_of(&params);
    let [heads, _] = extent(OP, (op.qkv.shape()[0] * op.heads.query).div_ceil(WARPS), 1)?;
    // SAFETY: the kernels' own parameter block, over views that `check` found to have the shapes they walk, with slots and lengths within the cache.
    unsafe {
        launcher.launch("cached_attention_append", launch(rows, 256, 0), params)?;
        launcher.launch("cached_attention_attend", launch(heads, 32 * WARPS as u32, 0), params)
    }
}
