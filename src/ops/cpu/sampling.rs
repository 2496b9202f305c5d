//! Drawing tokens, and feeding them back.

use crate::error::{Error, Result};
use crate::ops::{DrawTokens, FeedTokens};

pub fn draw(op: DrawTokens) -> Result<()> {
    op.check()?;
    Err(Error::internal("draw_tokens"))
}

pub fn feed(op: FeedTokens) -> Result<()> {
    op.check()?;
    let drawn = op.drawn.i32();
    for ((out, &token), &source) in op.out.i32().iter_mut().zip(op.tokens.i32()).zip(op.source.i32()) {
        *out = usize::try_from(source).map_or(token, |source| drawn[source].max(0));
    }
    Ok(())
}
