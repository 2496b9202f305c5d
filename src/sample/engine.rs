//! Batched sampling: runs what the scheduler says. The host is one step ahead: it issues a step, then reads what the step before drew, while the device
//! works; a token that the next step needs goes there on the device.

use super::inputs::{Writer, cut, words};
use super::scheduler::{self, Chunk, Drawn, Ended, Limits, Move, Row, SampleId, Scheduler, Stats, Work};
use super::stop::{FinishReason, StopRules};
use crate::config::ModelConfig;
use crate::error::{Error, Result};
use crate::model::{Activations, Extent, Keep, PagedStep, Qwen2, WeightSource, heads};
use crate::ops::{DrawTokens, FeedTokens, Mark, Narrowing, Ops, PAGE, PagedAttention, PagedQueries, Recording};
use crate::tensor::{Arenas, DType, Ledgers, Tensor};
use std::collections::HashMap;
use std::ops::Range;

/// What the buffers are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacity {
    /// Samples that decode together.
    pub batch: usize,
    /// Prompt tokens of a step.
    pub chunk: usize,
    /// Pages of the key/value cache, [`PAGE`] tokens each.
    pub pages: usize,
    /// Pages of host memory for samples that have to wait.
    pub host_pages: usize,
    /// Tokens of the longest sequence, prompt and answer.
    pub positions: usize,
}

impl Capacity {
    /// Bytes of a page: keys and values of all layers.
    pub fn page_bytes(config: &ModelConfig, storage: DType) -> usize {
        let heads = heads(config);
        config.num_hidden_layers * 2 * heads.kv * PAGE * heads.dim * storage.size()
    }

    fn limits(&self) -> Limits {
        let Capacity { batch, chunk, pages, host_pages, .. } = *self;
        Limits { page: PAGE, pages, host_pages, batch, chunk }
    }

    /// Whether a prompt of so many tokens with samples of so many new ones finds room.
    pub fn fits(&self, prompt_tokens: usize, max_tokens: usize) -> bool {
        let longest = prompt_tokens.saturating_add(max_tokens);
        longest <= self.positions && self.limits().fits(prompt_tokens, max_tokens)
    }

    /// Pages that a sequence of the longest kind takes.
    fn width(&self) -> usize {
        self.positions.div_ceil(PAGE).min(self.pages)
    }
}

/// How a job draws and ends its samples.
#[derive(Clone, Copy)]
pub struct Settings<'a> {
    pub narrowing: Narrowing,
    pub stop: StopRules<'a>,
    /// Whether log-probabilities are wanted.
    pub log_probabilities: bool,
    /// Ids from here on, the padding rows of the model's vocabulary, are never drawn.
    pub vocabulary: usize,
}

/// A prompt, and the samples that are wanted of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// The caller's number of the prompt; no two have the same.
    pub prompt: u64,
    /// At least one.
    pub tokens: Vec<i32>,
    /// The number of each sample, and the key of its random numbers; at least one.
    pub samples: Vec<(u32, u64)>,
    /// The most new tokens of a sample.
    pub max_tokens: usize,
}

/// A sample that has ended.
#[derive(Debug, Clone, PartialEq)]
pub struct Finished {
    pub prompt: u64,
    pub sample: u32,
    /// The new tokens, the stop token included.
    pub tokens: Vec<i32>,
    /// Natural logarithms of their probabilities, before any narrowing; empty unless wanted.
    pub log_probabilities: Vec<f32>,
    pub reason: FinishReason,
}

/// The engine's buffers.
pub struct Engine {
    capacity: Capacity,
    /// Rows of a full decode step, padding included: B.
    batch: usize,
    activations: Activations,
    /// [N, L, 2, K · PAGE · H]
    cache: Tensor,
    /// The same in host memory, of samples that wait.
    swapped: Tensor,
    /// i32: the arrays of a step
    inputs: Tensor,
    /// The host's copy of `inputs`, of two steps in turn.
    staging: [Tensor; 2],
    /// [B] i32: what the rows of a decode step compute
    fed: Tensor,
    /// [B] i32: what they drew
    drawn: Tensor,
    /// [B] f32
    log_probabilities: Tensor,
    /// [2 · B] i32 in host memory: tokens drawn, and the bits of their log-probabilities, of two steps in turn
    results: [Tensor; 2],
    /// [B, V] f32
    logits: Tensor,
    /// [B, ⌈V/32⌉] i32
    seen: Tensor,
    /// u8, of attention
    scratch: Tensor,
}

