//! How a block's flat buffer is cut over the ranks.

use crate::ops::{Moment, SQUARE_SUMS_CHUNK};
use std::ops::Range;

/// Elements that every shard's length is a multiple of, for any number of ranks: chunks of the gradient norm's partial sums, and blocks of 8-bit moments that share
/// a scale, are never cut.
const MULTIPLE: usize = SQUARE_SUMS_CHUNK;
const _: () = assert!(MULTIPLE.is_multiple_of(Moment::BLOCK));

/// A rank's place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cut {
    pub rank: usize,
    pub world: usize,
}

impl Cut {
    /// Elements of each rank's shard of a buffer of `elements`. Shards are of equal length, and what they have too much are zeros at the end.
    pub fn shard(&self, elements: usize) -> usize {
        elements.div_ceil(self.world).next_multiple_of(MULTIPLE)
    }

    /// Elements of all shards together.
    pub fn padded(&self, elements: usize) -> usize {
        self.shard(elements) * self.world
    }

    /// The elements of the buffer that lie in a rank's shard; none where those before it hold all.
    pub fn owned_by(&self, rank: usize, elements: usize) -> Range<usize> {
        let shard = self.shard(elements);
        (rank * shard).min(elements)..((rank + 1) * shard).min(elements)
    }

    /// Those in this rank's shard.
    pub fn owned(&self, elements: usize) -> Range<usize> {
        self.owned_by(self.rank, elements)
    }
}

/// Elements `range` of a shard that begins at element `start` of its buffer, as far as they are in `part` of the buffer: counted from the start of `range`.
pub fn overlap(start: usize, range: &Range<usize>, part: &Range<usize>) -> Range<usize> {
    let (begin, end) = (start + range.start, start + range.end);
    let (from, to) = (part.start.clamp(begin, end), part.end.clamp(begin, end));
    from - begin..to.max(from) - begin
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn shards_cover_a_buffer_once(elements in 1usize..200_000, world in 1usize..20, part in 0usize..200_000, length in 0usize..70_000) {
            let cut = |rank| Cut { rank, world };
            let mut next = 0;
            for rank in 0..world {
                let cut = cut(rank);
                let owned = cut.owned(elements);
                prop_assert_eq!(owned.start, next);
                next = owned.end;
                prop_assert!(owned.len() <= cut.shard(elements) && cut.shard(elements).is_multiple_of(4096));
                prop_assert_eq!(cut.padded(elements), cut.shard(elements) * world);
            }
            prop_assert_eq!(next, elements);
            prop_assert!(cut(0).padded(elements) < elements + world * 4096);
            // Every element of a part is found in exactly one shard.
            let part = part.min(elements)..(part + length).min(elements);
            let found: usize = (0..world).map(|rank| {
                let shard = cut(rank).shard(elements);
                overlap(rank * shard, &(0..shard), &part).len()
            }).sum();
            prop_assert_eq!(found, part.len());
        }
    }
}
