//! Which tokens a step computes, and in which pages of the key/value cache: host logic without a device.
//!
//! A prompt's prefix (all its tokens but the last) is computed by prefill steps, everything else by decode steps, a token a sample. So what a token's
//! keys and values are computed with never depends on the batch, on the size of chunks or on preemption.
//!
//! Samples stand in one line, oldest first, and every rule follows the line: those that run are its head, behind them wait those that were
//! preempted, behind these those that have not started. A page is taken from the youngest, a row is given to the oldest that waits. So the oldest sample
//! runs in every decode step, and each becomes the oldest.

use super::blocks::{Blocks, Pool};
pub use super::blocks::{Limits, Move};
pub use super::sequence::{Chunk, Drawn, Ended, Request, Row, SampleId};
use super::sequence::{Place, Prompt, Sample};
use crate::error::{Error, Result};
use std::collections::{BTreeMap, VecDeque};

/// What to do next: the moves in their order, then the work. Steps are done in the order in which they were issued.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    pub moves: Vec<Move>,
    pub work: Work,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Work {
    /// Computes pieces of prompts, each of another; draws nothing.
    Prefill(Vec<Chunk>),
    /// Computes a token of each running sample, oldest first, and draws the next.
    Decode(Vec<Row>),
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Samples that have a row.
    pub running: usize,
    /// Samples that had one and wait for the next.
    pub preempted: usize,
    /// Samples that have not started.
    pub waiting: usize,
    /// Pages of the cache, and those that hold something.
    pub pages: usize,
    pub used: usize,
    /// Of these, pages of prompts that no running sample reads.
    pub idle: usize,
    /// Pages of host memory that hold something.
    pub host_used: usize,
    /// How often a sample was preempted.
    pub preemptions: u64,
    /// How often it lost its pages, for want of host memory.
    pub replays: u64,
    /// Prompt tokens computed, those computed again included.
    pub prefilled: u64,
    /// Tokens drawn.
    pub drawn: u64,
}

/// See the head of this file.
pub struct Scheduler {
    limits: Limits,
    blocks: Blocks,
    slots: Pool,
    /// Prompts with samples that have not started.
    queue: VecDeque<u64>,
    arrived: u64,
    samples: BTreeMap<SampleId, Sample>,
    started: u64,
    /// Oldest first, as the preempted ones, which are all younger.
    running: Vec<SampleId>,
    preempted: VecDeque<SampleId>,
    /// Samples whose last row was in the step before.
    asked: Vec<SampleId>,
    stats: Stats,
}

impl Scheduler {
    /// Errors: does not fit, if there is no row, no token of a chunk, or no page.
    pub fn new(limits: Limits) -> Result<Self> {
        let Limits { page, pages, host_pages, batch, chunk } = limits;
        let sound = |n: &usize| (1..=i32::MAX as usize).contains(n);
        if ![page, pages, batch, chunk, host_pages.saturating_add(1)].iter().all(sound) {
            return Err(Error::does_not_fit(format!("no sample runs within {limits:?}"))
                .help("give the cache more memory, or the batch at least one row"));
        }
        Ok(Scheduler {
            limits,
            blocks: Blocks::new(&limits),
            slots: Pool::new(batch),
            queue: VecDeque::new(),
            arrived: 0,
            samples: BTreeMap::new(),
            started: 0,
            running: Vec::new(),
            preempted: VecDeque::new(),
            asked: Vec::new(),
            stats: Stats { pages, ..Stats::default() },
        })
    }

    /// Whether fewer samples wait to start than could run: the caller pushes requests until it is false, so that host memory does not grow with the job.
    pub fn wants_more(&self) -> bool {
        self.stats.waiting < self.limits.batch
    }