/// Rows that libraries choose algorithms for, the same for every batch and chunk.
const DECODE_ROWS: usize = 128;
const PREFILL_ROWS: usize = 2048;

/// A step that was issued.
struct Issued {
    /// Of a decode step.
    rows: Vec<Row>,
    /// Which of two it is.
    turn: usize,
    /// Behind all of it.
    done: Mark,
}

/// A decode step to issue.
struct Decode<'a> {
    rows: Vec<Row>,
    /// The step before, where it was not collected.
    before: Option<&'a Issued>,
    scheduler: &'a Scheduler,
    samples: &'a Samples,
    recordings: &'a mut Recordings,
    turn: usize,
}

/// Decode steps by rows and width of their table: seen, or recorded too.
type Recordings = HashMap<(usize, usize), Option<Recording>>;

/// Each costs some megabytes of a GPU.
const MOST_RECORDINGS: usize = 64;

/// Where the arrays of a decode step lie in its inputs, and their extents.
struct Arrays {
    ids: Range<usize>,
    sources: Range<usize>,
    positions: Range<usize>,
    cached: Range<usize>,
    lengths: Range<usize>,
    draws: Range<usize>,
    table: Range<usize>,
    b: usize,
    width: usize,
}

/// What the engine knows of samples beside their tokens.
#[derive(Default)]
struct Samples {
    /// The key of the random numbers of a prompt's sample.
    keys: HashMap<(u64, u32), u64>,
    /// Log-probabilities so far.
    values: HashMap<SampleId, Vec<f32>>,
}

impl Samples {
    fn add(&mut self, request: Request) -> scheduler::Request {
        let Request { prompt, tokens, samples, max_tokens } = request;
        self.keys.extend(samples.iter().map(|&(sample, key)| ((prompt, sample), key)));
        scheduler::Request { prompt, tokens, samples: samples.into_iter().map(|(sample, _)| sample).collect(), max_tokens }
    }

    fn key(&self, scheduler: &Scheduler, sample: SampleId) -> u64 {
        self.keys[&scheduler.names(sample)]
    }
}

/// A bit for each of `vocab` tokens that a sample holds, prompt included.
fn seen_bits(scheduler: &Scheduler, sample: SampleId, vocab: usize) -> Vec<u32> {
    let mut bits = vec![0u32; vocab.div_ceil(32)];
    for &token in scheduler.prompt(sample).iter().chain(scheduler.tokens(sample)) {
        bits[token as usize / 32] |= 1 << (token % 32);
    }
    bits
}

/// Pages that a table for `pages` has room for.
fn table_width(ops: &dyn Ops, pages: usize) -> usize {
    // Few extents, as for rows, and whole splits.
    const SPLIT: usize = PagedAttention::SPLIT / PAGE;
    if ops.overlaps() { pages.next_power_of_two().max(SPLIT) } else { pages }
}

/// Rows that a step of `rows` is padded to.
fn padded(ops: &dyn Ops, config: &ModelConfig, rows: usize) -> usize {
    let ModelConfig { hidden_size, intermediate_size, vocab_size, .. } = *config;
    let heads = heads(config);
    let narrowest = hidden_size.min(2 * intermediate_size).min(vocab_size).min(heads.fused() * heads.dim);
    let rows = rows.max(ops.steady_rows(narrowest));
    // Few extents, so that launches can be recorded and few algorithms are chosen.
    match rows {
        rows if !ops.overlaps() => rows,
        0..=16 => rows.next_power_of_two(),
        17..=64 => rows.next_multiple_of(8),
        65..=256 => rows.next_multiple_of(16),
        rows => rows.next_multiple_of(64),
    }
}

impl Engine {
    pub fn new(ops: &dyn Ops, config: &ModelConfig, capacity: Capacity) -> Result<Self> {
        let cut = |arenas: &mut Arenas| Self::cut(arenas, ops, config, capacity);
        Ok(Arenas::build(ops.allocator(), ops.host_allocator(), cut)?.0)
    }

    /// The ledgers that [`Engine::new`] would reserve.
    pub fn plan(ops: &dyn Ops, config: &ModelConfig, capacity: Capacity) -> Result<Ledgers> {
        let mut arenas = Arenas::dry();
        Self::cut(&mut arenas, ops, config, capacity)?;
        Ok(arenas.ledgers())
    }

