//! Who knows what of whom within a block: vector clocks (Lamport 1978, Fidge 1988). A thread's clock counts the barriers it passed; an
//! access happened before another one if a chain of barriers leads from it to the other thread.

/// When an access happened: the clock of its thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// Place of the block in the grid.
    pub block: u32,
    /// Place of the thread in the block.
    pub thread: u32,
    pub clock: u32,
}

/// The clocks of a block's threads.
pub struct Clocks {
    own: Vec<u32>,
    /// Everyone knows of everyone up to here: the last barrier of the whole block.
    floor: u32,
    /// [threads, threads] what a thread (row) knows of another one beyond the floor; empty until part of a block meets.
    known: Vec<u32>,
}

impl Clocks {
    pub fn new(threads: usize) -> Self {
        Clocks { own: vec![1; threads], floor: 0, known: Vec::new() }
    }

    pub fn of(&self, thread: usize) -> u32 {
        self.own[thread]
    }

    /// Whether an access of this block was over when `thread` passed its last barrier.
    pub fn ordered(&self, earlier: Stamp, thread: usize) -> bool {
        let other = earlier.thread as usize;
        other == thread || earlier.clock <= self.floor.max(self.known(thread, other))
    }

    /// `threads` meet at a barrier: each learns what any of them knew.
    pub fn join(&mut self, threads: &[usize]) {
        let count = self.own.len();
        if threads.len() == count {
            self.floor = self.own.iter().copied().max().expect("a block has threads");
            return self.own.fill(self.floor + 1);
        }
        self.known.resize(count * count, 0);
        let mut joined = vec![0; count];
        for &thread in threads {
            let row = &self.known[thread * count..][..count];
            joined.iter_mut().zip(row).for_each(|(joined, &known)| *joined = known.max(*joined));
        }
        for &thread in threads {
            joined[thread] = self.own[thread];
        }
        for &thread in threads {
            self.known[thread * count..][..count].copy_from_slice(&joined);
            self.own[thread] += 1;
        }
    }

    fn known(&self, thread: usize, other: usize) -> u32 {
        self.known.get(thread * self.own.len() + other).copied().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stamp(clocks: &Clocks, thread: usize) -> Stamp {
        Stamp { block: 0, thread: thread as u32, clock: clocks.of(thread) }
    }

    #[test]
    fn barriers_order_their_threads_only() {
        let mut clocks = Clocks::new(4);
        let write = stamp(&clocks, 0);
        assert!(clocks.ordered(write, 0) && !clocks.ordered(write, 1));
        clocks.join(&[0, 1]);
        assert!(clocks.ordered(write, 1) && !clocks.ordered(write, 2));
        let later = stamp(&clocks, 0);
        assert!(!clocks.ordered(later, 1));
    }

    #[test]
    fn order_is_transitive() {
        let mut clocks = Clocks::new(4);
        let write = stamp(&clocks, 0);
        clocks.join(&[0, 1]);
        clocks.join(&[1, 2]);
        assert!(clocks.ordered(write, 2) && !clocks.ordered(write, 3));
        let late = stamp(&clocks, 0);
        clocks.join(&[0, 1, 2, 3]);
        assert!(clocks.ordered(write, 3) && clocks.ordered(late, 3));
    }
}