    /// Puts a request at the end of the line.
    ///
    /// Errors: does not fit, see [`Limits::fits`]; internal, if it has no tokens, no samples, or asks for no new tokens.
    pub fn push(&mut self, request: Request) -> Result<()> {
        let Request { prompt, tokens, samples, max_tokens } = &request;
        if tokens.is_empty() || samples.is_empty() || *max_tokens == 0 {
            return Err(Error::internal(format!("request {prompt} is empty")));
        }
        if !self.limits.fits(tokens.len(), *max_tokens) {
            return Err(Error::does_not_fit(format!(
                "prompt {prompt}: {} tokens and {max_tokens} new ones do not fit in a cache of {} pages of {} tokens",
                tokens.len(),
                self.limits.pages,
                self.limits.page
            ))
            .help("allow fewer new tokens, or give the cache more memory"));
        }
        self.stats.waiting += samples.len();
        self.blocks.prompts.insert(self.arrived, Prompt::new(request));
        self.queue.push_back(self.arrived);
        self.arrived += 1;
        Ok(())
    }

    /// What to run next. It may be asked for before the draws of the last step are reported, not of earlier ones. `None` if no sample waits or runs; then only
    /// draws may be left to report.
    pub fn step(&mut self) -> Option<Step> {
        // Steps are done in order, so a page is free once the last step that reads it is issued.
        for id in std::mem::take(&mut self.asked) {
            if self.samples.contains_key(&id) {
                self.release(id);
            }
        }
        let chunks = self.prefill();
        if !chunks.is_empty() {
            return Some(Step { moves: Vec::new(), work: Work::Prefill(chunks) });
        }
        let mut moves = Vec::new();
        // Who has just been preempted cannot be brought back yet: what it drew in the last step may not be known.
        if self.grow(&mut moves) {
            self.admit(&mut moves);
        }
        let rows = self.rows();
        (!rows.is_empty()).then_some(Step { moves, work: Work::Decode(rows) })
    }

    /// Reports that the row of a sample drew its new token number `index`. Draws of a sample are reported in order, at most one step late.
    pub fn drawn(&mut self, sample: SampleId, index: usize, token: i32) -> Drawn {
        let Some(sample) = self.samples.get_mut(&sample) else { return Drawn::Ignored };
        if index < sample.tokens.len() {
            return Drawn::Ignored;
        }
        assert_eq!(index, sample.tokens.len(), "draws of a sample are reported in order");
        sample.tokens.push(token);
        self.stats.drawn += 1;
        if sample.tokens.len() == sample.max_tokens { Drawn::Last } else { Drawn::New }
    }

    /// Ends a sample and frees what it holds. Its row may still be in one issued step. Panics if it has ended before.
    pub fn end(&mut self, sample: SampleId) -> Ended {
        self.release(sample);
        let Sample { names, tokens, .. } = self.samples.remove(&sample).expect("a sample ends once");
        Ended { prompt: names.0, sample: names.1, tokens }
    }

    /// The new tokens of a sample that are known. Panics if it has ended.
    pub fn tokens(&self, sample: SampleId) -> &[i32] {
        &self.samples[&sample].tokens
    }

    /// The prompt of a sample that had a row in the last step. Panics if it has ended.
    pub fn prompt(&self, sample: SampleId) -> &[i32] {
        &self.blocks.prompts[&self.samples[&sample].prompt].request.tokens
    }

    /// The caller's numbers of a sample's prompt and of the sample. Panics if it has ended.
    pub fn names(&self, sample: SampleId) -> (u64, u32) {
        self.samples[&sample].names
    }

