//! Runs steps on a device: moves pages, writes a step's inputs, issues it, and waits for what it drew.

use super::buffers::{Buffers, padded, table_width};
use super::inputs::{Writer, cut};
use super::scheduler::{Chunk, Move, Row, SampleId, Scheduler, Step, Work};
use super::stop::StopRules;
use crate::error::{Error, Result};
use crate::model::{PagedStep, Qwen2, WeightSource};
use crate::ops::{DrawTokens, FeedTokens, Mark, Narrowing, Ops, PAGE, PagedQueries, Recording};
use std::collections::HashMap;
use std::ops::Range;
use std::time::Instant;

/// A model and the device that it lies on.
#[derive(Clone, Copy)]
pub struct LoadedModel<'a> {
    pub ops: &'a dyn Ops,
    pub model: &'a Qwen2,
    pub weights: &'a dyn WeightSource,
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

/// Where the time of the steps went that are done.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Times {
    pub prefill: StepTimes,
    pub decode: StepTimes,
    /// Decode steps that were replayed from a recording.
    pub replayed: u64,
    /// Seconds in which the device had nothing to do between two steps; none where it works only while the host waits.
    pub idle: Option<f64>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct StepTimes {
    pub steps: u64,
    /// Of the device.
    pub seconds: f64,
}

/// Rows that libraries choose algorithms for, the same for every batch and chunk.
const DECODE_ROWS: usize = 128;
const PREFILL_ROWS: usize = 2048;

/// A moment of the device, and the host's when it was asked for.
struct Moment(Mark, Instant);

impl Moment {
    /// Seconds of the device, or of the host where the device has no clock.
    fn since(&self, start: &Moment, ops: &dyn Ops) -> Result<f64> {
        let host = || (self.1 - start.1).as_secs_f64();
        Ok(ops.seconds_between(&start.0, &self.0)?.unwrap_or_else(host).max(0.0))
    }
}

/// A step that was issued.
pub(super) struct Issued {
    /// Of a decode step.
    pub rows: Vec<Row>,
    /// Which of two it is.
    turn: usize,
    began: Moment,
    /// Behind all of it.
    done: Moment,
    replayed: bool,
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

pub(super) struct Runner<'a> {
    on: LoadedModel<'a>,
    settings: &'a Settings<'a>,
    buffers: &'a mut Buffers,
    recordings: Recordings,
    turn: usize,
    /// The last step that was collected ended here.
    last: Option<Moment>,
    pub times: Times,
}

/// A bit for each token that a sample holds, prompt included.
fn mark_seen(scheduler: &Scheduler, sample: SampleId, bits: &mut [i32]) {
    bits.fill(0);
    for &token in scheduler.prompt(sample).iter().chain(scheduler.tokens(sample)) {
        bits[token as usize / 32] |= 1 << (token % 32);
    }
}

impl<'a> Runner<'a> {
    pub fn new(on: LoadedModel<'a>, settings: &'a Settings<'a>, buffers: &'a mut Buffers) -> Self {
        let idle = on.ops.overlaps().then_some(0.0);
        let times = Times { idle, ..Times::default() };
        Runner { on, settings, buffers, recordings: Recordings::new(), turn: 0, last: None, times }
    }

    fn moment(&self) -> Result<Moment> {
        Ok(Moment(self.on.ops.mark()?, Instant::now()))
    }

    /// Issues a step. `before` is the step before, where it was not collected; `key` tells a sample's random numbers.
    pub fn issue(
        &mut self,
        step: Step,
        before: Option<&Issued>,
        scheduler: &Scheduler,
        key: &dyn Fn(SampleId) -> u64,
    ) -> Result<Issued> {
        let began = self.moment()?;
        // What the step before last wrote its inputs to is free: it was collected.
        self.turn = 1 - self.turn;
        step.moves.iter().try_for_each(|&to| self.shift(to))?;
        let (rows, replayed) = match step.work {
            Work::Prefill(chunks) => {
                self.prefill(&chunks)?;
                (Vec::new(), false)
            }
            Work::Decode(rows) => {
                let replayed = self.decode(&rows, before, scheduler, key)?;
                (rows, replayed)
            }
        };
        Ok(Issued { rows, turn: self.turn, began, done: self.moment()?, replayed })
    }

