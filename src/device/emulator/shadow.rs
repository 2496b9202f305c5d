//! What is remembered of memory in checked mode: who wrote each byte last, and who has read it since.

use super::clocks::Stamp;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    Read,
    Write,
    /// Atomic: additions need no order among themselves.
    Addition,
}

/// The last accesses to some memory, in pages that exist once they were touched.
#[derive(Default)]
pub struct Shadow {
    pages: Vec<Option<Box<Page>>>,
}

const PAGE: usize = 64;

/// Cells of equal size, a power of two: of 16 bytes until a smaller access comes.
struct Page {
    cell_bytes: usize,
    cells: Vec<Cell>,
}

/// The last accesses to the bytes of a cell.
#[derive(Clone, Default)]
pub struct Cell {
    pub write: Option<Stamp>,
    /// Reads since that write.
    pub readers: Readers,
    /// Additions since that write.
    adders: Option<Box<Readers>>,
}

/// Threads whose reads are not known to be ordered before another one's: a group of one block and one clock, as bits, and the rest.
#[derive(Clone, Default)]
pub struct Readers {
    block: u32,
    /// 0: there is no group.
    clock: u32,
    /// The first threads of the block, a bit each.
    threads: u128,
    more: Option<Box<More>>,
}

#[derive(Clone, Default)]
struct More {
    /// The other threads of the group.
    threads: [u128; 7],
    /// Readers outside of it: threads of its block, and of every other block the last, since what orders it usually orders its block.
    others: Vec<Stamp>,
}

impl Shadow {
    /// Visits the cells of `bytes` bytes from `offset` on, with the first offset of each.
    pub fn cells(&mut self, offset: usize, bytes: usize, mut visit: impl FnMut(usize, &mut Cell)) {
        let end = offset + bytes;
        let mut at = offset;
        while at < end {
            // One page, or the part of it that the span covers: nearly always all of the span.
            let page_end = end.min((at / PAGE + 1) * PAGE);
            if self.pages.len() <= at / PAGE {
                self.pages.resize_with(at / PAGE + 1, || None);
            }
            let page = self.pages[at / PAGE].get_or_insert_with(|| Box::new(Page::new()));
            page.refine(at | page_end);
            while at < page_end {
                visit(at, &mut page.cells[at % PAGE / page.cell_bytes]);
                at += page.cell_bytes;
            }
        }
    }
}

impl Page {
    fn new() -> Self {
        Page { cell_bytes: 16, cells: vec![Cell::default(); PAGE / 16] }
    }

    /// Splits cells until borders lie at all multiples of the lowest bit of `borders`.
    fn refine(&mut self, borders: usize) {
        let bytes = (1 << borders.trailing_zeros().min(4)).min(self.cell_bytes);
        if bytes < self.cell_bytes {
            let copies = self.cell_bytes / bytes;
            self.cells = self.cells.iter().flat_map(|cell| std::iter::repeat_n(cell, copies).cloned()).collect();
            self.cell_bytes = bytes;
        }
    }
}

impl Cell {
    pub fn written_at(stamp: Stamp) -> Self {
        Cell { write: Some(stamp), ..Cell::default() }
    }

    /// An earlier access that conflicts with a new one and is not ordered before it.
    pub fn rival(&self, access: Access, ordered: &impl Fn(Stamp) -> bool) -> Option<(Stamp, Access)> {
        let unordered = |stamp: Option<Stamp>| stamp.filter(|&stamp| !ordered(stamp));
        if let Some(write) = unordered(self.write) {
            return Some((write, Access::Write));
        }
        let first = |of: &Readers| of.all().find(|&stamp| !ordered(stamp));
        let addition = if access == Access::Addition { None } else { self.adders.as_deref().and_then(first) };
        let read = if access == Access::Read { None } else { first(&self.readers) };
        addition.map(|stamp| (stamp, Access::Addition)).or(read.map(|stamp| (stamp, Access::Read)))
    }

    pub fn remember(&mut self, now: Stamp, access: Access, ordered: &impl Fn(Stamp) -> bool) {
        match access {
            Access::Write => *self = Cell::written_at(now),
            Access::Read => self.readers.add(now, ordered),
            Access::Addition => self.adders.get_or_insert_default().add(now, ordered),
        }
    }
}

