//! Batched sampling: runs what the scheduler says. The host is one step ahead: it issues a step, then reads what the step before drew, while the device
//! works; a token that the next step needs goes there on the device.

use super::buffers::{Buffers, Capacity};
use super::runner::{Issued, LoadedModel, Runner, Settings, Times};
use super::scheduler::{self, Drawn, Ended, SampleId, Scheduler, Stats};
use super::stop::FinishReason;
use crate::config::ModelConfig;
use crate::error::{Error, Result};
use crate::ops::Ops;
use crate::tensor::{Arenas, Ledgers};
use std::collections::HashMap;

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

/// A scheduler's steps, run in memory of fixed size.
pub struct Engine {
    capacity: Capacity,
    buffers: Buffers,
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
        Ok(Engine { capacity, buffers: Buffers::cut(arenas, ops, config, capacity)? })
    }

    /// Answers the requests of `next` until it has none, and hands every sample to `sink` as it ends. `watch` is called after every step; an error of it
    /// ends the run, as one of `next` or `sink` does.
    ///
    /// Errors: data, if a prompt has ids beyond the vocabulary; does not fit, see [`Capacity::fits`]; non-finite, if no token can be drawn.
    pub fn run(
        &mut self,
        on: LoadedModel,
        settings: &Settings,
        next: &mut dyn FnMut() -> Result<Option<Request>>,
        sink: &mut dyn FnMut(Finished) -> Result<()>,
        watch: &mut dyn FnMut(&Stats, &Times) -> Result<()>,
    ) -> Result<()> {
        let mut scheduler = Scheduler::new(self.capacity.limits())?;
        let mut samples = Samples::default();
        let mut more = true;
        let mut before: Option<Issued> = None;
        let mut runner = Runner::new(on, settings, &mut self.buffers);
        loop {
            while more && scheduler.wants_more() {
                match next()? {
                    Some(request) => {
                        check(&request, on.model.config.vocab_size, self.capacity.positions)?;
                        scheduler.push(samples.add(request))?;
                    }
                    None => more = false,
                }
            }
            let step = scheduler.step();
            if step.is_none() && before.is_none() {
                let Stats { running, preempted, waiting, .. } = scheduler.stats();
                return match running + preempted + waiting {
                    0 => Ok(()),
                    left => Err(Error::internal(format!("{left} samples are left, and the scheduler has no step for them"))),
                };
            }
            let mut issued = None;
            if let Some(step) = step {
                let key = |sample| samples.key(&scheduler, sample);
                issued = Some(runner.issue(step, before.as_ref(), &scheduler, &key)?);
            }
            if !on.ops.overlaps() {
                // Nothing runs beside the host, so it need not be ahead.
                before = issued.take();
            }
            if let Some(before) = before.take() {
                collect(&mut runner, settings, before, &mut scheduler, &mut samples, sink)?;
            }
            before = issued;
            watch(&scheduler.stats(), &runner.times)?;
        }
    }

    /// Answers every prompt once, with at most `max_tokens` tokens; `stop` is asked after every step. Random numbers have the prompt's number as their key.
    ///
    /// Errors: those of [`Engine::run`] and of `stop`.
    pub fn answer(
        &mut self,
        on: LoadedModel,
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
        self.run(on, settings, &mut next, &mut sink, &mut |_, _| stop())?;
        answers.sort_by_key(|answer| answer.prompt);
        Ok(answers)
    }
}

fn check(request: &Request, vocab: usize, positions: usize) -> Result<()> {
    let Request { prompt, tokens, max_tokens, .. } = request;
    if let Some(id) = tokens.iter().find(|id| !(0..vocab as i32).contains(id)) {
        return Err(Error::data(format!("prompt {prompt}: token id {id} is outside the model's vocabulary of {vocab}"))
            .help("the tokenizer does not belong to this model"));
    }
    if tokens.len().saturating_add(*max_tokens) > positions {
        return Err(Error::internal(format!(
            "prompt {prompt}: {} tokens and {max_tokens} new ones; the engine was made for {positions}",
            tokens.len()
        )));
    }
    Ok(())
}

/// Waits for what a step drew, and ends the samples that are done.
fn collect(
    runner: &mut Runner,
    settings: &Settings,
    issued: Issued,
    scheduler: &mut Scheduler,
    samples: &mut Samples,
    sink: &mut dyn FnMut(Finished) -> Result<()>,
) -> Result<()> {
    let (rows, tokens, values) = runner.collect(issued)?;
    for ((row, &token), &value) in rows.iter().zip(tokens).zip(values) {
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
            let what =
                format!("sample {sample} of prompt {prompt} (from 0): the logits after {index} new tokens are not finite");
            return Err(Error::non_finite(what).help("the weights are damaged, or too large for this --dtype: `limo-engine inspect model DIR --values` describes them"));
        }
        if settings.log_probabilities {
            samples.values.entry(row.sample).or_default().push(f32::from_bits(value as u32));
        }
        if let Some(reason) = settings.stop.finished(scheduler.tokens(row.sample), drawn == Drawn::Last) {
            let Ended { prompt, sample, tokens } = scheduler.end(row.sample);
            let log_probabilities = samples.values.remove(&row.sample).unwrap_or_default();
            samples.keys.remove(&(prompt, sample));
            sink(Finished { prompt, sample, tokens, log_probabilities, reason })?;
        }
    }
    Ok(())
}
