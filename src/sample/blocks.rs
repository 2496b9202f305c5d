//! Who holds which page of the cache and of host memory. A page has one owner, a prompt or a sample; a prompt's samples read its pages and are counted.

use super::sequence::{Place, Prompt};
use std::collections::{BTreeMap, BTreeSet};

/// What a step may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Tokens of a page.
    pub page: usize,
    /// Pages of the cache.
    pub pages: usize,
    /// Pages in host memory that preempted samples move to.
    pub host_pages: usize,
    /// Rows of a decode step; also chunks of a prefill step.
    pub batch: usize,
    /// Tokens of a prefill step.
    pub chunk: usize,
}

impl Limits {
    /// Whether a sample of `max_tokens` new tokens after a prompt can run at all: alone, beside the prompt's partly filled page that further samples copy.
    pub fn fits(&self, prompt_tokens: usize, max_tokens: usize) -> bool {
        let cached = prompt_tokens.saturating_add(max_tokens).saturating_sub(1);
        cached.div_ceil(self.page) < self.pages
    }
}

/// What a step does to pages before its work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Move {
    /// A page of the cache to a page of host memory.
    Out { page: u32, host: u32 },
    /// A page of host memory to a page of the cache.
    In { host: u32, page: u32 },
    /// A page of the cache to another.
    Copy { from: u32, to: u32 },
}

/// The numbers 0 … n − 1, each free or taken: pages, or the rows of a batch.
pub(super) struct Pool {
    free: Vec<u32>,
    taken: Vec<bool>,
}

impl Pool {
    pub fn new(numbers: usize) -> Self {
        Pool { free: (0..numbers as u32).rev().collect(), taken: vec![false; numbers] }
    }

    pub fn free(&self) -> usize {
        self.free.len()
    }

    pub fn used(&self) -> usize {
        self.taken.len() - self.free.len()
    }

    /// The free number that was given back last. Panics if there is none: who takes has asked [`Pool::free`].
    pub fn take(&mut self) -> u32 {
        let number = self.free.pop().expect("a pool has a free number");
        self.taken[number as usize] = true;
        number
    }

    /// Panics if the number is free already: two owners of a page would overwrite each other's tokens without a trace.
    pub fn give(&mut self, number: u32) {
        assert!(std::mem::take(&mut self.taken[number as usize]), "{number} is given back twice");
        self.free.push(number);
    }
}

pub(super) struct Blocks {
    /// Tokens of a page.
    page: usize,
    pub cache: Pool,
    pub host: Pool,
    /// Prompts with samples that have work left, by arrival.
    pub prompts: BTreeMap<u64, Prompt>,
    /// Those that hold pages which no running sample reads.
    idle: BTreeSet<u64>,
}

impl Blocks {
    pub fn new(limits: &Limits) -> Self {
        let Limits { page, pages, host_pages, .. } = *limits;
        let (cache, host) = (Pool::new(pages), Pool::new(host_pages));
        Blocks { page, cache, host, prompts: BTreeMap::new(), idle: BTreeSet::new() }
    }

    pub fn pages_of(&self, tokens: usize) -> usize {
        tokens.div_ceil(self.page)
    }

    /// Full pages of a prompt's prefix, which its samples share.
    fn shared(&self, prompt: &Prompt) -> usize {
        prompt.prefix() / self.page
    }

    /// Whether the prefix ends within a page.
    fn has_tail(&self, prompt: &Prompt) -> bool {
        !prompt.prefix().is_multiple_of(self.page)
    }

    /// Tokens of the prefix that waiting samples lack, and the pages that these tokens lack: all of them to start a sample, the shared pages to
    /// bring one back.
    pub fn missing(&self, key: u64) -> (usize, usize) {
        let prompt = &self.prompts[&key];
        let needed = if prompt.forks > 0 { prompt.prefix() } else { self.shared(prompt) * self.page };
        let tokens = needed.saturating_sub(prompt.computed);
        (tokens, if tokens == 0 { 0 } else { self.pages_of(needed) - prompt.pages.len() })
    }

    /// Gives the prefix pages for its next tokens. Returns where they start; `pages` of the prompt then reach to their end.
    pub fn extend(&mut self, key: u64, tokens: usize) -> usize {
        let prompt = self.prompts.get_mut(&key).expect("a prompt in line is there");
        let start = prompt.computed;
        prompt.computed += tokens;
        while prompt.pages.len() * self.page < prompt.computed {
            prompt.pages.push(self.cache.take());
        }
        self.settle(key);
        start
    }

