//! Who knows what of whom: vector clocks (Lamport 1978, Fidge 1988). A thread's clock counts the moments at which others may learn what it did:
//! barriers, and turns passed to other blocks. An access happened before another one if a chain of such moments leads from it to the
//! other thread.

use std::collections::BTreeMap;
use std::rc::Rc;

/// When an access happened: the clock of its thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// Place of the block in the grid.
    pub block: u32,
    /// Place of the thread in the block.
    pub thread: u32,
    pub clock: u32,
}

impl Stamp {
    /// The clock of a write that is under way: nothing is ordered after it yet, not even what its own thread does.
    pub const UNDER_WAY: u32 = u32::MAX;
}

/// What is known of blocks: by block, the clock of each thread up to which its accesses are known.
pub type Past = BTreeMap<u32, Rc<[u32]>>;

/// The clocks of a block's threads.
pub struct Clocks {
    block: u32,
    own: Vec<u32>,
    /// Everyone knows of everyone up to here: the last barrier of the whole block.
    floor: u32,
    /// [threads, threads] what a thread (row) knows of another one beyond the floor; empty until part of a block meets.
    known: Vec<u32>,
    /// What each thread knows of other blocks. Those that know the same share it.
    others: Vec<Rc<Past>>,
}

impl Clocks {
    pub fn new(block: u32, threads: usize) -> Self {
        Clocks { block, own: vec![1; threads], floor: 0, known: Vec::new(), others: vec![Rc::default(); threads] }
    }

    pub fn of(&self, thread: usize) -> u32 {
        self.own[thread]
    }

    /// Whether an access was over, and known of, when `thread` last learned something.
    pub fn ordered(&self, earlier: Stamp, thread: usize) -> bool {
        let other = earlier.thread as usize;
        if earlier.clock == Stamp::UNDER_WAY {
            return false;
        }
        if earlier.block != self.block {
            return self.others[thread].get(&earlier.block).is_some_and(|clocks| earlier.clock <= clocks[other]);
        }
        other == thread || earlier.clock <= self.known(thread, other)
    }

    /// `threads` meet at a barrier: each learns what any of them knew.
    pub fn join(&mut self, threads: &[usize]) {
        self.join_others(threads);
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

    /// What `thread` knows and did until now, for whoever will acquire it.
    pub fn release(&mut self, thread: usize) -> Rc<Past> {
        let mut clocks: Vec<u32> = (0..self.own.len()).map(|other| self.known(thread, other)).collect();
        clocks[thread] = self.own[thread];
        self.own[thread] += 1;
        let mut past = (*self.others[thread]).clone();
        past.insert(self.block, clocks.into());
        past.into()
    }

    /// `thread` learns what was released.
    pub fn acquire(&mut self, thread: usize, past: &Rc<Past>) {
        if let Some(clocks) = past.get(&self.block) {
            let count = self.own.len();
            self.known.resize(count * count, 0);
            let row = &mut self.known[thread * count..][..count];
            row.iter_mut().zip(clocks.iter()).for_each(|(known, &clock)| *known = clock.max(*known));
        }
        self.others[thread] = merged(&self.others[thread], past);
    }

    fn join_others(&mut self, threads: &[usize]) {
        let first = self.others[threads[0]].clone();
        if threads.iter().any(|&thread| !Rc::ptr_eq(&self.others[thread], &first)) {
            let all = threads.iter().fold(first, |all, &thread| merged(&all, &self.others[thread]));
            threads.iter().for_each(|&thread| self.others[thread] = all.clone());
        }
    }

    fn known(&self, thread: usize, other: usize) -> u32 {
        self.known.get(thread * self.own.len() + other).copied().unwrap_or(0).max(self.floor)
    }
}

/// The later of what two threads know, for every thread of every block.
fn merged(a: &Rc<Past>, b: &Rc<Past>) -> Rc<Past> {
    if Rc::ptr_eq(a, b) || b.is_empty() {
        return a.clone();
    }
    let mut all = (**a).clone();
    for (&block, clocks) in b.iter() {
        let known = all.entry(block).or_insert_with(|| clocks.clone());
        if !Rc::ptr_eq(known, clocks) {
            *known = known.iter().zip(clocks.iter()).map(|(&a, &b)| a.max(b)).collect();
        }
    }
    all.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stamp(clocks: &Clocks, thread: usize) -> Stamp {
        Stamp { block: clocks.block, thread: thread as u32, clock: clocks.of(thread) }
    }

    #[test]
    fn barriers_order_their_threads_only() {
        let mut clocks = Clocks::new(0, 4);
        let write = stamp(&clocks, 0);
        assert!(clocks.ordered(write, 0) && !clocks.ordered(write, 1));
        clocks.join(&[0, 1]);
        assert!(clocks.ordered(write, 1) && !clocks.ordered(write, 2));
        let later = stamp(&clocks, 0);
        assert!(!clocks.ordered(later, 1));
    }

    #[test]
    fn order_is_transitive() {
        let mut clocks = Clocks::new(0, 4);
        let write = stamp(&clocks, 0);
        clocks.join(&[0, 1]);
        clocks.join(&[1, 2]);
        assert!(clocks.ordered(write, 2) && !clocks.ordered(write, 3));
        let late = stamp(&clocks, 0);
        clocks.join(&[0, 1, 2, 3]);
        assert!(clocks.ordered(write, 3) && clocks.ordered(late, 3));
    }

    #[test]
    fn a_turn_orders_what_its_thread_knew_when_it_passed_it() {
        let [mut a, mut b, mut c] = [0, 1, 2].map(|block| Clocks::new(block, 4));
        let write = stamp(&a, 3);
        let unseen = a.release(0); // before the barrier: thread 0 does not know of the write
        a.join(&[0, 1, 2, 3]);
        let turn = a.release(0);
        let late = stamp(&a, 0);

        b.acquire(1, &unseen);
        assert!(!b.ordered(write, 1));
        b.acquire(1, &turn);
        assert!(b.ordered(write, 1) && !b.ordered(write, 2) && !b.ordered(late, 1));
        b.join(&[0, 1, 2, 3]);
        assert!(b.ordered(write, 2));

        c.acquire(0, &b.release(2));
        assert!(c.ordered(write, 0) && c.ordered(Stamp { block: 1, thread: 1, clock: 1 }, 0));
    }

    #[test]
    fn nothing_is_ordered_after_what_is_under_way() {
        let mut clocks = Clocks::new(0, 2);
        let copy = Stamp { clock: Stamp::UNDER_WAY, ..stamp(&clocks, 0) };
        clocks.join(&[0, 1]);
        assert!(!clocks.ordered(copy, 0) && !clocks.ordered(copy, 1));
    }
}