    /// Cuts the buffers.
    pub fn cut(arenas: &mut Arenas, ops: &dyn Ops, config: &ModelConfig, capacity: Capacity) -> Result<Self> {
        let Capacity { pages, host_pages, .. } = capacity;
        let (storage, heads, vocab) = (ops.dtype(), heads(config), config.vocab_size);
        let batch = padded(ops, config, capacity.batch);
        let tokens = padded(ops, config, capacity.chunk).next_multiple_of(ops.token_multiple()).max(batch);
        let width = table_width(ops, capacity.width());
        let decode = words(&[batch, batch, batch, batch, batch, 4 * batch, batch * width]);
        let prefill = words(&[tokens, tokens, tokens, batch + 1, batch, batch * width]);
        let page = [config.num_hidden_layers, 2, heads.kv * PAGE * heads.dim];
        let scratch = PagedAttention::scratch_bytes(storage, batch, width, heads);
        let extent = Extent { classifier: false, ..Extent::new(tokens, Keep::Nothing) };
        let activations = Activations::new(arenas, config, storage, extent)?;
        let numbers = decode.max(prefill);
        let mut host = |name: &str, shape: &[usize], dtype| arenas.host.tensor(name, dtype, shape);
        let staging = [host("step.staging.0", &[numbers], DType::I32)?, host("step.staging.1", &[numbers], DType::I32)?];
        let results = [host("step.results.0", &[2 * batch], DType::I32)?, host("step.results.1", &[2 * batch], DType::I32)?];
        let swapped = host("cache.swapped", &[host_pages, page[0], page[1], page[2]], storage)?;
        let mut device = |name: &str, shape: &[usize], dtype| arenas.device.tensor(name, dtype, shape);
        Ok(Engine {
            capacity,
            batch,
            activations,
            inputs: device("step.inputs", &[numbers], DType::I32)?,
            fed: device("step.fed", &[batch], DType::I32)?,
            drawn: device("step.drawn", &[batch], DType::I32)?,
            log_probabilities: device("step.log_probabilities", &[batch], DType::F32)?,
            logits: device("step.logits", &[batch, vocab], DType::F32)?,
            seen: device("step.seen", &[batch, vocab.div_ceil(32)], DType::I32)?,
            scratch: device("step.scratch", &[scratch], DType::U8)?,
            cache: device("cache.pages", &[pages, page[0], page[1], page[2]], storage)?,
            staging,
            results,
            swapped,
        })
    }

    /// Answers the requests of `next` until it has none, and hands every sample to `sink` as it ends. `watch` is called after every step; an error of it
    /// ends the run, as one of `next` or `sink` does.
    ///
    /// Errors: data, if a prompt has ids beyond the vocabulary; does not fit, see [`Capacity::fits`]; non-finite, if no token can be drawn.
    #[allow(clippy::too_many_arguments)]
    pub fn run(
        &mut self,
        ops: &dyn Ops,
        model: &Qwen2,
        weights: &dyn WeightSource,
        settings: &Settings,
        next: &mut dyn FnMut() -> Result<Option<Request>>,
        sink: &mut dyn FnMut(Finished) -> Result<()>,
        watch: &mut dyn FnMut(&Stats) -> Result<()>,
    ) -> Result<()> {
        let mut scheduler = Scheduler::new(self.capacity.limits())?;
        let mut samples = Samples::default();
        let mut more = true;
        let mut before: Option<Issued> = None;
        let mut recordings = Recordings::new();
        let mut turn = 0;
        loop {
            while more && scheduler.wants_more() {
                match next()? {
                    Some(request) => {
                        self.check(&request, model.config.vocab_size)?;
                        scheduler.push(samples.add(request))?;
                    }
                    None => more = false,
                }
            }
            let step = scheduler.step();
            if step.is_none() && before.is_none() {
                return Ok(());
            }
            let mut issued = None;
            if let Some(step) = step {
                step.moves.iter().try_for_each(|&to| self.shift(ops, to))?;
                // What the step before last wrote its inputs to is free: it was collected.
                issued = Some(match step.work {
                    Work::Prefill(chunks) => self.prefill(ops, model, weights, &chunks, turn)?,
                    Work::Decode(rows) => {
                        let (before, scheduler, samples, recordings) = (before.as_ref(), &scheduler, &samples, &mut recordings);
                        let step = Decode { rows, before, scheduler, samples, recordings, turn };
                        self.decode(ops, model, weights, settings, step)?
                    }
                });
                turn = 1 - turn;
            }
            if !ops.overlaps() {
                // Nothing runs beside the host, so it need not be ahead.
                before = issued.take();
            }
            if let Some(before) = before.take() {
                self.collect(ops, settings, before, &mut scheduler, &mut samples, sink)?;
            }
            before = issued;
            watch(&scheduler.stats())?;
        }
    }

