//! Composes the sequences of an optimizer step into micro-batches.
//!
//! Shapes: T tokens in a micro-batch, S sequences.

use super::dataset::Example;
use crate::error::{Error, Result};
use std::ops::Range;

/// The target of a position that is not trained on.
pub const IGNORE: i32 = -1;

/// Sequences laid end to end; attention and positions stay within each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MicroBatch {
    /// (T)
    pub tokens: Vec<i32>,
    /// (T), from 0 in each sequence.
    pub positions: Vec<i32>,
    /// (T): the token that follows in the same sequence where it is supervised, else [`IGNORE`].
    pub targets: Vec<i32>,
    /// (S + 1): sequence s is tokens cu_seqlens[s]..cu_seqlens[s + 1].
    pub cu_seqlens: Vec<i32>,
    /// (S): which of the step's examples each sequence is. The padding is none of them.
    pub rows: Vec<usize>,
}

impl MicroBatch {
    /// The same sequences with one more behind them, without targets, that fills the batch up to a multiple of `multiple` tokens: a
    /// device that prepares something for each shape then meets few of them.
    pub fn padded(&self, multiple: usize) -> MicroBatch {
        let mut batch = self.clone();
        let (tokens, padded) = (self.tokens.len(), self.tokens.len().next_multiple_of(multiple));
        if padded > tokens {
            batch.tokens.resize(padded, 0);
            batch.positions.extend(0..(padded - tokens) as i32);
            batch.targets.resize(padded, IGNORE);
            batch.cu_seqlens.push(padded as i32);
        }
        batch
    }

    /// The sequences that are rows: which one, and its tokens.
    pub fn sequences(&self) -> impl Iterator<Item = (usize, Range<usize>)> {
        self.rows.iter().zip(self.cu_seqlens.windows(2)).map(|(&row, w)| (row, w[0] as usize..w[1] as usize))
    }
}

/// Packs `examples` into micro-batches of at most `micro_tokens` tokens; without `packing` each holds one sequence.
///
/// First-fit decreasing: the longest sequence first (of equals the earlier one), each into the first micro-batch with room. The result
/// depends on the lengths alone, never on ranks. Within a micro-batch, and by first sequence among micro-batches, the step's order holds.
///
/// Errors: a data error that names the row which no micro-batch can hold.
pub fn pack(examples: &[&Example], micro_tokens: usize, packing: bool) -> Result<Vec<MicroBatch>> {
    let length = |row: usize| examples[row].tokens.len();
    require_fit(examples.iter().copied(), micro_tokens)?;
    let mut bins: Vec<Vec<usize>> = Vec::new();
    if packing {
        let mut by_length: Vec<usize> = (0..examples.len()).collect();
        by_length.sort_by_key(|&row| std::cmp::Reverse(length(row)));
        let mut used: Vec<usize> = Vec::new();
        for row in by_length {
            let bin = used.iter().position(|&tokens| tokens + length(row) <= micro_tokens).unwrap_or(used.len());
            if bin == used.len() {
                used.push(0);
                bins.push(Vec::new());
            }
            used[bin] += length(row);
            bins[bin].push(row);
        }
        bins.iter_mut().for_each(|rows| rows.sort_unstable());
        bins.sort_unstable_by_key(|rows| rows[0]);
    } else {
        bins.extend((0..examples.len()).map(|row| vec![row]));
    }
    Ok(bins.into_iter().map(|rows| lay_out(examples, rows)).collect())
}

/// Refuses a row that no micro-batch can hold: a data error that names it and both keys.
pub fn require_fit<'a>(examples: impl IntoIterator<Item = &'a Example>, micro_tokens: usize) -> Result<()> {
    match examples.into_iter().find(|example| example.tokens.len() > micro_tokens) {
        None => Ok(()),
        Some(long) => Err(Error::data(format!(
            "row {} has {} tokens, which data.max_tokens lets pass but train.micro_tokens = {micro_tokens} does not",
            long.id,
            long.tokens.len()
        ))
        .help("raise train.micro_tokens, or lower data.max_tokens and choose data.overlong = \"drop\" or \"truncate\"")),
    }
}

fn lay_out(examples: &[&Example], rows: Vec<usize>) -> MicroBatch {
    let mut batch = MicroBatch { tokens: vec![], positions: vec![], targets: vec![], cu_seqlens: vec![0], rows: vec![] };
    for &row in &rows {
        let Example { tokens, supervised, .. } = examples[row];
        let next = tokens.iter().zip(supervised).skip(1).map(|(&token, &trained)| if trained { token } else { IGNORE });
        batch.targets.extend(next.chain(std::iter::once(IGNORE)).take(tokens.len()));
        batch.positions.extend(0..tokens.len() as i32);
        batch.tokens.extend(tokens);
        batch.cu_seqlens.push(batch.tokens.len() as i32);
    }
    batch.rows = rows;
    batch
}