impl Readers {
    fn add(&mut self, now: Stamp, ordered: &impl Fn(Stamp) -> bool) {
        if (self.block, self.clock) != (now.block, now.clock) {
            // A group that is ordered before this read adds nothing: whoever is ordered after this one is ordered after all of those.
            if !self.group().all(ordered) {
                self.keep_group(now.block);
            }
            (self.block, self.clock, self.threads) = (now.block, now.clock, 0);
            self.more.iter_mut().for_each(|more| more.threads = Default::default());
        }
        let bit = 1 << (now.thread % u128::BITS);
        match (now.thread / u128::BITS) as usize {
            0 => self.threads |= bit,
            word => self.more.get_or_insert_default().threads[word - 1] |= bit,
        }
    }

    /// Moves the group to the others: all of it if the next one is of the same block, else its last thread.
    fn keep_group(&mut self, next_block: u32) {
        let same_block = self.block == next_block;
        let kept: Vec<Stamp> = if same_block { self.group().collect() } else { self.group().last().into_iter().collect() };
        let others = &mut self.more.get_or_insert_default().others;
        for stamp in kept {
            let replaced = |other: &&mut Stamp| other.block == stamp.block && (!same_block || other.thread == stamp.thread);
            match others.iter_mut().rev().find(replaced) {
                Some(other) => *other = stamp,
                None => others.push(stamp),
            }
        }
    }

    fn group(&self) -> impl Iterator<Item = Stamp> {
        let words = [self.threads].into_iter().chain(self.more.iter().flat_map(|more| more.threads));
        words.enumerate().flat_map(move |(word, mut bits)| {
            std::iter::from_fn(move || {
                let bit = (bits != 0).then(|| bits.trailing_zeros())?;
                bits &= bits - 1;
                Some(Stamp { block: self.block, thread: word as u32 * u128::BITS + bit, clock: self.clock })
            })
        })
    }

    fn all(&self) -> impl Iterator<Item = Stamp> {
        self.group().chain(self.more.iter().flat_map(|more| more.others.iter().copied()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_are_as_small_as_the_accesses() {
        let mut shadow = Shadow::default();
        let stamp = |thread| Stamp { block: 0, thread, clock: 1 };
        let mut write = |address, bytes, thread| {
            let mut seen = Vec::new();
            shadow.cells(address, bytes, |at, cell| {
                seen.push((at, cell.write.map(|stamp| stamp.thread)));
                cell.write = Some(stamp(thread));
            });
            seen
        };
        assert_eq!(write(64, 16, 1), [(64, None)]);
        assert_eq!(write(72, 4, 2), [(72, Some(1))]);
        assert_eq!(write(64, 16, 3), [(64, Some(1)), (68, Some(1)), (72, Some(2)), (76, Some(1))]);
        assert_eq!(write(75, 1, 4), [(75, Some(3))]);
        assert_eq!(write(74, 4, 5), [(74, Some(3)), (75, Some(4)), (76, Some(3)), (77, Some(3))]);
        assert_eq!(write(120, 16, 6).len(), 8 + 1, "across pages");
    }

    #[test]
    fn readers_are_kept_until_a_read_is_ordered_after_them() {
        let stamp = |block, thread, clock| Stamp { block, thread, clock };
        let mut readers = Readers::default();
        for thread in [0, 127, 128, 1023] {
            readers.add(stamp(0, thread, 1), &|_| false);
        }
        assert_eq!(readers.all().map(|stamp| stamp.thread).collect::<Vec<_>>(), [0, 127, 128, 1023]);
        readers.add(stamp(0, 5, 2), &|_| false);
        assert_eq!(readers.all().count(), 5, "the same block at another clock");
        readers.add(stamp(1, 6, 1), &|_| false);
        assert!(readers.all().any(|kept| kept == stamp(1, 6, 1)) && readers.all().any(|kept| kept.block == 0));
        let mut readers = Readers::default();
        readers.add(stamp(0, 1, 1), &|_| false);
        readers.add(stamp(0, 2, 2), &|_| true);
        assert_eq!(readers.all().collect::<Vec<_>>(), [stamp(0, 2, 2)]);
    }
}