    /// Answers every prompt once, with at most `max_tokens` tokens; `stop` is asked after every step. Random numbers have the prompt's number as their key.
    ///
    /// Errors: those of [`Engine::run`] and of `stop`.
    #[allow(clippy::too_many_arguments)]
    pub fn answer(
        &mut self,
        ops: &dyn Ops,
        model: &Qwen2,
        weights: &dyn WeightSource,
        settings: &Settings,
        prompts: &[Vec<i32>],
        max_tokens: usize,
        stop: &dyn Fn() -> Result<()>,
    ) -> Result<Vec<Finished>> {
        let mut waiting = (0..).zip(prompts);
        let mut next = || {
            let request = |(prompt, tokens): (u64, &Vec<i32>)| Request {
                prompt,
                tokens: tokens.clone(),
                samples: vec![(0, prompt)],
                max_tokens,
            };
            Ok(waiting.next().map(request))
        };
        let mut answers = Vec::with_capacity(prompts.len());
        let mut sink = |answer| {
            answers.push(answer);
            Ok(())
        };
        self.run(ops, model, weights, settings, &mut next, &mut sink, &mut |_| stop())?;
        answers.sort_by_key(|answer| answer.prompt);
        Ok(answers)
    }

    fn check(&self, request: &Request, vocab: usize) -> Result<()> {
        let Request { prompt, tokens, max_tokens, .. } = request;
        if let Some(id) = tokens.iter().find(|id| !(0..vocab as i32).contains(id)) {
            return Err(Error::data(format!("prompt {prompt}: token id {id} is outside the model's vocabulary of {vocab}"))
                .help("the tokenizer does not belong to this model"));
        }
        if tokens.len().saturating_add(*max_tokens) > self.capacity.positions {
            return Err(Error::internal(format!(
                "prompt {prompt}: {} tokens and {max_tokens} new ones; the engine was made for {}",
                tokens.len(),
                self.capacity.positions
            )));
        }
        Ok(())
    }

    /// Moves a page.
    fn shift(&mut self, ops: &dyn Ops, to: Move) -> Result<()> {
        let one = |page: u32| page as usize..page as usize + 1;
        match to {
            Move::Out { page, host } => {
                ops.copy(self.cache.view().rows(one(page)), self.swapped.view_mut().into_rows(one(host)))
            }
            Move::In { host, page } => {
                ops.copy(self.swapped.view().rows(one(host)), self.cache.view_mut().into_rows(one(page)))
            }
            Move::Copy { from, to } => {
                let later = from.max(to) as usize;
                let (low, high) = self.cache.view_mut().split_rows(later);
                let (from, to) = if from < to {
                    (low.into_rows(one(from)), high.into_rows(0..1))
                } else {
                    (high.into_rows(0..1), low.into_rows(one(to)))
                };
                ops.copy(from.as_view(), to)
            }
        }
    }

