//! Drawing tokens, and feeding them back: launches of `kernels/sampling/`.

use super::ladder::{extent, launch};
use super::params::{DRAW_TOKENS_LIST, DrawTokensParams, FeedTokensParams, Ptr};
use crate::device::Launcher;
use crate::error::{Error, Result};
use crate::ops::{DrawTokens, FeedTokens, Narrowing};

/// A thread a strand.
const THREADS: u32 = DrawTokens::STRANDS as u32;
/// Shared bytes that every drawing kernel takes: 16 slots of 4 bytes and of 8, what was found, and two words a bin.
const SCRATCH: u32 = 16 * 4 + 16 * 8 + 16 + 2 * 4 * THREADS;

/// Draws a token for each row, a block a row.
pub fn draw_tokens(launcher: &dyn Launcher, op: DrawTokens) -> Result<()> {
    const OP: &str = "draw_tokens";
    op.check()?;
    let [rows, width] = extent(OP, op.logits.shape()[0], op.logits.shape().row_elements())?;
    if width > i32::MAX as u32 {
        return Err(Error::internal(format!("{OP}: tokens of 32 bits do not reach a vocabulary of {width}")));
    }
    if rows == 0 {
        return Ok(());
    }
    let Narrowing { temperature, top_k, top_p, min_p, repetition_penalty } = op.narrowing;
    let wide = f64::from(temperature);
    let penalised = repetition_penalty != 1.0;
    let params = DrawTokensParams {
        logits: Ptr::new(op.logits.address()),
        rows: Ptr::new(op.rows.address()),
        seen: Ptr::new(op.seen.as_ref().filter(|_| penalised).map_or(0, |seen| seen.address())),
        tokens: Ptr::new(op.tokens.address()),
        log_probabilities: Ptr::new(op.log_probabilities.as_ref().map_or(0, |values| values.address())),
        width,
        vocabulary: op.vocabulary as u32,
        // Of a tiny temperature it would be infinite, and no number times 0.
        scale: ((std::f64::consts::LOG2_E / wide) as f32).min(f32::MAX),
        unit: (std::f64::consts::LN_2 * wide) as f32,
        penalty: repetition_penalty,
        top_k: if (top_k as usize) < op.vocabulary { top_k } else { 0 },
        top_p,
        rest: op.narrowing.rest_share(op.vocabulary),
        min_p: op.narrowing.min_p_limit(),
        apart: u32::from(penalised || temperature != 1.0),
    };
    let whole = params.top_k == 0 && top_p >= 1.0 && min_p == 0.0;
    let (kernels, shared) = match temperature {
        0.0 => (["draw_tokens_greedy", "draw_tokens_greedy_any"], SCRATCH),
        _ if whole => (["draw_tokens_plain", "draw_tokens_plain_any"], SCRATCH),
        _ => (["draw_tokens_narrowed", "draw_tokens_narrowed_any"], SCRATCH + 4 * DRAW_TOKENS_LIST * THREADS),
    };
    let vectors = width.is_multiple_of(DrawTokens::QUAD as u32) && op.logits.address().is_multiple_of(16);
    // SAFETY: the kernels' own parameter block, over views that `check` found to have the shapes they walk; rows of `seen` are the caller's.
    unsafe { launcher.launch(kernels[usize::from(!vectors)], launch(rows, THREADS, shared), bytemuck::bytes_of(&params)) }
}

/// Puts drawn tokens among the inputs of a step.
pub fn feed_tokens(launcher: &dyn Launcher, op: FeedTokens) -> Result<()> {
    const THREADS: usize = 256;
    op.check()?;
    let count = op.tokens.elements();
    let [blocks, _] = extent("feed_tokens", count.div_ceil(THREADS), 1)?;
    if count == 0 {
        return Ok(());
    }
    let params = FeedTokensParams {
        tokens: Ptr::new(op.tokens.address()),
        source: Ptr::new(op.source.address()),
        drawn: Ptr::new(op.drawn.address()),
        out: Ptr::new(op.out.address()),
        count: count as u64,
    };
    // SAFETY: the kernel's own parameter block, over views of `count` elements; sources are below the extent of `drawn`, as the caller promises.
    unsafe { launcher.launch("feed_tokens", launch(blocks, THREADS as u32, 0), bytemuck::bytes_of(&params)) }
}