    /// The pages of a sample in the last step, in the order of its tokens; none if it had no row. Panics if it has ended.
    pub fn pages(&self, sample: SampleId) -> impl Iterator<Item = u32> + '_ {
        let sample = &self.samples[&sample];
        let (shared, own): (&[u32], &[u32]) = match &sample.place {
            Place::Cache { pages, .. } => (self.blocks.shared_pages(sample.prompt), pages),
            _ => (&[], &[]),
        };
        shared.iter().chain(own).copied()
    }

    pub fn stats(&self) -> Stats {
        Stats {
            running: self.running.len(),
            preempted: self.preempted.len(),
            used: self.blocks.cache.used(),
            idle: self.blocks.idle(),
            host_used: self.blocks.host.used(),
            ..self.stats
        }
    }

    /// Who waits for a row, oldest first: the prompt, and the pages to take.
    fn line(&self) -> impl Iterator<Item = (u64, usize)> + '_ {
        let preempted = self.preempted.iter().map(|id| {
            let sample = &self.samples[id];
            (sample.prompt, self.blocks.wanted(sample.prompt, &sample.place, sample.computed))
        });
        let new = self.queue.iter().flat_map(|key| {
            let prompt = &self.blocks.prompts[key];
            let pages = self.blocks.wanted(*key, &Place::Nowhere, prompt.prefix());
            std::iter::repeat_n((*key, pages), prompt.request.samples.len() - prompt.started)
        });
        preempted.chain(new)
    }

    /// The head of the line.
    fn first(&self) -> Option<(u64, usize)> {
        self.line().next()
    }

    /// Pages for those who wait. A few stay free for those who run, which would otherwise preempt at once whom they let in. With nobody running the first in line
    /// always has room: prefixes are computed in the order of the line and dropped from its end, so none is there that the first could lack pages for.
    fn room(&self) -> usize {
        let watermark = if self.running.is_empty() { 0 } else { (self.limits.pages / 64).max(1) };
        self.blocks.cache.free().saturating_sub(watermark)
    }

    /// The chunks of a prefill step. None if the first in line lacks no prefix, or there is no row or no room for it.
    ///
    /// Such a step runs as soon as a row would stay empty, and then serves the next batch/16 samples in line too, as far as there is room: with many samples a
    /// prompt it is rare, with one sample a prompt it has many prompts, and no row waits for more of them.
    fn prefill(&mut self) -> Vec<Chunk> {
        let lacks = self.first().is_some_and(|(key, _)| self.blocks.missing(key).0 > 0);
        if !lacks || self.slots.free() == 0 {
            return Vec::new();
        }
        let Limits { batch, chunk, .. } = self.limits;
        let served = (self.slots.free() + (batch / 16).max(1)).min(batch);
        let (mut room, mut tokens) = (self.room(), chunk);
        let mut pieces: Vec<(u64, usize)> = Vec::new();
        let mut before = None;
        for (key, pages) in self.line().take(served) {
            let missing = if before == Some(key) { (0, 0) } else { self.blocks.missing(key) };
            before = Some(key);
            if pages + missing.1 > room || tokens == 0 {
                break;
            }
            room -= pages + missing.1;
            let piece = missing.0.min(tokens);
            tokens -= piece;
            if piece > 0 {
                pieces.push((key, piece));
            }
        }
        self.stats.prefilled += (chunk - tokens) as u64;
        pieces.into_iter().map(|(key, piece)| self.chunk(key, piece)).collect()
    }

    fn chunk(&mut self, key: u64, tokens: usize) -> Chunk {
        let start = self.blocks.extend(key, tokens);
        let Prompt { request, pages, .. } = &self.blocks.prompts[&key];
        Chunk { prompt: request.prompt, tokens: request.tokens[start..start + tokens].to_vec(), start, pages: pages.clone() }
    }

    /// Gives each running sample the page that its next token needs, the oldest first; where none is free, the youngest leaves. Returns whether all stayed.
    fn grow(&mut self, moves: &mut Vec<Move>) -> bool {
        let before = self.stats.preemptions;
        let mut turn = 0;
        while let Some(id) = self.running.get(turn) {
            let sample = self.samples.get_mut(id).expect("a running sample has not ended");
            let Place::Cache { pages, .. } = &mut sample.place else { unreachable!("a running sample has a row") };
            let held = self.blocks.shared_pages(sample.prompt).len() + pages.len();
            if held == self.blocks.pages_of(sample.computed + 1) {
                turn += 1;
            } else if self.blocks.make_room(1) {
                pages.push(self.blocks.cache.take());
            } else {
                self.preempt(moves);
            }
        }
        self.stats.preemptions == before
    }

    /// Takes row and pages from the youngest that runs. The pages move to host memory, where those of still younger samples make way for them.
    fn preempt(&mut self, moves: &mut Vec<Move>) {
        let id = self.running.pop().expect("somebody runs");
        let Place::Cache { slot, pages, .. } = &self.samples[&id].place else { unreachable!("a running sample has a row") };
        let held = pages.len();
        self.slots.give(*slot);
        if held <= self.limits.host_pages {
            while self.blocks.host.free() < held {
                let hosted = |id: &&SampleId| matches!(self.samples[id].place, Place::Host { .. });
                let youngest = self.preempted.iter().rfind(hosted);
                self.lose(*youngest.expect("preempted samples hold what is not free"));
            }
            let sample = self.samples.get_mut(&id).expect("a running sample has not ended");
            let place = std::mem::replace(&mut sample.place, Place::Done);
            sample.place = self.blocks.swap_out(sample.prompt, place, moves);
        } else {
            self.lose(id);
        }
        self.stats.preemptions += 1;
        self.preempted.push_front(id);
    }

    /// Takes a sample's pages for good: it will be computed again from the end of the prefix on.
    fn lose(&mut self, id: SampleId) {
        let sample = self.samples.get_mut(&id).expect("a sample that holds pages has not ended");
        sample.computed = self.blocks.prompts[&sample.prompt].prefix();
        self.blocks.free(sample.prompt, std::mem::replace(&mut sample.place, Place::Nowhere), true);
        self.stats.replays += 1;
    }

    /// Gives rows to those who wait, as far as there are rows and room.
    fn admit(&mut self, moves: &mut Vec<Move>) {
        while let Some((key, pages)) = self.first() {
            if self.slots.free() == 0 || self.blocks.missing(key).0 > 0 || pages > self.room() {
                return;
            }
            let id = self.preempted.pop_front().unwrap_or_else(|| self.start(key));
            let sample = self.samples.get_mut(&id).expect("a waiting sample has not ended");
            let place = std::mem::replace(&mut sample.place, Place::Done);
            let pages = self.blocks.bring(key, place, sample.computed, moves);
            sample.place = Place::Cache { slot: self.slots.take(), pages, fresh: true };
            self.running.push(id);
        }
    }

    /// The next sample of the first prompt in the queue.
    fn start(&mut self, key: u64) -> SampleId {
        let prompt = self.blocks.prompts.get_mut(&key).expect("a prompt in the queue is there");
        let Request { prompt: name, samples, max_tokens, .. } = &prompt.request;
        let sample = Sample {
            prompt: key,
            names: (*name, samples[prompt.started]),
            max_tokens: *max_tokens,
            tokens: Vec::new(),
            computed: prompt.prefix(),
            place: Place::Nowhere,
        };
        prompt.started += 1;
        if prompt.started == samples.len() {
            self.queue.pop_front();
        }
        self.stats.waiting -= 1;
        let id = SampleId(self.started);
        self.started += 1;
        self.samples.insert(id, sample);
        id
    }

    /// A row for each running sample.
    fn rows(&mut self) -> Vec<Row> {
        let mut rows = Vec::with_capacity(self.running.len());
        for id in &self.running {
            let sample = self.samples.get_mut(id).expect("a running sample has not ended");
            let prompt = &self.blocks.prompts[&sample.prompt];
            let Place::Cache { slot, fresh, .. } = &mut sample.place else { unreachable!("a running sample has a row") };
            let index = sample.computed - prompt.prefix();
            let token = match index {
                0 => prompt.request.tokens.last().copied(),
                _ => sample.tokens.get(index - 1).copied(),
            };
            let (position, replayed) = (sample.computed, index < sample.tokens.len());
            rows.push(Row { sample: *id, slot: *slot, fresh: std::mem::take(fresh), position, token, index, replayed });
            sample.computed += 1;
            if index + 1 == sample.max_tokens {
                self.asked.push(*id);
            }
        }
        rows
    }

    /// Frees what a sample holds: it has no work left.
    fn release(&mut self, id: SampleId) {
        let sample = self.samples.get_mut(&id).expect("a sample ends once");
        match std::mem::replace(&mut sample.place, Place::Done) {
            Place::Done => {}
            place => {
                if let Place::Cache { slot, .. } = place {
                    self.slots.give(slot);
                    self.running.retain(|other| *other != id);
                } else {
                    self.preempted.retain(|other| *other != id);
                }
                self.blocks.free(sample.prompt, place, false);
            }
        }
    }
}