    /// Computes keys and values of pieces of prompts.
    fn prefill(
        &mut self,
        ops: &dyn Ops,
        model: &Qwen2,
        weights: &dyn WeightSource,
        chunks: &[Chunk],
        turn: usize,
    ) -> Result<Issued> {
        let mut cu_seqlens = vec![0];
        chunks.iter().for_each(|c| cu_seqlens.push(cu_seqlens[cu_seqlens.len() - 1] + c.tokens.len() as i32));
        let sequences = chunks.len();
        let tokens = cu_seqlens[sequences] as usize;
        let t = padded(ops, &model.config, tokens).next_multiple_of(ops.token_multiple());
        let width = table_width(ops, chunks.iter().map(|c| c.pages.len()).max().unwrap_or(1));
        let positions = || chunks.iter().flat_map(|c| c.start..c.start + c.tokens.len());
        let pages = |c: &Chunk, position: usize| c.pages[position / PAGE] as usize * PAGE + position % PAGE;
        let rows = chunks.iter().flat_map(|c| (c.start..c.start + c.tokens.len()).map(move |p| pages(c, p) as i32));

        let mut writer = Writer::new(self.staging[turn].view_mut());
        let ids = writer.array(t, chunks.iter().flat_map(|c| c.tokens.iter().copied()), 0)?;
        let positions = writer.array(t, positions().map(|p| p as i32), 0)?;
        let rows = writer.array(t, rows, -1)?;
        let cu = writer.array(sequences + 1, cu_seqlens.iter().copied(), 0)?;
        let lengths = writer.array(sequences, chunks.iter().map(|c| (c.start + c.tokens.len()) as i32), 0)?;
        let table = writer.table(sequences, width, chunks.iter().map(|c| c.pages.iter().copied()))?;
        let used = writer.used();
        ops.copy(self.staging[turn].rows(used), self.inputs.rows_mut(used))?;
        let inputs = self.inputs.view();
        let step = PagedStep {
            tokens: cut(inputs, ids, &[t]),
            positions: cut(inputs, positions, &[t]),
            rows: cut(inputs, rows, &[t]),
            queries: PagedQueries::Chunks { cu_seqlens: cut(inputs, cu, &[sequences + 1]), cu_seqlens_host: &cu_seqlens },
            pages: cut(inputs, table, &[sequences, width]),
            lengths: cut(inputs, lengths, &[sequences]),
            cache: self.cache.view_mut(),
            scratch: self.scratch.view_mut(),
            algorithm_rows: PREFILL_ROWS,
        };
        model.forward_paged(ops, weights, &mut self.activations, step)?;
        Ok(Issued { rows: Vec::new(), turn, done: ops.mark()? })
    }

    /// Computes a token of each row and draws the next.
    fn decode(
        &mut self,
        ops: &dyn Ops,
        model: &Qwen2,
        weights: &dyn WeightSource,
        settings: &Settings,
        step: Decode,
    ) -> Result<Issued> {
        let Decode { rows, before, scheduler, samples, recordings, turn } = step;
        let penalised = settings.narrowing.repetition_penalty != 1.0;
        for row in rows.iter().filter(|row| row.fresh && penalised) {
            let bits = seen_bits(scheduler, row.sample, model.config.vocab_size);
            let slot = row.slot as usize;
            ops.upload(bytemuck::cast_slice(&bits), self.seen.view_mut().into_rows(slot..slot + 1))?;
        }
        let b = padded(ops, &model.config, rows.len());
        let width = table_width(ops, rows.iter().map(|row| row.position / PAGE + 1).max().unwrap_or(1));
        let place: HashMap<SampleId, i32> =
            before.iter().flat_map(|before| before.rows.iter().zip(0..).map(|(row, at)| (row.sample, at))).collect();
        let source = |row: &Row| match row.token {
            Some(_) => Ok(-1),
            None => place.get(&row.sample).copied().ok_or_else(|| Error::internal("a token is on its way from nowhere")),
        };
        let sources = rows.iter().map(source).collect::<Result<Vec<_>>>()?;
        let cached = |row: &Row| {
            let page = scheduler.pages(row.sample).nth(row.position / PAGE).unwrap_or_default();
            (page as usize * PAGE + row.position % PAGE) as i32
        };
        let draw = |row: &Row| {
            let key = samples.key(scheduler, row.sample);
            // What is known already is not drawn again: `seen` would take it for the first time.
            let slot = if row.replayed { -1 } else { row.slot as i32 };
            [key as i32, (key >> 32) as i32, row.index as i32, slot]
        };
        let mut writer = Writer::new(self.staging[turn].view_mut());
        let ids = writer.array(b, rows.iter().map(|row| row.token.unwrap_or(0)), 0)?;
        let sources = writer.array(b, sources, -1)?;
        let positions = writer.array(b, rows.iter().map(|row| row.position as i32), 0)?;
        let cached = writer.array(b, rows.iter().map(cached), -1)?;
        let lengths = writer.array(b, rows.iter().map(|row| row.position as i32 + 1), 0)?;
        let draws = writer.array(4 * b, rows.iter().flat_map(draw), -1)?;
        let table = writer.table(b, width, rows.iter().map(|row| scheduler.pages(row.sample)))?;
        let used = writer.used();
        ops.copy(self.staging[turn].rows(used), self.inputs.rows_mut(used))?;

        let at = Arrays { ids, sources, positions, cached, lengths, draws, table, b, width };
        match recordings.get(&(b, width)) {
            Some(Some(recording)) => ops.replay(recording)?,
            before => {
                // The first time, libraries choose their algorithms, and kernels are loaded.
                let record = before.is_some() && recordings.len() <= MOST_RECORDINGS && weights.stays();
                let mut compute = || self.compute(ops, model, weights, settings, &at);
                let recording = if record { ops.record(&mut compute)? } else { None };
                match &recording {
                    Some(recording) => ops.replay(recording)?,
                    None => compute()?,
                }
                recordings.insert((b, width), recording);
            }
        }
        let (tokens, values) = self.results[turn].view_mut().split_rows(self.batch);
        ops.copy(self.drawn.rows(b), tokens.into_rows(0..b))?;
        if settings.log_probabilities {
            ops.copy(self.log_probabilities.rows(b), values.into_rows(0..b))?;
        }
        Ok(Issued { rows, turn, done: ops.mark()? })
    }

