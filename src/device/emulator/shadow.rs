//! What is remembered of memory in checked mode: who wrote each byte last, and who has read it since.

use super::clocks::Stamp;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    Read,
    Write,
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
    pub reads: Reads,
}

#[derive(Clone, Default)]
pub enum Reads {
    #[default]
    Nobody,
    One(Stamp),
    Many(Box<Readers>),
}

/// Reads of several threads, none ordered after all others.
#[derive(Clone)]
pub struct Readers {
    block: u32,
    /// The clock of each of its threads' last read, 0 for none.
    clocks: Vec<u32>,
    /// Of every other block, the last reader: what orders it usually orders its block.
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
    /// An earlier access that conflicts with a new one and is not ordered before it.
    pub fn rival(&self, access: Access, ordered: &impl Fn(Stamp) -> bool) -> Option<(Stamp, Access)> {
        let unordered = |stamp: Option<Stamp>| stamp.filter(|&stamp| !ordered(stamp));
        if let Some(write) = unordered(self.write) {
            return Some((write, Access::Write));
        }
        let read = match (access, &self.reads) {
            (Access::Read, _) | (_, Reads::Nobody) => None,
            (_, Reads::One(read)) => unordered(Some(*read)),
            (_, Reads::Many(readers)) => readers.stamps().find(|&stamp| !ordered(stamp)),
        };
        read.map(|stamp| (stamp, Access::Read))
    }

    /// Notes an access by a thread of a block of `threads`.
    pub fn remember(&mut self, now: Stamp, access: Access, ordered: &impl Fn(Stamp) -> bool, threads: usize) {
        if access == Access::Write {
            *self = Cell { write: Some(now), reads: Reads::Nobody };
            return;
        }
        match &mut self.reads {
            Reads::Nobody => self.reads = Reads::One(now),
            // An ordered read adds nothing: whoever is ordered after this one is ordered after that one.
            Reads::One(read) if ordered(*read) => *read = now,
            Reads::One(read) => {
                let mut readers = Readers { block: now.block, clocks: vec![0; threads], others: Vec::new() };
                readers.add(*read);
                readers.add(now);
                self.reads = Reads::Many(Box::new(readers));
            }
            Reads::Many(readers) => readers.add(now),
        }
    }
}

impl Readers {
    fn add(&mut self, stamp: Stamp) {
        if stamp.block == self.block {
            self.clocks[stamp.thread as usize] = stamp.clock;
            return;
        }
        match self.others.iter_mut().rev().find(|other| other.block == stamp.block) {
            Some(other) => *other = stamp,
            None => self.others.push(stamp),
        }
    }

    fn stamps(&self) -> impl Iterator<Item = Stamp> {
        let stamp = |(thread, &clock): (usize, &u32)| Stamp { block: self.block, thread: thread as u32, clock };
        self.others.iter().copied().chain(self.clocks.iter().enumerate().filter(|(_, clock)| **clock > 0).map(stamp))
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
}