    /// Pages that a sample in `place` with `computed` tokens takes when it runs, for one more token.
    pub fn wanted(&self, key: u64, place: &Place, computed: usize) -> usize {
        let prompt = &self.prompts[&key];
        let inherited = matches!(place, Place::Nowhere) && prompt.forks == 1 && self.has_tail(prompt);
        self.pages_of(computed + 1) - self.shared(prompt) - inherited as usize
    }

    /// Gives a sample in `place` its own pages: those in host memory, or the start of the prefix's partly filled page, of which the last sample to start
    /// takes the original.
    pub fn bring(&mut self, key: u64, place: Place, computed: usize, moves: &mut Vec<Move>) -> Vec<u32> {
        let prompt = &self.prompts[&key];
        let (shared, has_tail) = (self.shared(prompt), self.has_tail(prompt));
        let prompt = self.prompts.get_mut(&key).expect("it is there");
        let mut own = Vec::new();
        match place {
            Place::Host { pages } => {
                for host in pages {
                    let page = self.cache.take();
                    moves.push(Move::In { host, page });
                    self.host.give(host);
                    own.push(page);
                }
            }
            _ => {
                prompt.forks -= 1;
                if has_tail && prompt.forks == 0 {
                    own.extend(prompt.pages.pop());
                    prompt.computed = shared * self.page;
                } else if has_tail {
                    own.push(self.cache.take());
                    moves.push(Move::Copy { from: prompt.pages[shared], to: own[0] });
                }
            }
        }
        while (shared + own.len()) * self.page <= computed {
            own.push(self.cache.take());
        }
        prompt.readers += 1;
        self.settle(key);
        own
    }

    /// Moves a running sample's own pages to host memory, which has room.
    pub fn swap_out(&mut self, key: u64, place: Place, moves: &mut Vec<Move>) -> Place {
        let Place::Cache { pages, .. } = place else { unreachable!("a running sample has pages") };
        let mut out = Vec::with_capacity(pages.len());
        for page in pages {
            let host = self.host.take();
            moves.push(Move::Out { page, host });
            self.cache.give(page);
            out.push(host);
        }
        self.prompts.get_mut(&key).expect("a prompt of a running sample is there").readers -= 1;
        self.settle(key);
        Place::Host { pages: out }
    }

    /// Frees what a sample in `place` holds. It will start again, or has no work left.
    pub fn free(&mut self, key: u64, place: Place, again: bool) {
        let prompt = self.prompts.get_mut(&key).expect("a prompt with work left is there");
        match place {
            Place::Cache { pages, .. } => {
                prompt.readers -= 1;
                pages.into_iter().for_each(|page| self.cache.give(page));
            }
            Place::Host { pages } => pages.into_iter().for_each(|page| self.host.give(page)),
            Place::Nowhere => prompt.forks -= 1,
            Place::Done => unreachable!("a sample is freed once"),
        }
        match again {
            true => prompt.forks += 1,
            false => prompt.alive -= 1,
        }
        self.settle(key);
    }

    /// The pages that a prompt's samples share.
    pub fn shared_pages(&self, key: u64) -> &[u32] {
        let prompt = &self.prompts[&key];
        &prompt.pages[..self.shared(prompt)]
    }

    /// Pages of prompts that no running sample reads.
    pub fn idle(&self) -> usize {
        self.idle.iter().map(|key| self.prompts[key].pages.len()).sum()
    }

    /// Sees that so many pages are free, if need be by dropping prefixes that no running sample reads, the youngest first. They are computed again when
    /// their turn comes. Returns whether there are as many.
    pub fn make_room(&mut self, pages: usize) -> bool {
        while self.cache.free() < pages {
            let Some(key) = self.idle.last().copied() else { return false };
            self.drop_prefix(key);
        }
        true
    }

    /// Notes whether a running sample reads the pages of a prompt. A prompt without samples goes.
    fn settle(&mut self, key: u64) {
        let prompt = &self.prompts[&key];
        if prompt.alive == 0 {
            assert_eq!((prompt.forks, prompt.readers), (0, 0), "a prompt without samples is read");
            self.drop_prefix(key);
            self.prompts.remove(&key);
        } else if prompt.readers == 0 && !prompt.pages.is_empty() {
            self.idle.insert(key);
        } else {
            self.idle.remove(&key);
        }
    }

    fn drop_prefix(&mut self, key: u64) {
        let prompt = self.prompts.get_mut(&key).expect("a prompt with pages is there");
        prompt.pages.drain(..).for_each(|page| self.cache.give(page));
        prompt.computed = 0;
        self.idle.remove(&key);
    }
}