    /// What a decode step does on the device. It depends on nothing but the shapes and the settings, so that it can be recorded.
    fn compute(
        &mut self,
        ops: &dyn Ops,
        model: &Qwen2,
        weights: &dyn WeightSource,
        settings: &Settings,
        at: &Arrays,
    ) -> Result<()> {
        let (b, inputs) = (at.b, self.inputs.view());
        let array = |range: &Range<usize>| cut(inputs, range.clone(), &[b]);
        ops.feed_tokens(FeedTokens {
            tokens: array(&at.ids),
            source: array(&at.sources),
            drawn: self.drawn.view(),
            out: self.fed.rows_mut(b),
        })?;
        let step = PagedStep {
            tokens: self.fed.rows(b),
            positions: array(&at.positions),
            rows: array(&at.cached),
            queries: PagedQueries::Last,
            pages: cut(inputs, at.table.clone(), &[b, at.width]),
            lengths: array(&at.lengths),
            cache: self.cache.view_mut(),
            scratch: self.scratch.view_mut(),
            algorithm_rows: DECODE_ROWS,
        };
        model.forward_paged(ops, weights, &mut self.activations, step)?;
        model.all_logits(ops, weights, &self.activations, self.logits.rows_mut(b), DECODE_ROWS)?;
        ops.draw_tokens(DrawTokens {
            logits: self.logits.rows(b),
            vocabulary: settings.vocabulary,
            narrowing: settings.narrowing,
            rows: cut(inputs, at.draws.clone(), &[b, 4]),
            seen: (settings.narrowing.repetition_penalty != 1.0).then(|| self.seen.view_mut()),
            tokens: self.drawn.rows_mut(b),
            log_probabilities: settings.log_probabilities.then(|| self.log_probabilities.rows_mut(b)),
        })
    }

    /// Waits for what a step drew, and ends the samples that are done.
    fn collect(
        &mut self,
        ops: &dyn Ops,
        settings: &Settings,
        issued: Issued,
        scheduler: &mut Scheduler,
        samples: &mut Samples,
        sink: &mut dyn FnMut(Finished) -> Result<()>,
    ) -> Result<()> {
        while !ops.is_done(&issued.done)? {
            std::thread::yield_now();
        }
        let (tokens, values) = self.results[issued.turn].view().i32().split_at(self.batch);
        for ((row, &token), &value) in issued.rows.iter().zip(tokens).zip(values) {
            if row.replayed {
                continue;
            }
            let drawn = scheduler.drawn(row.sample, row.index, token);
            if drawn == Drawn::Ignored {
                continue;
            }
            if token < 0 {
                let (prompt, sample) = scheduler.names(row.sample);
                let index = row.index;
                let what = format!("sample {sample} of prompt {prompt}: the logits after {index} new tokens are not finite");
                return Err(Error::non_finite(what).help("`limo-engine inspect model --values` looks for NaN in the weights"));
            }
            if settings.log_probabilities {
                samples.values.entry(row.sample).or_default().push(f32::from_bits(value as u32));
            }
            if let Some(reason) = settings.stop.finished(scheduler.tokens(row.sample), drawn == Drawn::Last) {
                let ended = scheduler.end(row.sample);
                let log_probabilities = samples.values.remove(&row.sample).unwrap_or_default();
                let Ended { prompt, sample, tokens } = ended;
                samples.keys.remove(&(prompt, sample));
                sink(Finished { prompt, sample, tokens, log_probabilities, reason })?;
            }
        }
        Ok(())
    }
}
