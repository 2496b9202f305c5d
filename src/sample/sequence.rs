//! Prompts and their samples: what is asked for, what a step computes of them, what the scheduler knows of them.

/// Names a sample that has started. Older samples have smaller ids, and no id is used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SampleId(pub(super) u64);

/// A prompt that is answered by one or more samples.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// The caller's number of the prompt.
    pub prompt: u64,
    /// The prompt, at least one token.
    pub tokens: Vec<i32>,
    /// The caller's numbers of the samples, at least one.
    pub samples: Vec<u32>,
    /// New tokens of a sample at most, at least one.
    pub max_tokens: usize,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    /// The caller's number of the prompt.
    pub prompt: u64,
    /// Its tokens at positions `start` ….
    pub tokens: Vec<i32>,
    pub start: usize,
    /// The prompt's pages up to the chunk's end.
    pub pages: Vec<u32>,
}

/// A row of a decode step. [`Scheduler::pages`](super::scheduler::Scheduler::pages) tells its pages: they are others where `fresh`, and one more where `position` is the first of a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    pub sample: SampleId,
    /// The sample's place in arrays of `batch` entries, the same as long as it runs.
    pub slot: u32,
    /// Whether the sample has just been given the slot, so that what the device keeps by slot must be set up.
    pub fresh: bool,
    /// The position of the token that the row computes.
    pub position: usize,
    /// That token; `None` if the sample's row in the decode step before drew it and it was not reported. Always there in a fresh row.
    pub token: Option<i32>,
    /// Which new token the row draws, from 0.
    pub index: usize,
    /// Whether what it draws is known already: the sample lost its pages and is computed again.
    pub replayed: bool,
}

/// What became of a token that was drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drawn {
    /// The sample has ended, or the token was known: nothing is to be done.
    Ignored,
    /// It was added to the sample.
    New,
    /// It was added, and is the last that the sample may have: the caller ends it.
    Last,
}

/// A sample that has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// The caller's number of the prompt.
    pub prompt: u64,
    /// The caller's number of the sample.
    pub sample: u32,
    /// The new tokens.
    pub tokens: Vec<i32>,
}

/// A prompt with samples that have work left.
///
/// Prefill steps compute its *prefix*, all tokens but the last, into pages that the prompt owns. Its samples read the full ones of them. The
/// partly filled last one is copied by each sample that starts, which goes on filling its copy; the last sample to start takes the page itself.
pub(super) struct Prompt {
    pub request: Request,
    /// Samples of the request that were given an id.
    pub started: usize,
    /// Samples with work left, started or not.
    pub alive: usize,
    /// Samples that will start from the prefix: those not started yet, and those that lost their pages.
    pub forks: usize,
    /// Samples that hold a row, and so read its pages.
    pub readers: usize,
    /// Tokens of the prefix in `pages`, computed by the steps issued so far.
    pub computed: usize,
    pub pages: Vec<u32>,
}

impl Prompt {
    pub fn new(request: Request) -> Self {
        let samples = request.samples.len();
        Prompt { request, started: 0, alive: samples, forks: samples, readers: 0, computed: 0, pages: Vec::new() }
    }

    /// Tokens that prefill steps compute.
    pub fn prefix(&self) -> usize {
        self.request.tokens.len() - 1
    }
}

/// A sample that has started and not ended.
pub(super) struct Sample {
    /// The key of its prompt, which is there as long as the sample has work left.
    pub prompt: u64,
    /// The caller's numbers of prompt and sample.
    pub names: (u64, u32),
    pub max_tokens: usize,
    /// The new tokens that are known.
    pub tokens: Vec<i32>,
    /// Tokens, the prompt's and new ones, that the steps issued so far put into the cache. A decode row computes one more.
    pub computed: usize,
    pub place: Place,
}

/// Where the keys and values are that belong to a sample alone: its tokens from the last, partly filled page of the prefix on.
pub(super) enum Place {
    /// It runs: it has a row and pages of the cache. `fresh`: no step with that row was issued yet.
    Cache { slot: u32, pages: Vec<u32>, fresh: bool },
    /// It was preempted, and its pages are in host memory.
    Host { pages: Vec<u32> },
    /// It has not run yet, or was preempted and lost its pages: it starts from the prefix and computes again what is known.
    Nowhere,
    /// All its tokens were asked for: it needs none.
    Done,
}