    /// Moves a page.
    fn shift(&mut self, to: Move) -> Result<()> {
        let (ops, one) = (self.on.ops, |page: u32| page as usize..page as usize + 1);
        match to {
            Move::Out { page, host } => {
                ops.copy(self.buffers.cache.view().rows(one(page)), self.buffers.swapped.view_mut().into_rows(one(host)))
            }
            Move::In { host, page } => {
                ops.copy(self.buffers.swapped.view().rows(one(host)), self.buffers.cache.view_mut().into_rows(one(page)))
            }
            Move::Copy { from, to } => {
                let later = from.max(to) as usize;
                let (low, high) = self.buffers.cache.view_mut().split_rows(later);
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
    fn prefill(&mut self, chunks: &[Chunk]) -> Result<()> {
        let LoadedModel { ops, model, weights } = self.on;
        let mut cu_seqlens = vec![0];
        chunks.iter().for_each(|c| cu_seqlens.push(cu_seqlens[cu_seqlens.len() - 1] + c.tokens.len() as i32));
        let sequences = chunks.len();
        let tokens = cu_seqlens[sequences] as usize;
        let t = padded(ops, &model.config, tokens).next_multiple_of(ops.token_multiple());
        let width = table_width(ops, chunks.iter().map(|c| c.pages.len()).max().unwrap_or(1));
        let positions = || chunks.iter().flat_map(|c| c.start..c.start + c.tokens.len());
        let pages = |c: &Chunk, position: usize| c.pages[position / PAGE] as usize * PAGE + position % PAGE;
        let rows = chunks.iter().flat_map(|c| (c.start..c.start + c.tokens.len()).map(move |p| pages(c, p) as i32));

        let staging = &mut self.buffers.staging[self.turn];
        let mut writer = Writer::new(staging.view_mut());
        let ids = writer.array(t, chunks.iter().flat_map(|c| c.tokens.iter().copied()), 0)?;
        let positions = writer.array(t, positions().map(|p| p as i32), 0)?;
        let rows = writer.array(t, rows, -1)?;
        let cu = writer.array(sequences + 1, cu_seqlens.iter().copied(), 0)?;
        let lengths = writer.array(sequences, chunks.iter().map(|c| (c.start + c.tokens.len()) as i32), 0)?;
        let table = writer.table(sequences, width, chunks.iter().map(|c| c.pages.iter().copied()))?;
        let used = writer.used();
        ops.copy(staging.rows(used), self.buffers.inputs.rows_mut(used))?;
        let inputs = self.buffers.inputs.view();
        let step = PagedStep {
            tokens: cut(inputs, ids, &[t]),
            positions: cut(inputs, positions, &[t]),
            rows: cut(inputs, rows, &[t]),
            queries: PagedQueries::Chunks { cu_seqlens: cut(inputs, cu, &[sequences + 1]), cu_seqlens_host: &cu_seqlens },
            pages: cut(inputs, table, &[sequences, width]),
            lengths: cut(inputs, lengths, &[sequences]),
            cache: self.buffers.cache.view_mut(),
            scratch: self.buffers.scratch.view_mut(),
            algorithm_rows: PREFILL_ROWS,
        };
        model.forward_paged(ops, weights, &mut self.buffers.activations, step)
    }

    /// Computes a token of each row and draws the next. Returns whether a recording did.
    fn decode(
        &mut self,
        rows: &[Row],
        before: Option<&Issued>,
        scheduler: &Scheduler,
        key: &dyn Fn(SampleId) -> u64,
    ) -> Result<bool> {
        let (LoadedModel { ops, model, .. }, turn) = (self.on, self.turn);
        let penalised = self.settings.narrowing.repetition_penalty != 1.0;
        for row in rows.iter().filter(|row| row.fresh && penalised) {
            let slot = row.slot as usize..row.slot as usize + 1;
            let Buffers { seen, seen_staging, .. } = &mut *self.buffers;
            mark_seen(scheduler, row.sample, seen_staging[turn].view_mut().into_rows(slot.clone()).i32());
            ops.copy(seen_staging[turn].view().rows(slot.clone()), seen.view_mut().into_rows(slot))?;
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
            let page = scheduler.pages(row.sample).nth(row.position / PAGE);
            let page = page.ok_or_else(|| Error::internal("a token has no page"))?;
            Ok((page as usize * PAGE + row.position % PAGE) as i32)
        };
        let cached = rows.iter().map(cached).collect::<Result<Vec<_>>>()?;
        let draw = |row: &Row| {
            let key = key(row.sample);
            // What is known already is not drawn again: `seen` would take it for the first time.
            let slot = if row.replayed { -1 } else { row.slot as i32 };
            [key as i32, (key >> 32) as i32, row.index as i32, slot]
        };
        let mut writer = Writer::new(self.buffers.staging[turn].view_mut());
        let ids = writer.array(b, rows.iter().map(|row| row.token.unwrap_or(0)), 0)?;
        let sources = writer.array(b, sources, -1)?;
        let positions = writer.array(b, rows.iter().map(|row| row.position as i32), 0)?;
        let cached = writer.array(b, cached, -1)?;
        let lengths = writer.array(b, rows.iter().map(|row| row.position as i32 + 1), 0)?;
        let draws = writer.array(4 * b, rows.iter().flat_map(draw), -1)?;
        let table = writer.table(b, width, rows.iter().map(|row| scheduler.pages(row.sample)))?;
        let used = writer.used();
        ops.copy(self.buffers.staging[turn].rows(used), self.buffers.inputs.rows_mut(used))?;

        let replayed = self.record_or_replay(&Arrays { ids, sources, positions, cached, lengths, draws, table, b, width })?;
        let (tokens, values) = self.buffers.results[turn].view_mut().split_rows(self.buffers.batch);
        ops.copy(self.buffers.drawn.rows(b), tokens.into_rows(0..b))?;
        if self.settings.log_probabilities {
            ops.copy(self.buffers.log_probabilities.rows(b), values.into_rows(0..b))?;
        }
        Ok(replayed)
    }

    /// Issues a decode step. Returns whether it was a recording.
    fn record_or_replay(&mut self, at: &Arrays) -> Result<bool> {
        let LoadedModel { ops, weights, .. } = self.on;
        let shape = (at.b, at.width);
        if let Some(Some(recording)) = self.recordings.get(&shape) {
            ops.replay(recording)?;
            return Ok(true);
        }
        // The first time, libraries choose their algorithms, and kernels are loaded.
        let record = self.recordings.contains_key(&shape)
            && self.recordings.values().flatten().count() < MOST_RECORDINGS
            && weights.stays();
        let recording = if record { ops.record(&mut || self.compute(at))? } else { None };
        match &recording {
            Some(recording) => ops.replay(recording)?,
            None => self.compute(at)?,
        }
        let replayed = recording.is_some();
        self.recordings.insert(shape, recording);
        Ok(replayed)
    }

    /// What a decode step does on the device. It depends on nothing but the shapes and the settings, so that it can be recorded.
    fn compute(&mut self, at: &Arrays) -> Result<()> {
        let LoadedModel { ops, model, weights } = self.on;
        let settings = self.settings;
        let (b, inputs) = (at.b, self.buffers.inputs.view());
        let array = |range: &Range<usize>| cut(inputs, range.clone(), &[b]);
        ops.feed_tokens(FeedTokens {
            tokens: array(&at.ids),
            source: array(&at.sources),
            drawn: self.buffers.drawn.view(),
            out: self.buffers.fed.rows_mut(b),
        })?;
        let step = PagedStep {
            tokens: self.buffers.fed.rows(b),
            positions: array(&at.positions),
            rows: array(&at.cached),
            queries: PagedQueries::Last,
            pages: cut(inputs, at.table.clone(), &[b, at.width]),
            lengths: array(&at.lengths),
            cache: self.buffers.cache.view_mut(),
            scratch: self.buffers.scratch.view_mut(),
            algorithm_rows: DECODE_ROWS,
        };
        model.forward_paged(ops, weights, &mut self.buffers.activations, step)?;
        model.all_logits(ops, weights, &self.buffers.activations, self.buffers.logits.rows_mut(b), DECODE_ROWS)?;
        ops.draw_tokens(DrawTokens {
            logits: self.buffers.logits.rows(b),
            vocabulary: settings.vocabulary,
            narrowing: settings.narrowing,
            rows: cut(inputs, at.draws.clone(), &[b, 4]),
            seen: (settings.narrowing.repetition_penalty != 1.0).then(|| self.buffers.seen.view_mut()),
            tokens: self.buffers.drawn.rows_mut(b),
            log_probabilities: settings.log_probabilities.then(|| self.buffers.log_probabilities.rows_mut(b)),
        })
    }

    /// Waits for a step: its rows, and for each of them the token that it drew and the bits of its log-probability.
    pub fn collect(&mut self, issued: Issued) -> Result<(Vec<Row>, &[i32], &[i32])> {
        let ops = self.on.ops;
        let Issued { rows, turn, began, done, replayed } = issued;
        while !ops.is_done(&done.0)? {
            std::thread::yield_now();
        }
        let steps = if rows.is_empty() { &mut self.times.prefill } else { &mut self.times.decode };
        steps.steps += 1;
        steps.seconds += done.since(&began, ops)?;
        self.times.replayed += u64::from(replayed);
        if let (Some(idle), Some(last)) = (&mut self.times.idle, &self.last) {
            *idle += began.since(last, ops)?;
        }
        self.last = Some(done);
        let (tokens, values) = self.buffers.results[turn].view().i32().split_at(self.buffers.batch);
        Ok((rows, tokens, values))
    }
}
